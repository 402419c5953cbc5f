/* Giving memory back: live rows move from the highest slabs to the lowest vacant slots, and slabs that have run empty at the end
 * of the index go.
 *
 * A move is planned by one call of upkeep and carried out by the next, so that who keeps books by slots can prepare (dl_moving).
 * It is an update of the row by itself: at one tick the new slot is born and the old one dies, with the same code, links and record.
 * The dead slot stays where it was in the graph and the tree, with the new one as its child; who comes upon it goes on to where
 * the row is now, who began before the tick finds the row where it was. It is unlinked in a round as all dead slots are, once no
 * reader can want it any more, but that edges to it do not have to be chosen anew: they go to its heir. */
#include "internal.h"

/* Moving begins when more than a third of the slots are vacant, so that half of what is in use can be given back, and ends below a
 * sixteenth. In between an index that breathes is left alone. */
enum { BEGIN = 3, END = 16 };
enum { DROP_MOST = 32 }; /* slabs given back by one call: some 50 us each */

/* ---- what upkeep's rounds ask ---- */

/* Where edges to a slot that is being unlinked lead from now on; NONE: it has no heir, or one that is being unlinked too. */
uint32_t standing_heir(const dl_index *ix, uint32_t slot)
{
    uint32_t heir = heir_of(ix, slot);
    return heir != NONE && state_of(ix, heir) != SLOT_UNLINKING ? heir : NONE;
}

/* A slot that is being unlinked leaves its place in the tree, to its heir if it can. */
void inherit(dl_index *ix, uint32_t slot)
{
    uint32_t parent = parent_of(ix, slot), heir = standing_heir(ix, slot), child;
    bool leaves_heir = parent != NO_PARENT && heir != NONE && parent_of(ix, heir) == slot;
    set_parent(ix, slot, NO_PARENT);
    if (parent < NO_PARENT)
        let_go(ix, parent, slot); /* room for another child */
    if (!leaves_heir)
        return;
    let_go(ix, slot, heir);
    set_parent(ix, heir, parent);
    if (parent == NONE) {
        atomic_store(&ix->entry, heir);
        return;
    }
    _Atomic uint32_t *links = links_of(ix, parent, 0);
    uint32_t edge = NONE;
    for (uint32_t i = 0; link_at(links, ix->links0, i, &child); i++)
        if (child == heir || (child == slot && edge == NONE))
            edge = i;
    put(links + edge, heir | TREE);
}

/* ---- planning ---- */

/* The dead that still wait for their round or for readers are no reason to begin, and one to go on. */
static bool worth_it(const dl_index *ix)
{
    uint64_t slots = atomic_load(&ix->slot_count), won = ix->evacuating ? slots - atomic_load(&ix->live) : ix->vacancies;
    return won >= DL_SLAB && won * (ix->evacuating ? END : BEGIN) > slots;
}

static bool has_room_for(const dl_index *ix, uint32_t number, bool is_float)
{
    const slab *s = atomic_load(&ix->slabs[number]);
    return s->vacancies && s->block->is_float == is_float;
}

/* The highest live rows and the lowest vacant slots whose blocks are of the same kind, as long as each moves down. */
static int plan(dl_index *ix)
{
    move *moves = dl_alloc(DL_MOVES * sizeof *moves);
    if (!moves)
        return DL_ENOMEM;
    uint32_t count = 0, low[2] = {0, 0};
    for (uint32_t number = atomic_load(&ix->slab_count); number-- > 0;) {
        const slab *s = atomic_load(&ix->slabs[number]);
        uint32_t *at = &low[s->block->is_float];
        for (uint32_t i = s->used; i-- > 0 && count < DL_MOVES;) {
            if (s->state[i] != SLOT_LIVE)
                continue;
            while (*at < number && !has_room_for(ix, *at, s->block->is_float))
                ++*at;
            if (*at >= number)
                break;
            moves[count++] = (move){number * DL_SLAB + i, slot_take_in(ix, *at)};
        }
    }
    if (!count) {
        free(moves);
        return DL_OK;
    }
    ix->moves = moves;
    ix->move_count = count;
    return DL_OK;
}

void dl_moving(dl_index *ix, uint32_t *pairs, uint32_t *count)
{
    take_structure(ix);
    for (uint32_t i = 0; i < ix->move_count; i++) {
        pairs[2 * i] = ix->moves[i].from;
        pairs[2 * i + 1] = ix->moves[i].to;
    }
    *count = ix->move_count;
    leave_structure(ix);
}

/* ---- moving ---- */

static void copy_row(dl_index *ix, move m)
{
    bool is_float;
    row_of(ix, m.from, &is_float);
    const head *from = head_of(ix, m.from);
    head *to = head_of(ix, m.to);
    to->coarse_norm = from->coarse_norm; /* field by field: readers look at the flags */
    to->fine_norm = from->fine_norm;
    to->stretch = from->stretch;
    to->frame = from->frame;
    memcpy(to + 1, from + 1, (is_float ? ix->float_bytes : ix->row_bytes) - sizeof *to);
    if (!is_float)
        memcpy((uint8_t *)rest_of(ix, to, m.to), rest_of(ix, from, m.from), ix->rest_bytes);
    frame_of(ix, to->frame)->rows++;
}

/* The new slot gets the old one's edges and children; the old one keeps its edges, and the new one as its child. */
static void copy_links(dl_index *ix, move m)
{
    _Atomic uint32_t *from = links_of(ix, m.from, 0), *to = links_of(ix, m.to, 0);
    uint32_t count = 0, slot;
    for (; link_at(from, ix->links0, count, &slot); count++) {
        uint32_t word = get(from + count);
        put(to + count, word);
        if (word & TREE) {
            set_parent(ix, slot, m.to);
            put(from + count, slot);
        }
    }
    put(from + (count < ix->links0 ? count : count - 1), m.to | TREE);
    set_parent(ix, m.to, m.from);
}

/* Everything that a search of the moment `now` will read is written before the clock gets there. */
static void carry_out(dl_index *ix, move m, uint64_t now)
{
    slab *old = slab_of(ix, m.from), *new = slab_of(ix, m.to);
    uint32_t i = m.from & SLAB_MASK, j = m.to & SLAB_MASK;
    record *r = atomic_load(&old->records[i]);
    before_change(ix, m.from, false);
    before_change(ix, m.to, true);
    copy_row(ix, m);
    new->level[j] = old->level[i];
    atomic_store(&new->records[j], r);
    set_row(ix, m.to, atomic_load(&old->row[i]));
    if (ix->config.sources)
        memcpy(new->sources[j], old->sources[i], SOURCE_BYTES);
    copy_links(ix, m);
    put(&new->birth[j], (uint32_t)now);
    atomic_store_explicit(&head_of(ix, m.to)->flags, FRESH, memory_order_release);
    set_state(ix, m.to, SLOT_LIVE);
    old->heir[i] = m.to;
    put(&old->death[i], (uint32_t)now);
    atomic_fetch_or_explicit(&head_of(ix, m.from)->flags, DEAD, memory_order_release);
    set_state(ix, m.from, SLOT_DEAD);
    pthread_mutex_lock(&ix->commit);
    map_set(ix, m.from, m.to, record_hash(ix, r));
    pthread_mutex_unlock(&ix->commit);
    queue_push(&ix->fresh, m.to, now);
    queue_push(&ix->dead, m.from, now);
}

/* What was planned, but for rows that died since, or whose slab was encoded anew. */
int carry_out_moves(dl_index *ix)
{
    int code = queue_reserve(&ix->fresh, ix->move_count);
    if (code == DL_OK)
        code = queue_reserve(&ix->dead, ix->move_count);
    if (code != DL_OK)
        return code;
    uint64_t now = atomic_load(&ix->clock) + 1;
    for (uint32_t i = 0; i < ix->move_count; i++) {
        move m = ix->moves[i];
        if (state_of(ix, m.from) == SLOT_LIVE && slab_of(ix, m.from)->block->is_float == slab_of(ix, m.to)->block->is_float)
            carry_out(ix, m, now);
        else
            slot_vacate(ix, m.to);
    }
    atomic_store(&ix->clock, now);
    free(ix->moves);
    ix->moves = NULL;
    ix->move_count = 0;
    return DL_OK;
}

/* ---- giving back ---- */

/* Readers that count the slabs from now on do not see it; those that did keep it by their pins. Its address stays in the tables
 * until then, or until another takes its number. */
static void drop_last(dl_index *ix)
{
    uint32_t last = atomic_load(&ix->slab_count) - 1;
    slab *s = atomic_load(&ix->slabs[last]);
    for (uint32_t i = 0; atomic_load(&ix->cut) && i < s->used; i++)
        keep_image(ix, last * DL_SLAB + i); /* vacant slots, but a cut would look for them */
    ix->vacancies -= s->vacancies;
    ix->roomy[last >> 6] &= ~(1ull << (last & 63));
    uint64_t version = atomic_load(&s->version) + 1;
    ix->versions = ix->versions > version ? ix->versions : version;
    atomic_store(&ix->slot_count, last * DL_SLAB);
    atomic_store(&ix->slab_count, last);
    retire(ix, &s->link, RETIRED_SLAB);
}

static bool last_is_vacant(const dl_index *ix)
{
    uint32_t slabs = atomic_load(&ix->slab_count);
    const slab *s = slabs ? atomic_load(&ix->slabs[slabs - 1]) : NULL;
    return s && s->vacancies == s->used;
}

/* Between rounds: drop what is empty and plan what is to move, if that is worth it. *more: the next call will find work. */
int evacuate(dl_index *ix, bool *more)
{
    ix->evacuating = worth_it(ix);
    uint32_t dropped = 0;
    for (; ix->evacuating && dropped < DROP_MOST && last_is_vacant(ix); dropped++)
        drop_last(ix);
    if (dropped) {
        pthread_mutex_lock(&ix->commit);
        map_trim(ix);
        pthread_mutex_unlock(&ix->commit);
        queue_trim(&ix->fresh);
        queue_trim(&ix->dead);
        queue_trim(&ix->limbo);
        ix->evacuating = worth_it(ix);
    }
    int code = ix->evacuating ? plan(ix) : DL_OK;
    *more = ix->moves || (ix->evacuating && last_is_vacant(ix));
    return code;
}
