/* What the files of the core share. driftline.h is the manual; this is the machinery behind it. */
#ifndef DRIFTLINE_INTERNAL_H
#define DRIFTLINE_INTERNAL_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "driftline.h"
#include "kernels.h"

#define NONE UINT32_MAX
#define NEVER UINT64_MAX
#define NO_ROW UINT64_MAX
#define SOURCE_BYTES sizeof(uint64_t[2])
#define SLAB_BITS 10
#define SLAB_MASK (DL_SLAB - 1u)
#define MAX_SLABS (1u << 20)
#define MAX_LEVEL 15
#define MAX_SEGMENTS (1u << 16)

_Static_assert(1u << SLAB_BITS == DL_SLAB, "a slab is a power of two");

/* splitmix64's finaliser (Steele, Lea, Flood 2014): one hash for levels, keys and signs. */
static inline uint64_t dl_mix(uint64_t z)
{
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* ---- slabs.c: slots, blocks, records ---- */

/* Memory that readers may still hold after it was replaced; first member of what is retired. */
typedef struct retired {
    struct retired *next;
    uint64_t stamp;
    enum { RETIRED_BLOCK, RETIRED_FRAME, RETIRED_SLAB } what;
} retired;

/* A frame's parameters as kernels want them. Immutable once published; freed when no reader can hold it. */
typedef struct frame {
    retired link;
    bool is_float, rotated;
    float *mean, *scale, *inv_scale; /* [dim] */
    dl_grid grid;
    float fine[256], coarse_by_code[256]; /* what a code decodes to, by all its bits and by those that route */
    int16_t fine_int[257];  /* fine / fine_step, |.| <= 4096; one more, since a gather reads four bytes */
    uint8_t coarse_int[32]; /* by the bits that route: (coarse - coarse_low) / coarse_step, 0..127 */
    float fine_step, coarse_step, coarse_low;
    int64_t *counts;        /* [dim * 16] live codes; commit lock */
    uint64_t rows;          /* occupied slots; commit lock */
} frame;

/* What a hop reads of a row before its codes, and in the same cache line. */
typedef struct {
    float coarse_norm, fine_norm; /* |decoded - mean|^2, by the bits that route and by all */
    uint16_t stretch;      /* upper half of a float: <x', x'> / <x', signs>, by which a sum over signs estimates <q', x'> */
    uint8_t frame;
    _Atomic uint8_t flags; /* 0: visible to whoever reads now */
} head;

enum { UNBORN = 1, FRESH = 2, DEAD = 4 }; /* free or not committed; birth still to be compared; death to be compared */

/* Codes of one slab. Tile rows: head and the planes that route, then in a part of their own the rest (kernels.h): signs and upper,
 * with route_bits 5 lower too. Float rows: head, floats. */
typedef struct block {
    retired link;
    bool is_float;
    size_t bytes;
    uint8_t *rows; /* [DL_SLAB] of row_bytes or float_bytes */
    uint8_t *rest; /* [DL_SLAB] of rest_bytes */
} block;

/* The key and payload of one slot version, and its links above level 0; immutable but for those. */
typedef struct {
    uint32_t payload_size;
    uint16_t key_size;
    uint8_t level;
    _Atomic uint32_t upper[]; /* [level * m]: level l at (l - 1) * m; then key, then payload */
} record;

typedef enum { SLOT_FREE, SLOT_LIVE, SLOT_DEAD, SLOT_UNLINKING, SLOT_LIMBO } slot_state;

/* Level-0 links of slot i stand at links[i * 2m], NONE after the last. Readers may see a list half rewritten: every entry is
 * a slot that their pin keeps from being reused. The edges of the spanning tree are marked with TREE. */
#define TREE 0x80000000u
#define NO_PARENT (NONE - 1) /* not in the tree yet */

typedef struct slab {
    retired link;
    block *block;           /* structure lock; readers go by ix->places */
    _Atomic uint32_t *links;
    _Atomic(record *) records[DL_SLAB];
    _Atomic uint64_t row[DL_SLAB];
    _Atomic uint32_t birth[DL_SLAB], death[DL_SLAB]; /* low half of the clock; meaningful while the flag stands */
    _Atomic uint32_t parent[DL_SLAB];
    uint32_t heir[DL_SLAB]; /* of a dead slot: where its row was moved to, with its record; NONE: nowhere. Structure lock */
    uint8_t level[DL_SLAB];
    _Atomic uint8_t state[DL_SLAB]; /* slot_state */
    _Atomic uint8_t locks[DL_SLAB]; /* of the slot's links and of its children's parent */
    uint32_t used;                  /* slots of this slab ever handed out; commit lock */
    uint32_t vacancies;             /* how many of them may be handed out again, and which; commit lock */
    uint64_t vacant[DL_SLAB / 64];
    _Atomic uint64_t version;
    uint64_t base;                  /* the version that the last cut saw; NEVER: none, or all was written anew. Structure lock */
    _Atomic uint64_t changed[DL_SLAB / 64], renewed[DL_SLAB / 64]; /* since then: slots, and those of them not in links alone */
    uint32_t debt;                  /* cut.c: what saving changes alone has cost since the slab was saved whole. Structure lock */
    uint64_t sources[][2];          /* [DL_SLAB] where config.sources; commit lock, or the structure alone */
} slab;

/* ---- epoch.c: readers and retired memory ---- */
typedef struct {
    float distance;
    uint32_t slot;
} near;

/* A vector against which codes are measured: integer weights per frame, made on first touch. */
typedef struct {
    bool ready;
    int8_t *w8;      /* [padded] */
    int16_t *w16;    /* [padded] */
    float base;      /* of a distance: |q - mean|^2 (l2), half of it (cosine), -<q, mean> (ip) */
    float sign_step; /* of the sum over signs, in which `total` is the sum of all w8 */
    float coarse_factor, coarse_offset, fine_factor;
    int32_t total;
    /* How far the sum over signs was off so far in this walk, in its own units (walk.c). */
    float squares, margin;
    uint32_t samples, tested, passed;
} lane;

typedef struct {
    float *plain, *turned; /* [dim]: original (normalised under cosine) and rotated coordinates */
    bool has_plain, has_turned;
    lane lanes[DL_FRAMES];
    void *memory;
} probe;

typedef struct {
    near *items;
    uint32_t size, capacity;
} heap;

enum { POOL_MOST = 1024 }; /* entries that a walk keeps sorted; a wider one keeps heaps */

/* How far a walk goes. It keeps the `most` nearest and ends where the next one is farther than `ratio` times the k-th of them, though
 * not before the `least` nearest are walked from. With `once` it keeps one row of those that are alike, unless it keeps heaps. */
typedef struct {
    uint32_t k, least, most;
    float ratio;
    bool once;
} extent;

/* As Malkov & Yashunin do: all of the `ef` nearest are walked from. */
static inline extent fixed_extent(uint32_t ef)
{
    return (extent){ef, ef, ef, 1, false};
}

/* One thread's memory, for a search or an insertion. Kept on a list that only grows, claimed by compare-and-swap. */
typedef struct reader {
    struct reader *next;
    _Atomic uint64_t pin; /* 0: idle; else no slot that died or was retired after pin - 1 may be reused */
    _Atomic bool claimed;
    uint64_t *seen;       /* a bit per slot met in this walk */
    uint32_t seen_slabs;
    uint32_t *marked;     /* the slots whose bits are set */
    size_t marked_count, marked_capacity;
    extent reach;
    near *pool;           /* walk.c: the best so far, ascending; EXPANDED marks the slots walked from */
    uint32_t pool_size, pool_capacity, cursor;
    float growth;         /* of the distances that the last insertion met (growth.c); 0: not known */
    heap candidates, results;
    probe query;
    near *picked;         /* the results in order; neighbour lists under selection */
    size_t picked_size;
    probe *kept;          /* [2m + 1], made for the first insertion: chosen neighbours, and one for a list's owner */
    float *plain, *turned; /* [dim] */
    uint8_t *codes;       /* [padded] */
    void *memory;
} reader;

typedef struct {
    uint32_t slot;
    uint64_t stamp;
} stamped;

typedef struct {
    stamped *items;
    size_t start, end, capacity;
} queue;

/* What a hop needs of a slab, in a table of its own: one line holds four slabs. */
typedef struct {
    _Atomic uintptr_t rows; /* block.rows; the lowest bit is set where they are floats */
    _Atomic(_Atomic uint32_t *) links;
} place;

/* A row that is to change its slot. */
typedef struct {
    uint32_t from, to;
} move;

typedef struct chunk chunk;
typedef struct piece piece;
typedef struct cell cell;
typedef struct dl_cut dl_cut;
#define CELL_MOST ((size_t)512) /* bytes of a record that is a cell; beyond, malloc's header is little */

/* Slots that a search may return. */
typedef struct {
    const uint64_t *bits;
    uint32_t slots;
    uint64_t count; /* bits that are set */
} allowed;

static inline bool is_allowed(const allowed *a, uint32_t slot)
{
    return !a || (slot < a->slots && a->bits[slot >> 6] >> (slot & 63) & 1);
}

/* Locks, in the order in which they are taken:
 *   structure   insertions, deletions and the saving of a slab share it; upkeep, publishing a re-encoded slab, frames and the
 *               beginning of a cut have it alone
 *   slab.locks  a spin lock a slot; one at a time
 *   commit      the key map, slots handed out, counters, the clock's ticks: held for a few hundred nanoseconds
 *   images      what a cut keeps of slots that change: for the copy of one slot */
struct dl_index {
    dl_config config;
    uint32_t padded;     /* dim rounded up to 32 */
    uint32_t row_bytes, rest_bytes, float_bytes; /* of a row in a block */
    uint32_t links0;     /* 2m */
    float dot_share, norm_share; /* of <q', x'> and |x'|^2 in a distance, by the metric */
    double level_factor;
    pthread_mutex_t gate, leaving;
    pthread_cond_t left;
    _Atomic uint32_t sharing; /* threads that share the structure */
    pthread_mutex_t commit;
    pthread_mutex_t pages;    /* pages.c */

    place *places;          /* [MAX_SLABS], touched as it grows */
    _Atomic(slab *) *slabs; /* [MAX_SLABS] */
    _Atomic uint32_t slab_count;
    _Atomic uint32_t slot_count;
    _Atomic(frame *) frames[DL_FRAMES];
    _Atomic uint32_t write_frame;
    _Atomic(const float *) *segments; /* [MAX_SEGMENTS] base addresses */
    uint32_t *segment_rows;
    _Atomic uint32_t *referring;      /* [MAX_SEGMENTS] slots whose row lies there, dead ones too */
    _Atomic(dl_cut *) cut;            /* cut.c: the one that is open; changes with the structure held alone */
    pthread_mutex_t images;           /* its images */

    _Atomic uint64_t clock; /* starts at 1; one tick a visible change */
    _Atomic uint32_t entry;
    _Atomic uint64_t rehung; /* subtrees that were given another parent: walks look again (walk.c) */
    _Atomic uint64_t live;
    uint64_t inserted;      /* of all time: seeds the levels; commit lock */
    _Atomic float growth;   /* the j-th nearest is about (j / k)^growth times as far as the k-th; 0: not known. Written under commit */
    uint32_t linking;       /* slots taken and not yet committed; commit lock */

    uint32_t *buckets;      /* slots by the hash of their key; NONE: empty */
    uint32_t bucket_mask, bucket_used;

    uint64_t *roomy;        /* [MAX_SLABS / 64] a bit per slab that has vacancies; commit lock, as their number */
    uint32_t vacancies;
    uint64_t versions;      /* above those of all slabs that are gone */
    move *moves;            /* evacuate.c: what the next upkeep carries out; NULL: nothing. Structure lock */
    uint32_t move_count;
    bool evacuating;
    queue fresh;            /* born, and perhaps not visible to the oldest reader; commit lock */
    queue dead;             /* invisible, still linked; moved ones too */
    queue limbo;            /* unlinked, waiting for readers */
    uint32_t *round;        /* the dead being unlinked now */
    size_t round_size, round_capacity;
    uint32_t round_slab;
    retired *retired;       /* structure lock, alone */

    _Atomic(reader *) readers;
    chunk *chunks;          /* pages.c */
    piece *given, *spare;
    cell *cells[CELL_MOST / 8 + 1]; /* given back, by size */
    uint8_t *run, *run_end;         /* what new cells are carved from */
    _Atomic size_t link_bytes, key_bytes, block_bytes;
};

static inline slab *slab_of(const dl_index *ix, uint32_t slot)
{
    return atomic_load_explicit(&ix->slabs[slot >> SLAB_BITS], memory_order_acquire);
}

static inline size_t slab_bytes(const dl_index *ix)
{
    return sizeof(slab) + (ix->config.sources ? DL_SLAB * SOURCE_BYTES : 0);
}

static inline record *record_of(const dl_index *ix, uint32_t slot)
{
    return atomic_load_explicit(&slab_of(ix, slot)->records[slot & SLAB_MASK], memory_order_acquire);
}

static inline uint8_t *key_of(const dl_index *ix, record *r)
{
    return (uint8_t *)(r->upper + (size_t)r->level * ix->config.m);
}

static inline uint32_t link_cap(const dl_index *ix, uint32_t level)
{
    return level == 0 ? ix->links0 : ix->config.m;
}

static inline _Atomic uint32_t *links_of(const dl_index *ix, uint32_t slot, uint32_t level)
{
    if (level == 0)
        return atomic_load_explicit(&ix->places[slot >> SLAB_BITS].links, memory_order_acquire) +
               (size_t)(slot & SLAB_MASK) * ix->links0;
    return record_of(ix, slot)->upper + (size_t)(level - 1) * ix->config.m;
}

static inline uint32_t get(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline void put(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

/* Entry i of a list of at most `cap`: whether there is one, and its slot, without the mark of the tree. */
static inline bool link_at(const _Atomic uint32_t *links, uint32_t cap, uint32_t i, uint32_t *slot)
{
    if (i >= cap)
        return false;
    uint32_t word = get(links + i);
    *slot = word & ~TREE;
    return word != NONE;
}

static inline uint32_t link_count(const _Atomic uint32_t *links, uint32_t cap)
{
    uint32_t count = 0;
    while (count < cap && get(links + count) != NONE)
        count++;
    return count;
}

/* The row of a slot's codes; *is_float tells its kind. */
static inline uint8_t *row_of(const dl_index *ix, uint32_t slot, bool *is_float)
{
    uintptr_t rows = atomic_load_explicit(&ix->places[slot >> SLAB_BITS].rows, memory_order_acquire);
    *is_float = rows & 1;
    return (uint8_t *)(rows & ~(uintptr_t)1) + (size_t)(slot & SLAB_MASK) * (rows & 1 ? ix->float_bytes : ix->row_bytes);
}

/* What does not route of a tile row: behind all rows of the same block (asking for the block again might give another). */
static inline const uint8_t *rest_of(const dl_index *ix, const head *row, uint32_t slot)
{
    uint32_t i = slot & SLAB_MASK;
    return (const uint8_t *)row + (size_t)(DL_SLAB - i) * ix->row_bytes + (size_t)i * ix->rest_bytes;
}

/* The planes of a tile row. */
typedef struct {
    uint8_t *signs, *upper, *lower, *lows;
} planes;

static inline planes planes_of(const dl_index *ix, const head *row, const uint8_t *rest)
{
    uint8_t *signs = (uint8_t *)(uintptr_t)(row + 1), *upper = signs + ix->padded / 8, *apart = (uint8_t *)(uintptr_t)rest;
    bool wide = ix->config.route_bits == 5;
    return (planes){signs, upper, wide ? upper + ix->padded / 4 : apart, wide ? apart : apart + ix->padded / 4};
}

static inline head *head_of(const dl_index *ix, uint32_t slot)
{
    bool is_float;
    return (head *)(void *)row_of(ix, slot, &is_float);
}

static inline head *block_head(const dl_index *ix, const block *b, uint32_t i)
{
    return (head *)(void *)(b->rows + (size_t)i * (b->is_float ? ix->float_bytes : ix->row_bytes));
}

/* Whether two rows have the same code. */
static inline bool alike(const dl_index *ix, uint32_t one, uint32_t other)
{
    bool is_float, other_is_float;
    const head *a = (const head *)(const void *)row_of(ix, one, &is_float);
    const head *b = (const head *)(const void *)row_of(ix, other, &other_is_float);
    if (is_float || other_is_float)
        return is_float && other_is_float && !memcmp(a + 1, b + 1, ix->config.dim * sizeof(float));
    return a->fine_norm == b->fine_norm && a->frame == b->frame &&
           !memcmp(a + 1, b + 1, ix->padded / 8 * ix->config.route_bits) &&
           !memcmp(rest_of(ix, a, one), rest_of(ix, b, other), ix->rest_bytes);
}

enum { LINE = 64 }; /* bytes of a cache line */

static inline void fetch_row(const void *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += LINE)
        __builtin_prefetch((const uint8_t *)row + at, 0, 3);
}

/* A row as far as the signs go. */
static inline size_t sign_bytes(const dl_index *ix)
{
    return sizeof(head) + ix->padded / 8;
}

static inline slot_state state_of(const dl_index *ix, uint32_t slot)
{
    return (slot_state)atomic_load_explicit(&slab_of(ix, slot)->state[slot & SLAB_MASK], memory_order_acquire);
}

static inline void set_state(const dl_index *ix, uint32_t slot, slot_state state)
{
    atomic_store_explicit(&slab_of(ix, slot)->state[slot & SLAB_MASK], (uint8_t)state, memory_order_release);
}

static inline uint32_t heir_of(const dl_index *ix, uint32_t slot)
{
    return slab_of(ix, slot)->heir[slot & SLAB_MASK];
}

static inline uint8_t level_of(const dl_index *ix, uint32_t slot)
{
    return slab_of(ix, slot)->level[slot & SLAB_MASK];
}

void keep_image(dl_index *ix, uint32_t slot); /* cut.c */

/* Comes before every change of what is saved of a slot, under the hold of the structure in which the change is made: an open cut
 * still wants it as it was. `renewed`: its key, payload, code or frame changes, not only state, row, source, parent and links. */
static inline void before_change(dl_index *ix, uint32_t slot, bool renewed)
{
    slab *s = slab_of(ix, slot);
    uint32_t word = (slot & SLAB_MASK) >> 6;
    uint64_t bit = 1ull << (slot & 63);
    atomic_fetch_add_explicit(&s->version, 1, memory_order_relaxed);
    if (!(atomic_load_explicit(&s->changed[word], memory_order_relaxed) & bit))
        atomic_fetch_or_explicit(&s->changed[word], bit, memory_order_relaxed);
    if (renewed)
        atomic_fetch_or_explicit(&s->renewed[word], bit, memory_order_relaxed);
    if (atomic_load_explicit(&ix->cut, memory_order_relaxed))
        keep_image(ix, slot);
}

/* The row of an occupied slot, which the segments' counts follow. */
static inline void set_row(dl_index *ix, uint32_t slot, uint64_t row)
{
    uint64_t old = atomic_exchange(&slab_of(ix, slot)->row[slot & SLAB_MASK], row);
    if (old != NO_ROW)
        atomic_fetch_sub_explicit(&ix->referring[old >> 32], 1, memory_order_relaxed);
    if (row != NO_ROW)
        atomic_fetch_add_explicit(&ix->referring[row >> 32], 1, memory_order_relaxed);
}

/* Whether a slot that carries flags answers a search of the moment `now`. */
static inline bool visible_flagged(const dl_index *ix, uint32_t slot, uint8_t flags, uint64_t now)
{
    const slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    if (flags & UNBORN)
        return false;
    if (flags & FRESH && (int32_t)((uint32_t)now - atomic_load_explicit(&s->birth[i], memory_order_acquire)) < 0)
        return false;
    return !(flags & DEAD) || (int32_t)((uint32_t)now - atomic_load_explicit(&s->death[i], memory_order_acquire)) < 0;
}

static inline uint8_t flags_of(const head *h)
{
    return atomic_load_explicit(&h->flags, memory_order_acquire);
}

#define EVERYTHING NEVER /* the moment of whoever links: all that is not dead counts */

/* Whether a slot with these flags may be returned. */
static inline bool answers(const dl_index *ix, uint32_t slot, uint8_t flags, uint64_t now, const allowed *only)
{
    if (flags && !(now == EVERYTHING ? !(flags & DEAD) : visible_flagged(ix, slot, flags, now)))
        return false;
    return is_allowed(only, slot);
}

static inline const float *raw_of(const dl_index *ix, uint64_t row)
{
    if (row == NO_ROW)
        return NULL;
    const float *base = atomic_load_explicit(&ix->segments[row >> 32], memory_order_acquire);
    return base ? base + (row & UINT32_MAX) * ix->config.dim : NULL;
}

/* locks.c */
void share_structure(dl_index *ix);
void unshare_structure(dl_index *ix);
void take_structure(dl_index *ix);
void leave_structure(dl_index *ix);
void lock_slot(dl_index *ix, uint32_t slot);
void unlock_slot(dl_index *ix, uint32_t slot);

record *record_new(dl_index *ix, uint8_t level, const uint8_t *key, size_t key_size, const uint8_t *payload, size_t payload_size);
void record_free(dl_index *ix, record *r);
int slab_add(dl_index *ix);
void slab_free(dl_index *ix, slab *s);
int slot_take(dl_index *ix, uint32_t *slot);
uint32_t slot_take_in(dl_index *ix, uint32_t number);
void slot_vacate(dl_index *ix, uint32_t slot);
void slot_release(dl_index *ix, uint32_t slot);
block *block_new(dl_index *ix, bool is_float);
void block_free(dl_index *ix, block *b);
void block_publish(dl_index *ix, uint32_t number, block *b);
void block_put(const dl_index *ix, block *b, uint32_t i, uint32_t frame_id, const float *plain, float *turned,
               uint8_t *codes);
void block_codes(const dl_index *ix, const block *b, uint32_t i, uint8_t *codes);
void count_codes(dl_index *ix, uint32_t slot, int sign, uint8_t *codes);
frame *frame_of(const dl_index *ix, uint32_t id);
uint32_t float_frame(const dl_index *ix); /* the float frame's number, or NONE */
void to_plain(const dl_index *ix, const float *x, float *plain);

/* pages.c */
void *pages_take(dl_index *ix, size_t bytes);
void pages_give(dl_index *ix, void *memory, size_t bytes);
void pages_free(dl_index *ix);
void *cell_take(dl_index *ix, size_t bytes);
void cell_give(dl_index *ix, void *memory, size_t bytes);
void *table_new(size_t bytes);
void table_free(void *table, size_t bytes);

reader *reader_enter(dl_index *ix, uint64_t *now);
void reader_leave(reader *r);
void reader_free(dl_index *ix, reader *r);
int reader_links(const dl_index *ix, reader *r); /* what an insertion needs besides */
uint64_t oldest_pin(dl_index *ix);
void retire(dl_index *ix, retired *item, int what);
void retired_sweep(dl_index *ix);
int queue_reserve(queue *q, size_t n);
void queue_push(queue *q, uint32_t slot, uint64_t stamp);
void queue_trim(queue *q);

int probe_init(const dl_index *ix, probe *p);
void probe_free(probe *p);
void probe_vector(const dl_index *ix, probe *p, const float *plain);
void probe_slot(const dl_index *ix, probe *p, uint32_t slot, uint8_t *codes);
void lane_prepare(const dl_index *ix, probe *p, uint32_t frame_id);

static inline lane *lane_of(const dl_index *ix, probe *p, uint32_t frame_id)
{
    if (__builtin_expect(!p->lanes[frame_id].ready, 0))
        lane_prepare(ix, p, frame_id);
    return &p->lanes[frame_id];
}

/* A distance from <q', x'>, what the query adds and the row's norm. */
static inline float distance_from(const dl_index *ix, float base, float dot, float norm)
{
    return base - ix->dot_share * dot + ix->norm_share * norm;
}

/* The sum that routes, of a row in the frame's own steps. */
static inline int32_t coarse_dot(const dl_index *ix, const dl_kernels *k, const lane *l, const frame *f, const head *row)
{
    const uint8_t *signs = (const uint8_t *)(row + 1), *upper = signs + ix->padded / 8;
    return ix->config.route_bits == 3 ? k->dot3(signs, upper, l->w8, f->coarse_int, ix->padded)
                                      : k->dot5(signs, upper, upper + ix->padded / 4, l->w8, f->coarse_int, ix->padded);
}

float coarse_distance(const dl_index *ix, probe *p, uint32_t slot);
float fine_distance(const dl_index *ix, probe *p, uint32_t slot);
float distance_float(const dl_index *ix, probe *p, const float *row);
float distance_raw(const dl_index *ix, const float *query, const float *row);

/* Of a walk for neighbours: one of many identical rows stands for all, or no other would be found near them. */
static inline extent linking_extent(const dl_index *ix)
{
    extent reach = fixed_extent(ix->config.ef_construction);
    reach.once = true;
    return reach;
}

/* walk.c, filtered.c, refine.c, heaps.c */
int walk(dl_index *ix, reader *r, uint32_t start, uint32_t level, extent reach, uint64_t now, const allowed *only);
int walk_allowed(dl_index *ix, reader *r, uint32_t start, uint32_t few, uint32_t ef, extent reach, uint64_t now,
                 const allowed *only);
int scan(dl_index *ix, reader *r, uint32_t ef, uint64_t now, const allowed *only);
uint32_t descend(const dl_index *ix, reader *r, uint32_t start, uint32_t to);
int found(reader *r, uint32_t want, uint32_t *count);
typedef float (*measured)(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead);
float by_codes(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead);
float by_raw(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead);
int sharpen(const dl_index *ix, reader *r, uint32_t *count, uint32_t want, measured by);
bool heap_push(heap *h, near item, bool max);
near heap_pop(heap *h, bool max);

/* Into a heap of the `most` nearest. */
static inline bool heap_keep(heap *h, near item, uint32_t most)
{
    if (h->size == most && item.distance >= h->items[0].distance)
        return true;
    if (!heap_push(h, item, true))
        return false;
    if (h->size > most)
        heap_pop(h, true);
    return true;
}
void near_sort(near *items, size_t n);
int picked_reserve(reader *r, size_t n);
bool seen_reset(dl_index *ix, reader *r);
bool seen_room(reader *r, size_t n); /* for so many more */

/* And marks it. */
static inline bool seen_before(reader *r, uint32_t slot)
{
    uint64_t *word = &r->seen[slot >> 6], bit = 1ull << (slot & 63);
    bool seen = *word & bit;
    *word |= bit;
    r->marked[r->marked_count] = slot;
    r->marked_count += !seen;
    return seen;
}

/* search.c */
/* What is asked of each query; dl_search says what it means. */
typedef struct {
    uint32_t k, ef, rescore;
    float radius;
} request;

int search_one(dl_index *ix, reader *r, uint64_t now, const request *ask, uint32_t ef, const allowed *only, uint32_t *count);
int exact_all(dl_index *ix, reader *r, uint64_t now, const float *plain, uint32_t nq, heap *heaps, uint32_t k, const allowed *only);

/* growth.c */
float growth_of(const dl_index *ix, const near *nearest, uint32_t count);
void learn_growth(dl_index *ix, float growth, uint32_t rows);

/* link.c */
uint32_t choose(dl_index *ix, reader *r, near *list, uint32_t count, uint32_t settled, uint32_t limit);
void link_back(dl_index *ix, reader *r, uint32_t from, near to, uint32_t level);
bool has_link(const dl_index *ix, uint32_t from, uint32_t to, uint32_t level);
int insert_node(dl_index *ix, reader *r, uint32_t slot, bool alone);

/* evacuate.c; the structure is held alone */
int evacuate(dl_index *ix, bool *more);
int carry_out_moves(dl_index *ix);
void inherit(dl_index *ix, uint32_t slot);
uint32_t standing_heir(const dl_index *ix, uint32_t slot);

/* index.c */
void settle(dl_index *ix);
bool all_finite(const float *x, size_t n); /* and small enough that squares stay finite */
bool all_directed(const dl_index *ix, const float *x, size_t n); /* under cosine: no row of zeros */
bool row_exists(const dl_index *ix, uint64_t row);

/* tree.c */
uint32_t parent_of(const dl_index *ix, uint32_t slot);
void set_parent(dl_index *ix, uint32_t slot, uint32_t parent);
void adopt(dl_index *ix, reader *r, uint32_t child, const near *candidates, uint32_t count, bool loose);
void hold(dl_index *ix, reader *r, uint32_t from, uint32_t to);
void let_go(dl_index *ix, uint32_t from, uint32_t to);
void reroot(dl_index *ix, reader *r, uint32_t root);
bool reaches_root(const dl_index *ix, uint32_t slot);

/* keys.c; commit lock */
uint32_t key_hash(const uint8_t *key, size_t size);
uint32_t record_hash(const dl_index *ix, record *r);
int map_reserve(dl_index *ix);
void map_trim(dl_index *ix);
uint32_t map_find(const dl_index *ix, const uint8_t *key, size_t size, uint32_t hash);
void map_set(dl_index *ix, uint32_t old, uint32_t slot, uint32_t hash);
void map_remove(dl_index *ix, uint32_t slot, uint32_t hash);

/* check.c */
int check_structure(dl_index *ix, char *message, size_t size);

/* memory: every allocation of the core goes through here, so that tests can make the n-th one fail */
void *dl_alloc(size_t bytes);
void *dl_zalloc(size_t bytes);
void *dl_grow(void *memory, size_t bytes);
bool dl_refused(void);
void dl_trim(void);
#endif
