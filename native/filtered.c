/* Finding the nearest of the slots that are allowed: by a scan of them, or by a walk.
 *
 * A walk goes through the others too, as long as it meets the allowed about as often as they are. Elsewhere it keeps to the
 * allowed, from a sample of them, and looks through those of the others beside them that are near enough, without going further
 * from there (between ACORN-1, arXiv 2403.04871, and the directed walk of NaviX, arXiv 2506.23397); or, where the allowed are
 * few, it gives way to a scan. Tried and lost, at equal time: looking through the others unmeasured, in any number; taking them
 * up among the candidates, to be looked through in turn; four times the sample. */
#include "walk.h"

#define AFAR 0.65f /* of the growth of distances with rank, where a query is far from all that is allowed: they differ by less */

enum {
    SAMPLE = 32,    /* allowed slots that a walk across what is forbidden starts from */
    STRAY = 16,     /* one in so many candidates may be forbidden nodes before their share is judged */
    SURE = 8,       /* rows scanned, for each met on the way across, in about the same time: a scan misses none */
    PRIOR = 16,     /* nodes walked from that the share of all counts for, against that of those near by */
    SCAN_AHEAD = 16 /* rows that a scan asks for before their signs are looked at */
};

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
    float d = distance_of(ix, r, k, one);
    return d >= worst(r) || keep(ix, r, (near){d, one.slot});
}

static inline bool scan_judged(dl_index *ix, reader *r, const dl_kernels *k, scanning *s, uint32_t slot, uint64_t now)
{
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    if (!answers(ix, slot, flags_of(h), now, NULL)) /* first: a free slot's row means nothing */
        return true;
    const lane *l = is_float ? NULL : lane_of(ix, &r->query, h->frame);
    if (l && gated(ix, l) && sign_estimate(ix, l, k, h, l->margin) > worst(r))
        return true;
    if (l)
        fetch_row(h, ix->row_bytes);
    met *oldest = &s->rows[s->left % AHEAD];
    if (s->left++ >= AHEAD && !scan_measured(ix, r, k, *oldest))
        return false;
    *oldest = (met){slot, l ? h : NULL};
    return true;
}

/* The `ef` nearest, by going through all allowed slots in order; for `found` to fetch. */
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
            fetch_row(row_of(ix, slot, &is_float), sign_bytes(ix));
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

/* ---- where all that is near is forbidden ---- */

/* The links of a node: how many are allowed, and by slot the unseen among them and among the others. */
typedef struct {
    uint32_t allowed, may_count, other_count;
    uint32_t may[WIDEST], others[WIDEST];
} sifted;

/* Without branches: which a slot is cannot be foreseen. */
static int sift(dl_index *ix, reader *r, uint32_t slot, const allowed *only, sifted *s)
{
    uint32_t all = 0, may_count = 0, other_count = 0;
    const _Atomic uint32_t *links = links_of(ix, slot, 0);
    for (uint32_t i = ix->links0; i-- > 0;) { /* backwards, as in `hop` */
        uint32_t word = get(links + i), to = word & ~TREE;
        if (word == NONE)
            continue;
        if (to >> SLAB_BITS >= r->seen_slabs && !seen_fit(r, atomic_load(&ix->slab_count)))
            return DL_ENOMEM;
        bool unseen = ~r->seen[to >> 6] >> (to & 63) & 1, may = is_allowed(only, to);
        s->may[may_count] = s->others[other_count] = to;
        may_count += unseen & may;
        other_count += unseen & !may;
        all += may;
    }
    s->allowed = all;
    s->may_count = may_count;
    s->other_count = other_count;
    return DL_OK;
}

/* Their rows are asked for, and they join the batch, whose new size is returned. */
static uint32_t join(dl_index *ix, reader *r, const uint32_t *slots, uint32_t most, size_t first, met *batch, uint32_t count)
{
    for (uint32_t i = 0; i < most; i++) {
        if (seen_before(r, slots[i])) /* a list half rewritten may hold it twice */
            continue;
        bool is_float;
        const uint8_t *row = row_of(ix, slots[i], &is_float);
        if (!is_float)
            fetch_row(row, first);
        batch[count++] = (met){slots[i], is_float ? NULL : (const head *)(const void *)row};
    }
    return count;
}

/* Those of a batch that would be walked from if they were allowed, in order. */
static uint32_t ways_on(dl_index *ix, reader *r, const dl_kernels *k, met *batch, uint32_t count, size_t first, near *ways)
{
    float limit = worst(r);
    uint32_t near_enough = 0;
    count = ask_signs(ix, r, k, batch, count, first, limit);
    for (uint32_t i = 0; i < count; i++) {
        float d = distance_of(ix, r, k, batch[i]);
        if (d >= limit)
            continue;
        ways[near_enough++] = (near){d, batch[i].slot};
        fetch_row((const void *)links_of(ix, batch[i].slot, 0), ix->links0 * sizeof(uint32_t));
    }
    near_sort(ways, near_enough);
    return near_enough;
}

/* Expand one node among the allowed: the others are only looked through, the nearest first, until half as many again of the
 * allowed are met as there may be links, new or not. */
static int hop_across(dl_index *ix, reader *r, const dl_kernels *k, uint32_t slot, uint64_t now, const allowed *only)
{
    met batch[3 * WIDEST], beside[WIDEST];
    near ways[WIDEST];
    sifted s;
    if (!seen_room(r, 4 * WIDEST))
        return DL_ENOMEM;
    size_t first = first_bytes(ix, r);
    if (r->cursor + 1 < r->pool_size) /* perhaps the next to be walked from */
        fetch_row((const void *)links_of(ix, r->pool[r->cursor + 1].slot & ~EXPANDED, 0), ix->links0 * sizeof(uint32_t));
    int code = sift(ix, r, slot, only, &s);
    if (code != DL_OK)
        return code;
    uint32_t count = join(ix, r, s.may, s.may_count, first, batch, 0), met_so_far = s.allowed;
    uint32_t left = join(ix, r, s.others, s.other_count, first, beside, 0);
    left = ways_on(ix, r, k, beside, left, first, ways);
    for (uint32_t i = 0; i < left && met_so_far < 3 * ix->config.m; i++, met_so_far += s.allowed) {
        code = sift(ix, r, ways[i].slot, only, &s);
        if (code != DL_OK)
            return code;
        count = join(ix, r, s.may, s.may_count, first, batch, count);
    }
    return meet_batch(ix, r, k, batch, count, first, now, only);
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
 * from a sample of the allowed and keeps to those, as far as `reach` says for one from afar. */
int walk_allowed(dl_index *ix, reader *r, uint32_t start, uint32_t few, uint32_t ef, extent reach, uint64_t now,
                 const allowed *only)
{
    const dl_kernels *k = dl_kernels_now();
    double live = (double)atomic_load(&ix->live) + 1, share = fmin((double)only->count / live, 1), others = 1 / share - 1;
    uint32_t entry = get(&ix->entry), slot, fair = 0, forbidden = 0;
    uint32_t most = few <= POOL_MOST && ef > POOL_MOST ? POOL_MOST : ef;
    uint32_t wide = few <= POOL_MOST && 2 * most > POOL_MOST ? POOL_MOST : 2 * most;
    bool learnt = reach.ratio > 1 && reach.most <= POOL_MOST;
    extent afar = learnt ? reach : fixed_extent(wide);
    afar.ratio = powf(afar.ratio, AFAR);
    bool across = false;
    r->candidates.size = r->results.size = r->pool_size = r->cursor = 0;
    r->reach = fixed_extent(few);
    if (pool_reserve(r, afar.most) != DL_OK || !seen_reset(ix, r) || !begin(ix, r, start, now, only) ||
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
            r->reach = afar;
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
    uint32_t kept = r->reach.most <= POOL_MOST ? r->pool_size : r->results.size;
    return !across || kept >= r->reach.least ? DL_OK : scan(ix, r, ef, now, only);
}
