/* The graph: walking it, choosing neighbours, linking a node in (Malkov & Yashunin, algorithms 1, 2 and 4). */
#include "internal.h"

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
    qsort(items, n, sizeof *items, by_distance);
}

/* ---- the visited set: a tag per slot, bumped per walk ---- */

static bool seen_fit(reader *r, uint32_t slots)
{
    if (slots <= r->seen_size)
        return true;
    uint16_t *seen = dl_grow(r->seen, (size_t)slots * sizeof *seen);
    if (!seen)
        return false;
    memset(seen + r->seen_size, 0, (size_t)(slots - r->seen_size) * sizeof *seen);
    r->seen = seen;
    r->seen_size = slots;
    return true;
}

bool seen_reset(dl_index *ix, reader *r)
{
    if (!seen_fit(r, atomic_load(&ix->slab_count) * DL_SLAB))
        return false;
    if (++r->tag == 0) {
        memset(r->seen, 0, r->seen_size * sizeof *r->seen);
        r->tag = 1;
    }
    return true;
}

/* ---- walking ---- */

/* Greedily to the nearest node, from `start`'s level down to just above `to`. */
uint32_t descend(const dl_index *ix, probe *p, uint32_t start, uint32_t to)
{
    float best = distance4(ix, p, start);
    for (uint32_t level = level_of(ix, start); level > to; level--)
        for (bool moved = true; moved;) {
            moved = false;
            const _Atomic uint32_t *links = links_of(ix, start, level);
            uint32_t count = get(links);
            for (uint32_t i = 1; i <= count; i++) {
                uint32_t slot = get(links + i);
                float d = distance4(ix, p, slot);
                if (d < best) {
                    best = d;
                    start = slot;
                    moved = true;
                }
            }
        }
    return start;
}

static inline bool counts(const dl_index *ix, uint32_t slot, uint64_t now)
{
    const slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    return now == NEVER ? s->state[i] == SLOT_LIVE : visible(s, i, now);
}

/* Meet a node: it is walked from later, and is a result if it counts. */
static inline bool meet(dl_index *ix, reader *r, near item, uint32_t ef, uint64_t now)
{
    r->seen[item.slot] = r->tag;
    if (!heap_push(&r->candidates, item, false))
        return false;
    if (!counts(ix, item.slot, now))
        return true;
    if (!heap_push(&r->results, item, true))
        return false;
    if (r->results.size > ef)
        heap_pop(&r->results, true);
    return true;
}

/* The `ef` nearest to r->query that count, into r->results. What counts: visible at `now`, or with NEVER (the writer's
 * view) live. Others are walked through all the same. At level 0 the entry point is a second start: from there every
 * node can be reached, and a walk that does not run dry never comes to it. */
int search_layer(dl_index *ix, reader *r, uint32_t start, uint32_t level, uint32_t ef, uint64_t now)
{
    heap *candidates = &r->candidates, *results = &r->results;
    candidates->size = results->size = 0;
    if (!seen_reset(ix, r))
        return DL_ENOMEM;
    if (!meet(ix, r, (near){distance4(ix, &r->query, start), start}, ef, now))
        return DL_ENOMEM;
    uint32_t entry = get(&ix->entry);
    if (level == 0 && entry != start && entry != NONE) {
        if (!seen_fit(r, atomic_load(&ix->slab_count) * DL_SLAB) ||
            !meet(ix, r, (near){distance4(ix, &r->query, entry), entry}, ef, now))
            return DL_ENOMEM;
    }
    while (candidates->size) {
        near item = heap_pop(candidates, false);
        if (results->size >= ef && item.distance > results->items[0].distance)
            break;
        const _Atomic uint32_t *links = links_of(ix, item.slot, level);
        uint32_t count = get(links);
        for (uint32_t i = 1; i <= count; i++) {
            uint32_t slot = get(links + i);
            if (slot >= r->seen_size && !seen_fit(r, atomic_load(&ix->slab_count) * DL_SLAB))
                return DL_ENOMEM;
            if (r->seen[slot] == r->tag)
                continue;
            r->seen[slot] = r->tag;
            near next = {distance4(ix, &r->query, slot), slot};
            if (results->size >= ef && next.distance >= results->items[0].distance)
                continue;
            if (!meet(ix, r, next, ef, now))
                return DL_ENOMEM;
        }
    }
    return DL_OK;
}

int picked_reserve(reader *r, size_t n)
{
    if (n <= r->picked_size)
        return DL_OK;
    near *items = dl_grow(r->picked, n * sizeof *items);
    if (!items)
        return DL_ENOMEM;
    r->picked = items;
    r->picked_size = n;
    return DL_OK;
}

/* ---- choosing neighbours ---- */

/* Keep those that are nearer to the owner than to any one kept before them. What stays whatever it is near to: the first
 * `settled`, and children of the owner in the spanning tree. `list` is ascending behind the settled ones; it is overwritten
 * with the choice, whose size is returned. */
uint32_t select_neighbours(dl_index *ix, near *list, uint32_t count, uint32_t settled, uint32_t limit, uint32_t owner,
                           uint32_t level, bool fine)
{
    uint32_t kept = 0, open = limit;
    for (uint32_t i = 0; i < count; i++)
        open -= i < settled || (level == 0 && parent_of(ix, list[i].slot) == owner);
    for (uint32_t i = 0; i < count; i++) {
        near chosen = list[i];
        bool stays = i < settled || (level == 0 && chosen.slot != NONE && parent_of(ix, chosen.slot) == owner);
        if (chosen.slot == NONE || (!open && !stays))
            continue;
        open -= !stays;
        list[kept++] = chosen;
        bool measured = false;
        for (uint32_t j = i + 1; j < count && open; j++) {
            uint32_t slot = list[j].slot;
            if (slot == NONE || j < settled || (level == 0 && parent_of(ix, slot) == owner))
                continue;
            if (!measured)
                probe_slot(ix, &ix->third, chosen.slot);
            measured = true;
            float between = fine ? distance8(ix, &ix->third, slot) : distance4(ix, &ix->third, slot);
            if (between < list[j].distance)
                list[j].slot = NONE;
        }
    }
    return kept;
}

void write_links(dl_index *ix, uint32_t slot, uint32_t level, const near *chosen, uint32_t count)
{
    _Atomic uint32_t *links = links_of(ix, slot, level);
    if (count < get(links))
        put(links, count);
    for (uint32_t i = 0; i < count; i++)
        put(links + 1 + i, chosen[i].slot);
    put(links, count);
    touch(ix, slot);
}

bool has_link(const dl_index *ix, uint32_t from, uint32_t to, uint32_t level)
{
    const _Atomic uint32_t *links = links_of(ix, from, level);
    for (uint32_t i = 1; i <= get(links); i++)
        if (get(links + i) == to)
            return true;
    return false;
}

/* Link `from` to `to`, choosing anew among all of from's neighbours when its list is full. */
void link_back(dl_index *ix, uint32_t from, uint32_t to, uint32_t level)
{
    _Atomic uint32_t *links = links_of(ix, from, level);
    uint32_t count = get(links), cap = link_cap(ix, level);
    if (has_link(ix, from, to, level))
        return;
    touch(ix, from);
    if (count < cap) {
        put(links + 1 + count, to);
        put(links, count + 1);
        return;
    }
    near list[2 * 128 + 1];
    probe_slot(ix, &ix->other, from);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = get(links + 1 + i);
        list[i] = (near){distance4(ix, &ix->other, slot), slot};
    }
    list[count] = (near){distance4(ix, &ix->other, to), to};
    near_sort(list, count + 1);
    write_links(ix, from, level, list, select_neighbours(ix, list, count + 1, 0, cap, from, level, false));
}

/* r->results in order into r->picked, refined to eight bits. */
int refine(const dl_index *ix, reader *r, uint32_t *count)
{
    int code = picked_reserve(r, r->results.size);
    if (code != DL_OK)
        return code;
    *count = r->results.size;
    for (uint32_t i = 0; i < *count; i++) {
        uint32_t slot = r->results.items[i].slot;
        r->picked[i] = (near){distance8(ix, &r->query, slot), slot};
    }
    near_sort(r->picked, *count);
    return DL_OK;
}

/* Link a written slot in. ix->own->query holds its vector. Nothing is linked before everything that can fail is done:
 * the choices of all levels are made first, top to bottom. */
int insert_node(dl_index *ix, uint32_t slot)
{
    reader *r = ix->own;
    uint32_t entry = get(&ix->entry), level = level_of(ix, slot);
    if (entry == NONE) {
        set_parent(ix, slot, NONE);
        atomic_store(&ix->entry, slot);
        return DL_OK;
    }
    near chosen[MAX_LEVEL + 1][128];
    uint32_t chosen_count[MAX_LEVEL + 1] = {0}, count = 0;
    uint32_t top = level_of(ix, entry), at = descend(ix, &r->query, entry, level);
    for (uint32_t l = level < top ? level : top;; l--) {
        int code = search_layer(ix, r, at, l, ix->config.ef_construction, NEVER);
        if (code != DL_OK || (code = refine(ix, r, &count)) != DL_OK)
            return code;
        if (count)
            at = r->picked[0].slot;
        if (l == 0)
            break;
        uint32_t kept = count < ix->config.ef_construction ? count : ix->config.ef_construction;
        kept = select_neighbours(ix, r->picked, kept, 0, ix->config.m, slot, l, true);
        memcpy(chosen[l], r->picked, kept * sizeof(near));
        chosen_count[l] = kept;
    }
    /* level 0: the whole list is kept for the choice of a parent */
    int code = picked_reserve(r, 2 * (size_t)count);
    if (code != DL_OK)
        return code;
    near *nearest = r->picked + count;
    memcpy(nearest, r->picked, count * sizeof(near));
    chosen_count[0] = select_neighbours(ix, r->picked, count, 0, ix->config.m, slot, 0, true);
    memcpy(chosen[0], r->picked, chosen_count[0] * sizeof(near));

    for (uint32_t l = level < top ? level : top; l != NONE; l--) {
        write_links(ix, slot, l, chosen[l], chosen_count[l]);
        for (uint32_t i = 0; i < chosen_count[l]; i++)
            link_back(ix, chosen[l][i].slot, slot, l);
    }
    if (!count) { /* nothing live is left to link to */
        set_parent(ix, slot, NONE);
        atomic_store(&ix->entry, slot);
        return DL_OK;
    }
    adopt(ix, slot, nearest, count);
    if (level > top) {
        reroot(ix, slot);
        atomic_store(&ix->entry, slot);
    }
    return DL_OK;
}
