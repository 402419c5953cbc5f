/* Saving and loading. Bytes read back are hostile: each is checked before it is used, and a loaded graph as a whole by
 * check_structure before anything is searched.
 *
 * Little-endian, no padding. Version 3 of the head, 4 of slabs; older ones are refused: rebuild from the log.
 *   head   "DLH3", u32 dim, metric, m, route bits; u64 seed, rotation seed, inserted; u32 slots, entry, write frame; f32 growth
 *   slab   "DLS4", u32 slab, used, flags: 1 floats, 2 sources; then per used slot:
 *          u8 state (0 free, 1 live, 2 dead), and unless free:
 *          u8 frame, u8 level, u32 parent, u64 row, with sources 2 u64, u32 payload size, u16 key size, key, payload;
 *          per level 0..level: u32 count, count * u32 slot (bit 31: an edge of the tree);
 *          the code: f32[dim], or f32 coarse norm, f32 fine norm, u16 stretch, the planes of kernels.h
 * A node that is being unlinked is saved as dead; one in limbo, which nothing links to, as free. */
#include <math.h>

#include "internal.h"

static const char HEAD[4] = "DLH3", SLAB_HEAD[4] = "DLS4";
enum { FLOATS = 1, SOURCES = 2 };

/* ---- writing ---- */

typedef struct {
    uint8_t *bytes;
    size_t size, capacity;
    bool failed;
} sink;

static void emit(sink *out, const void *bytes, size_t size)
{
    if (out->failed)
        return;
    if (out->size + size > out->capacity) {
        size_t capacity = 2 * (out->size + size) + 256;
        uint8_t *memory = dl_grow(out->bytes, capacity);
        if (!memory) {
            out->failed = true;
            return;
        }
        out->bytes = memory;
        out->capacity = capacity;
    }
    memcpy(out->bytes + out->size, bytes, size);
    out->size += size;
}

static void emit8(sink *out, uint8_t value)
{
    emit(out, &value, 1);
}

static void emit32(sink *out, uint32_t value)
{
    emit(out, &value, 4);
}

static void emit64(sink *out, uint64_t value)
{
    emit(out, &value, 8);
}

static int finish(sink *out, uint8_t **bytes, size_t *size)
{
    if (out->failed) {
        free(out->bytes);
        return DL_ENOMEM;
    }
    *bytes = out->bytes;
    *size = out->size;
    return DL_OK;
}

int dl_save_head(dl_index *ix, uint8_t **bytes, size_t *size)
{
    sink out = {0};
    emit(&out, HEAD, 4);
    emit32(&out, ix->config.dim);
    emit32(&out, ix->config.metric);
    emit32(&out, ix->config.m);
    emit32(&out, ix->config.route_bits);
    emit64(&out, ix->config.seed);
    emit64(&out, ix->config.rotation_seed);
    emit64(&out, ix->inserted);
    emit32(&out, atomic_load(&ix->slot_count));
    emit32(&out, get(&ix->entry));
    emit32(&out, ix->write_frame);
    float growth = atomic_load(&ix->growth);
    emit(&out, &growth, sizeof growth);
    return finish(&out, bytes, size);
}

static void save_slot(const dl_index *ix, sink *out, const slab *s, uint32_t slot)
{
    uint32_t i = slot & SLAB_MASK;
    const head *h = block_head(ix, s->block, i);
    record *r = atomic_load(&s->records[i]);
    if (s->state[i] == SLOT_FREE || s->state[i] == SLOT_LIMBO) {
        emit8(out, SLOT_FREE);
        return;
    }
    emit8(out, s->state[i] == SLOT_LIVE ? SLOT_LIVE : SLOT_DEAD);
    emit8(out, h->frame);
    emit8(out, s->level[i]);
    emit32(out, parent_of(ix, slot));
    emit64(out, atomic_load(&s->row[i]));
    if (ix->config.sources)
        emit(out, s->sources[i], SOURCE_BYTES);
    emit32(out, r->payload_size);
    emit(out, &r->key_size, 2);
    emit(out, key_of(ix, r), r->key_size + (size_t)r->payload_size);
    for (uint32_t level = 0; level <= s->level[i]; level++) {
        const _Atomic uint32_t *links = links_of(ix, slot, level);
        uint32_t count = link_count(links, link_cap(ix, level));
        emit32(out, count);
        for (uint32_t j = 0; j < count; j++)
            emit32(out, get(links + j));
    }
    if (s->block->is_float) {
        emit(out, h + 1, ix->config.dim * sizeof(float));
        return;
    }
    emit(out, &h->coarse_norm, 4);
    emit(out, &h->fine_norm, 4);
    emit(out, &h->stretch, 2);
    emit(out, h + 1, ix->padded / 8 * ix->config.route_bits);
    emit(out, rest_of(ix, h, slot), ix->rest_bytes);
}

int dl_save_slab(dl_index *ix, uint32_t number, uint8_t **bytes, size_t *size)
{
    if (number >= atomic_load(&ix->slab_count))
        return DL_EINVAL;
    sink out = {0};
    const slab *s = atomic_load(&ix->slabs[number]);
    emit(&out, SLAB_HEAD, 4);
    emit32(&out, number);
    emit32(&out, s->used);
    emit32(&out, (s->block->is_float ? FLOATS : 0) | (ix->config.sources ? SOURCES : 0));
    for (uint32_t i = 0; i < s->used; i++)
        save_slot(ix, &out, s, number * DL_SLAB + i);
    return finish(&out, bytes, size);
}

/* ---- reading ---- */

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

/* The record with its key, its payload and room for `level` lists. */
static int load_key(dl_index *ix, slab *s, uint32_t i, uint8_t level, source *in)
{
    uint32_t payload_size = take32(in);
    uint16_t key_size = 0;
    const uint8_t *bytes = take(in, 2);
    if (bytes)
        memcpy(&key_size, bytes, 2);
    if (in->failed || !key_size || key_size > DL_MAX_KEY || payload_size >= 1u << 24 ||
        !(bytes = take(in, key_size + (size_t)payload_size)))
        return DL_ECORRUPT;
    record *r = record_new(ix, level, bytes, key_size, bytes + key_size, payload_size);
    if (!r)
        return DL_ENOMEM;
    atomic_store(&s->records[i], r);
    return DL_OK;
}

static int load_links(dl_index *ix, uint32_t slot, uint8_t level, source *in)
{
    for (uint32_t l = 0; l <= level; l++) {
        _Atomic uint32_t *links = links_of(ix, slot, l);
        uint32_t count = take32(in);
        if (count > link_cap(ix, l))
            return DL_ECORRUPT;
        for (uint32_t j = 0; j < count; j++) {
            uint32_t word = take32(in);
            if (word == NONE || (l && word & TREE))
                return DL_ECORRUPT;
            put(links + j, word);
        }
    }
    return in->failed ? DL_ECORRUPT : DL_OK;
}

static int load_code(dl_index *ix, slab *s, uint32_t slot, source *in)
{
    size_t dim = ix->config.dim;
    head *h = block_head(ix, s->block, slot & SLAB_MASK);
    if (s->block->is_float) {
        const uint8_t *row = take(in, dim * sizeof(float));
        if (!row)
            return DL_ECORRUPT;
        memcpy(h + 1, row, dim * sizeof(float));
        return all_finite((const float *)(h + 1), dim) ? DL_OK : DL_ECORRUPT;
    }
    const uint8_t *norms = take(in, 10), *routing = take(in, ix->padded / 8 * ix->config.route_bits), *rest = take(in, ix->rest_bytes);
    if (!rest)
        return DL_ECORRUPT;
    memcpy(&h->coarse_norm, norms, 4);
    memcpy(&h->fine_norm, norms + 4, 4);
    memcpy(&h->stretch, norms + 8, 2);
    memcpy(h + 1, routing, ix->padded / 8 * ix->config.route_bits);
    memcpy((uint8_t *)rest_of(ix, h, slot), rest, ix->rest_bytes);
    return isfinite(h->coarse_norm) && isfinite(h->fine_norm) && h->stretch < 0x7F80 ? DL_OK : DL_ECORRUPT;
}

static int load_slot(dl_index *ix, slab *s, uint32_t slot, source *in)
{
    uint32_t i = slot & SLAB_MASK;
    uint8_t state = take8(in);
    if (in->failed || state > SLOT_DEAD)
        return DL_ECORRUPT;
    if (state == SLOT_FREE)
        return DL_OK;
    uint8_t id = take8(in), level = take8(in);
    put(&s->parent[i], take32(in));
    uint64_t row = take64(in);
    if (ix->config.sources) {
        s->sources[i][0] = take64(in);
        s->sources[i][1] = take64(in);
    }
    if (in->failed || id >= DL_FRAMES || !frame_of(ix, id) || frame_of(ix, id)->is_float != s->block->is_float ||
        level > MAX_LEVEL || !row_exists(ix, row))
        return DL_ECORRUPT;
    int code = load_key(ix, s, i, level, in);
    if (code == DL_OK)
        code = load_links(ix, slot, level, in);
    if (code == DL_OK)
        code = load_code(ix, s, slot, in);
    if (code != DL_OK)
        return code;
    /* only now is the slot more than memory that slab_free gives back */
    block_head(ix, s->block, i)->frame = id;
    atomic_store(&block_head(ix, s->block, i)->flags, 0);
    s->level[i] = level;
    s->state[i] = state;
    atomic_store(&s->row[i], row);
    frame_of(ix, id)->rows++;
    return DL_OK;
}

/* Slabs are loaded in order, into an index that holds nothing else. After an error the index can only be closed. */
int dl_load_slab(dl_index *ix, uint32_t number, uint64_t version, const uint8_t *bytes, size_t size)
{
    source in = {bytes, bytes + size, false};
    const uint8_t *magic = take(&in, 4);
    uint32_t named = take32(&in), used = take32(&in), flags = take32(&in), is_float = flags & FLOATS;
    if (!magic || memcmp(magic, SLAB_HEAD, 4) || in.failed || named != number ||
        number != atomic_load(&ix->slab_count) || used > DL_SLAB ||
        (flags & ~(uint32_t)FLOATS) != (ix->config.sources ? SOURCES : 0) || (is_float && float_frame(ix) == NONE) ||
        !frame_of(ix, ix->write_frame))
        return DL_ECORRUPT;
    int code = slab_add(ix);
    if (code != DL_OK)
        return code;
    slab *s = atomic_load(&ix->slabs[number]);
    if (s->block->is_float != (bool)is_float) {
        block *b = block_new(ix, is_float), *old = s->block;
        if (!b)
            return DL_ENOMEM;
        block_publish(ix, number, b);
        block_free(ix, old);
    }
    s->used = used;
    s->version = version;
    for (uint32_t i = 0; code == DL_OK && i < used; i++)
        code = load_slot(ix, s, number * DL_SLAB + i, &in);
    return code == DL_OK && in.at != in.end ? DL_ECORRUPT : code;
}

/* Parents must exist and lead to the entry point without a cycle; a dead node's may be gone. */
static bool tree_sound(const dl_index *ix, uint32_t slots)
{
    for (uint32_t slot = 0; slot < slots; slot++) {
        uint32_t parent = parent_of(ix, slot);
        if (state_of(ix, slot) == SLOT_FREE || parent >= NO_PARENT)
            continue;
        if (parent >= slots || state_of(ix, parent) == SLOT_FREE)
            return false;
    }
    uint8_t *sound = dl_zalloc(slots); /* 1: on the path being walked, 2: known to end */
    bool good = sound != NULL;
    for (uint32_t start = 0; good && start < slots; start++) {
        uint32_t slot = start;
        for (; slot < NO_PARENT && !sound[slot]; slot = parent_of(ix, slot))
            sound[slot] = 1;
        good = slot >= NO_PARENT || sound[slot] == 2;
        for (slot = start; good && slot < NO_PARENT && sound[slot] == 1; slot = parent_of(ix, slot))
            sound[slot] = 2;
    }
    free(sound);
    return good;
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
    if (in.failed || memcmp(magic, HEAD, 4) || in.at != in.end || dim != ix->config.dim ||
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
    if (code == DL_OK && !tree_sound(ix, slots))
        code = DL_ECORRUPT;
    return code == DL_OK ? check_structure(ix, message, message_size) : code;
}
