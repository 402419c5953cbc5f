/* Life, and writing: each change becomes visible at a tick of the clock. */
#include <math.h>

#include "internal.h"

static uint32_t rounded(size_t bytes, uint32_t unit)
{
    return (uint32_t)((bytes + unit - 1) / unit * unit);
}

int dl_open(const dl_config *config, dl_index **out)
{
    if (config->dim < 1 || config->dim > DL_MAX_DIM || config->metric > DL_COSINE || config->m < 2 || config->m > 128 ||
        config->ef_construction < 1 || config->ef_construction > 4096 || config->sources > 1 ||
        (config->route_bits && config->route_bits != 3 && config->route_bits != 5))
        return DL_EINVAL;
    dl_index *ix = dl_zalloc(sizeof *ix);
    if (!ix)
        return DL_ENOMEM;
    ix->config = *config;
    ix->padded = rounded(config->dim, 32);
    if (!ix->config.route_bits)
        ix->config.route_bits = sizeof(head) + ix->padded / 8 * 5 <= LINE ? 5 : 3;
    /* half a line: no row splits more lines than it must */
    ix->row_bytes = rounded(sizeof(head) + ix->padded / 8 * ix->config.route_bits, 32);
    ix->rest_bytes = ix->padded / 8 * (8 - ix->config.route_bits);
    ix->float_bytes = (uint32_t)(sizeof(head) + config->dim * sizeof(float));
    ix->links0 = 2 * config->m;
    ix->dot_share = config->metric == DL_L2 ? 2 : 1;
    ix->norm_share = config->metric == DL_L2 ? 1 : config->metric == DL_COSINE ? 0.5f : 0;
    ix->level_factor = 1 / log(config->m);
    pthread_mutex_init(&ix->gate, NULL);
    pthread_mutex_init(&ix->leaving, NULL);
    pthread_cond_init(&ix->left, NULL);
    pthread_mutex_init(&ix->commit, NULL);
    pthread_mutex_init(&ix->pages, NULL);
    pthread_mutex_init(&ix->images, NULL);
    atomic_store(&ix->clock, 1);
    atomic_store(&ix->entry, NONE);
    ix->places = table_new(MAX_SLABS * sizeof *ix->places);
    ix->slabs = table_new(MAX_SLABS * sizeof *ix->slabs);
    ix->roomy = table_new(MAX_SLABS / 64 * sizeof *ix->roomy);
    ix->segments = table_new(MAX_SEGMENTS * sizeof *ix->segments);
    ix->segment_rows = table_new(MAX_SEGMENTS * sizeof *ix->segment_rows);
    ix->referring = table_new(MAX_SEGMENTS * sizeof *ix->referring);
    if (!ix->places || !ix->slabs || !ix->roomy || !ix->segments || !ix->segment_rows || !ix->referring) {
        dl_close(ix);
        return DL_ENOMEM;
    }
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
        reader_free(ix, r);
    }
    pages_free(ix);
    table_free(ix->places, MAX_SLABS * sizeof *ix->places);
    table_free((void *)ix->slabs, MAX_SLABS * sizeof *ix->slabs);
    table_free(ix->roomy, MAX_SLABS / 64 * sizeof *ix->roomy);
    table_free((void *)ix->segments, MAX_SEGMENTS * sizeof *ix->segments);
    table_free(ix->segment_rows, MAX_SEGMENTS * sizeof *ix->segment_rows);
    table_free((void *)ix->referring, MAX_SEGMENTS * sizeof *ix->referring);
    table_free(ix->buckets, ((size_t)ix->bucket_mask + 1) * sizeof *ix->buckets);
    free(ix->moves);
    free(ix->fresh.items);
    free(ix->dead.items);
    free(ix->limbo.items);
    free(ix->round);
    pthread_mutex_destroy(&ix->gate);
    pthread_mutex_destroy(&ix->leaving);
    pthread_cond_destroy(&ix->left);
    pthread_mutex_destroy(&ix->commit);
    pthread_mutex_destroy(&ix->pages);
    pthread_mutex_destroy(&ix->images);
    free(ix);
}

int dl_attach(dl_index *ix, uint32_t segment, const float *base, uint32_t rows)
{
    if (segment >= MAX_SEGMENTS || !base || !rows)
        return DL_EINVAL;
    take_structure(ix);
    ix->segment_rows[segment] = rows;
    atomic_store(&ix->segments[segment], base);
    leave_structure(ix);
    return DL_OK;
}

int dl_detach(dl_index *ix, uint32_t segment)
{
    if (segment >= MAX_SEGMENTS)
        return DL_EINVAL;
    take_structure(ix);
    /* a reader may have taken the address */
    int code = atomic_load(&ix->referring[segment]) || oldest_pin(ix) != NEVER ? DL_EBUSY : DL_OK;
    if (code == DL_OK)
        atomic_store(&ix->segments[segment], NULL);
    leave_structure(ix);
    return code;
}

/* ---- upsert ---- */

static uint64_t row_id(const dl_index *ix, uint32_t slot)
{
    return atomic_load(&slab_of(ix, slot)->row[slot & SLAB_MASK]);
}

typedef struct {
    const uint8_t *key, *payload;
    size_t key_size, payload_size;
    const float *vector;
    uint64_t row;
    const uint64_t *source;
    uint32_t hash;
    uint8_t level;
} item;

enum { ALONE_NEEDED = 1 }; /* of insertion: nothing was changed, and the structure must be held alone */

/* Geometric, from the seed and the count of insertions: the same order gives the same graph. */
static uint8_t level_draw(dl_index *ix)
{
    pthread_mutex_lock(&ix->commit);
    uint64_t bits = dl_mix(ix->config.seed ^ dl_mix(ix->inserted++));
    pthread_mutex_unlock(&ix->commit);
    double uniform = ((double)(bits >> 11) + 1) * 0x1p-53;
    double level = -log(uniform) * ix->level_factor;
    return level < MAX_LEVEL ? (uint8_t)level : MAX_LEVEL;
}

/* A slot and room for everything that committing will need; commit lock. */
static int reserve(dl_index *ix, uint32_t *slot)
{
    int code = map_reserve(ix);
    if (code == DL_OK)
        code = queue_reserve(&ix->dead, ix->linking + 1);
    if (code == DL_OK)
        code = queue_reserve(&ix->fresh, ix->linking + 1);
    if (code == DL_OK)
        code = slot_take(ix, slot);
    ix->linking += code == DL_OK;
    return code;
}

/* Slots whose birth every reader has seen need not be compared any more. Commit lock. */
void settle(dl_index *ix)
{
    queue *q = &ix->fresh;
    uint64_t oldest = oldest_pin(ix);
    for (; q->start < q->end && q->items[q->start].stamp <= oldest; q->start++) {
        uint32_t slot = q->items[q->start].slot;
        if (slot < atomic_load(&ix->slot_count) && /* else its slab is gone */
            get(&slab_of(ix, slot)->birth[slot & SLAB_MASK]) == (uint32_t)q->items[q->start].stamp)
            atomic_fetch_and_explicit(&head_of(ix, slot)->flags, (uint8_t)~FRESH, memory_order_release);
    }
}

/* A version ends at `now`; commit lock. */
static void end_version(dl_index *ix, reader *r, uint32_t slot, uint64_t now)
{
    before_change(ix, slot, false);
    put(&slab_of(ix, slot)->death[slot & SLAB_MASK], (uint32_t)now);
    atomic_fetch_or_explicit(&head_of(ix, slot)->flags, DEAD, memory_order_release);
    set_state(ix, slot, SLOT_DEAD);
    count_codes(ix, slot, -1, r->codes);
    queue_push(&ix->dead, slot, now);
}

/* What becomes visible at one tick: the slot, and with it the end of the version before, whose row is *replaced. */
static void commit(dl_index *ix, reader *r, uint32_t slot, const item *new, uint64_t *replaced)
{
    pthread_mutex_lock(&ix->commit);
    uint64_t now = atomic_load(&ix->clock) + 1;
    uint32_t old = map_find(ix, new->key, new->key_size, new->hash);
    put(&slab_of(ix, slot)->birth[slot & SLAB_MASK], (uint32_t)now);
    atomic_store_explicit(&head_of(ix, slot)->flags, FRESH, memory_order_release);
    set_state(ix, slot, SLOT_LIVE);
    count_codes(ix, slot, 1, r->codes);
    queue_push(&ix->fresh, slot, now);
    map_set(ix, old, slot, new->hash);
    if (ix->config.sources)
        memcpy(slab_of(ix, slot)->sources[slot & SLAB_MASK], new->source, SOURCE_BYTES);
    *replaced = old == NONE ? NO_ROW : row_id(ix, old);
    if (old == NONE)
        atomic_fetch_add(&ix->live, 1);
    else
        end_version(ix, r, old, now);
    ix->linking--;
    learn_growth(ix, r->growth, 1);
    atomic_store(&ix->clock, now);
    settle(ix);
    pthread_mutex_unlock(&ix->commit);
}

static void undo(dl_index *ix, uint32_t slot)
{
    pthread_mutex_lock(&ix->commit);
    slot_release(ix, slot);
    ix->linking--;
    pthread_mutex_unlock(&ix->commit);
}

/* With the structure shared, or alone. */
static int insert_item(dl_index *ix, reader *r, const item *new, bool alone, uint32_t *out, uint64_t *replaced)
{
    uint32_t slot = NONE;
    if (!row_exists(ix, new->row))
        return DL_EINVAL;
    record *made = record_new(ix, new->level, new->key, new->key_size, new->payload, new->payload_size);
    if (!made)
        return DL_ENOMEM;
    pthread_mutex_lock(&ix->commit);
    int code = reserve(ix, &slot);
    block *b = code == DL_OK ? slab_of(ix, slot)->block : NULL;
    /* a float block is written in floats until it is re-encoded, whatever the write frame is by now */
    uint32_t id = b && b->is_float ? float_frame(ix) : ix->write_frame;
    if (code == DL_OK)
        frame_of(ix, id)->rows++;
    pthread_mutex_unlock(&ix->commit);
    if (code != DL_OK) {
        record_free(ix, made);
        return code;
    }
    slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    before_change(ix, slot, true); /* and all that comes until it is committed */
    to_plain(ix, new->vector, r->plain);
    block_put(ix, b, i, id, r->plain, r->turned, r->codes);
    atomic_store_explicit(&block_head(ix, b, i)->flags, UNBORN, memory_order_release);
    atomic_store(&s->records[i], made);
    s->level[i] = new->level;
    set_row(ix, slot, new->row);
    set_state(ix, slot, SLOT_UNLINKING); /* occupied, and nobody's parent yet */
    probe_vector(ix, &r->query, r->plain);
    r->growth = 0;
    code = insert_node(ix, r, slot, alone);
    if (code != DL_OK) {
        undo(ix, slot);
        return code;
    }
    commit(ix, r, slot, new, replaced);
    *out = slot;
    return DL_OK;
}

static int upsert_one(dl_index *ix, reader *r, item *new, uint32_t *slot, uint64_t *replaced)
{
    new->hash = key_hash(new->key, new->key_size);
    int code = ALONE_NEEDED;
    share_structure(ix);
    new->level = level_draw(ix); /* counted with the structure shared: saving reads the count */
    if (get(&ix->entry) != NONE && new->level <= level_of(ix, get(&ix->entry)))
        code = insert_item(ix, r, new, false, slot, replaced);
    unshare_structure(ix);
    if (code == ALONE_NEEDED) {
        take_structure(ix);
        code = insert_item(ix, r, new, true, slot, replaced);
        leave_structure(ix);
    }
    return code;
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

bool all_directed(const dl_index *ix, const float *x, size_t n)
{
    size_t dim = ix->config.dim;
    bool directed = true;
    for (size_t row = 0; ix->config.metric == DL_COSINE && directed && row < n; row++) {
        directed = false;
        for (size_t i = 0; i < dim; i++)
            directed |= x[row * dim + i] != 0;
    }
    return directed;
}

int dl_upsert(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint8_t *payloads,
              const uint64_t *payload_offsets, const float *vectors, const uint64_t *rows, const uint64_t *sources,
              uint32_t *slots, uint64_t *replaced, uint64_t *next)
{
    static const uint64_t nowhere[2];
    size_t dim = ix->config.dim;
    uint64_t own = 0;
    if (!next)
        next = &own;
    if (!sizes_fit(n, key_offsets, payloads ? payload_offsets : NULL) || !all_finite(vectors, n * dim) ||
        (sources && !ix->config.sources))
        return DL_EINVAL;
    share_structure(ix);
    int code = frame_of(ix, ix->write_frame) ? DL_OK : DL_EINVAL;
    for (size_t i = 0; code == DL_OK && rows && i < n; i++)
        code = row_exists(ix, rows[i]) ? DL_OK : DL_EINVAL;
    unshare_structure(ix);
    reader *r = code == DL_OK ? reader_enter(ix, NULL) : NULL;
    if (code == DL_OK && !r)
        code = DL_ENOMEM;
    for (uint64_t i; code == DL_OK && (i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < n;) {
        item new = {
            .key = keys + key_offsets[i],
            .key_size = key_offsets[i + 1] - key_offsets[i],
            .payload = payloads ? payloads + payload_offsets[i] : NULL,
            .payload_size = payloads ? payload_offsets[i + 1] - payload_offsets[i] : 0,
            .vector = vectors + i * dim,
            .row = rows ? rows[i] : NO_ROW,
            .source = sources ? sources + 2 * i : nowhere,
        };
        uint32_t slot;
        uint64_t old;
        code = upsert_one(ix, r, &new, &slot, &old);
        if (code == DL_OK && slots)
            slots[i] = slot;
        if (code == DL_OK && replaced)
            replaced[i] = old;
    }
    if (r)
        reader_leave(r);
    return code;
}

int dl_unchanged(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint8_t *payloads,
                 const uint64_t *payload_offsets, const float *vectors, uint8_t *same)
{
    size_t dim = ix->config.dim;
    if (!sizes_fit(n, key_offsets, payloads ? payload_offsets : NULL))
        return DL_EINVAL;
    share_structure(ix);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *key = keys + key_offsets[i];
        size_t size = key_offsets[i + 1] - key_offsets[i];
        size_t payload_size = payloads ? payload_offsets[i + 1] - payload_offsets[i] : 0;
        pthread_mutex_lock(&ix->commit);
        uint32_t slot = map_find(ix, key, size, key_hash(key, size));
        pthread_mutex_unlock(&ix->commit);
        same[i] = 0;
        if (slot == NONE)
            continue;
        record *r = record_of(ix, slot);
        const float *raw = raw_of(ix, row_id(ix, slot));
        same[i] = raw && r->payload_size == payload_size && memcmp(raw, vectors + i * dim, dim * sizeof *raw) == 0 &&
                  (!payload_size || memcmp(key_of(ix, r) + r->key_size, payloads + payload_offsets[i], payload_size) == 0);
    }
    unshare_structure(ix);
    return DL_OK;
}

/* ---- sources ---- */

static uint64_t *source_at(dl_index *ix, uint32_t slot)
{
    return slab_of(ix, slot)->sources[slot & SLAB_MASK];
}

/* Of the key's live version into `out`, or from `in`; commit lock. */
static void source_one(dl_index *ix, uint32_t slot, uint64_t *out, const uint64_t *in)
{
    if (out && slot == NONE) {
        out[0] = out[1] = 0;
    } else if (out) {
        memcpy(out, source_at(ix, slot), SOURCE_BYTES);
    } else if (slot != NONE && memcmp(source_at(ix, slot), in, SOURCE_BYTES)) {
        before_change(ix, slot, false);
        memcpy(source_at(ix, slot), in, SOURCE_BYTES);
    }
}

static int each_source(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, uint64_t *out, const uint64_t *in)
{
    if (!ix->config.sources || !sizes_fit(n, key_offsets, NULL))
        return DL_EINVAL;
    share_structure(ix);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *key = keys + key_offsets[i];
        size_t size = key_offsets[i + 1] - key_offsets[i];
        pthread_mutex_lock(&ix->commit);
        source_one(ix, map_find(ix, key, size, key_hash(key, size)), out ? out + 2 * i : NULL, in ? in + 2 * i : NULL);
        pthread_mutex_unlock(&ix->commit);
    }
    unshare_structure(ix);
    return DL_OK;
}

int dl_sources(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, uint64_t *sources)
{
    return each_source(ix, n, keys, key_offsets, sources, NULL);
}

int dl_set_sources(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, const uint64_t *sources)
{
    return each_source(ix, n, keys, key_offsets, NULL, sources);
}

/* ---- delete ---- */

static int delete_one(dl_index *ix, reader *r, const uint8_t *key, size_t size, uint64_t *replaced, uint64_t *deleted)
{
    uint32_t hash = key_hash(key, size);
    pthread_mutex_lock(&ix->commit);
    int code = queue_reserve(&ix->dead, ix->linking + 1);
    uint32_t slot = code == DL_OK ? map_find(ix, key, size, hash) : NONE;
    if (code == DL_OK)
        *replaced = slot == NONE ? NO_ROW : row_id(ix, slot);
    if (slot != NONE) {
        uint64_t now = atomic_load(&ix->clock) + 1;
        map_remove(ix, slot, hash);
        end_version(ix, r, slot, now);
        atomic_fetch_sub(&ix->live, 1);
        atomic_store(&ix->clock, now);
        ++*deleted;
    }
    pthread_mutex_unlock(&ix->commit);
    return code;
}

int dl_delete(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, uint64_t *replaced, uint64_t *deleted)
{
    *deleted = 0;
    if (!sizes_fit(n, key_offsets, NULL))
        return DL_EINVAL;
    reader *r = reader_enter(ix, NULL);
    int code = r ? DL_OK : DL_ENOMEM;
    for (size_t i = 0; code == DL_OK && i < n; i++) {
        share_structure(ix);
        uint64_t old = NO_ROW;
        code = delete_one(ix, r, keys + key_offsets[i], key_offsets[i + 1] - key_offsets[i], &old, deleted);
        unshare_structure(ix);
        if (code == DL_OK && replaced)
            replaced[i] = old;
    }
    if (r)
        reader_leave(r);
    return code;
}

/* ---- facts ---- */

uint64_t dl_live(dl_index *ix)
{
    return atomic_load(&ix->live);
}

uint32_t dl_route_bits(dl_index *ix)
{
    return ix->config.route_bits;
}

uint32_t dl_slabs(dl_index *ix)
{
    return atomic_load(&ix->slab_count);
}

int dl_slab(dl_index *ix, uint32_t number, dl_slab_info *out)
{
    take_structure(ix);
    if (number >= atomic_load(&ix->slab_count)) {
        leave_structure(ix);
        return DL_EINVAL;
    }
    slab *s = atomic_load(&ix->slabs[number]);
    const block *b = s->block;
    *out = (dl_slab_info){.used = s->used, .is_float = b->is_float, .version = atomic_load(&s->version)};
    for (uint32_t i = 0; i < s->used; i++) {
        out->live += s->state[i] == SLOT_LIVE;
        if (s->state[i] != SLOT_FREE)
            out->rows[block_head(ix, b, i)->frame]++;
    }
    leave_structure(ix);
    return DL_OK;
}

int dl_slab_rows(dl_index *ix, uint32_t number, uint64_t *rows, uint8_t *frames, uint32_t *count)
{
    take_structure(ix);
    if (number >= atomic_load(&ix->slab_count)) {
        leave_structure(ix);
        return DL_EINVAL;
    }
    slab *s = atomic_load(&ix->slabs[number]);
    *count = 0;
    for (uint32_t i = 0; i < s->used; i++)
        if (s->state[i] == SLOT_LIVE) {
            frames[*count] = block_head(ix, s->block, i)->frame;
            rows[(*count)++] = atomic_load(&s->row[i]);
        }
    leave_structure(ix);
    return DL_OK;
}

void dl_usage_of(dl_index *ix, dl_usage *out)
{
    take_structure(ix);
    uint32_t slabs = atomic_load(&ix->slab_count);
    *out = (dl_usage){
        .live = atomic_load(&ix->live),
        .slots = atomic_load(&ix->slot_count),
        .slabs = slabs,
        .dead = ix->dead.end - ix->dead.start + ix->limbo.end - ix->limbo.start + ix->round_size,
        .codes = ix->block_bytes,
        .links = ix->link_bytes,
        .keys = ix->key_bytes + (ix->buckets ? (ix->bucket_mask + 1) * sizeof *ix->buckets : 0),
        .meta = slabs * slab_bytes(ix) + (ix->fresh.capacity + ix->dead.capacity + ix->limbo.capacity) * sizeof(stamped),
    };
    for (reader *r = atomic_load(&ix->readers); r; r = r->next)
        out->scratch += sizeof *r + slabs * (DL_SLAB / 8 + 1);
    out->total = out->codes + out->links + out->keys + out->meta + out->scratch;
    leave_structure(ix);
}
