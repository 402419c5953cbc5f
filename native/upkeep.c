/* After deletes: unlink the dead, join their neighbours, give the slots back.
 *
 * Dead slots gather until a round starts. A round takes those that no reader can want any more, hands their children in the
 * spanning tree to others, then goes through the slabs, one a call, and gives every node that has an edge to one of them a new
 * choice among its own neighbours and theirs (FreshDiskANN, algorithm 4). Once no edge is left the dead wait, in limbo, for the
 * readers that may stand on them. */
#include "internal.h"

enum {
    ROUND_MOST = 4096, /* bounds the one pause of a round: handing over the children */
    ROUND_LEAST = 32   /* a round costs a pass over all links: wait for this many, and a 64th of what is live */
};

static void release_limbo(dl_index *ix)
{
    queue *q = &ix->limbo;
    uint64_t oldest = q->start < q->end ? oldest_pin(ix) : 0;
    for (; q->start < q->end && q->items[q->start].stamp <= oldest; q->start++)
        slot_release(ix, q->items[q->start].slot);
}

/* The highest node that stays; a live one if there is any. */
static uint32_t next_entry(const dl_index *ix)
{
    uint32_t best = NONE, slots = atomic_load(&ix->slot_count);
    int best_rank = -1;
    for (uint32_t slot = 0; slot < slots; slot++) {
        slot_state state = state_of(ix, slot);
        if (state != SLOT_LIVE && state != SLOT_DEAD)
            continue;
        int rank = level_of(ix, slot) + (state == SLOT_LIVE ? MAX_LEVEL + 1 : 0);
        if (rank > best_rank) {
            best_rank = rank;
            best = slot;
        }
    }
    return best;
}

/* The dead node's children find other parents, and none of its edges is the tree's any more. */
static void adopt_orphans(dl_index *ix, reader *r, uint32_t dead)
{
    _Atomic uint32_t *links = links_of(ix, dead, 0);
    uint32_t child, slot;
    before_change(ix, dead, false);
    for (uint32_t i = 0; link_at(links, ix->links0, i, &child); i++) {
        put(links + i, child);
        if (parent_of(ix, child) != dead || state_of(ix, child) == SLOT_UNLINKING)
            continue;
        near candidates[2 * 256];
        uint32_t known = 0;
        const _Atomic uint32_t *own = links_of(ix, child, 0);
        for (uint32_t j = 0; link_at(own, ix->links0, j, &slot); j++)
            candidates[known++].slot = slot;
        for (uint32_t j = 0; link_at(links, ix->links0, j, &slot); j++)
            candidates[known++].slot = slot;
        let_go(ix, dead, child);
        adopt(ix, r, child, candidates, known, true);
    }
}

/* How many of the dead a round would take now: of those that no reader can want any more, and none if they are too few for one. */
static size_t count_due(dl_index *ix, bool eager)
{
    const queue *q = &ix->dead;
    uint64_t oldest = oldest_pin(ix);
    size_t ready = 0;
    while (q->start + ready < q->end && q->items[q->start + ready].stamp <= oldest && ready < ROUND_MOST)
        ready++;
    bool few = ready < ROUND_MOST && ready < ROUND_LEAST + atomic_load(&ix->live) / 64;
    return few && !eager ? 0 : ready;
}

static int start_round(dl_index *ix, reader *r, bool eager)
{
    queue *q = &ix->dead;
    size_t ready = count_due(ix, eager);
    if (!ready)
        return DL_OK;
    if (ix->round_capacity < ready) {
        uint32_t *round = dl_grow(ix->round, ready * sizeof *round);
        if (!round)
            return DL_ENOMEM;
        ix->round = round;
        ix->round_capacity = ready;
    }
    int code = queue_reserve(&ix->limbo, ready);
    if (code != DL_OK)
        return code;
    for (size_t i = 0; i < ready; i++) {
        uint32_t slot = q->items[q->start + i].slot;
        ix->round[i] = slot;
        set_state(ix, slot, SLOT_UNLINKING);
    }
    q->start += ready;
    ix->round_size = ready;
    ix->round_slab = 0;
    uint32_t entry = get(&ix->entry);
    if (entry != NONE && state_of(ix, entry) == SLOT_UNLINKING && standing_heir(ix, entry) != NONE) {
        inherit(ix, entry);
        entry = get(&ix->entry);
    }
    if (entry != NONE && state_of(ix, entry) == SLOT_UNLINKING) {
        entry = next_entry(ix);
        if (entry != NONE)
            reroot(ix, r, entry);
        atomic_store(&ix->entry, entry);
    }
    for (size_t i = 0; i < ready; i++)
        inherit(ix, ix->round[i]);
    for (size_t i = 0; i < ready; i++)
        adopt_orphans(ix, r, ix->round[i]);
    return DL_OK;
}

static void add_candidate(dl_index *ix, reader *r, uint32_t *count, uint32_t slot)
{
    if (seen_before(r, slot))
        return;
    r->picked[*count] = (near){coarse_distance(ix, &r->query, slot), slot};
    ++*count;
}

/* Too few neighbours are left around a node whose surroundings were deleted: look for it from the entry point. */
static int search_candidates(dl_index *ix, reader *r, uint32_t slot, uint32_t level, uint32_t *count)
{
    uint32_t entry = get(&ix->entry), known = *count, met;
    if (entry == NONE || level_of(ix, entry) < level)
        return DL_OK;
    near kept[2 * 256];
    memcpy(kept, r->picked, known * sizeof *kept);
    int code = walk(ix, r, descend(ix, r, entry, level), level, linking_extent(ix), EVERYTHING, NULL);
    if (code == DL_OK)
        code = found(r, 0, &met);
    if (code == DL_OK)
        code = picked_reserve(r, (size_t)known + met);
    if (code != DL_OK)
        return code;
    for (uint32_t i = 0; i < met; i++) { /* behind what is known, without it and without the node itself */
        near item = r->picked[i];
        bool new = item.slot != slot;
        for (uint32_t j = 0; new && j < *count; j++)
            new = kept[j].slot != item.slot;
        if (new)
            kept[(*count)++] = item;
        if (*count == 2 * 256)
            break;
    }
    memcpy(r->picked, kept, *count * sizeof *kept);
    return DL_OK;
}

/* The dead around `slot`, by their own neighbours or, if they had moved, by those of their heirs. */
static void add_through(dl_index *ix, reader *r, const _Atomic uint32_t *links, uint32_t level, uint32_t *count)
{
    uint32_t cap = link_cap(ix, level), dead, slot;
    for (uint32_t i = 0; link_at(links, cap, i, &dead); i++) {
        if (state_of(ix, dead) != SLOT_UNLINKING)
            continue;
        if (heir_of(ix, dead) != NONE)
            dead = heir_of(ix, dead);
        const _Atomic uint32_t *through = links_of(ix, dead, level);
        for (uint32_t j = 0; link_at(through, cap, j, &slot); j++) {
            if (state_of(ix, slot) == SLOT_UNLINKING && standing_heir(ix, slot) != NONE)
                slot = standing_heir(ix, slot);
            if (state_of(ix, slot) == SLOT_LIVE)
                add_candidate(ix, r, count, slot);
        }
    }
}

/* Replace edges to the dead; those to a slot that had moved go to its heir. Edges that stand stay: choosing among all anew thins the
 * graph with every round (measured on sift128, all vectors replaced three times: recall@10 0.963 at ef 40, 0.988 with edges kept,
 * 0.988 in a fresh build). What is new is linked both ways, as an insertion would. */
static int repair(dl_index *ix, reader *r, uint32_t slot, uint32_t level)
{
    _Atomic uint32_t *links = links_of(ix, slot, level);
    uint32_t cap = link_cap(ix, level), standing = 0, count = 0, to, size = 0;
    uint32_t kept[2 * 128];
    bool touched = false;
    for (; link_at(links, cap, size, &to); size++) {
        uint32_t word = get(links + size);
        if (state_of(ix, to) == SLOT_UNLINKING) {
            word = standing_heir(ix, to);
            touched = true;
            if (word == NONE || word == slot || has_link(ix, slot, word, level))
                continue;
        }
        kept[standing++] = word;
    }
    if (!touched)
        return DL_OK;
    if (standing == size) {
        before_change(ix, slot, false);
        for (uint32_t i = 0; i < size; i++)
            put(links + i, kept[i]);
        return DL_OK;
    }
    int code = picked_reserve(r, (size_t)cap * (cap + 1));
    if (code != DL_OK || !seen_reset(ix, r) || !seen_room(r, (size_t)cap * (cap + 1) + 1))
        return code != DL_OK ? code : DL_ENOMEM;
    probe_slot(ix, &r->query, slot, r->codes);
    seen_before(r, slot);
    for (uint32_t i = 0; i < standing; i++)
        add_candidate(ix, r, &count, kept[i] & ~TREE);
    add_through(ix, r, links, level, &count);
    if (count < ix->config.m / 2 && (code = search_candidates(ix, r, slot, level, &count)) != DL_OK)
        return code;
    near_sort(r->picked + standing, count - standing);
    uint32_t chosen = choose(ix, r, r->picked, count, standing, cap);
    before_change(ix, slot, false);
    for (uint32_t i = 0; i < size || i < chosen; i++)
        put(links + i, i < standing ? kept[i] : i < chosen ? r->picked[i].slot : NONE);
    for (uint32_t i = standing; i < chosen; i++)
        link_back(ix, r, r->picked[i].slot, (near){r->picked[i].distance, slot}, level);
    return DL_OK;
}

static int repair_slab(dl_index *ix, reader *r, uint32_t number)
{
    const slab *s = atomic_load(&ix->slabs[number]);
    for (uint32_t i = 0; i < s->used; i++) {
        if (s->state[i] != SLOT_LIVE && s->state[i] != SLOT_DEAD)
            continue;
        uint32_t top = s->heir[i] == NONE ? s->level[i] : 0; /* above are the heir's lists */
        for (uint32_t level = 0; level <= top; level++) {
            int code = repair(ix, r, number * DL_SLAB + i, level);
            if (code != DL_OK)
                return code;
        }
    }
    return DL_OK;
}

static void end_round(dl_index *ix)
{
    uint64_t now = atomic_fetch_add(&ix->clock, 1) + 1;
    for (size_t i = 0; i < ix->round_size; i++) {
        uint32_t slot = ix->round[i];
        before_change(ix, slot, false);
        set_state(ix, slot, SLOT_LIMBO);
        queue_push(&ix->limbo, slot, now);
    }
    ix->round_size = 0;
}

int dl_upkeep(dl_index *ix, int eager, int *more)
{
    *more = 0;
    reader *r = reader_enter(ix, NULL);
    if (!r)
        return DL_ENOMEM;
    take_structure(ix);
    uint32_t slabs = atomic_load(&ix->slab_count);
    int code = reader_links(ix, r);
    retired_sweep(ix);
    release_limbo(ix);
    settle(ix);
    bool moved = code == DL_OK && ix->moves;
    if (moved) {
        code = carry_out_moves(ix);
    } else if (code == DL_OK && !ix->round_size) {
        code = start_round(ix, r, eager || ix->evacuating);
    } else if (code == DL_OK && ix->round_slab < atomic_load(&ix->slab_count)) {
        code = repair_slab(ix, r, ix->round_slab);
        ix->round_slab += code == DL_OK;
    }
    if (ix->round_size && ix->round_slab == atomic_load(&ix->slab_count)) {
        end_round(ix);
        release_limbo(ix);
    }
    bool evacuation = false;
    if (code == DL_OK && !moved && !ix->round_size && !count_due(ix, false)) /* first what is dead: it makes room lower down */
        code = evacuate(ix, &evacuation);
    *more = ix->round_size > 0 || evacuation || count_due(ix, eager || ix->evacuating) > 0;
    bool shrunk = !ix->evacuating && atomic_load(&ix->slab_count) < slabs;
    leave_structure(ix);
    reader_leave(r);
    if (shrunk)
        dl_trim();
    return code;
}
