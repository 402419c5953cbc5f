/* Frames: sets of encoder parameters, and moving a slab from one to another. */
#include <math.h>

#include "internal.h"

frame *frame_of(const dl_index *ix, uint32_t id)
{
    return atomic_load_explicit(&ix->frames[id], memory_order_acquire);
}

void frame_free(dl_index *ix, frame *f)
{
    (void)ix;
    free(f);
}

static frame *frame_new(uint32_t dim, const dl_tile *tile)
{
    size_t floats = tile ? 3 * (size_t)dim * sizeof(float) : 0, counts = tile ? 16 * (size_t)dim * sizeof(int64_t) : 0;
    frame *f = dl_zalloc(sizeof *f + counts + floats);
    if (!f)
        return NULL;
    f->is_float = !tile;
    if (!tile)
        return f;
    f->counts = (int64_t *)(f + 1);
    f->mean = (float *)(f->counts + 16 * (size_t)dim);
    f->scale = f->mean + dim;
    f->inv_scale = f->scale + dim;
    f->rotated = tile->rotated != 0;
    memcpy(f->mean, tile->mean, dim * sizeof(float));
    memcpy(f->scale, tile->scale, dim * sizeof(float));
    for (uint32_t d = 0; d < dim; d++)
        f->inv_scale[d] = 1 / f->scale[d];
    memcpy(f->edges, tile->edges, sizeof f->edges);
    memcpy(f->table8, tile->table8, sizeof f->table8);
    memcpy(f->table4, tile->table4, sizeof f->table4);
    float largest = 0;
    for (int c = 0; c < 256; c++)
        largest = fmaxf(largest, fabsf(f->table8[c]));
    f->step8 = largest / 4096;
    for (int c = 0; c < 256; c++)
        f->int8table[c] = (int16_t)lrintf(f->table8[c] / f->step8);
    f->low4 = f->table4[0];
    f->step4 = (f->table4[15] - f->table4[0]) / 127;
    for (int c = 0; c < 16; c++)
        f->int4table[c] = (uint8_t)lrintf((f->table4[c] - f->low4) / f->step4);
    return f;
}

static bool ascending(const float *values, int n)
{
    for (int i = 0; i < n; i++)
        if (!isfinite(values[i]) || (i && values[i] <= values[i - 1]))
            return false;
    return true;
}

static bool usable(const dl_tile *tile, uint32_t dim)
{
    for (uint32_t d = 0; d < dim; d++)
        if (!isfinite(tile->mean[d]) || !isfinite(tile->scale[d]) || !(tile->scale[d] > 0) ||
            !isfinite(1 / tile->scale[d]))
            return false;
    return ascending(tile->edges, 255) && ascending(tile->table8, 256) && ascending(tile->table4, 16);
}

int dl_frame_open(dl_index *ix, uint32_t id, const dl_tile *tile)
{
    if (id >= DL_FRAMES || (tile && !usable(tile, ix->config.dim)))
        return DL_EINVAL;
    frame *f = frame_new(ix->config.dim, tile);
    if (!f)
        return DL_ENOMEM;
    pthread_mutex_lock(&ix->writer);
    bool taken = frame_of(ix, id) != NULL;
    if (!taken)
        atomic_store(&ix->frames[id], f);
    pthread_mutex_unlock(&ix->writer);
    if (taken)
        frame_free(ix, f);
    return taken ? DL_EBUSY : DL_OK;
}

/* A float frame stays while a float block stands, even an empty one: whatever is written there next is floats. */
int dl_frame_close(dl_index *ix, uint32_t id)
{
    pthread_mutex_lock(&ix->writer);
    frame *f = id < DL_FRAMES ? frame_of(ix, id) : NULL;
    int code = !f ? DL_EINVAL : f->rows || id == ix->write_frame ? DL_EBUSY : DL_OK;
    for (uint32_t s = 0; code == DL_OK && f->is_float && s < atomic_load(&ix->slab_count); s++)
        if (atomic_load(&atomic_load(&ix->slabs[s])->block)->is_float)
            code = DL_EBUSY;
    if (code == DL_OK) {
        atomic_store(&ix->frames[id], NULL);
        retire(ix, &f->link, true);
    }
    pthread_mutex_unlock(&ix->writer);
    return code;
}

int dl_frame_write(dl_index *ix, uint32_t id)
{
    pthread_mutex_lock(&ix->writer);
    int code = id < DL_FRAMES && frame_of(ix, id) ? DL_OK : DL_EINVAL;
    /* a tile block cannot take floats: there is no way back */
    if (code == DL_OK && frame_of(ix, id)->is_float && !frame_of(ix, ix->write_frame)->is_float)
        code = DL_EINVAL;
    if (code == DL_OK)
        ix->write_frame = id;
    pthread_mutex_unlock(&ix->writer);
    return code;
}

int dl_frame_counts(dl_index *ix, uint32_t id, int64_t *counts, uint64_t *rows)
{
    pthread_mutex_lock(&ix->writer);
    frame *f = id < DL_FRAMES ? frame_of(ix, id) : NULL;
    if (f) {
        size_t bytes = 16 * (size_t)ix->config.dim * sizeof *counts;
        if (f->is_float)
            memset(counts, 0, bytes);
        else
            memcpy(counts, f->counts, bytes);
        *rows = f->rows;
    }
    pthread_mutex_unlock(&ix->writer);
    return f ? DL_OK : DL_EINVAL;
}

/* ---- re-encoding ---- */

typedef struct {
    uint64_t birth[DL_SLAB]; /* of the version encoded; 0: none was */
    float *plain, *turned;
    uint8_t *codes;
} copying;

/* From the raw vector where there is one; without, a float block's own row; without either the code stays as it is. */
static bool encode_slot(dl_index *ix, block *to, const block *from, uint32_t i, uint64_t row, uint32_t id, copying *c)
{
    const float *raw = raw_of(ix, row);
    if (raw)
        to_plain(ix, raw, c->plain);
    else if (from->is_float)
        memcpy(c->plain, from->rows + (size_t)i * ix->config.dim, ix->config.dim * sizeof(float));
    else
        return false;
    block_put(ix, to, i, id, c->plain, c->turned, c->codes);
    return true;
}

static void keep_slot(const dl_index *ix, block *to, const block *from, uint32_t i)
{
    size_t half = ix->padded / 2;
    to->frames[i] = from->frames[i];
    to->norm4[i] = from->norm4[i];
    to->norm8[i] = from->norm8[i];
    memcpy(to->high + i * half, from->high + i * half, half);
    memcpy(to->low + i * half, from->low + i * half, half);
}

/* Encode without the lock what stands still, then under it what moved meanwhile, and publish. */
static int reencode(dl_index *ix, uint32_t number, uint32_t id, block *to, copying *c)
{
    slab *s = atomic_load(&ix->slabs[number]);
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        uint64_t birth = atomic_load(&s->birth[i]), row = atomic_load(&s->row[i]);
        /* a row read beside its slot's reuse would belong to another version: the birth tells */
        if (birth == NEVER || row == NO_ROW || atomic_load(&s->birth[i]) != birth || !raw_of(ix, row))
            continue;
        to_plain(ix, raw_of(ix, row), c->plain);
        block_put(ix, to, i, id, c->plain, c->turned, c->codes);
        c->birth[i] = birth;
    }
    pthread_mutex_lock(&ix->writer);
    block *from = atomic_load(&s->block);
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        if (s->state[i] == SLOT_FREE)
            continue;
        bool done = c->birth[i] && c->birth[i] == atomic_load(&s->birth[i]);
        if (!done && !encode_slot(ix, to, from, i, atomic_load(&s->row[i]), id, c))
            keep_slot(ix, to, from, i);
    }
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        if (s->state[i] == SLOT_LIVE)
            count_codes(ix, number * DL_SLAB + i, -1);
        if (s->state[i] != SLOT_FREE)
            frame_of(ix, from->frames[i])->rows--;
    }
    atomic_store(&s->block, to);
    ix->block_bytes += to->bytes;
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        if (s->state[i] == SLOT_LIVE)
            count_codes(ix, number * DL_SLAB + i, 1);
        if (s->state[i] != SLOT_FREE)
            frame_of(ix, to->frames[i])->rows++;
    }
    s->version++;
    retire(ix, &from->link, false);
    pthread_mutex_unlock(&ix->writer);
    return DL_OK;
}

/* The caller does not close frame `id` meanwhile. */
int dl_reencode(dl_index *ix, uint32_t number, uint32_t id)
{
    if (number >= atomic_load(&ix->slab_count) || id >= DL_FRAMES || !frame_of(ix, id) || frame_of(ix, id)->is_float ||
        frame_of(ix, ix->write_frame)->is_float)
        return DL_EINVAL;
    size_t dim = ix->config.dim;
    copying *c = dl_zalloc(sizeof *c + dim * (2 * sizeof(float) + 1));
    block *to = block_new(ix, false);
    int code = DL_ENOMEM;
    if (c && to) {
        c->plain = (float *)(c + 1);
        c->turned = c->plain + dim;
        c->codes = (uint8_t *)(c->turned + dim);
        code = reencode(ix, number, id, to, c);
    }
    free(c);
    if (code != DL_OK)
        free(to);
    return code;
}
