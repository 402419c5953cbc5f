/* The oracle: every invariant, said in words when it does not hold. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

__attribute__((format(printf, 3, 4))) static int broken(char *message, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (size)
        vsnprintf(message, size, format, arguments);
    va_end(arguments);
    return DL_ECORRUPT;
}

#define REQUIRE(condition, ...)                        \
    do {                                               \
        if (!(condition))                              \
            return broken(message, size, __VA_ARGS__); \
    } while (0)

static bool linked(slot_state state)
{
    return state == SLOT_LIVE || state == SLOT_DEAD || state == SLOT_UNLINKING;
}

static int check_links(const dl_index *ix, uint32_t slot, uint32_t level, char *message, size_t size)
{
    const _Atomic uint32_t *links = links_of(ix, slot, level);
    uint32_t cap = link_cap(ix, level), slots = atomic_load(&ix->slot_count), children = 0, to, other;
    for (uint32_t i = 0; link_at(links, cap, i, &to); i++) {
        REQUIRE(to < slots, "slot %u links to slot %u at level %u, which does not exist", slot, to, level);
        REQUIRE(to != slot, "slot %u links to itself at level %u", slot, level);
        REQUIRE(linked(state_of(ix, to)), "slot %u links to the free slot %u at level %u", slot, to, level);
        REQUIRE(level_of(ix, to) >= level, "slot %u links to slot %u at level %u, above its level", slot, to, level);
        bool marked = get(links + i) & TREE, mine = level == 0 && parent_of(ix, to) == slot;
        children += marked;
        REQUIRE(marked == mine, "slot %u %s its edge to slot %u as the tree's", slot,
                marked ? "marks" : "does not mark", to);
        for (uint32_t j = 0; j < i && link_at(links, cap, j, &other); j++)
            REQUIRE(other != to, "slot %u links to slot %u twice at level %u", slot, to, level);
    }
    REQUIRE(children <= ix->config.m + 1, "slot %u has %u children", slot, children);
    return DL_OK;
}

static int check_key(const dl_index *ix, uint32_t slot, char *message, size_t size)
{
    record *r = record_of(ix, slot);
    REQUIRE(r, "live slot %u has no key", slot);
    REQUIRE(map_find(ix, key_of(ix, r), r->key_size, record_hash(ix, r)) == slot, "the key of live slot %u leads elsewhere", slot);
    uint8_t flags = flags_of(head_of(ix, slot));
    REQUIRE(!(flags & DEAD) && (!flags || visible_flagged(ix, slot, flags, atomic_load(&ix->clock))),
            "live slot %u is not visible now", slot);
    return DL_OK;
}

/* Every node that is linked in hangs, over edges that exist, below the entry point. */
static int check_tree(const dl_index *ix, uint32_t slot, char *message, size_t size)
{
    uint32_t entry = get(&ix->entry), parent = parent_of(ix, slot);
    if (slot == entry) {
        REQUIRE(parent == NONE, "the entry point %u has a parent", slot);
        return DL_OK;
    }
    REQUIRE(parent < atomic_load(&ix->slot_count), "slot %u has no parent", slot);
    REQUIRE(has_link(ix, parent, slot, 0), "slot %u has no edge from its parent %u", slot, parent);
    REQUIRE(reaches_root(ix, slot), "the ancestors of slot %u do not end at the entry point", slot);
    return DL_OK;
}

/* A dead slot whose row moved: it went down, and the record went with it. */
static int check_heir(const dl_index *ix, uint32_t slot, char *message, size_t size)
{
    uint32_t heir = heir_of(ix, slot);
    if (heir == NONE)
        return DL_OK;
    REQUIRE(state_of(ix, slot) != SLOT_LIVE && state_of(ix, slot) != SLOT_FREE, "slot %u lives, and has moved", slot);
    REQUIRE(heir < slot && state_of(ix, heir) != SLOT_FREE, "slot %u has moved to slot %u, which is free or not below it", slot, heir);
    REQUIRE(record_of(ix, heir) == record_of(ix, slot), "slot %u has moved to slot %u without its key", slot, heir);
    return DL_OK;
}

/* Free slots can be handed out, but for those that rows are about to move to. */
static int check_vacancies(const dl_index *ix, char *message, size_t size)
{
    uint32_t vacancies = 0, free_slots = 0;
    for (uint32_t n = 0; n < atomic_load(&ix->slab_count); n++) {
        const slab *s = atomic_load(&ix->slabs[n]);
        uint32_t marked = 0;
        for (uint32_t i = 0; i < s->used; i++) {
            bool vacant = s->vacant[i >> 6] >> (i & 63) & 1;
            REQUIRE(!vacant || s->state[i] == SLOT_FREE, "slot %u is vacant, and not free", n * DL_SLAB + i);
            marked += vacant;
            free_slots += s->state[i] == SLOT_FREE;
        }
        REQUIRE(marked == s->vacancies && (ix->roomy[n >> 6] >> (n & 63) & 1) == (marked > 0),
                "slab %u has %u vacant slots, %u are counted", n, marked, s->vacancies);
        vacancies += marked;
    }
    REQUIRE(vacancies == ix->vacancies && free_slots == vacancies + ix->move_count,
            "%u slots are free and %u vacant; %u are counted, %u to be moved to", free_slots, vacancies, ix->vacancies, ix->move_count);
    return DL_OK;
}

/* Directed level-0 edges from the entry point, breadth first. */
static int check_reach(const dl_index *ix, uint8_t *reached, uint32_t *line, char *message, size_t size)
{
    uint32_t entry = get(&ix->entry), slots = atomic_load(&ix->slot_count), end = 0;
    if (entry != NONE) {
        reached[entry] = 1;
        line[end++] = entry;
    }
    for (uint32_t at = 0; at < end; at++) {
        const _Atomic uint32_t *links = links_of(ix, line[at], 0);
        uint32_t to;
        for (uint32_t i = 0; link_at(links, ix->links0, i, &to); i++)
            if (!reached[to]) {
                reached[to] = 1;
                line[end++] = to;
            }
    }
    for (uint32_t slot = 0; slot < slots; slot++)
        REQUIRE(state_of(ix, slot) != SLOT_LIVE || reached[slot], "live slot %u cannot be reached from the entry point",
                slot);
    return DL_OK;
}

int check_structure(dl_index *ix, char *message, size_t size)
{
    uint32_t slots = atomic_load(&ix->slot_count), entry = get(&ix->entry);
    uint64_t live = 0;
    int code = DL_OK;
    REQUIRE(entry == NONE || (entry < slots && linked(state_of(ix, entry))), "the entry point %u is not a node", entry);
    for (uint32_t slot = 0; slot < slots; slot++) {
        slot_state state = state_of(ix, slot);
        code = check_heir(ix, slot, message, size);
        if (code == DL_OK && !linked(state))
            continue;
        for (uint32_t level = 0; code == DL_OK && level <= level_of(ix, slot); level++)
            code = check_links(ix, slot, level, message, size);
        if (code == DL_OK && entry != NONE)
            REQUIRE(level_of(ix, slot) <= level_of(ix, entry) || state != SLOT_LIVE || state_of(ix, entry) != SLOT_LIVE,
                    "slot %u stands above the entry point", slot);
        if (code == DL_OK && (state == SLOT_LIVE || (state == SLOT_DEAD && parent_of(ix, slot) != NO_PARENT)))
            code = check_tree(ix, slot, message, size);
        if (code == DL_OK && state == SLOT_LIVE) {
            live++;
            code = check_key(ix, slot, message, size);
        }
        if (code != DL_OK)
            return code;
    }
    code = check_vacancies(ix, message, size);
    if (code != DL_OK)
        return code;
    REQUIRE(live == atomic_load(&ix->live), "%llu slots are live, %llu are counted", (unsigned long long)live,
            (unsigned long long)atomic_load(&ix->live));
    REQUIRE(live == ix->bucket_used, "%llu slots are live, the key map holds %u", (unsigned long long)live,
            ix->bucket_used);
    uint8_t *reached = dl_zalloc(slots);
    uint32_t *line = dl_alloc(slots * sizeof *line);
    code = reached && line ? check_reach(ix, reached, line, message, size) : DL_ENOMEM;
    free(reached);
    free(line);
    return code;
}

/* Each live code and norm is what encoding its raw vector gives, and the live counts are those of the codes. */
static int check_codes(dl_index *ix, reader *r, block *scratch, int64_t *counts, char *message, size_t size)
{
    uint32_t slots = atomic_load(&ix->slot_count), dim = ix->config.dim;
    uint64_t rows[DL_FRAMES] = {0};
    for (uint32_t slot = 0; slot < slots; slot++) {
        const slab *s = slab_of(ix, slot);
        uint32_t i = slot & SLAB_MASK;
        const block *b = s->block;
        const head *h = block_head(ix, b, i), *made = block_head(ix, scratch, 0);
        if (s->state[i] == SLOT_FREE)
            continue;
        rows[h->frame]++;
        REQUIRE(frame_of(ix, h->frame), "slot %u is coded in frame %u, which is not open", slot, h->frame);
        REQUIRE(frame_of(ix, h->frame)->is_float == b->is_float, "slot %u: block and frame differ in kind", slot);
        if (s->state[i] != SLOT_LIVE)
            continue;
        if (!b->is_float) {
            block_codes(ix, b, i, r->codes);
            for (uint32_t d = 0; d < dim; d++)
                counts[((size_t)h->frame * dim + d) * 16 + (r->codes[d] >> 4)]++;
        }
        const float *raw = raw_of(ix, atomic_load(&s->row[i]));
        if (!raw)
            continue;
        to_plain(ix, raw, r->plain);
        if (b->is_float) {
            REQUIRE(!memcmp(r->plain, h + 1, dim * sizeof(float)), "slot %u holds other floats than its raw vector", slot);
            continue;
        }
        block_put(ix, scratch, 0, h->frame, r->plain, r->turned, r->codes);
        REQUIRE(!memcmp(made + 1, h + 1, ix->padded / 8 * ix->config.route_bits) &&
                    !memcmp(scratch->rest, b->rest + (size_t)i * ix->rest_bytes, ix->rest_bytes),
                "the code of slot %u is not that of its raw vector", slot);
        REQUIRE(made->coarse_norm == h->coarse_norm && made->fine_norm == h->fine_norm && made->stretch == h->stretch,
                "a norm of slot %u is not that of its code", slot);
    }
    for (uint32_t f = 0; f < DL_FRAMES; f++) {
        const frame *open = frame_of(ix, f);
        if (!open)
            continue;
        REQUIRE(open->rows == rows[f], "frame %u holds %llu rows, %llu are counted", f, (unsigned long long)rows[f],
                (unsigned long long)open->rows);
        REQUIRE(open->is_float || !memcmp(open->counts, counts + (size_t)f * dim * 16, (size_t)dim * 16 * sizeof *counts),
                "the live counts of frame %u are not those of its codes", f);
    }
    return DL_OK;
}

/* By the segments' counts they are given back and rewritten. */
static int check_rows(const dl_index *ix, uint32_t *counts, char *message, size_t size)
{
    for (uint32_t slot = 0; slot < atomic_load(&ix->slot_count); slot++) {
        uint64_t row = atomic_load(&slab_of(ix, slot)->row[slot & SLAB_MASK]);
        REQUIRE(row == NO_ROW || state_of(ix, slot) != SLOT_FREE, "the free slot %u has a raw vector", slot);
        REQUIRE(row_exists(ix, row), "slot %u has a raw vector that does not exist", slot);
        if (row != NO_ROW)
            counts[row >> 32]++;
    }
    for (uint32_t segment = 0; segment < MAX_SEGMENTS; segment++) {
        uint32_t counted = atomic_load(&ix->referring[segment]);
        REQUIRE(counts[segment] == counted, "%u slots refer to segment %u, %u are counted", counts[segment], segment, counted);
    }
    return DL_OK;
}

int dl_check(dl_index *ix, int codes, char *message, size_t size)
{
    reader *r = reader_enter(ix, NULL);
    if (!r)
        return DL_ENOMEM;
    take_structure(ix);
    int code = check_structure(ix, message, size);
    if (code == DL_OK) {
        uint32_t *counts = dl_zalloc(MAX_SEGMENTS * sizeof *counts);
        code = counts ? check_rows(ix, counts, message, size) : DL_ENOMEM;
        free(counts);
    }
    if (code == DL_OK && codes) {
        block *scratch = block_new(ix, false);
        int64_t *counts = dl_zalloc((size_t)DL_FRAMES * ix->config.dim * 16 * sizeof *counts);
        code = scratch && counts ? check_codes(ix, r, scratch, counts, message, size) : DL_ENOMEM;
        block_free(ix, scratch);
        free(counts);
    }
    leave_structure(ix);
    reader_leave(r);
    return code;
}
