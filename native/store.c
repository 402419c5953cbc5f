/* Loading what cuts saved (store.h says how). Bytes read back are hostile: each is checked before it is used, and a loaded graph as
 * a whole by check_structure before anything is searched.
 *
 * A slab comes as it was saved whole and the deltas since. All are read before anything is made of them: what a later part replaced
 * may name rows and frames that are gone. */
#include <math.h>

#include "internal.h"
#include "store.h"

typedef struct {
    const uint8_t *at, *end;
    bool failed;
} source;

static const uint8_t *take(source *in, size_t size)
{
    if (in->failed || (size_t)(in->end - in->at) < size) {
        in->failed = true;
        return NULL;
    }
    const uint8_t *bytes = in->at;
    in->at += size;
    return bytes;
}

static uint8_t take8(source *in)
{
    const uint8_t *bytes = take(in, 1);
    return bytes ? *bytes : 0;
}

static uint32_t take32(source *in)
{
    uint32_t value = 0;
    const uint8_t *bytes = take(in, 4);
    if (bytes)
        memcpy(&value, bytes, 4);
    return value;
}

static uint64_t take64(source *in)
{
    uint64_t value = 0;
    const uint8_t *bytes = take(in, 8);
    if (bytes)
        memcpy(&value, bytes, 8);
    return value;
}

/* What is stored of one slot. */
typedef struct {
    uint8_t state, frame, level;
    uint16_t key_size;
    uint32_t parent, payload_size;
    uint64_t row;
    const uint8_t *source, *key, *code; /* the key, and behind it the payload */
    const uint8_t *lists;               /* per level: u32 count, count * u32 */
} stored;

/* The lists are only passed over: as many as fit. */
static void take_lists(const dl_index *ix, source *in, stored *r)
{
    r->lists = in->at;
    for (uint32_t level = 0; level <= r->level; level++) {
        uint32_t count = take32(in);
        if (count > link_cap(ix, level))
            in->failed = true;
        take(in, (size_t)count * sizeof count);
    }
}

static void take_record(const dl_index *ix, source *in, bool is_float, stored *r)
{
    uint8_t state = take8(in);
    bool whole = !(state & RELINKED);
    state &= (uint8_t)~RELINKED;
    if (state > SLOT_DEAD || (!whole && (state == SLOT_FREE || r->state == SLOT_FREE)))
        in->failed = true;
    if (in->failed || state == SLOT_FREE) {
        r->state = SLOT_FREE;
        return;
    }
    r->state = state;
    if (whole)
        r->frame = take8(in);
    uint8_t level = take8(in);
    if (level > MAX_LEVEL || (!whole && level != r->level))
        in->failed = true;
    r->level = level;
    r->parent = take32(in);
    r->row = take64(in);
    r->source = take(in, ix->config.sources ? SOURCE_BYTES : 0);
    if (whole) {
        r->payload_size = take32(in);
        const uint8_t *bytes = take(in, 2);
        r->key_size = 0;
        if (bytes)
            memcpy(&r->key_size, bytes, 2);
        if (!r->key_size || r->key_size > DL_MAX_KEY || r->payload_size >= 1u << 24)
            in->failed = true;
        r->key = take(in, r->key_size + (size_t)r->payload_size);
    }
    if (!in->failed)
        take_lists(ix, in, r);
    if (whole)
        r->code = take(in, is_float ? ix->config.dim * sizeof(float) : 10 + ix->padded / 8 * ix->config.route_bits + ix->rest_bytes);
}

/* One slab's. */
typedef struct {
    uint32_t used, flags, debt;
    stored slots[DL_SLAB];
} assembly;

/* The slab as it was saved whole, or its next delta. */
static bool take_part(const dl_index *ix, source in, uint32_t number, bool first, assembly *all)
{
    const uint8_t *magic = take(&in, 4);
    uint32_t named = take32(&in), used = take32(&in), flags = take32(&in);
    if (!magic || memcmp(magic, first ? SLAB_MAGIC : DELTA_MAGIC, 4) || in.failed || named != number || used > DL_SLAB ||
        (flags & ~(uint32_t)FLOATS) != (ix->config.sources ? SOURCES : 0) || used < all->used || (!first && flags != all->flags))
        return false;
    all->used = used;
    all->flags = flags;
    uint32_t whole = 0, relinked = 0;
    for (uint32_t i = 0; first && i < used && !in.failed; i++)
        take_record(ix, &in, flags & FLOATS, &all->slots[i]);
    for (uint32_t next = 0; !first && in.at != in.end && !in.failed;) {
        const uint8_t *bytes = take(&in, 2);
        uint16_t i = 0;
        if (bytes)
            memcpy(&i, bytes, 2);
        if (!bytes || i < next || i >= used)
            return false;
        next = i + 1u;
        bool links = in.at != in.end && *in.at & RELINKED;
        relinked += links;
        whole += !links;
        take_record(ix, &in, flags & FLOATS, &all->slots[i]);
    }
    if (!first)
        all->debt += DELTA_COST + whole + relinked / RELINKED_PER_WHOLE;
    return !in.failed && in.at == in.end;
}

static int load_links(dl_index *ix, uint32_t slot, const stored *r)
{
    const uint8_t *at = r->lists;
    for (uint32_t level = 0; level <= r->level; level++) {
        _Atomic uint32_t *links = links_of(ix, slot, level);
        uint32_t count, word;
        memcpy(&count, at, sizeof count);
        at += sizeof count;
        for (uint32_t j = 0; j < count; j++, at += sizeof word) {
            memcpy(&word, at, sizeof word);
            if (word == NONE || (level && word & TREE))
                return DL_ECORRUPT;
            put(links + j, word);
        }
    }
    return DL_OK;
}

static int load_code(dl_index *ix, slab *s, uint32_t slot, const uint8_t *code)
{
    size_t dim = ix->config.dim, routing = ix->padded / 8 * ix->config.route_bits;
    head *h = block_head(ix, s->block, slot & SLAB_MASK);
    if (s->block->is_float) {
        memcpy(h + 1, code, dim * sizeof(float));
        return all_finite((const float *)(h + 1), dim) ? DL_OK : DL_ECORRUPT;
    }
    memcpy(&h->coarse_norm, code, 4);
    memcpy(&h->fine_norm, code + 4, 4);
    memcpy(&h->stretch, code + 8, 2);
    memcpy(h + 1, code + 10, routing);
    memcpy((uint8_t *)rest_of(ix, h, slot), code + 10 + routing, ix->rest_bytes);
    return isfinite(h->coarse_norm) && isfinite(h->fine_norm) && h->stretch < 0x7F80 ? DL_OK : DL_ECORRUPT;
}

static int load_slot(dl_index *ix, slab *s, uint32_t slot, const stored *r)
{
    uint32_t i = slot & SLAB_MASK;
    if (r->state == SLOT_FREE)
        return DL_OK;
    if (r->frame >= DL_FRAMES || !frame_of(ix, r->frame) || frame_of(ix, r->frame)->is_float != s->block->is_float ||
        !row_exists(ix, r->row))
        return DL_ECORRUPT;
    record *made = record_new(ix, r->level, r->key, r->key_size, r->key + r->key_size, r->payload_size);
    if (!made)
        return DL_ENOMEM;
    atomic_store(&s->records[i], made);
    put(&s->parent[i], r->parent);
    if (ix->config.sources)
        memcpy(s->sources[i], r->source, SOURCE_BYTES);
    int code = load_links(ix, slot, r);
    if (code == DL_OK)
        code = load_code(ix, s, slot, r->code);
    if (code != DL_OK)
        return code;
    /* only now is the slot more than memory that slab_free gives back */
    block_head(ix, s->block, i)->frame = r->frame;
    atomic_store(&block_head(ix, s->block, i)->flags, 0);
    s->level[i] = r->level;
    s->state[i] = r->state;
    set_row(ix, slot, r->row);
    frame_of(ix, r->frame)->rows++;
    return DL_OK;
}

static int load_assembly(dl_index *ix, uint32_t number, uint64_t version, const assembly *all)
{
    bool is_float = all->flags & FLOATS;
    if ((is_float && float_frame(ix) == NONE) || !frame_of(ix, ix->write_frame))
        return DL_ECORRUPT;
    int code = slab_add(ix);
    if (code != DL_OK)
        return code;
    slab *s = atomic_load(&ix->slabs[number]);
    if (s->block->is_float != is_float) {
        block *b = block_new(ix, is_float), *old = s->block;
        if (!b)
            return DL_ENOMEM;
        block_publish(ix, number, b);
        block_free(ix, old);
    }
    s->used = all->used;
    s->version = s->base = version;
    s->debt = all->debt;
    for (uint32_t i = 0; code == DL_OK && i < all->used; i++)
        code = load_slot(ix, s, number * DL_SLAB + i, &all->slots[i]);
    return code;
}

int dl_load_slab(dl_index *ix, uint32_t number, uint64_t version, const uint8_t *const *parts, const size_t *sizes, uint32_t count)
{
    if (!count || number != atomic_load(&ix->slab_count))
        return DL_ECORRUPT;
    assembly *all = dl_zalloc(sizeof *all);
    if (!all)
        return DL_ENOMEM;
    int code = DL_OK;
    for (uint32_t i = 0; code == DL_OK && i < count; i++)
        code = take_part(ix, (source){parts[i], parts[i] + sizes[i], false}, number, !i, all) ? DL_OK : DL_ECORRUPT;
    if (code == DL_OK)
        code = load_assembly(ix, number, version, all);
    free(all);
    return code;
}

/* Parents must exist and lead to the entry point without a cycle; a dead node's may be gone. */
static int check_parents(const dl_index *ix, uint32_t slots)
{
    for (uint32_t slot = 0; slot < slots; slot++) {
        uint32_t parent = parent_of(ix, slot);
        if (state_of(ix, slot) == SLOT_FREE || parent >= NO_PARENT)
            continue;
        if (parent >= slots || state_of(ix, parent) == SLOT_FREE)
            return DL_ECORRUPT;
    }
    uint8_t *sound = dl_zalloc(slots); /* 1: on the path being walked, 2: known to end */
    if (!sound)
        return DL_ENOMEM;
    bool good = true;
    for (uint32_t start = 0; good && start < slots; start++) {
        uint32_t slot = start;
        for (; slot < NO_PARENT && !sound[slot]; slot = parent_of(ix, slot))
            sound[slot] = 1;
        good = slot >= NO_PARENT || sound[slot] == 2;
        for (slot = start; good && slot < NO_PARENT && sound[slot] == 1; slot = parent_of(ix, slot))
            sound[slot] = 2;
    }
    free(sound);
    return good ? DL_OK : DL_ECORRUPT;
}

static int rebuild(dl_index *ix, uint32_t slots, uint8_t *codes)
{
    uint32_t used = 0;
    for (uint32_t n = 0; n < atomic_load(&ix->slab_count); n++) {
        const slab *s = atomic_load(&ix->slabs[n]);
        if (frame_of(ix, ix->write_frame)->is_float && !s->block->is_float)
            return DL_ECORRUPT;
        if (s->used != DL_SLAB && n + 1 != atomic_load(&ix->slab_count))
            return DL_ECORRUPT;
        used += s->used;
    }
    if (used != slots)
        return DL_ECORRUPT;
    atomic_store(&ix->slot_count, slots);
    for (uint32_t slot = slots; slot-- > 0;) {
        slab *s = slab_of(ix, slot);
        uint32_t i = slot & SLAB_MASK;
        if (s->state[i] == SLOT_FREE) {
            slot_vacate(ix, slot);
            continue;
        }
        if (s->state[i] == SLOT_DEAD) {
            int code = queue_reserve(&ix->dead, 1);
            if (code != DL_OK)
                return code;
            put(&s->death[i], 1);
            atomic_store(&head_of(ix, slot)->flags, DEAD);
            queue_push(&ix->dead, slot, 1);
            continue;
        }
        record *r = atomic_load(&s->records[i]);
        uint32_t hash = record_hash(ix, r);
        int code = map_reserve(ix);
        if (code != DL_OK)
            return code;
        if (map_find(ix, key_of(ix, r), r->key_size, hash) != NONE)
            return DL_ECORRUPT;
        map_set(ix, NONE, slot, hash);
        count_codes(ix, slot, 1, codes);
        atomic_fetch_add(&ix->live, 1);
    }
    return DL_OK;
}

int dl_load_head(dl_index *ix, const uint8_t *bytes, size_t size, char *message, size_t message_size)
{
    source in = {bytes, bytes + size, false};
    const uint8_t *magic = take(&in, 4);
    uint32_t dim = take32(&in), metric = take32(&in), m = take32(&in), route_bits = take32(&in);
    uint64_t seed = take64(&in), rotation_seed = take64(&in), inserted = take64(&in);
    uint32_t slots = take32(&in), entry = take32(&in), write_frame = take32(&in), bits = take32(&in);
    float growth;
    memcpy(&growth, &bits, sizeof growth);
    if (message_size)
        strncpy(message, "the head does not belong to this index", message_size - 1);
    if (in.failed || memcmp(magic, HEAD_MAGIC, 4) || in.at != in.end || dim != ix->config.dim ||
        metric != ix->config.metric || m != ix->config.m || route_bits != ix->config.route_bits ||
        seed != ix->config.seed || rotation_seed != ix->config.rotation_seed || write_frame >= DL_FRAMES ||
        !frame_of(ix, write_frame) || !(growth >= 0 && growth < INFINITY) || inserted >> 62)
        return DL_ECORRUPT;
    atomic_store(&ix->growth, growth);
    ix->inserted = inserted;
    ix->write_frame = write_frame;
    atomic_store(&ix->entry, entry);
    atomic_store(&ix->clock, 1);
    if (message_size)
        strncpy(message, "slots, keys or the tree do not fit together", message_size - 1);
    uint8_t *codes = dl_alloc(ix->padded);
    int code = codes ? rebuild(ix, slots, codes) : DL_ENOMEM;
    free(codes);
    if (code == DL_OK)
        code = check_parents(ix, slots);
    return code == DL_OK ? check_structure(ix, message, message_size) : code;
}
