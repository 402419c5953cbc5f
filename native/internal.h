/* What the files of the core share. driftline.h is the manual; this is the machinery behind it. */
#ifndef DRIFTLINE_INTERNAL_H
#define DRIFTLINE_INTERNAL_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "driftline.h"

#define NONE UINT32_MAX
#define NEVER UINT64_MAX
#define NO_ROW UINT64_MAX
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

/* ---- kernels.c: one table of functions, chosen once ---- */
typedef struct {
    const char *name;
    /* Sum of weights[i] * table[nibble i]; n a multiple of 32. |sum| <= 127 * 127 * 4096 < 2^31. */
    int32_t (*dot4)(const uint8_t *plane, const int8_t *weights, const uint8_t *table, size_t n);
    /* Sum of weights[i] * table[code i]. The caller bounds sum |weights| * max |table| below 2^31 (probe.c). */
    int32_t (*dot8)(const uint8_t *high, const uint8_t *low, const int16_t *weights, const int16_t *table, size_t n);
    float (*l2)(const float *a, const float *b, size_t n);
    float (*ip)(const float *a, const float *b, size_t n);
} dl_kernels;
extern const dl_kernels dl_kernels_scalar;
extern const dl_kernels dl_kernels_avx2;
extern const dl_kernels dl_kernels_avx512;
const dl_kernels *dl_kernels_now(void);

/* ---- slabs.c: slots, blocks, records ---- */

/* Memory that readers may still hold after it was replaced; first member of what is retired. */
typedef struct retired {
    struct retired *next;
    uint64_t stamp;
    bool is_frame;
} retired;

/* A frame's parameters as kernels want them. Immutable once published; freed when no reader can hold it. */
typedef struct frame {
    retired link;
    bool is_float, rotated;
    float *mean, *scale, *inv_scale; /* [dim] */
    float edges[255];
    float table8[256], table4[16];
    int16_t int8table[257]; /* table8 / step8, |.| <= 4096; one more, since a gather reads four bytes */
    uint8_t int4table[16];  /* (table4 - low4) / step4, 0..127 */
    float step8, step4, low4;
    int64_t *counts;        /* [dim * 16] live codes; writer lock */
    uint64_t rows;          /* occupied slots; writer lock */
} frame;

/* Codes of one slab, in one allocation. Tile: high and low nibble planes, two norms. Float: rows. */
typedef struct block {
    retired link;
    bool is_float;
    uint8_t *frames;      /* [DL_SLAB] */
    float *norm4, *norm8; /* [DL_SLAB] |decoded - mean|^2 at either width */
    uint8_t *high, *low;  /* [DL_SLAB][padded / 2] */
    float *rows;          /* [DL_SLAB][dim], normalised under cosine */
    size_t bytes;
} block;

/* The key and payload of one slot version; immutable. */
typedef struct {
    uint32_t payload_size;
    uint16_t key_size;
    uint8_t bytes[]; /* key, then payload */
} record;

typedef enum { SLOT_FREE, SLOT_LIVE, SLOT_DEAD, SLOT_UNLINKING, SLOT_LIMBO } slot_state;

/* links[slot * (1 + 2m)]: the count, then that many slots. Readers may see a list half rewritten: every entry is a slot
 * that their pin keeps from being reused. */
typedef struct slab {
    _Atomic(block *) block;
    _Atomic uint32_t *links;
    _Atomic(_Atomic uint32_t *) upper[DL_SLAB]; /* level l >= 1 at (l - 1) * (1 + m); NULL at level 0 */
    _Atomic(record *) records[DL_SLAB];
    _Atomic uint64_t birth[DL_SLAB], death[DL_SLAB], row[DL_SLAB];
    uint32_t parent[DL_SLAB];
    uint8_t level[DL_SLAB];
    uint8_t state[DL_SLAB]; /* slot_state; writer lock */
    uint32_t used;          /* slots of this slab ever handed out; writer lock */
    uint64_t version;
} slab;

/* ---- epoch.c: readers and retired memory ---- */
typedef struct {
    float distance;
    uint32_t slot;
} near;

/* A vector against which codes are measured: integer weights per frame, made on first touch. */
typedef struct {
    bool ready;
    int8_t *w4;     /* [padded] */
    int16_t *w8;    /* [padded] */
    float base;     /* |q - mean|^2 (l2, cosine) or <q, mean> (ip) */
    float factor4, offset4, factor8;
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

/* One searching thread's memory. Kept on a list that only grows, claimed by compare-and-swap. */
typedef struct reader {
    struct reader *next;
    _Atomic uint64_t pin; /* 0: idle; else no slot that died or was retired after pin - 1 may be reused */
    _Atomic bool claimed;
    uint16_t *seen;
    uint32_t seen_size;
    uint16_t tag;
    heap candidates, results;
    probe query;
    near *picked; /* results in order; the writer's neighbour lists under selection */
    size_t picked_size;
} reader;

typedef struct {
    uint32_t slot;
    uint64_t stamp;
} stamped;

typedef struct {
    stamped *items;
    size_t start, end, capacity;
} queue;

typedef struct {
    uint32_t hash, slot; /* slot NONE: empty */
} bucket;

struct dl_index {
    dl_config config;
    uint32_t padded;       /* dim rounded up to 32 */
    uint32_t links0, links1; /* words of a link list at level 0 and above: 1 + 2m, 1 + m */
    double level_factor;
    pthread_mutex_t writer;

    _Atomic(slab *) *slabs; /* [MAX_SLABS], touched as it grows */
    _Atomic uint32_t slab_count;
    _Atomic uint32_t slot_count;
    _Atomic(frame *) frames[DL_FRAMES];
    _Atomic uint32_t write_frame;
    _Atomic(const float *) *segments; /* [MAX_SEGMENTS] base addresses */
    uint32_t *segment_rows;

    _Atomic uint64_t clock; /* starts at 1; one tick a visible change */
    _Atomic uint32_t entry;
    _Atomic uint32_t top;   /* level of the entry */
    _Atomic uint64_t live;
    uint64_t inserted;      /* of all time: seeds the levels */

    pthread_mutex_t map_lock;
    bucket *buckets;
    uint32_t bucket_mask, bucket_used;

    uint32_t *free_slots;
    size_t free_count, free_capacity;
    queue dead;             /* invisible, still linked */
    queue limbo;            /* unlinked, waiting for readers */
    uint32_t *round;        /* the dead being unlinked now */
    size_t round_size, round_capacity, round_done;
    uint32_t round_slab;
    retired *retired;

    _Atomic(reader *) readers;
    reader *own;            /* the writer's scratch */
    probe other, third;     /* the writer's: a list's owner, and the neighbour that others are measured against */
    float *turned;          /* the writer's scratch for encoding, [dim] */
    uint8_t *codes;         /* likewise, [dim] */
    float *plain;
    size_t link_bytes, key_bytes, block_bytes;
};

static inline slab *slab_of(const dl_index *ix, uint32_t slot)
{
    return atomic_load_explicit(&ix->slabs[slot >> SLAB_BITS], memory_order_acquire);
}

static inline _Atomic uint32_t *links_of(const dl_index *ix, uint32_t slot, uint32_t level)
{
    slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    if (level == 0)
        return s->links + (size_t)i * ix->links0;
    return atomic_load_explicit(&s->upper[i], memory_order_acquire) + (size_t)(level - 1) * ix->links1;
}

static inline uint32_t link_cap(const dl_index *ix, uint32_t level)
{
    return level == 0 ? 2 * ix->config.m : ix->config.m;
}

static inline uint32_t get(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline void put(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static inline slot_state state_of(const dl_index *ix, uint32_t slot)
{
    return (slot_state)slab_of(ix, slot)->state[slot & SLAB_MASK];
}

static inline uint8_t level_of(const dl_index *ix, uint32_t slot)
{
    return slab_of(ix, slot)->level[slot & SLAB_MASK];
}

static inline void touch(dl_index *ix, uint32_t slot)
{
    slab_of(ix, slot)->version++;
}

static inline bool visible(const slab *s, uint32_t i, uint64_t now)
{
    return atomic_load_explicit(&s->birth[i], memory_order_acquire) <= now &&
           atomic_load_explicit(&s->death[i], memory_order_acquire) > now;
}

static inline const float *raw_of(const dl_index *ix, uint64_t row)
{
    if (row == NO_ROW)
        return NULL;
    const float *base = atomic_load_explicit(&ix->segments[row >> 32], memory_order_acquire);
    return base ? base + (row & UINT32_MAX) * ix->config.dim : NULL;
}

int slab_add(dl_index *ix);
void slab_free(dl_index *ix, slab *s);
int slot_take(dl_index *ix, uint32_t *slot);
void slot_release(dl_index *ix, uint32_t slot);
block *block_new(const dl_index *ix, bool is_float);
void block_free(dl_index *ix, block *b);
void block_put(const dl_index *ix, block *b, uint32_t i, uint32_t frame_id, const float *plain, float *turned,
               uint8_t *codes);
void block_unpack(const dl_index *ix, const block *b, uint32_t i, uint8_t *codes);
void count_codes(dl_index *ix, uint32_t slot, int sign);
frame *frame_of(const dl_index *ix, uint32_t id);
void frame_free(dl_index *ix, frame *f);
void to_plain(const dl_index *ix, const float *x, float *plain);

reader *reader_enter(dl_index *ix, uint64_t *now);
void reader_leave(reader *r);
void reader_free(reader *r);
bool seen_reset(dl_index *ix, reader *r);
uint64_t oldest_pin(dl_index *ix);
void retire(dl_index *ix, retired *item, bool is_frame);
void retired_sweep(dl_index *ix);
int queue_reserve(queue *q, size_t n);
void queue_push(queue *q, uint32_t slot, uint64_t stamp);

int probe_init(const dl_index *ix, probe *p);
void probe_free(probe *p);
void probe_vector(const dl_index *ix, probe *p, const float *plain);
void probe_slot(const dl_index *ix, probe *p, uint32_t slot);
float distance4(const dl_index *ix, probe *p, uint32_t slot);
float distance8(const dl_index *ix, probe *p, uint32_t slot);
float distance_raw(const dl_index *ix, const float *query, const float *row);
void decode_slot(const dl_index *ix, uint32_t slot, float *plain);

bool heap_push(heap *h, near item, bool max);
near heap_pop(heap *h, bool max);
void near_sort(near *items, size_t n);

/* graph.c */
int search_layer(dl_index *ix, reader *r, uint32_t start, uint32_t level, uint32_t ef, uint64_t now);
uint32_t descend(const dl_index *ix, probe *p, uint32_t start, uint32_t to);
uint32_t select_neighbours(dl_index *ix, near *list, uint32_t count, uint32_t settled, uint32_t limit, uint32_t owner,
                           uint32_t level, bool fine);
void write_links(dl_index *ix, uint32_t slot, uint32_t level, const near *chosen, uint32_t count);
void link_back(dl_index *ix, uint32_t from, uint32_t to, uint32_t level);
bool has_link(const dl_index *ix, uint32_t from, uint32_t to, uint32_t level);
int insert_node(dl_index *ix, uint32_t slot);
int refine(const dl_index *ix, reader *r, uint32_t *count);
int picked_reserve(reader *r, size_t n);

/* index.c */
bool all_finite(const float *x, size_t n); /* and small enough that squares stay finite */
bool row_exists(const dl_index *ix, uint64_t row);

/* tree.c */
uint32_t parent_of(const dl_index *ix, uint32_t slot);
void set_parent(dl_index *ix, uint32_t slot, uint32_t parent);
void force_link(dl_index *ix, uint32_t from, uint32_t to);
void adopt(dl_index *ix, uint32_t child, const near *candidates, uint32_t count);
void reroot(dl_index *ix, uint32_t root);
bool reaches_root(const dl_index *ix, uint32_t slot);

/* keys.c */
uint32_t key_hash(const uint8_t *key, size_t size);
uint32_t record_hash(const record *r);
int map_reserve(dl_index *ix);
uint32_t map_find(const dl_index *ix, const uint8_t *key, size_t size, uint32_t hash);
void map_set(dl_index *ix, uint32_t old, uint32_t slot, uint32_t hash);
void map_remove(dl_index *ix, uint32_t slot, uint32_t hash);

/* check.c */
int check_structure(dl_index *ix, char *message, size_t size);

/* memory: every allocation of the core goes through here, so that tests can make the n-th one fail */
void *dl_alloc(size_t bytes);
void *dl_zalloc(size_t bytes);
void *dl_grow(void *memory, size_t bytes);
#endif
