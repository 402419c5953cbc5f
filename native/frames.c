/* Frames: sets of encoder parameters, and moving a slab from one to another. */
#include <math.h>

#include "internal.h"

frame *frame_of(const dl_index *ix, uint32_t id)
{
    return atomic_load_explicit(&ix->frames[id], memory_order_acquire);
}

uint32_t float_frame(const dl_index *ix)
{
    for (uint32_t id = 0; id < DL_FRAMES; id++)
        if (frame_of(ix, id) && frame_of(ix, id)->is_float)
            return id;
    return NONE;
}

static frame *frame_new(const dl_index *ix, const dl_tile *tile)
{
    uint32_t dim = ix->config.dim;
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
    dl_grid_of(tile->edges, &f->grid);
    memcpy(f->fine, tile->fine, sizeof f->fine);
    uint32_t route = ix->config.route_bits, last = (1u << route) - 1;
    float largest = 0;
    for (int c = 0; c < 256; c++) {
        largest = fmaxf(largest, fabsf(f->fine[c]));
        f->coarse_by_code[c] = tile->coarse[c >> (8 - route)];
    }
    f->fine_step = largest / 4096;
    for (int c = 0; c < 256; c++)
        f->fine_int[c] = (int16_t)lrintf(f->fine[c] / f->fine_step);
    f->coarse_low = tile->coarse[0];
    f->coarse_step = (tile->coarse[last] - tile->coarse[0]) / 127;
    for (uint32_t c = 0; c <= last; c++)
        f->coarse_int[c] = (uint8_t)lrintf((tile->coarse[c] - f->coarse_low) / f->coarse_step);
    return f;
}

static bool ascending(const float *values, int n)
{
    for (int i = 0; i < n; i++)
        if (!isfinite(values[i]) || (i && values[i] <= values[i - 1]))
            return false;
    return true;
}

static bool usable(const dl_index *ix, const dl_tile *tile)
{
    uint32_t dim = ix->config.dim;
    for (uint32_t d = 0; d < dim; d++)
        if (!isfinite(tile->mean[d]) || !isfinite(tile->scale[d]) || !(tile->scale[d] > 0) ||
            !isfinite(1 / tile->scale[d]))
            return false;
    return ascending(tile->edges, 255) && ascending(tile->fine, 256) && ascending(tile->coarse, 1 << ix->config.route_bits);
}

int dl_frame_open(dl_index *ix, uint32_t id, const dl_tile *tile)
{
    if (id >= DL_FRAMES || (tile && !usable(ix, tile)))
        return DL_EINVAL;
    frame *f = frame_new(ix, tile);
    if (!f)
        return DL_ENOMEM;
    take_structure(ix);
    bool taken = frame_of(ix, id) != NULL;
    if (!taken)
        atomic_store(&ix->frames[id], f);
    leave_structure(ix);
    if (taken)
        free(f);
    return taken ? DL_EBUSY : DL_OK;
}

/* A float frame stays while a float block stands, even an empty one: whatever is written there next is floats. Any frame stays
 * while a reader may hold a block that was replaced, whose rows name it. */
int dl_frame_close(dl_index *ix, uint32_t id)
{
    take_structure(ix);
    retired_sweep(ix);
    frame *f = id < DL_FRAMES ? frame_of(ix, id) : NULL;
    int code = !f ? DL_EINVAL : f->rows || id == ix->write_frame ? DL_EBUSY : DL_OK;
    for (const retired *item = ix->retired; code == DL_OK && item; item = item->next)
        code = item->what == RETIRED_FRAME ? DL_OK : DL_EBUSY;
    for (uint32_t s = 0; code == DL_OK && f->is_float && s < atomic_load(&ix->slab_count); s++)
        if (atomic_load(&ix->slabs[s])->block->is_float)
            code = DL_EBUSY;
    if (code == DL_OK) {
        atomic_store(&ix->frames[id], NULL);
        retire(ix, &f->link, RETIRED_FRAME);
    }
    leave_structure(ix);
    return code;
}

int dl_frame_write(dl_index *ix, uint32_t id)
{
    take_structure(ix);
    const frame *old = frame_of(ix, ix->write_frame);
    int code = id < DL_FRAMES && frame_of(ix, id) ? DL_OK : DL_EINVAL;
    /* a tile block cannot take floats: there is no way back */
    if (code == DL_OK && frame_of(ix, id)->is_float && old && !old->is_float)
        code = DL_EINVAL;
    if (code == DL_OK)
        ix->write_frame = id;
    leave_structure(ix);
    return code;
}

int dl_frame_counts(dl_index *ix, uint32_t id, int64_t *counts, uint64_t *rows)
{
    take_structure(ix);
    frame *f = id < DL_FRAMES ? frame_of(ix, id) : NULL;
    if (f) {
        size_t bytes = counts ? 16 * (size_t)ix->config.dim * sizeof *counts : 0;
        if (counts && f->is_float)
            memset(counts, 0, bytes);
        else if (counts)
            memcpy(counts, f->counts, bytes);
        *rows = f->rows;
    }
    leave_structure(ix);
    return f ? DL_OK : DL_EINVAL;
}

/* ---- re-encoding ---- */

typedef struct {
    uint64_t row[DL_SLAB]; /* that was encoded; NO_ROW: none was. Row ids are never used again, so they tell versions apart */
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
        memcpy(c->plain, block_head(ix, from, i) + 1, ix->config.dim * sizeof(float));
    else
        return false;
    block_put(ix, to, i, id, c->plain, c->turned, c->codes);
    return true;
}

static void keep_slot(const dl_index *ix, block *to, const block *from, uint32_t i)
{
    memcpy(to->rows + (size_t)i * ix->row_bytes, from->rows + (size_t)i * ix->row_bytes, ix->row_bytes);
    memcpy(to->rest + (size_t)i * ix->rest_bytes, from->rest + (size_t)i * ix->rest_bytes, ix->rest_bytes);
}

/* Take the slab's rows and codes into the counts of their frames, or out of them. */
static void count_slab(dl_index *ix, uint32_t number, int sign, uint8_t *codes)
{
    const slab *s = atomic_load(&ix->slabs[number]);
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        if (s->state[i] == SLOT_LIVE)
            count_codes(ix, number * DL_SLAB + i, sign, codes);
        if (s->state[i] != SLOT_FREE)
            frame_of(ix, block_head(ix, s->block, i)->frame)->rows += (uint64_t)(int64_t)sign;
    }
}

/* Encode beside everybody else what stands still, then alone what moved meanwhile, and publish. The reader's pin keeps the raw
 * vectors attached. */
static void reencode(dl_index *ix, reader *r, uint32_t number, uint32_t id, block *to, copying *c)
{
    slab *s = atomic_load(&ix->slabs[number]);
    for (uint32_t i = 0; i < DL_SLAB; i++) { /* the pin keeps the slab: it may be gone from the index by now */
        c->row[i] = atomic_load(&s->row[i]);
        if (c->row[i] == NO_ROW || !raw_of(ix, c->row[i]))
            continue;
        to_plain(ix, raw_of(ix, c->row[i]), c->plain);
        block_put(ix, to, i, id, c->plain, c->turned, c->codes);
    }
    reader_leave(r);
    take_structure(ix);
    if (number >= atomic_load(&ix->slab_count)) {
        leave_structure(ix);
        block_free(ix, to);
        return;
    }
    s = atomic_load(&ix->slabs[number]); /* perhaps another one: a row id that was encoded tells the vector all the same */
    block *from = s->block;
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        if (s->state[i] == SLOT_FREE)
            continue;
        uint64_t row = atomic_load(&s->row[i]);
        bool done = row != NO_ROW && row == c->row[i] && raw_of(ix, row);
        if (!done && !encode_slot(ix, to, from, i, row, id, c))
            keep_slot(ix, to, from, i);
        atomic_store(&block_head(ix, to, i)->flags, flags_of(block_head(ix, from, i)));
    }
    for (uint32_t i = 0; i < s->used; i++)
        before_change(ix, number * DL_SLAB + i, true);
    s->base = NEVER;
    count_slab(ix, number, -1, c->codes);
    block_publish(ix, number, to);
    count_slab(ix, number, 1, c->codes);
    retire(ix, &from->link, RETIRED_BLOCK);
    leave_structure(ix);
}

static bool block_waits(dl_index *ix)
{
    bool waits = false;
    take_structure(ix);
    retired_sweep(ix);
    for (const retired *item = ix->retired; item && !waits; item = item->next)
        waits = item->what == RETIRED_BLOCK;
    leave_structure(ix);
    return waits;
}

/* The caller does not close frame `id` meanwhile. */
int dl_reencode(dl_index *ix, uint32_t number, uint32_t id)
{
    if (id >= DL_FRAMES || !frame_of(ix, id) || frame_of(ix, id)->is_float || frame_of(ix, ix->write_frame)->is_float)
        return DL_EINVAL;
    if (block_waits(ix))
        return DL_EBUSY;
    size_t dim = ix->config.dim;
    copying *c = dl_zalloc(sizeof *c + dim * 2 * sizeof(float) + ix->padded);
    block *to = c ? block_new(ix, false) : NULL;
    uint64_t now;
    reader *r = to ? reader_enter(ix, &now) : NULL;
    int code = !r ? DL_ENOMEM : number < atomic_load(&ix->slab_count) ? DL_OK : DL_EINVAL;
    if (code == DL_OK) {
        c->plain = (float *)(c + 1);
        c->turned = c->plain + dim;
        c->codes = (uint8_t *)(c->turned + dim);
        reencode(ix, r, number, id, to, c);
    } else {
        if (r)
            reader_leave(r);
        block_free(ix, to);
    }
    free(c);
    return code;
}
