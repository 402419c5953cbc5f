/* driftline's native core: a streaming HNSW over tile codes.
 *
 * What it is. An approximate-nearest-neighbour graph (Malkov & Yashunin, arXiv 1603.09320) whose nodes are held as
 * 8-bit scalar codes, split by bits: the signs decide early, the top three (or five) route the search, all refine it, and raw
 * vectors, where the caller has attached them, rescore the best few.
 *
 * How it departs from the paper.
 *   - A distance is left early where the signs say that it is too far (walk.c; the estimate is that of RaBitQ, arXiv 2405.12497).
 *   - A search among few allowed slots scans them; where all that is near is forbidden, it keeps to the allowed (walk.c).
 *   - A full list takes a new edge in place of one that it overshadows, instead of choosing anew among all (link.c).
 *   - Of rows with the same code one stands for all when neighbours are chosen, so that the others' lists lead elsewhere (link.c);
 *     the others hang below it in the tree.
 *   - Deletes are real. A deleted node is invisible at once; after every search that could hold it has ended its
 *     in-neighbours are joined through its neighbourhood (FreshDiskANN, arXiv 2105.09613, section 4.2; done slab by
 *     slab) and its slot is used again.
 *   - Memory comes back. Live rows of sparse slabs move to free slots, and empty slabs go (evacuate.c).
 *   - A spanning tree of protected level-0 edges keeps every node reachable. Each node but the entry point has one
 *     parent whose edge to it is never pruned, so reachability holds by construction, among identical vectors too.
 *   - Reads are snapshots. Each slot has a birth and a death on one clock; a search sees what was live when it began,
 *     so an update (new slot, death of the old one) is one step.
 *
 * Words. A *slot* (uint32) holds one version of one key's vector. Slots are grouped in *slabs* of 1,024, which are added
 * at the end and, once upkeep has moved what was left in them to lower slots, dropped at the end. A slab points to its
 * *block*: codes, norms and a frame byte per slot. A *frame* is one set of encoder parameters; at most DL_FRAMES are
 * alive. A *row id* names a raw vector: segment << 32 | row.
 *
 * Threads. Everything may be called from any thread at any time but dl_close, which needs to be alone. dl_search, dl_exact, dl_witness and
 * dl_get take no lock (dl_get one for a probe of the key map) and never wait for a writer. dl_upsert and dl_delete run side by
 * side; a lock a node guards its links. dl_upkeep, the frame calls, attaching, dl_check, loading and the beginning of a cut have the
 * structure to themselves, and writers wait for the step they take; dl_reencode encodes beside everybody and waits only to
 * publish. With one writing thread the same calls give the same graph.
 *
 * Ownership. Inputs are borrowed for the call, except segment memory: it must stay mapped until dl_detach. dl_hits and
 * saved bytes are the caller's: dl_hits_free, dl_free.
 *
 * Errors. Every fallible call returns 0 or a negative DL_E code and changes nothing that a search can see when it fails; of a
 * batch, the items before the one that failed stand.
 * Limits: dim 1..4096, m 2..128, keys 1..511 bytes, payload < 16 MiB, 2^30 slots. The core never prints, exits or aborts.
 */
#ifndef DRIFTLINE_H
#define DRIFTLINE_H
#include <stddef.h>
#include <stdint.h>

enum {
    DL_OK = 0,
    DL_ENOMEM = -1,   /* an allocation failed */
    DL_EINVAL = -2,   /* an argument is out of its range */
    DL_ECORRUPT = -3, /* serialised bytes, or an invariant, are wrong */
    DL_EFULL = -4,    /* no slot or frame is left */
    DL_EBUSY = -5     /* still in use: a frame with rows, a segment with rows, a block that was replaced */
};

enum { DL_L2 = 0, DL_IP = 1, DL_COSINE = 2 };
enum { DL_FRAMES = 4, DL_SLAB = 1024, DL_MOVES = 4096, DL_MAX_DIM = 4096, DL_MAX_KEY = 511 };

typedef struct dl_index dl_index;

typedef struct {
    uint32_t dim;
    uint32_t metric;          /* DL_L2, DL_IP or DL_COSINE */
    uint32_t m;               /* links per node above level 0; twice as many at level 0 */
    uint32_t ef_construction; /* candidates kept while a node is linked */
    uint32_t route_bits;      /* of a code, by which the graph is walked: 3 or 5; 0: 5 where a row then fits a cache line, else 3 */
    uint64_t seed;            /* of the levels */
    uint64_t rotation_seed;   /* of the one rotation that rotated frames share */
    uint32_t sources;         /* 1: each slot keeps a pair of words, the caller's; 0: no memory for them */
} dl_config;

/* The parameters of a tile frame, borrowed for the call. */
typedef struct {
    const float *mean;   /* [dim], in rotated coordinates if `rotated` */
    const float *scale;  /* [dim], > 0 */
    const float *edges;  /* [255], ascending: code = number of edges <= (x - mean) / scale */
    const float *fine;   /* [256]: what a code decodes to, in units of scale */
    const float *coarse; /* [1 << route_bits]: what the bits that route decode to */
    int32_t rotated;
} dl_tile;

/* nq answers of at most k hits; hit j of query i stands at i * k + j. All zeros before its first use; from then on its memory is
 * used again, until dl_hits_free. */
typedef struct {
    uint32_t nq, k;
    char *bytes;       /* the arrays, in this order, without gaps; then each hit's key and behind it its payload */
    size_t size, capacity;
    uint64_t *rows;    /* [nq * k] row ids, UINT64_MAX where there is none */
    uint64_t *texts;   /* [2 * nq * k + 1] places in `bytes`: hit h's key from [2h] to [2h + 1], its payload from there to [2h + 2] */
    float *distances;  /* [nq * k], ascending, +inf beyond the count */
    uint32_t *counts;  /* [nq] */
    uint8_t *frames;   /* [nq * k] */
} dl_hits;

typedef struct {
    uint32_t used;             /* slots ever handed out */
    uint32_t live;             /* slots that answer searches */
    uint32_t rows[4];          /* occupied slots (live, or dead and not yet unlinked) by frame */
    int32_t is_float;          /* the block holds floats, not codes */
    uint64_t version;          /* grows with every change, and beyond a slab that had this number before */
} dl_slab_info;

typedef struct {
    uint32_t live[4];          /* rows that answer searches, by frame */
    uint32_t rows;             /* of these, that were measured */
    double own;                /* squared error of the rows measured, summed, each in the frame it has; floats have none */
    double errors[4];          /* and all of them in each tile frame that is alive */
} dl_errors;

typedef struct {
    uint64_t live, slots, slabs, dead; /* dead: deleted or moved, not yet reusable */
    uint64_t codes, links, keys, meta, scratch, total; /* bytes */
} dl_usage;

/* ---- kernels and pure functions ---- */
const char *dl_strerror(int code);
const char *dl_isa(void);              /* the kernels in use: "scalar", "avx2", "avx512", "neon" */
int dl_force_isa(const char *name);    /* for tests; DL_EINVAL if this machine lacks it */
/* The kernels in use, for tests; kernels.h says what they take. */
int32_t dl_dot1(const uint8_t *signs, const int8_t *weights, size_t n);
int32_t dl_dot3(const uint8_t *signs, const uint8_t *upper, const int8_t *weights, const uint8_t *table, size_t n);
int32_t dl_dot5(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *weights, const uint8_t *table,
                size_t n);
int32_t dl_dot8(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows, const int16_t *weights,
                const int16_t *table, size_t n);
float dl_l2(const float *a, const float *b, size_t n);
float dl_ip(const float *a, const float *b, size_t n);
void dl_split(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows, size_t n);
void dl_join(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows, uint8_t *codes, size_t n);

/* The rotation: sign flips and fast Hadamard transforms over two overlapping power-of-two windows, twice. `out` may
 * be `x`. */
void dl_rotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed);
void dl_unrotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed);
void dl_tile_encode(const float *x, uint8_t *codes, size_t n, uint32_t dim, const float *mean,
                    const float *inv_scale, const float *edges);
void dl_tile_decode(const uint8_t *codes, float *out, size_t n, uint32_t dim, const float *mean,
                    const float *scale, const float *table, uint32_t bits);
/* errors[row] = |x - decode(encode(x))|^2 by `bits` bits, summed in double */
void dl_row_errors(const float *x, double *errors, size_t n, uint32_t dim, const float *mean, const float *scale,
                   const float *inv_scale, const float *edges, const float *table, uint32_t bits);
void dl_bin_counts(const uint8_t *codes, int64_t *counts, size_t n, uint32_t dim); /* adds into [dim * 16] */
/* Take rows one by one into the weight of all rows, their mean and the sum of squared deviations from it, [dim] each (Welford,
 * 1962; with `decay` < 1, West, 1979: a row multiplies the weights of those before it). The same bits however rows are cut into
 * calls. */
void dl_moments(const float *x, size_t n, uint32_t dim, double decay, double *weight, double *mean, double *squares);

/* ---- life ---- */
int dl_open(const dl_config *config, dl_index **out);
void dl_close(dl_index *ix);

/* ---- raw vectors and frames ---- */
int dl_attach(dl_index *ix, uint32_t segment, const float *base, uint32_t rows);
int dl_detach(dl_index *ix, uint32_t segment); /* DL_EBUSY while a slot refers to it */
int dl_frame_open(dl_index *ix, uint32_t frame, const dl_tile *tile); /* tile NULL: floats */
int dl_frame_close(dl_index *ix, uint32_t frame);
int dl_frame_write(dl_index *ix, uint32_t frame); /* new vectors use it from now on; never floats after tiles */
int dl_frame_counts(dl_index *ix, uint32_t frame, int64_t *counts, uint64_t *rows); /* live codes [dim * 16], or NULL */
/* To a tile frame, once new vectors use one. DL_EBUSY while a search may still read a block that was replaced before: so there is
 * never more than one too many. */
int dl_reencode(dl_index *ix, uint32_t slab, uint32_t frame);
/* Learn how distances grow with rank, by which a search tells when to end, from rows of a slab that was encoded anew; they weigh
 * as much as so many insertions. */
int dl_learn(dl_index *ix, uint32_t slab);

/* ---- writing: key i is keys[key_offsets[i] .. key_offsets[i + 1]); payloads likewise, or NULL ---- */
int dl_unchanged(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint8_t *payloads,
                 const uint64_t *payload_offsets, const float *vectors, uint8_t *same);
/* sources: [n] pairs of words, where the index keeps them, or NULL: zeros. slots: [n] written to, or NULL. replaced: [n] the row
 * ids of the versions that ended, UINT64_MAX where there was none, or NULL; of an item that was not written it stays as it was.
 * next: the first row to write, 0; threads that call it with the same `next` share the rows, each taking the next one. NULL: all
 * of them, in order. */
int dl_upsert(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint8_t *payloads,
              const uint64_t *payload_offsets, const float *vectors, const uint64_t *rows, const uint64_t *sources,
              uint32_t *slots, uint64_t *replaced, uint64_t *next);
/* The pairs of live keys: read, zeros for a key that is not live; or set anew. DL_EINVAL where the index keeps none. */
int dl_sources(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, uint64_t *sources);
int dl_set_sources(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint64_t *sources);
int dl_delete(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, uint64_t *replaced, uint64_t *deleted);

/* One bounded step of repair after deletes, or of evacuation. `eager` starts a round for any deleted node, not only when a share
 * of the index has gathered. *more: whether another call would find work now. */
int dl_upkeep(dl_index *ix, int eager, int *more);
/* [count] pairs of slots, from and to: rows that the next dl_upkeep moves, unless they die before; room for DL_MOVES. A row answers
 * searches at one of them, whichever moment they are of. */
void dl_moving(dl_index *ix, uint32_t *pairs, uint32_t *count);

/* ---- reading ---- */
/* k: hits at most. ef: candidates; raised to k. rescore: how many of the best are measured on raw vectors, raised to k; 0: none.
 * radius: hits within it, `ef` growing as far as k; INFINITY: the k nearest. allowed: slots that may be returned, a bit each, those
 * beyond its words are not; NULL: all. */
int dl_search(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, uint32_t ef, uint32_t rescore, float radius,
              const uint64_t *allowed, uint32_t allowed_words, dl_hits *out);
int dl_exact(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, const uint64_t *allowed, uint32_t allowed_words,
             dl_hits *out);
/* Each query answered twice, of one moment, so that recall can be told: `found` as dl_search does, `best` by a pass over all codes and
 * the raw vectors of the 8k nearest by code. `raw`: a third time, by all raw vectors, or NULL. Each [nq * k]: distances by raw vectors
 * (by codes where there are none) whatever `rescore` says, ascending, +inf beyond what is live. A moment is of 16 queries at most. */
int dl_witness(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, uint32_t ef, uint32_t rescore, float *found, float *best,
               float *raw);
int dl_get(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, float *vectors, dl_hits *out);
/* The live keys of one slab, as one answer; slots: [DL_SLAB] or NULL. */
int dl_scan(dl_index *ix, uint32_t slab, uint32_t *slots, dl_hits *out);
void dl_hits_free(dl_hits *hits);
uint64_t dl_live(dl_index *ix);
uint32_t dl_slabs(dl_index *ix);
int dl_slab(dl_index *ix, uint32_t slab, dl_slab_info *out);
int dl_slab_rows(dl_index *ix, uint32_t slab, uint64_t *rows, uint8_t *frames, uint32_t *count); /* live: [DL_SLAB] */
/* How well a slab's live rows are coded: row `first` and every so many after it, from their raw vectors, by the top `bits` bits of
 * codes. tables: what these decode to in each frame, [DL_FRAMES << bits]. The caller closes no frame meanwhile. */
int dl_survey(dl_index *ix, uint32_t slab, uint32_t first, uint32_t every, uint32_t bits, const float *tables, dl_errors *out);
void dl_referring(dl_index *ix, size_t n, const uint32_t *segments, uint32_t *slots); /* [n]: whose raw vector lies there, dead too */
/* Live slots whose raw vectors lie in a segment, and these rows: of some slabs from `first` on, as long as there is room for a
 * slab's in `most`. The slab to go on with; past the last one there are no more. */
uint32_t dl_segment_slots(dl_index *ix, uint32_t segment, uint32_t first, uint32_t *slots, uint64_t *rows, uint32_t most, uint32_t *count);
/* Slots that are live with these rows have the same raw vectors at other rows from now on. */
int dl_rebase(dl_index *ix, size_t n, const uint32_t *slots, const uint64_t *rows, const uint64_t *others);
uint32_t dl_route_bits(dl_index *ix); /* as given or chosen */
void dl_usage_of(dl_index *ix, dl_usage *out);

/* Every invariant of the graph, the key map, the tree and the counts; with `codes`, every code and norm against
 * encode(raw). On DL_ECORRUPT the first finding stands in `message`. */
int dl_check(dl_index *ix, int codes, char *message, size_t size);

/* ---- cuts: the index as it is when one begins, saved part by part while it goes on changing. One at a time; ended before the
 * index is closed; a cut is one thread's ---- */
typedef struct dl_cut dl_cut;
enum {
    DL_SAME = 0,  /* as the caller has it: nothing to save */
    DL_DELTA = 1, /* what changed since the cut that the caller has it from */
    DL_WHOLE = 2
};
/* known: [count] by slab, the version that the caller has, of the cut before or as it was loaded; UINT64_MAX: none. What changes
 * from now on is kept as it was until it is saved. DL_EBUSY while another is open. */
int dl_cut_begin(dl_index *ix, const uint64_t *known, uint32_t count, dl_cut **out);
void dl_cut_end(dl_cut *cut);
void dl_cut_head(const dl_cut *cut, const uint8_t **bytes, size_t *size); /* borrowed from the cut */
uint32_t dl_cut_slabs(const dl_cut *cut);
void dl_cut_forms(const dl_cut *cut, uint64_t *versions, uint8_t *forms); /* [dl_cut_slabs] */
/* Each slab once. DL_ENOMEM also if memory was short when something else changed: nothing more can be saved then. */
int dl_cut_save(dl_cut *cut, uint32_t slab, uint8_t **bytes, size_t *size);

/* ---- loading: slabs in order, into a fresh index with the same config and frames; after an error it can only be closed ---- */
/* parts: [count] the slab as it was saved whole and its deltas since, oldest first; version: that of the last */
int dl_load_slab(dl_index *ix, uint32_t slab, uint64_t version, const uint8_t *const *parts, const size_t *sizes, uint32_t count);
int dl_load_head(dl_index *ix, const uint8_t *bytes, size_t size, char *message, size_t message_size); /* last; checks all */
void dl_free(void *bytes);
void dl_fail_after(int64_t allocations); /* for tests: the n-th allocation from now fails, once; < 0: none */
#endif
