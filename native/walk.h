/* What walks and scans share: the best so far, and measuring rows.
 *
 * A hop's time is its cache misses. So the rows of all unseen neighbours are asked for before the first is measured, what a row
 * is measured by lies in one piece (internal.h, head), the best so far stand in one sorted array whose entries are candidates and
 * results at once, and the set of slots seen is a bit each.
 *
 * A distance is left early where the signs alone say that it is too far. The sum over signs, stretched by the row's own factor,
 * estimates the inner product without bias (RaBitQ, arXiv 2405.12497); how far it is off is measured on the first distances of
 * each walk, and a row is left when even MARGIN standard deviations in its favour would not bring it among the best. Where that
 * seldom happens (few dimensions: one bit says too little) the walk stops asking: each query decides for itself, so the same
 * query gets the same answer whatever was asked before. */
#ifndef DRIFTLINE_WALK_H
#define DRIFTLINE_WALK_H
#include <math.h>

#include "internal.h"

#define EXPANDED 0x80000000u /* in the slot of a pool entry */
#define MARGIN 1.2f          /* standard deviations that a row is given in its favour; measured: docs/tuning.md */

enum {
    GATE_SAMPLES = 32, /* distances that calibrate the signs */
    GATE_TRIAL = 96,   /* rows asked by signs before they are judged */
    COUNTED = 48,      /* places searched by counting, which goes several at a time */
    SOON = 2,          /* places in the pool behind the next one */
    AHEAD = 4,         /* rows asked for before they are measured */
    WIDEST = 2 * 128   /* links of a node */
};

/* ---- the best so far ---- */

/* The distance that an item must beat to be walked from. */
static inline float worst(const reader *r)
{
    const extent *e = &r->reach;
    if (e->most > POOL_MOST)
        return r->results.size < e->most ? INFINITY : r->results.items[0].distance;
    if (r->pool_size < e->least)
        return INFINITY;
    float least = r->pool[e->least - 1].distance, ratio = e->ratio * r->pool[e->k - 1].distance;
    if (ratio <= least)
        return least;
    return r->pool_size == e->most && r->pool[e->most - 1].distance < ratio ? r->pool[e->most - 1].distance : ratio;
}

/* Whether the first `count` of the best so far, which are no farther than the item, have one that it is alike to. */
static inline bool stands(const dl_index *ix, const near *pool, uint32_t count, near item)
{
    while (count && pool[count - 1].distance == item.distance)
        if (alike(ix, pool[--count].slot & ~EXPANDED, item.slot))
            return true;
    return false;
}

static inline void pool_insert(const dl_index *ix, reader *r, near item)
{
    near *pool = r->pool;
    uint32_t low = 0, left = r->pool_size;
    for (; left > COUNTED; left -= left / 2) /* without a branch: where it goes cannot be foreseen */
        low += (pool[low + left / 2 - 1].distance <= item.distance) * (left / 2);
    uint32_t nearer = 0;
    for (uint32_t i = 0; i < left; i++)
        nearer += pool[low + i].distance <= item.distance;
    low += nearer;
    if (low == r->reach.most || (r->reach.once && stands(ix, pool, low, item)))
        return;
    r->pool_size += r->pool_size < r->reach.most;
    memmove(pool + low + 1, pool + low, (r->pool_size - 1 - low) * sizeof *pool);
    pool[low] = item;
    if (low < r->cursor)
        r->cursor = low;
    if (low <= r->cursor + SOON) /* one of the next to be walked from */
        fetch_row((const void *)links_of(ix, item.slot, 0), ix->links0 * sizeof(uint32_t));
}

/* Among the best it goes. */
static inline bool keep(const dl_index *ix, reader *r, near item)
{
    if (r->reach.most <= POOL_MOST) {
        pool_insert(ix, r, item);
        return true;
    }
    if (!heap_push(&r->results, item, true))
        return false;
    if (r->results.size > r->reach.most)
        heap_pop(&r->results, true);
    return true;
}

/* A node that is near enough: walked from later, and among the best if it may be returned. */
static inline bool meet(dl_index *ix, reader *r, near item, uint8_t flags, uint64_t now, const allowed *only)
{
    bool counts = answers(ix, item.slot, flags, now, only);
    if ((!counts || r->reach.most > POOL_MOST) && !heap_push(&r->candidates, item, false))
        return false;
    return !counts || keep(ix, r, item);
}

/* The nearest node not yet walked from, unless all of them are too far. */
static inline bool next_node(reader *r, uint32_t *slot)
{
    while (r->cursor < r->pool_size && r->pool[r->cursor].slot & EXPANDED)
        r->cursor++;
    bool in_pool = r->cursor < r->pool_size;
    if (r->candidates.size && (!in_pool || r->candidates.items[0].distance < r->pool[r->cursor].distance)) {
        near item = heap_pop(&r->candidates, false);
        if (item.distance <= worst(r)) {
            *slot = item.slot;
            return true;
        }
        r->candidates.size = 0;
    }
    if (!in_pool || r->pool[r->cursor].distance > worst(r))
        return false;
    *slot = r->pool[r->cursor].slot;
    r->pool[r->cursor].slot |= EXPANDED;
    return true;
}

/* ---- measuring a hop's neighbours ---- */

static inline float stretch_as_float(uint16_t stretch)
{
    uint32_t bits = (uint32_t)stretch << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

typedef struct {
    uint32_t slot;
    const head *row; /* NULL: floats */
} met;

/* By the signs alone, `margin` in the row's favour. */
static inline float sign_estimate(const dl_index *ix, const lane *l, const dl_kernels *k, const head *h, float margin)
{
    int32_t sum = 2 * k->dot1((const uint8_t *)(h + 1), l->w8, ix->padded) - l->total;
    return distance_from(ix, l->base, stretch_as_float(h->stretch) * (l->sign_step * (float)sum + margin), h->coarse_norm);
}

static inline float sign_distance(const dl_index *ix, reader *r, const dl_kernels *k, uint32_t slot)
{
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    return is_float ? coarse_distance(ix, &r->query, slot) : sign_estimate(ix, lane_of(ix, &r->query, h->frame), k, h, 0);
}

/* One more pair of what the signs said and what is so. */
static inline void calibrate(const dl_index *ix, lane *l, const dl_kernels *k, const head *h, float dot)
{
    float stretch = stretch_as_float(h->stretch);
    if (stretch > 0) {
        int32_t sum = 2 * k->dot1((const uint8_t *)(h + 1), l->w8, ix->padded) - l->total;
        float error = dot / stretch - l->sign_step * (float)sum;
        l->squares += error * error;
    }
    if (++l->samples == GATE_SAMPLES)
        l->margin = MARGIN * sqrtf(l->squares / GATE_SAMPLES);
}

static inline float measure(const dl_index *ix, reader *r, const dl_kernels *k, const head *h)
{
    lane *l = lane_of(ix, &r->query, h->frame);
    float dot = l->coarse_factor * (float)coarse_dot(ix, k, l, frame_of(ix, h->frame), h) + l->coarse_offset;
    if (l->samples < GATE_SAMPLES)
        calibrate(ix, l, k, h, dot);
    return distance_from(ix, l->base, dot, h->coarse_norm);
}

/* Whether the signs are asked: once they are calibrated, unless they seldom tell enough or come with all else in one line. */
static inline bool gated(const dl_index *ix, const lane *l)
{
    return ix->row_bytes > LINE && l->ready && l->samples >= GATE_SAMPLES &&
           (l->tested < GATE_TRIAL || 4 * l->passed <= 3 * l->tested);
}

/* How much of a row is asked for before it is judged. */
static inline size_t first_bytes(const dl_index *ix, const reader *r)
{
    const lane *usual = &r->query.lanes[atomic_load_explicit(&ix->write_frame, memory_order_relaxed)];
    return gated(ix, usual) ? sign_bytes(ix) : ix->row_bytes;
}

static inline float distance_of(dl_index *ix, reader *r, const dl_kernels *k, met one)
{
    return one.row ? measure(ix, r, k, one.row) : coarse_distance(ix, &r->query, one.slot);
}

/* Leaves in a batch those that the signs do not tell to be farther than `limit`, and asks for all of them; their first bytes have
 * been asked for. */
static inline __attribute__((always_inline)) uint32_t ask_signs(dl_index *ix, reader *r, const dl_kernels *k, met *batch,
                                                                uint32_t count, size_t first, float limit)
{
    bool gate = first < ix->row_bytes;
    if (gate && limit < INFINITY) {
        uint32_t left = 0;
        for (uint32_t i = 0; i < count; i++) {
            met one = batch[i];
            batch[left] = one;
            if (!one.row) {
                left++;
                continue;
            }
            lane *own = lane_of(ix, &r->query, one.row->frame); /* another frame's may not be calibrated yet */
            bool far = gated(ix, own) && sign_estimate(ix, own, k, one.row, own->margin) > limit;
            left += !far;
            own->tested += own->samples >= GATE_SAMPLES;
            own->passed += own->samples >= GATE_SAMPLES && !far;
        }
        count = left;
    }
    for (uint32_t i = 0; gate && i < count; i++)
        if (batch[i].row)
            fetch_row((const uint8_t *)batch[i].row + first, ix->row_bytes - first);
    return count;
}

/* Those of a batch that are near enough are met. */
static inline __attribute__((always_inline)) int meet_batch(dl_index *ix, reader *r, const dl_kernels *k, met *batch,
                                                            uint32_t count, size_t first, uint64_t now, const allowed *only)
{
    float limit = worst(r);
    count = ask_signs(ix, r, k, batch, count, first, limit);
    for (uint32_t i = 0; i < count; i++) {
        const head *h = batch[i].row;
        float d = distance_of(ix, r, k, batch[i]);
        if (d >= limit)
            continue;
        if (!meet(ix, r, (near){d, batch[i].slot}, flags_of(h ? h : head_of(ix, batch[i].slot)), now, only))
            return DL_ENOMEM;
        limit = worst(r);
    }
    return DL_OK;
}

/* walk.c */
int hop(dl_index *ix, reader *r, const dl_kernels *k, uint32_t slot, uint32_t level, uint64_t now, const allowed *only);
bool begin(dl_index *ix, reader *r, uint32_t start, uint64_t now, const allowed *only);
int pool_reserve(reader *r, uint32_t most);
bool seen_fit(reader *r, uint32_t slabs); /* for slots of so many slabs */
#endif
