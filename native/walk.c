/* Walking the graph (Malkov & Yashunin, algorithm 2), and what a walk costs.
 *
 * A hop's time is its cache misses. So the rows of all unseen neighbours are asked for before the first is measured, what a row
 * is measured by lies in one piece (internal.h, head), the best so far stand in one sorted array whose entries are candidates and
 * results at once, and the set of slots seen is a bit each.
 *
 * A distance is left early where the signs alone say that it is too far. The sum over signs, stretched by the row's own factor,
 * estimates the inner product without bias (RaBitQ, arXiv 2405.12497); how far it is off is measured on the first distances of
 * each walk, and a row is left when even MARGIN standard deviations in its favour would not bring it among the best. Where that
 * seldom happens (few dimensions: one bit says too little) the walk stops asking: each query decides for itself, so the same
 * query gets the same answer whatever was asked before.
 *
 * Where only some slots are allowed, a walk goes through the others too, as long as it meets the allowed about as often as they
 * are. Elsewhere it looks through the others without measuring them (ACORN-1, arXiv 2403.04871), from a sample of the allowed,
 * or, where they are few, gives way to a scan. Tried and lost, at equal time: measuring those others and going on from the
 * nearest, at most one in a row (recall 0.92 for 0.93 on the other project's commits); more of them looked through for fewer
 * candidates, or the reverse (equal); three times the sample (recall 0.003 more for 7 % more time). */
#include <math.h>

#include "internal.h"

#define EXPANDED 0x80000000u /* in the slot of a pool entry */
#define MARGIN 1.2f /* standard deviations that a row is given in its favour; measured: docs/tuning.md */
#define HOPE 3.5f   /* likewise, of coarser against more exact distances */

enum {
    GATE_SAMPLES = 48,  /* distances that calibrate the signs */
    GATE_TRIAL = 96,    /* rows asked by signs before they are judged */
    COUNTED = 48,       /* places searched by counting, which goes several at a time */
    SOON = 2,           /* places in the pool behind the next one */
    CALIBRATING = 12,   /* measurements that tell how far coarser ones are off */
    AHEAD = 4,          /* rows asked for before they are measured */
    WIDEST = 2 * 128,   /* links of a node */
    SAMPLE = 128,       /* allowed slots that a walk across what is forbidden starts from */
    STRAY = 8,          /* one in so many candidates may be forbidden nodes before their share is judged */
    SURE = 8,           /* rows scanned, for each met on the way across, in about the same time: a scan misses none */
    PRIOR = 16,         /* nodes walked from that the share of all counts for, against that of those near by */
    SCAN_AHEAD = 16     /* rows that a scan asks for before their signs are looked at */
};

/* ---- heaps of near items: `max` keeps the farthest on top ---- */

static inline bool above(near a, near b, bool max)
{
    return max ? a.distance > b.distance : a.distance < b.distance;
}

bool heap_push(heap *h, near item, bool max)
{
    if (h->size == h->capacity) {
        uint32_t capacity = h->capacity ? 2 * h->capacity : 256;
        near *items = dl_grow(h->items, capacity * sizeof *items);
        if (!items)
            return false;
        h->items = items;
        h->capacity = capacity;
    }
    uint32_t at = h->size++;
    while (at && above(item, h->items[(at - 1) / 2], max)) {
        h->items[at] = h->items[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    h->items[at] = item;
    return true;
}

near heap_pop(heap *h, bool max)
{
    near top = h->items[0], last = h->items[--h->size];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < h->size; at = child) {
        if (child + 1 < h->size && above(h->items[child + 1], h->items[child], max))
            child++;
        if (!above(h->items[child], last, max))
            break;
        h->items[at] = h->items[child];
    }
    if (h->size)
        h->items[at] = last;
    return top;
}

static int by_distance(const void *a, const void *b)
{
    const near *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

void near_sort(near *items, size_t n)
{
    if (n > 64) {
        qsort(items, n, sizeof *items, by_distance);
        return;
    }
    for (size_t i = 1; i < n; i++) { /* what comes here is nearly in order */
        near item = items[i];
        size_t at = i;
        for (; at && by_distance(&item, &items[at - 1]) < 0; at--)
            items[at] = items[at - 1];
        items[at] = item;
    }
}

int picked_reserve(reader *r, size_t n)
{
    if (r->picked && n <= r->picked_size)
        return DL_OK;
    near *items = dl_grow(r->picked, n * sizeof *items);
    if (!items)
        return DL_ENOMEM;
    r->picked = items;
    r->picked_size = n;
    return DL_OK;
}

/* ---- the slots seen: a bit each, and a list of them by which the bits are cleared ---- */

static bool seen_fit(reader *r, uint32_t slabs)
{
    if (slabs <= r->seen_slabs)
        return true;
    uint64_t *seen = dl_grow(r->seen, (size_t)slabs * DL_SLAB / 8);
    if (!seen)
        return false;
    memset((char *)seen + (size_t)r->seen_slabs * DL_SLAB / 8, 0, (size_t)(slabs - r->seen_slabs) * DL_SLAB / 8);
    r->seen = seen;
    r->seen_slabs = slabs;
    return true;
}

bool seen_room(reader *r, size_t n)
{
    if (r->marked_count + n < r->marked_capacity)
        return true;
    size_t capacity = 2 * (r->marked_count + n) + 1024;
    uint32_t *marked = dl_grow(r->marked, capacity * sizeof *marked);
    if (!marked)
        return false;
    r->marked = marked;
    r->marked_capacity = capacity;
    return true;
}

bool seen_reset(dl_index *ix, reader *r)
{
    for (size_t i = 0; i < r->marked_count; i++)
        r->seen[r->marked[i] >> 6] = 0;
    r->marked_count = 0;
    return seen_fit(r, atomic_load(&ix->slab_count));
}

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
    if (low == r->reach.most)
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

/* Whether the signs tell that the row cannot be among the best. */
static inline bool too_far(const dl_index *ix, const lane *l, const dl_kernels *k, const head *h, float limit)
{
    int32_t sum = 2 * k->dot1((const uint8_t *)(h + 1), l->w8, ix->padded) - l->total;
    float most = stretch_as_float(h->stretch) * (l->sign_step * (float)sum + l->margin);
    return distance_from(ix, l->base, most, h->coarse_norm) > limit;
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

/* Whether the signs are asked: once they are calibrated, unless they seldom tell enough, or come with all that routes in one line. */
static inline bool gated(const dl_index *ix, const lane *l)
{
    return ix->row_bytes > LINE && l->ready && l->samples >= GATE_SAMPLES && (l->tested < GATE_TRIAL || 4 * l->passed <= 3 * l->tested);
}

/* How much of a row is asked for before it is judged. */
static inline size_t first_bytes(const dl_index *ix, const reader *r)
{
    const lane *usual = &r->query.lanes[atomic_load_explicit(&ix->write_frame, memory_order_relaxed)];
    return gated(ix, usual) ? sizeof(head) + ix->padded / 8 : ix->row_bytes;
}

static inline __attribute__((always_inline)) int meet_batch(dl_index *ix, reader *r, const dl_kernels *k, met *batch,
                                                            uint32_t count, size_t first, uint64_t now, const allowed *only);

/* Expand one node: its unseen neighbours are measured and met. */
static int hop(dl_index *ix, reader *r, const dl_kernels *k, uint32_t slot, uint32_t level, uint64_t now, const allowed *only)
{
    met batch[WIDEST];
    uint32_t count = 0, cap = link_cap(ix, level);
    if (!seen_room(r, cap))
        return DL_ENOMEM;
    size_t first = first_bytes(ix, r);
    const _Atomic uint32_t *links = links_of(ix, slot, level);
    for (uint32_t i = cap; i-- > 0;) { /* backwards: a repair closes gaps by moving entries forward, and none may slip by */
        uint32_t word = get(links + i), to = word & ~TREE;
        if (word == NONE)
            continue;
        if (to >> SLAB_BITS >= r->seen_slabs && !seen_fit(r, atomic_load(&ix->slab_count)))
            return DL_ENOMEM;
        if (seen_before(r, to))
            continue;
        bool is_float;
        const uint8_t *row = row_of(ix, to, &is_float);
        if (!is_float)
            fetch_row(row, first);
        batch[count++] = (met){to, is_float ? NULL : (const head *)(const void *)row};
    }
    return meet_batch(ix, r, k, batch, count, first, now, only);
}

/* Those of the batch that are near enough are met, once the signs have told which need not be measured. Their first bytes have
 * been asked for. */
static inline __attribute__((always_inline)) int meet_batch(dl_index *ix, reader *r, const dl_kernels *k, met *batch,
                                                            uint32_t count, size_t first, uint64_t now, const allowed *only)
{
    bool gate = first < ix->row_bytes;
    float limit = worst(r);
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
            bool far = gated(ix, own) && too_far(ix, own, k, one.row, limit);
            left += !far;
            own->tested += own->samples >= GATE_SAMPLES;
            own->passed += own->samples >= GATE_SAMPLES && !far;
        }
        count = left;
    }
    for (uint32_t i = 0; gate && i < count; i++)
        if (batch[i].row)
            fetch_row((const uint8_t *)batch[i].row + first, ix->row_bytes - first);
    for (uint32_t i = 0; i < count; i++) {
        const head *h = batch[i].row;
        float d = h ? measure(ix, r, k, h) : coarse_distance(ix, &r->query, batch[i].slot);
        if (d >= limit)
            continue;
        if (!meet(ix, r, (near){d, batch[i].slot}, flags_of(h ? h : head_of(ix, batch[i].slot)), now, only))
            return DL_ENOMEM;
        limit = worst(r);
    }
    return DL_OK;
}

static bool begin(dl_index *ix, reader *r, uint32_t start, uint64_t now, const allowed *only)
{
    if (start >> SLAB_BITS >= r->seen_slabs && !seen_fit(r, atomic_load(&ix->slab_count)))
        return false;
    return seen_room(r, 1) && (seen_before(r, start) ||
           meet(ix, r, (near){coarse_distance(ix, &r->query, start), start}, flags_of(head_of(ix, start)), now, only));
}

/* Greedily to the nearest node, from `start`'s level down to just above `to`. What is measured on the way calibrates the signs for
 * the walk below. */
uint32_t descend(const dl_index *ix, reader *r, uint32_t start, uint32_t to)
{
    const dl_kernels *k = dl_kernels_now();
    float best = coarse_distance(ix, &r->query, start);
    uint32_t slot;
    bool is_float;
    for (uint32_t level = level_of(ix, start); level > to; level--)
        for (bool moved = true; moved;) {
            moved = false;
            const _Atomic uint32_t *links = links_of(ix, start, level);
            for (uint32_t i = 0; link_at(links, ix->config.m, i, &slot); i++)
                fetch_row(row_of(ix, slot, &is_float), ix->row_bytes);
            for (uint32_t i = 0; link_at(links, ix->config.m, i, &slot); i++) {
                const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
                const lane *l = is_float ? NULL : lane_of(ix, &r->query, h->frame);
                if (l && gated(ix, l) && too_far(ix, l, k, h, best))
                    continue;
                float d = is_float ? coarse_distance(ix, &r->query, slot) : measure(ix, r, k, h);
                if (d < best) {
                    best = d;
                    start = slot;
                    moved = true;
                }
            }
        }
    return start;
}

static int pool_reserve(reader *r, uint32_t most)
{
    if (most + 1 <= r->pool_capacity || most > POOL_MOST)
        return DL_OK;
    near *pool = dl_grow(r->pool, (most + 1) * sizeof *pool);
    if (!pool)
        return DL_ENOMEM;
    r->pool = pool;
    r->pool_capacity = most + 1;
    return DL_OK;
}

/* The nearest to r->query that may be returned, as far as `reach` says, for `found` to fetch: visible at `now` (with EVERYTHING: not
 * dead) and allowed. Others are walked through all the same. At level 0 the entry point is a second start: from there every node can
 * be reached, and a walk that does not run dry never comes to it. */
int walk(dl_index *ix, reader *r, uint32_t start, uint32_t level, extent reach, uint64_t now, const allowed *only)
{
    const dl_kernels *k = dl_kernels_now();
    r->candidates.size = r->results.size = r->pool_size = r->cursor = 0;
    r->reach = reach;
    if (pool_reserve(r, reach.most) != DL_OK || !seen_reset(ix, r) || !begin(ix, r, start, now, only))
        return DL_ENOMEM;
    uint32_t entry = get(&ix->entry), slot;
    if (level == 0 && entry != NONE && !begin(ix, r, entry, now, only))
        return DL_ENOMEM;
    while (next_node(r, &slot)) {
        int code = hop(ix, r, k, slot, level, now, only);
        if (code != DL_OK)
            return code;
    }
    return DL_OK;
}

/* The rows of a scan under way: asked for first as far as their signs and then, where those do not tell, whole. One at a time,
 * since a burst waits for its first row. A third of the time of a scan that asks for none, on the three sets of docs/tuning.md
 * where what is allowed lies near the query. */
typedef struct {
    uint32_t slots[SCAN_AHEAD], asked;
    met rows[AHEAD];
    uint32_t left; /* by their signs, to be measured */
} scanning;

static inline bool scan_measured(dl_index *ix, reader *r, const dl_kernels *k, met one)
{
    float d = one.row ? measure(ix, r, k, one.row) : coarse_distance(ix, &r->query, one.slot);
    return d >= worst(r) || keep(ix, r, (near){d, one.slot});
}

static inline bool scan_judged(dl_index *ix, reader *r, const dl_kernels *k, scanning *s, uint32_t slot, uint64_t now)
{
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    if (!answers(ix, slot, flags_of(h), now, NULL)) /* first: a free slot's row means nothing */
        return true;
    const lane *l = is_float ? NULL : lane_of(ix, &r->query, h->frame);
    if (l && gated(ix, l) && too_far(ix, l, k, h, worst(r)))
        return true;
    if (l)
        fetch_row(h, ix->row_bytes);
    met *oldest = &s->rows[s->left % AHEAD];
    if (s->left++ >= AHEAD && !scan_measured(ix, r, k, *oldest))
        return false;
    *oldest = (met){slot, l ? h : NULL};
    return true;
}

/* The same by going through all allowed slots in order. */
int scan(dl_index *ix, reader *r, uint32_t ef, uint64_t now, const allowed *only)
{
    const dl_kernels *k = dl_kernels_now();
    scanning s = {.asked = 0, .left = 0};
    uint32_t slots = atomic_load(&ix->slot_count);
    slots = slots < only->slots ? slots : only->slots;
    r->candidates.size = r->results.size = r->pool_size = r->cursor = 0;
    r->reach = fixed_extent(ef);
    if (pool_reserve(r, ef) != DL_OK)
        return DL_ENOMEM;
    for (uint32_t word = 0; word * 64 < slots; word++)
        for (uint64_t bits = only->bits[word]; bits; bits &= bits - 1) {
            uint32_t slot = word * 64 + (uint32_t)__builtin_ctzll(bits);
            bool is_float;
            if (slot >= slots)
                break;
            fetch_row(row_of(ix, slot, &is_float), sizeof(head) + ix->padded / 8);
            uint32_t *oldest = &s.slots[s.asked % SCAN_AHEAD];
            if (s.asked++ >= SCAN_AHEAD && !scan_judged(ix, r, k, &s, *oldest, now))
                return DL_ENOMEM;
            *oldest = slot;
        }
    for (uint32_t i = s.asked < SCAN_AHEAD ? 0 : s.asked - SCAN_AHEAD; i < s.asked; i++)
        if (!scan_judged(ix, r, k, &s, s.slots[i % SCAN_AHEAD], now))
            return DL_ENOMEM;
    for (uint32_t i = s.left < AHEAD ? 0 : s.left - AHEAD; i < s.left; i++)
        if (!scan_measured(ix, r, k, s.rows[i % AHEAD]))
            return DL_ENOMEM;
    return DL_OK;
}

/* ---- what a walk does where all that is near is forbidden ---- */

/* Of the unseen slots in a list, those that are allowed go into the batch, and the others, which may lead to more, to `others`.
 * Without branches: which a slot is cannot be foreseen. */
static int sift(dl_index *ix, reader *r, uint32_t slot, const allowed *only, size_t first, met *batch, uint32_t *count,
                uint32_t *others, uint32_t *left)
{
    uint32_t words[WIDEST], cap = ix->links0, from = *count;
    const _Atomic uint32_t *links = links_of(ix, slot, 0);
    for (uint32_t i = cap; i-- > 0;) /* backwards, as in `hop` */
        words[i] = get(links + i);
    for (uint32_t i = 0; i < cap && *count < WIDEST; i++) {
        if (words[i] == NONE)
            continue;
        uint32_t to = words[i] & ~TREE;
        if (to >> SLAB_BITS >= r->seen_slabs && !seen_fit(r, atomic_load(&ix->slab_count)))
            return DL_ENOMEM;
        bool unseen = ~r->seen[to >> 6] >> (to & 63) & 1, may = is_allowed(only, to);
        batch[*count].slot = others[*left] = to;
        *count += unseen & may;
        *left += unseen & !may;
    }
    uint32_t end = *count;
    *count = from;
    for (uint32_t i = from; i < end; i++) {
        uint32_t to = batch[i].slot;
        if (seen_before(r, to)) /* a list half rewritten may hold it twice */
            continue;
        bool is_float;
        const uint8_t *row = row_of(ix, to, &is_float);
        if (!is_float)
            fetch_row(row, first);
        batch[(*count)++] = (met){to, is_float ? NULL : (const head *)(const void *)row};
    }
    return DL_OK;
}

/* Expand one node among the allowed alone: what is forbidden is not measured, only looked through, until as many nodes are met as
 * there may be links. */
static int hop_across(dl_index *ix, reader *r, const dl_kernels *k, uint32_t slot, uint64_t now, const allowed *only)
{
    met batch[WIDEST];
    uint32_t others[WIDEST], beyond[WIDEST], count = 0, left = 0, unused;
    if (!seen_room(r, 3 * WIDEST))
        return DL_ENOMEM;
    size_t first = first_bytes(ix, r);
    int code = sift(ix, r, slot, only, first, batch, &count, others, &left);
    for (uint32_t i = 0; code == DL_OK && i < left && count < ix->links0; i++) {
        for (uint32_t next = i ? i + AHEAD : 0; next <= i + AHEAD && next < left; next++)
            fetch_row((const void *)links_of(ix, others[next], 0), ix->links0 * sizeof(uint32_t));
        if (!seen_before(r, others[i]))
            code = sift(ix, r, others[i], only, first, batch, &count, beyond, (unused = 0, &unused));
    }
    return code == DL_OK ? meet_batch(ix, r, k, batch, count, first, now, only) : code;
}

/* Meet a sample of what is allowed, evenly from all of it. */
static int meet_sample(dl_index *ix, reader *r, const dl_kernels *k, uint64_t now, const allowed *only)
{
    met batch[SAMPLE];
    uint32_t slots[SAMPLE], count = 0, left = 0, most = atomic_load(&ix->slot_count);
    uint64_t step = only->count / SAMPLE + 1, passed = 0, next = 0;
    bool is_float;
    size_t first = first_bytes(ix, r);
    most = most < only->slots ? most : only->slots;
    if (!seen_room(r, SAMPLE))
        return DL_ENOMEM;
    for (uint32_t word = 0; word < most / 64 && count < SAMPLE; word++) {
        uint64_t bits = only->bits[word];
        passed += (uint64_t)__builtin_popcountll(bits);
        if (passed <= next)
            continue;
        next = passed + step - 1;
        slots[count] = word * 64 + (uint32_t)__builtin_ctzll(bits);
        fetch_row(row_of(ix, slots[count++], &is_float), first);
    }
    for (uint32_t i = 0; i < count; i++) {
        const head *h = (const head *)(const void *)row_of(ix, slots[i], &is_float);
        if (!answers(ix, slots[i], flags_of(h), now, NULL)) /* first: a free slot's row means nothing */
            continue;
        if (slots[i] >> SLAB_BITS >= r->seen_slabs && !seen_fit(r, atomic_load(&ix->slab_count)))
            return DL_ENOMEM;
        if (!seen_before(r, slots[i]))
            batch[left++] = (met){slots[i], is_float ? NULL : h};
    }
    return meet_batch(ix, r, k, batch, left, first, now, only);
}

/* As `walk` at level 0, with `few` candidates where what is allowed is no more frequent than everywhere, and towards all `ef`
 * where it is. Where most is forbidden, a walk would leave only by way of all that is nearer than the first allowed: it starts again
 * from a sample of the allowed and keeps to those, which lead less surely to the nearest, so with more candidates. */
int walk_allowed(dl_index *ix, reader *r, uint32_t start, uint32_t few, uint32_t ef, uint64_t now, const allowed *only)
{
    const dl_kernels *k = dl_kernels_now();
    double live = (double)atomic_load(&ix->live) + 1, share = fmin((double)only->count / live, 1), others = 1 / share - 1;
    uint32_t entry = get(&ix->entry), slot, fair = 0, forbidden = 0, most = few <= POOL_MOST && ef > POOL_MOST ? POOL_MOST : ef;
    uint32_t wide = few <= POOL_MOST && 2 * most > POOL_MOST ? POOL_MOST : 2 * most;
    bool across = false;
    r->candidates.size = r->results.size = r->pool_size = r->cursor = 0;
    r->reach = fixed_extent(few);
    if (pool_reserve(r, wide) != DL_OK || !seen_reset(ix, r) || !begin(ix, r, start, now, only) ||
        (entry != NONE && !begin(ix, r, entry, now, only)))
        return DL_ENOMEM;
    while (next_node(r, &slot)) {
        bool may = is_allowed(only, slot);
        int code = DL_OK;
        if (across && !may)
            continue;
        fair += may;
        forbidden += !may;
        if (!across && forbidden > ef / STRAY + others * (2 + 2 * fair)) {
            if (only->count <= (uint64_t)SURE * ef * ix->links0)
                return scan(ix, r, ef, now, only);
            across = true;
            r->reach = fixed_extent(wide);
            code = meet_sample(ix, r, k, now, only);
        } else if (!across) {
            uint32_t due = (uint32_t)(most * sqrt((fair + PRIOR * share) / (fair + forbidden + PRIOR)));
            if (due > r->reach.most + r->reach.most / 8) /* seldom: until the new places are taken nothing is too far for the signs to tell */
                r->reach = fixed_extent(due);
        }
        if (code == DL_OK)
            code = across ? hop_across(ix, r, k, slot, now, only) : hop(ix, r, k, slot, 0, now, only);
        if (code != DL_OK)
            return code;
    }
    bool whole = r->reach.most <= POOL_MOST ? r->pool_size == r->reach.most : r->results.size >= r->reach.most;
    return !across || whole ? DL_OK : scan(ix, r, ef, now, only);
}

/* What the walk found, at five bits and in order, into r->picked. */
int found(reader *r, uint32_t *count)
{
    bool pooled = r->reach.most <= POOL_MOST;
    *count = pooled ? r->pool_size : r->results.size;
    for (float limit = worst(r); pooled && *count > r->reach.least && r->pool[*count - 1].distance > limit;)
        --*count;
    int code = picked_reserve(r, *count);
    if (code != DL_OK)
        return code;
    if (*count)
        memcpy(r->picked, pooled ? r->pool : r->results.items, *count * sizeof(near));
    for (uint32_t i = 0; i < *count; i++)
        r->picked[i].slot &= ~EXPANDED;
    if (!pooled)
        near_sort(r->picked, *count);
    return DL_OK;
}

/* Measure r->picked, which is in order, more exactly, as far as the `want` best may lie: the first ones show how far the coarser
 * distances are off, and the first whose own leaves it no hope ends it. In order again; *count is how many were measured. */
int sharpen(const dl_index *ix, reader *r, uint32_t *count, uint32_t want, measured by)
{
    near *items = r->picked;
    float sum = 0, squares = 0, slack = 0;
    uint32_t i = 0, least = want < CALIBRATING ? CALIBRATING : want;
    r->results.size = 0;
    for (; i < *count; i++) {
        float coarse = items[i].distance;
        if (i >= least && coarse - slack > r->results.items[0].distance)
            break;
        if (i + AHEAD < *count)
            by(ix, r, items[i + AHEAD].slot, 0, true);
        items[i].distance = by(ix, r, items[i].slot, coarse, false);
        if (i < least) {
            float error = coarse - items[i].distance;
            sum += error;
            squares += error * error;
            float mean = sum / (float)(i + 1);
            slack = mean + HOPE * sqrtf(fmaxf(squares / (float)(i + 1) - mean * mean, 0));
        }
        if (i >= want && items[i].distance >= r->results.items[0].distance)
            continue;
        if (!heap_push(&r->results, items[i], true))
            return DL_ENOMEM;
        if (r->results.size > want)
            heap_pop(&r->results, true);
    }
    *count = i;
    near_sort(items, i);
    return DL_OK;
}

float by_codes(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead)
{
    (void)coarse;
    if (!ahead)
        return fine_distance(ix, &r->query, slot);
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    if (!is_float)
        fetch_row(rest_of(ix, h, slot), ix->rest_bytes);
    return 0;
}

/* A row that was not attached keeps its coarser distance. */
float by_raw(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead)
{
    const float *raw = raw_of(ix, atomic_load_explicit(&slab_of(ix, slot)->row[slot & SLAB_MASK], memory_order_acquire));
    if (ahead && raw)
        fetch_row(raw, AHEAD * LINE); /* the rest of it streams */
    return ahead ? 0 : raw ? distance_raw(ix, r->query.plain, raw) : coarse;
}
