/* Linking a node in: choosing its neighbours, and being chosen by them (Malkov & Yashunin, algorithms 1 and 4). */
#include <math.h>

#include "internal.h"

/* Of squared distances, as Vamana's alpha (DiskANN, NeurIPS 2019, section 2): ef for recall 0.99 falls by 8 % on sift128 and
 * 9 % on commits. */
#define RELAXED 1.1f

/* Keep those that are nearer to the owner than to any one kept before them, or hardly farther; the first `settled` are kept
 * whatever they are near to. Of rows that are alike no more than one is added: a list full of them leads nowhere else. `list` is
 * ascending behind the settled ones; it is overwritten with the choice, whose size is returned. */
uint32_t choose(dl_index *ix, reader *r, near *list, uint32_t count, uint32_t settled, uint32_t limit)
{
    uint32_t kept = 0;
    float relaxed = ix->config.metric == DL_IP ? 1 : RELAXED; /* an inner product is no distance to stretch */
    for (uint32_t i = 0; i < count && kept < limit; i++) {
        near item = list[i];
        bool stays = true;
        for (uint32_t j = 0; i >= settled && stays && j < kept; j++)
            stays = relaxed * coarse_distance(ix, &r->kept[j], item.slot) >= item.distance &&
                    !(list[j].distance == item.distance && alike(ix, list[j].slot, item.slot));
        if (!stays)
            continue;
        if (kept + 1 < limit)
            probe_slot(ix, &r->kept[kept], item.slot, r->codes);
        list[kept++] = item;
    }
    return kept;
}

bool has_link(const dl_index *ix, uint32_t from, uint32_t to, uint32_t level)
{
    const _Atomic uint32_t *links = links_of(ix, from, level);
    uint32_t slot;
    for (uint32_t i = 0; link_at(links, link_cap(ix, level), i, &slot); i++)
        if (slot == to)
            return true;
    return false;
}

/* A full list takes `to` in place of one edge: not at all if a neighbour lies between or is alike; else for the farthest edge that
 * `to` now lies between, or the farthest of all. That is the heuristic's choice for the new edge alone, at a fifth of what choosing anew among
 * all of them costs, and the list stays full. r->query holds `to`. */
static void replace_link(dl_index *ix, reader *r, _Atomic uint32_t *links, uint32_t cap, uint32_t from, near to)
{
    float own[2 * 128], cross[2 * 128];
    probe *owner = &r->kept[2 * ix->config.m];
    uint32_t slot, victim = NONE;
    bool shadowed = false;
    for (uint32_t i = 0; link_at(links, cap, i, &slot); i++)
        fetch_row(head_of(ix, slot), ix->row_bytes);
    probe_slot(ix, owner, from, r->codes);
    float apart = coarse_distance(ix, owner, to.slot); /* as `own` is measured, where `to.distance` was from the other end */
    for (uint32_t i = 0; link_at(links, cap, i, &slot); i++) {
        own[i] = coarse_distance(ix, owner, slot);
        cross[i] = coarse_distance(ix, &r->query, slot);
        if ((own[i] < to.distance && cross[i] < to.distance) || (own[i] == apart && alike(ix, slot, to.slot)))
            return;
    }
    for (uint32_t i = 0; i < cap; i++) {
        if (get(links + i) & TREE || own[i] <= to.distance)
            continue;
        bool behind = cross[i] < own[i];
        if (victim == NONE || behind > shadowed || (behind == shadowed && own[i] > own[victim])) {
            victim = i;
            shadowed = behind;
        }
    }
    if (victim == NONE)
        return;
    before_change(ix, from, false);
    put(links + victim, to.slot);
}

/* Link `from` to `to`, whose distance is given. r->query holds `to`. */
void link_back(dl_index *ix, reader *r, uint32_t from, near to, uint32_t level)
{
    uint32_t cap = link_cap(ix, level);
    lock_slot(ix, from);
    if (!has_link(ix, from, to.slot, level)) {
        _Atomic uint32_t *links = links_of(ix, from, level);
        uint32_t count = link_count(links, cap);
        if (count < cap) {
            before_change(ix, from, false);
            put(links + count, to.slot);
        } else {
            replace_link(ix, r, links, cap, from, to);
        }
    }
    unlock_slot(ix, from);
}

/* The first node, or the first after the last live one went; what is dead and still linked hangs below it. The structure is held
 * alone. */
static void become_root(dl_index *ix, reader *r, uint32_t slot)
{
    uint32_t old = get(&ix->entry);
    set_parent(ix, slot, NONE);
    if (old != NONE) {
        hold(ix, r, slot, old);
        set_parent(ix, old, slot);
    }
    atomic_store(&ix->entry, slot);
}

/* Link a written slot in. r->query holds its vector. Nothing is linked before everything that can fail is done: the choices of
 * all levels are made first, top to bottom, and the node's own lists are written before anybody links to it. At
 * level 0 it chooses 3m / 2 neighbours: with m the lists fill only by links back (sift128: ef 24 for 27 at recall 0.95). A node higher than
 * the entry point comes with the structure held alone; 1: so must this one, and nothing was changed. */
int insert_node(dl_index *ix, reader *r, uint32_t slot, bool alone)
{
    uint32_t entry = get(&ix->entry), level = level_of(ix, slot);
    if (entry == NONE) {
        become_root(ix, r, slot);
        return DL_OK;
    }
    near chosen[MAX_LEVEL + 1][128 + 64];
    uint32_t chosen_count[MAX_LEVEL + 1] = {0}, count = 0;
    uint32_t top = level_of(ix, entry), lowest = level < top ? level : top, at = descend(ix, r, entry, level);
    near *nearest = NULL;
    int code = reader_links(ix, r);
    for (uint32_t l = lowest; code == DL_OK; l--) {
        code = walk(ix, r, at, l, linking_extent(ix), EVERYTHING, NULL);
        if (code == DL_OK)
            code = found(r, 0, &count);
        if (code == DL_OK)
            code = picked_reserve(r, 2 * (size_t)count);
        if (code != DL_OK)
            return code;
        if (count)
            at = r->picked[0].slot;
        nearest = r->picked + count; /* the whole list is kept for the choice of a parent */
        memcpy(nearest, r->picked, count * sizeof(near));
        chosen_count[l] = choose(ix, r, r->picked, count, 0, l ? ix->config.m : ix->config.m / 2 * 3);
        memcpy(chosen[l], r->picked, chosen_count[l] * sizeof(near));
        if (l == 0)
            break;
    }
    if (code != DL_OK)
        return code;
    r->growth = growth_of(ix, nearest, count);
    if (!count) { /* nothing live is left to link to */
        if (!alone)
            return 1;
        become_root(ix, r, slot);
        return DL_OK;
    }
    for (uint32_t l = 0; l <= lowest; l++)
        for (uint32_t i = 0; i < chosen_count[l]; i++)
            put(links_of(ix, slot, l) + i, chosen[l][i].slot);
    for (uint32_t l = lowest; l != NONE; l--)
        for (uint32_t i = 0; i < chosen_count[l]; i++)
            link_back(ix, r, chosen[l][i].slot, (near){chosen[l][i].distance, slot}, l);
    adopt(ix, r, slot, nearest, count, false);
    if (level > top) {
        reroot(ix, r, slot);
        atomic_store(&ix->entry, slot);
    }
    return DL_OK;
}
