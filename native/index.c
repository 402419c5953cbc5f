/* Life, and writing: one writer at a time under ix->writer; what it does becomes visible at a tick of the clock. */
#include <math.h>

#include "internal.h"

int dl_open(const dl_config *config, dl_index **out)
{
    if (config->dim < 1 || config->dim > DL_MAX_DIM || config->metric > DL_COSINE || config->m < 2 || config->m > 128 ||
        config->ef_construction < 1 || config->ef_construction > 4096)
        return DL_EINVAL;
    dl_index *ix = dl_zalloc(sizeof *ix);
    if (!ix)
        return DL_ENOMEM;
    ix->config = *config;
    ix->padded = (config->dim + 31) & ~31u;
    ix->links0 = 1 + 2 * config->m;
    ix->links1 = 1 + config->m;
    ix->level_factor = 1 / log(config->m);
    pthread_mutex_init(&ix->writer, NULL);
    pthread_mutex_init(&ix->map_lock, NULL);
    atomic_store(&ix->clock, 1);
    atomic_store(&ix->entry, NONE);
    ix->slabs = dl_zalloc(MAX_SLABS * sizeof *ix->slabs);
    ix->segments = dl_zalloc(MAX_SEGMENTS * sizeof *ix->segments);
    ix->segment_rows = dl_zalloc(MAX_SEGMENTS * sizeof *ix->segment_rows);
    ix->turned = dl_zalloc(config->dim * (2 * sizeof(float) + 1));
    ix->own = dl_zalloc(sizeof *ix->own);
    if (!ix->slabs || !ix->segments || !ix->segment_rows || !ix->turned || !ix->own || probe_init(ix, &ix->own->query) != DL_OK ||
        probe_init(ix, &ix->other) != DL_OK || probe_init(ix, &ix->third) != DL_OK) {
        dl_close(ix);
        return DL_ENOMEM;
    }
    ix->plain = ix->turned + config->dim;
    ix->codes = (uint8_t *)(ix->plain + config->dim);
    *out = ix;
    return DL_OK;
}

void dl_close(dl_index *ix)
{
    if (!ix)
        return;
    retired_sweep(ix);
    for (uint32_t i = 0; ix->slabs && i < atomic_load(&ix->slab_count); i++)
        slab_free(ix, atomic_load(&ix->slabs[i]));
    for (uint32_t i = 0; i < DL_FRAMES; i++)
        free(atomic_load(&ix->frames[i]));
    for (reader *r = atomic_load(&ix->readers), *next; r; r = next) {
        next = r->next;
        reader_free(r);
    }
    if (ix->own)
        reader_free(ix->own);
    probe_free(&ix->other);
    probe_free(&ix->third);
    free((void *)ix->slabs);
    free((void *)ix->segments);
    free(ix->segment_rows);
    free(ix->turned);
    free(ix->buckets);
    free(ix->free_slots);
    free(ix->dead.items);
    free(ix->limbo.items);
    free(ix->round);
    pthread_mutex_destroy(&ix->writer);
    pthread_mutex_destroy(&ix->map_lock);
    free(ix);
}

void dl_lock(dl_index *ix)
{
    pthread_mutex_lock(&ix->writer);
}

void dl_unlock(dl_index *ix)
{
    pthread_mutex_unlock(&ix->writer);
}

int dl_attach(dl_index *ix, uint32_t segment, const float *base, uint32_t rows)
{
    if (segment >= MAX_SEGMENTS || !base || !rows)
        return DL_EINVAL;
    pthread_mutex_lock(&ix->writer);
    ix->segment_rows[segment] = rows;
    atomic_store(&ix->segments[segment], base);
    pthread_mutex_unlock(&ix->writer);
    return DL_OK;
}

int dl_detach(dl_index *ix, uint32_t segment)
{
    if (segment >= MAX_SEGMENTS)
        return DL_EINVAL;
    pthread_mutex_lock(&ix->writer);
    int code = DL_OK;
    for (uint32_t slot = 0; code == DL_OK && slot < atomic_load(&ix->slot_count); slot++)
        if (state_of(ix, slot) != SLOT_FREE &&
            atomic_load(&slab_of(ix, slot)->row[slot & SLAB_MASK]) >> 32 == segment)
            code = DL_EBUSY;
    if (code == DL_OK && oldest_pin(ix) != NEVER)
        code = DL_EBUSY; /* a reader may have taken the address */
    if (code == DL_OK)
        atomic_store(&ix->segments[segment], NULL);
    pthread_mutex_unlock(&ix->writer);
    return code;
}

/* ---- upsert ---- */

static record *record_new(const uint8_t *key, size_t key_size, const uint8_t *payload, size_t payload_size)
{
    record *r = dl_alloc(sizeof *r + key_size + payload_size);
    if (!r)
        return NULL;
    r->key_size = (uint16_t)key_size;
    r->payload_size = (uint32_t)payload_size;
    memcpy(r->bytes, key, key_size);
    if (payload_size)
        memcpy(r->bytes + key_size, payload, payload_size);
    return r;
}

/* Geometric, from the seed and the count of insertions: the same order gives the same graph. */
static uint8_t level_draw(dl_index *ix)
{
    uint64_t bits = dl_mix(ix->config.seed ^ dl_mix(ix->inserted++));
    double uniform = ((double)(bits >> 11) + 1) * 0x1p-53;
    double level = -log(uniform) * ix->level_factor;
    return level < MAX_LEVEL ? (uint8_t)level : MAX_LEVEL;
}

/* What became visible at `now`: the slot, and with it the end of the version before. */
static void commit(dl_index *ix, uint32_t old, uint32_t slot, uint32_t hash)
{
    slab *s = slab_of(ix, slot);
    uint64_t now = atomic_load(&ix->clock) + 1;
    s->state[slot & SLAB_MASK] = SLOT_LIVE;
    count_codes(ix, slot, 1);
    pthread_mutex_lock(&ix->map_lock);
    map_set(ix, old, slot, hash);
    atomic_store(&s->birth[slot & SLAB_MASK], now);
    if (old != NONE)
        atomic_store(&slab_of(ix, old)->death[old & SLAB_MASK], now);
    atomic_store(&ix->clock, now);
    pthread_mutex_unlock(&ix->map_lock);
    if (old == NONE) {
        atomic_fetch_add(&ix->live, 1);
        return;
    }
    slab_of(ix, old)->state[old & SLAB_MASK] = SLOT_DEAD;
    touch(ix, old);
    count_codes(ix, old, -1);
    queue_push(&ix->dead, old, now);
}

static int upsert_one(dl_index *ix, const uint8_t *key, size_t key_size, const uint8_t *payload, size_t payload_size,
                      const float *vector, uint64_t row)
{
    uint32_t hash = key_hash(key, key_size), slot = NONE;
    int code = map_reserve(ix);
    if (code != DL_OK || (code = queue_reserve(&ix->dead, 1)) != DL_OK)
        return code;
    uint32_t old = map_find(ix, key, key_size, hash);
    uint8_t level = level_draw(ix);
    record *r = record_new(key, key_size, payload, payload_size);
    size_t upper_bytes = level * ix->links1 * sizeof(uint32_t);
    _Atomic uint32_t *upper = level ? dl_zalloc(upper_bytes) : NULL;
    if (!r || (level && !upper) || (code = slot_take(ix, &slot)) != DL_OK) {
        free(r);
        free((void *)upper);
        return code ? code : DL_ENOMEM;
    }
    slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    block *b = atomic_load(&s->block);
    /* a float block is written in floats until it is re-encoded, whatever the write frame is by now */
    uint32_t id = ix->write_frame;
    for (uint32_t f = 0; b->is_float && f < DL_FRAMES; f++)
        if (frame_of(ix, f) && frame_of(ix, f)->is_float)
            id = f;
    to_plain(ix, vector, ix->plain);
    block_put(ix, b, i, id, ix->plain, ix->turned, ix->codes);
    frame_of(ix, id)->rows++;
    atomic_store(&s->records[i], r);
    ix->key_bytes += sizeof *r + key_size + payload_size;
    s->level[i] = level;
    atomic_store(&s->upper[i], upper);
    ix->link_bytes += upper_bytes;
    atomic_store(&s->row[i], row);
    s->state[i] = SLOT_UNLINKING; /* occupied, and no neighbour to anybody yet */
    s->version++;
    probe_vector(ix, &ix->own->query, ix->plain);
    code = insert_node(ix, slot);
    if (code != DL_OK) {
        slot_release(ix, slot);
        return code;
    }
    commit(ix, old, slot, hash);
    return DL_OK;
}

bool row_exists(const dl_index *ix, uint64_t row)
{
    return row == NO_ROW || (row >> 32 < MAX_SEGMENTS && atomic_load(&ix->segments[row >> 32]) &&
                             (row & UINT32_MAX) < ix->segment_rows[row >> 32]);
}

static bool sizes_fit(size_t n, const uint64_t *key_offsets, const uint64_t *payload_offsets)
{
    for (size_t i = 0; i < n; i++) {
        if (key_offsets[i + 1] <= key_offsets[i] || key_offsets[i + 1] - key_offsets[i] > DL_MAX_KEY)
            return false;
        if (payload_offsets && (payload_offsets[i + 1] < payload_offsets[i] ||
                                payload_offsets[i + 1] - payload_offsets[i] >= 1u << 24))
            return false;
    }
    return true;
}

bool all_finite(const float *x, size_t n)
{
    bool finite = true;
    for (size_t i = 0; i < n; i++)
        finite &= fabsf(x[i]) < 1e18f; /* squares stay finite in float32 */
    return finite;
}

int dl_upsert(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint8_t *payloads,
              const uint64_t *payload_offsets, const float *vectors, const uint64_t *rows)
{
    size_t dim = ix->config.dim;
    if (!sizes_fit(n, key_offsets, payloads ? payload_offsets : NULL) || !all_finite(vectors, n * dim))
        return DL_EINVAL;
    pthread_mutex_lock(&ix->writer);
    int code = frame_of(ix, ix->write_frame) ? DL_OK : DL_EINVAL;
    for (size_t i = 0; code == DL_OK && rows && i < n; i++)
        code = row_exists(ix, rows[i]) ? DL_OK : DL_EINVAL;
    for (size_t i = 0; code == DL_OK && i < n; i++)
        code = upsert_one(ix, keys + key_offsets[i], key_offsets[i + 1] - key_offsets[i],
                          payloads ? payloads + payload_offsets[i] : NULL,
                          payloads ? payload_offsets[i + 1] - payload_offsets[i] : 0, vectors + i * dim,
                          rows ? rows[i] : NO_ROW);
    pthread_mutex_unlock(&ix->writer);
    return code;
}

int dl_unchanged(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint8_t *payloads,
                 const uint64_t *payload_offsets, const float *vectors, uint8_t *same)
{
    size_t dim = ix->config.dim;
    if (!sizes_fit(n, key_offsets, payloads ? payload_offsets : NULL))
        return DL_EINVAL;
    pthread_mutex_lock(&ix->writer);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *key = keys + key_offsets[i];
        size_t size = key_offsets[i + 1] - key_offsets[i];
        size_t payload_size = payloads ? payload_offsets[i + 1] - payload_offsets[i] : 0;
        uint32_t slot = map_find(ix, key, size, key_hash(key, size));
        same[i] = 0;
        if (slot == NONE)
            continue;
        slab *s = slab_of(ix, slot);
        const record *r = atomic_load(&s->records[slot & SLAB_MASK]);
        const float *raw = raw_of(ix, atomic_load(&s->row[slot & SLAB_MASK]));
        same[i] = raw && r->payload_size == payload_size && memcmp(raw, vectors + i * dim, dim * sizeof *raw) == 0 &&
                  (!payload_size || memcmp(r->bytes + r->key_size, payloads + payload_offsets[i], payload_size) == 0);
    }
    pthread_mutex_unlock(&ix->writer);
    return DL_OK;
}

/* ---- delete ---- */

int dl_delete(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, uint64_t *deleted)
{
    if (!sizes_fit(n, key_offsets, NULL))
        return DL_EINVAL;
    int code = DL_OK;
    *deleted = 0;
    pthread_mutex_lock(&ix->writer);
    for (size_t i = 0; i < n && (code = queue_reserve(&ix->dead, 1)) == DL_OK; i++) {
        const uint8_t *key = keys + key_offsets[i];
        size_t size = key_offsets[i + 1] - key_offsets[i];
        uint32_t hash = key_hash(key, size), slot = map_find(ix, key, size, hash);
        if (slot == NONE)
            continue;
        slab *s = slab_of(ix, slot);
        uint64_t now = atomic_load(&ix->clock) + 1;
        pthread_mutex_lock(&ix->map_lock);
        map_remove(ix, slot, hash);
        atomic_store(&s->death[slot & SLAB_MASK], now);
        atomic_store(&ix->clock, now);
        pthread_mutex_unlock(&ix->map_lock);
        atomic_fetch_sub(&ix->live, 1);
        s->state[slot & SLAB_MASK] = SLOT_DEAD;
        s->version++;
        count_codes(ix, slot, -1);
        queue_push(&ix->dead, slot, now);
        ++*deleted;
    }
    pthread_mutex_unlock(&ix->writer);
    return code;
}

/* ---- facts ---- */

uint64_t dl_live(dl_index *ix)
{
    return atomic_load(&ix->live);
}

uint32_t dl_slabs(dl_index *ix)
{
    return atomic_load(&ix->slab_count);
}

int dl_slab(dl_index *ix, uint32_t number, dl_slab_info *out)
{
    if (number >= atomic_load(&ix->slab_count))
        return DL_EINVAL;
    pthread_mutex_lock(&ix->writer);
    slab *s = atomic_load(&ix->slabs[number]);
    const block *b = atomic_load(&s->block);
    *out = (dl_slab_info){.used = s->used, .is_float = b->is_float, .version = s->version};
    for (uint32_t i = 0; i < s->used; i++) {
        out->live += s->state[i] == SLOT_LIVE;
        if (s->state[i] != SLOT_FREE)
            out->rows[b->frames[i]]++;
    }
    pthread_mutex_unlock(&ix->writer);
    return DL_OK;
}

static int slab_rows(dl_index *ix, uint32_t number, bool dead_too, uint64_t *rows, uint8_t *frames, uint32_t *count)
{
    if (number >= atomic_load(&ix->slab_count))
        return DL_EINVAL;
    pthread_mutex_lock(&ix->writer);
    slab *s = atomic_load(&ix->slabs[number]);
    const block *b = atomic_load(&s->block);
    *count = 0;
    for (uint32_t i = 0; i < s->used; i++)
        if (s->state[i] == SLOT_LIVE || (dead_too && s->state[i] != SLOT_FREE)) {
            if (frames)
                frames[*count] = b->frames[i];
            rows[(*count)++] = atomic_load(&s->row[i]);
        }
    pthread_mutex_unlock(&ix->writer);
    return DL_OK;
}

int dl_slab_rows(dl_index *ix, uint32_t number, uint64_t *rows, uint8_t *frames, uint32_t *count)
{
    return slab_rows(ix, number, false, rows, frames, count);
}

int dl_occupied_rows(dl_index *ix, uint32_t number, uint64_t *rows, uint32_t *count)
{
    return slab_rows(ix, number, true, rows, NULL, count);
}

void dl_usage_of(dl_index *ix, dl_usage *out)
{
    pthread_mutex_lock(&ix->writer);
    uint32_t slabs = atomic_load(&ix->slab_count);
    *out = (dl_usage){
        .live = atomic_load(&ix->live),
        .slots = atomic_load(&ix->slot_count),
        .slabs = slabs,
        .dead = ix->dead.end - ix->dead.start + ix->limbo.end - ix->limbo.start + ix->round_size,
        .codes = ix->block_bytes,
        .links = ix->link_bytes,
        .keys = ix->key_bytes + (ix->buckets ? (ix->bucket_mask + 1) * sizeof(bucket) : 0),
        .meta = slabs * sizeof(slab) + ix->free_capacity * sizeof(uint32_t) +
                (ix->dead.capacity + ix->limbo.capacity) * sizeof(stamped),
    };
    for (reader *r = atomic_load(&ix->readers); r; r = r->next)
        out->scratch += sizeof *r; /* the visited sets belong to searches under way: counted by their slabs */
    out->scratch += slabs * DL_SLAB * sizeof(uint16_t);
    out->total = out->codes + out->links + out->keys + out->meta + out->scratch;
    pthread_mutex_unlock(&ix->writer);
}

uint64_t dl_version(dl_index *ix, uint32_t number)
{
    return number < atomic_load(&ix->slab_count) ? atomic_load(&ix->slabs[number])->version : 0;
}
