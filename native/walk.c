/* Walking the graph (Malkov & Yashunin, algorithm 2). */
#include "walk.h"

/* ---- the slots seen: a bit each, and a list of them by which the bits are cleared ---- */

bool seen_fit(reader *r, uint32_t slabs)
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

/* ---- walking ---- */

/* Expand one node: its unseen neighbours are measured and met. */
int hop(dl_index *ix, reader *r, const dl_kernels *k, uint32_t slot, uint32_t level, uint64_t now, const allowed *only)
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

bool begin(dl_index *ix, reader *r, uint32_t start, uint64_t now, const allowed *only)
{
    if (start >> SLAB_BITS >= r->seen_slabs && !seen_fit(r, atomic_load(&ix->slab_count)))
        return false;
    if (!seen_room(r, 1))
        return false;
    return seen_before(r, start) ||
           meet(ix, r, (near){coarse_distance(ix, &r->query, start), start}, flags_of(head_of(ix, start)), now, only);
}

/* Greedily to the nearest node, from `start`'s level down to just above `to`: by the signs alone where they come in fewer lines of
 * memory than what routes, since the walk from there mends what they get wrong. */
uint32_t descend(const dl_index *ix, reader *r, uint32_t start, uint32_t to)
{
    const dl_kernels *k = dl_kernels_now();
    bool by_signs = ix->row_bytes > LINE, is_float;
    size_t asked = by_signs ? sign_bytes(ix) : ix->row_bytes;
    float best = by_signs ? sign_distance(ix, r, k, start) : coarse_distance(ix, &r->query, start);
    uint32_t slot;
    for (uint32_t level = level_of(ix, start); level > to; level--)
        for (bool moved = true; moved;) {
            moved = false;
            const _Atomic uint32_t *links = links_of(ix, start, level);
            for (uint32_t i = 0; link_at(links, ix->config.m, i, &slot); i++)
                fetch_row(row_of(ix, slot, &is_float), asked);
            for (uint32_t i = 0; link_at(links, ix->config.m, i, &slot); i++) {
                float d = by_signs ? sign_distance(ix, r, k, slot) : coarse_distance(ix, &r->query, slot);
                if (d < best) {
                    best = d;
                    start = slot;
                    moved = true;
                }
            }
        }
    return start;
}

int pool_reserve(reader *r, uint32_t most)
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

static int walk_on(dl_index *ix, reader *r, uint32_t level, uint64_t now, const allowed *only)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t slot;
    while (next_node(r, &slot)) {
        int code = hop(ix, r, k, slot, level, now, only);
        if (code != DL_OK)
            return code;
    }
    return DL_OK;
}

/* Once more from everything seen. */
static int walk_again(dl_index *ix, reader *r, uint32_t level, uint64_t now, const allowed *only)
{
    for (size_t i = 0, seen = r->marked_count; i < seen; i++) {
        int code = hop(ix, r, dl_kernels_now(), r->marked[i], level, now, only);
        if (code != DL_OK)
            return code;
    }
    return walk_on(ix, r, level, now, only);
}

/* The nearest to r->query that may be returned, as far as `reach` says, for `found` to fetch: visible at `now` (with EVERYTHING: not
 * dead) and allowed. Others are walked through all the same. At level 0 the entry point is a second start: from there every node can
 * be reached, and a walk that does not run dry never comes to it. One that runs dry has come to all there is, unless a subtree was hung from
 * a node that it had walked from already: then it looks again, until nothing more is found. */
int walk(dl_index *ix, reader *r, uint32_t start, uint32_t level, extent reach, uint64_t now, const allowed *only)
{
    r->candidates.size = r->results.size = r->pool_size = r->cursor = 0;
    r->reach = reach;
    uint64_t rehung = atomic_load(&ix->rehung), latest;
    if (pool_reserve(r, reach.most) != DL_OK || !seen_reset(ix, r) || !begin(ix, r, start, now, only))
        return DL_ENOMEM;
    uint32_t entry = get(&ix->entry);
    if (level == 0 && entry != NONE && !begin(ix, r, entry, now, only))
        return DL_ENOMEM;
    int code = walk_on(ix, r, level, now, only);
    while (code == DL_OK && worst(r) == INFINITY && (latest = atomic_load(&ix->rehung)) != rehung) {
        size_t seen = r->marked_count;
        rehung = latest;
        code = walk_again(ix, r, level, now, only);
        if (r->marked_count == seen)
            break;
    }
    return code;
}
