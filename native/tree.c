/* The spanning tree that keeps every node reachable.
 *
 * Every linked node but the entry point has a parent whose level-0 edge to it is never pruned; the tree's root is the entry
 * point. So each live node is reached by directed edges, whatever pruning does, and among identical vectors too, where
 * neighbour selection alone leaves islands. On average one edge of a node's 2m is a tree edge, and most of them are edges that
 * selection would have kept: a parent is sought first among the neighbours that link back. */
#include "internal.h"

uint32_t parent_of(const dl_index *ix, uint32_t slot)
{
    return slab_of(ix, slot)->parent[slot & SLAB_MASK];
}

void set_parent(dl_index *ix, uint32_t slot, uint32_t parent)
{
    slab *s = slab_of(ix, slot);
    s->parent[slot & SLAB_MASK] = parent;
    s->version++;
}

static uint32_t children(const dl_index *ix, uint32_t slot)
{
    const _Atomic uint32_t *links = links_of(ix, slot, 0);
    uint32_t count = 0;
    for (uint32_t i = 1; i <= get(links); i++)
        count += parent_of(ix, get(links + i)) == slot;
    return count;
}

/* At most m of a node's 2m edges are given to the tree; turning the root adds at most one. */
static bool has_room(const dl_index *ix, uint32_t slot)
{
    return children(ix, slot) < ix->config.m;
}

bool reaches_root(const dl_index *ix, uint32_t slot)
{
    uint32_t root = get(&ix->entry);
    while (slot != root && slot != NONE)
        slot = parent_of(ix, slot);
    return slot != NONE;
}

/* Make sure of the edge; if the list is full, the farthest edge that is not the tree's gives way. */
void force_link(dl_index *ix, uint32_t from, uint32_t to)
{
    if (has_link(ix, from, to, 0))
        return;
    _Atomic uint32_t *links = links_of(ix, from, 0);
    uint32_t count = get(links);
    touch(ix, from);
    if (count < link_cap(ix, 0)) {
        put(links + 1 + count, to);
        put(links, count + 1);
        return;
    }
    uint32_t victim = NONE;
    float farthest = 0;
    probe_slot(ix, &ix->other, from);
    for (uint32_t i = 1; i <= count; i++) {
        uint32_t slot = get(links + i);
        if (parent_of(ix, slot) == from)
            continue;
        float d = distance4(ix, &ix->other, slot);
        if (victim == NONE || d > farthest) {
            victim = i;
            farthest = d;
        }
    }
    put(links + victim, to);
}

static bool can_adopt(const dl_index *ix, uint32_t parent, uint32_t child)
{
    return parent != child && state_of(ix, parent) == SLOT_LIVE && has_room(ix, parent) && reaches_root(ix, parent);
}

/* Give `child`, whose subtree hangs loose, a parent: the nearest candidate that links to it already, else the nearest that has
 * room, else any node that has. One exists: the tree is finite and its leaves have room. */
void adopt(dl_index *ix, uint32_t child, const near *candidates, uint32_t count)
{
    uint32_t parent = NONE;
    for (uint32_t i = 0; i < count && parent == NONE; i++)
        if (has_link(ix, candidates[i].slot, child, 0) && can_adopt(ix, candidates[i].slot, child))
            parent = candidates[i].slot;
    for (uint32_t i = 0; i < count && parent == NONE; i++)
        if (can_adopt(ix, candidates[i].slot, child))
            parent = candidates[i].slot;
    uint32_t slots = atomic_load(&ix->slot_count);
    for (uint32_t i = 1; i < slots && parent == NONE; i++) {
        uint32_t slot = (child + i) % slots;
        slot_state state = state_of(ix, slot);
        if ((state == SLOT_LIVE || state == SLOT_DEAD) && slot != child && has_room(ix, slot) && reaches_root(ix, slot))
            parent = slot;
    }
    set_parent(ix, child, parent);
    force_link(ix, parent, child);
}

/* Turn the path from `root` up to the old root around. */
void reroot(dl_index *ix, uint32_t root)
{
    uint32_t below = NONE;
    for (uint32_t at = root; at != NONE;) {
        uint32_t up = parent_of(ix, at);
        set_parent(ix, at, below);
        if (below != NONE)
            force_link(ix, below, at);
        below = at;
        at = up;
    }
}
