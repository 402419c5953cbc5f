/* The spanning tree that keeps every node reachable.
 *
 * Every linked node but the entry point has a parent whose level-0 edge to it is marked and never pruned; the tree's root is the
 * entry point. So each live node is reached by directed edges, whatever pruning does, and among identical vectors too, where
 * neighbour selection alone leaves islands. On average one edge of a node's 2m is a tree edge, and most of them are edges that
 * selection would have kept: a parent is sought first among the neighbours that link back.
 *
 * Insertions hang new leaves, side by side, each under the lock of the parent's slot; only a node that is in the tree itself
 * takes children, so no circle can close. Whatever moves subtrees has the structure alone. */
#include "internal.h"

uint32_t parent_of(const dl_index *ix, uint32_t slot)
{
    return get(&slab_of(ix, slot)->parent[slot & SLAB_MASK]);
}

void set_parent(dl_index *ix, uint32_t slot, uint32_t parent)
{
    bool hung = parent_of(ix, slot) != NO_PARENT;
    before_change(ix, slot, false);
    put(&slab_of(ix, slot)->parent[slot & SLAB_MASK], parent);
    if (hung)
        atomic_fetch_add(&ix->rehung, 1);
}

bool reaches_root(const dl_index *ix, uint32_t slot)
{
    uint32_t root = get(&ix->entry);
    while (slot != root && slot < NO_PARENT)
        slot = parent_of(ix, slot);
    return slot == root;
}

/* Make sure of the edge and mark it; if the list is full, the farthest edge that is not the tree's gives way. */
void hold(dl_index *ix, reader *r, uint32_t from, uint32_t to)
{
    _Atomic uint32_t *links = links_of(ix, from, 0);
    uint32_t cap = link_cap(ix, 0), slot, at = 0, victim = NONE;
    before_change(ix, from, false);
    while (link_at(links, cap, at, &slot) && slot != to)
        at++;
    if (at < cap) {
        put(links + at, to | TREE);
        return;
    }
    float farthest = 0;
    probe *owner = &r->kept[2 * ix->config.m];
    probe_slot(ix, owner, from, r->codes);
    for (uint32_t i = 0; link_at(links, cap, i, &slot); i++) {
        if (get(links + i) & TREE)
            continue;
        float d = coarse_distance(ix, owner, slot);
        if (victim == NONE || d > farthest) {
            victim = i;
            farthest = d;
        }
    }
    put(links + victim, to | TREE);
}

/* Take the mark away: the edge is one like others. */
void let_go(dl_index *ix, uint32_t from, uint32_t to)
{
    _Atomic uint32_t *links = links_of(ix, from, 0);
    uint32_t slot;
    before_change(ix, from, false);
    for (uint32_t i = 0; link_at(links, link_cap(ix, 0), i, &slot); i++)
        if (slot == to)
            put(links + i, to);
}

/* At most m of a node's 2m edges are given to the tree; turning the root adds at most one. */
static bool has_room(const dl_index *ix, uint32_t slot)
{
    const _Atomic uint32_t *links = links_of(ix, slot, 0);
    uint32_t children = 0, child;
    for (uint32_t i = 0; link_at(links, link_cap(ix, 0), i, &child); i++)
        children += (get(links + i) & TREE) != 0;
    return children < ix->config.m;
}

static bool adopt_at(dl_index *ix, reader *r, uint32_t child, uint32_t parent, bool loose)
{
    slot_state state = state_of(ix, parent);
    if (parent == child || (state != SLOT_LIVE && state != SLOT_DEAD) || (loose && !reaches_root(ix, parent)))
        return false;
    lock_slot(ix, parent);
    bool good = parent_of(ix, parent) != NO_PARENT && has_room(ix, parent);
    if (good) {
        hold(ix, r, parent, child);
        set_parent(ix, child, parent);
    }
    unlock_slot(ix, parent);
    return good;
}

/* At the node or, where that is full, below it. The way down is drawn, so that the tree stays flat. */
static bool adopt_below(dl_index *ix, reader *r, uint32_t child, uint32_t parent, bool loose)
{
    uint64_t draw = dl_mix(child);
    while (!adopt_at(ix, r, child, parent, loose)) {
        uint32_t children[2 * 128], count = 0, slot;
        const _Atomic uint32_t *links = links_of(ix, parent, 0);
        for (uint32_t i = 0; link_at(links, ix->links0, i, &slot); i++) {
            children[count] = slot;
            count += (get(links + i) & TREE) != 0;
        }
        if (!count)
            return false;
        parent = children[draw % count];
        draw = dl_mix(draw);
    }
    return true;
}

/* Give `child` a parent: the nearest candidate that links to it already, else the nearest or, if it is full, one below it, else any
 * node that has room. One exists: the tree is finite and its leaves have room. `loose`: a subtree hangs on the child, which a parent
 * must not be part of. */
void adopt(dl_index *ix, reader *r, uint32_t child, const near *candidates, uint32_t count, bool loose)
{
    for (uint32_t i = 0; i < count; i++)
        if (has_link(ix, candidates[i].slot, child, 0) && adopt_at(ix, r, child, candidates[i].slot, loose))
            return;
    for (uint32_t i = 0; i < count; i++)
        if (adopt_below(ix, r, child, candidates[i].slot, loose))
            return;
    uint32_t slots = atomic_load(&ix->slot_count);
    for (uint32_t i = 1; i < slots; i++)
        if (adopt_at(ix, r, child, (child + i) % slots, loose))
            return;
}

/* Turn the path from `root` up to the old root around. The structure is held alone. */
void reroot(dl_index *ix, reader *r, uint32_t root)
{
    uint32_t below = NONE;
    for (uint32_t at = root; at < NO_PARENT;) {
        uint32_t up = parent_of(ix, at);
        if (up < NO_PARENT)
            let_go(ix, up, at);
        set_parent(ix, at, below);
        if (below != NONE)
            hold(ix, r, below, at);
        below = at;
        at = up;
    }
}
