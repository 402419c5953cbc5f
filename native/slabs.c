/* Slots, slabs and blocks: where codes and links lie. */
#include <math.h>

#include "internal.h"

static size_t align64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* 64-byte aligned so that a row of codes touches no more cache lines than it must. */
block *block_new(const dl_index *ix, bool is_float)
{
    size_t plane = (size_t)DL_SLAB * ix->padded / 2, norms = DL_SLAB * sizeof(float);
    size_t head = align64(sizeof(block)) + align64(DL_SLAB);
    size_t bytes = head + (is_float ? (size_t)DL_SLAB * ix->config.dim * sizeof(float) : 2 * norms + 2 * plane);
    char *memory = dl_zalloc(bytes + 64);
    if (!memory)
        return NULL;
    block *b = (block *)memory;
    char *at = (char *)align64((size_t)memory + sizeof(block));
    b->is_float = is_float;
    b->bytes = bytes + 64;
    b->frames = (uint8_t *)at;
    at += align64(DL_SLAB);
    if (is_float) {
        b->rows = (float *)at;
    } else {
        b->high = (uint8_t *)at;
        b->low = b->high + plane;
        b->norm4 = (float *)(b->low + plane);
        b->norm8 = b->norm4 + DL_SLAB;
    }
    return b;
}

void block_free(dl_index *ix, block *b)
{
    if (b)
        ix->block_bytes -= b->bytes;
    free(b);
}

/* Original coordinates as the index holds them: unit length under cosine. */
void to_plain(const dl_index *ix, const float *x, float *plain)
{
    uint32_t dim = ix->config.dim;
    float scale = 1;
    if (ix->config.metric == DL_COSINE) {
        double norm = 0;
        for (uint32_t d = 0; d < dim; d++)
            norm += (double)x[d] * x[d];
        scale = norm > 0 ? (float)(1 / sqrt(norm)) : 0;
    }
    for (uint32_t d = 0; d < dim; d++)
        plain[d] = x[d] * scale;
}

static void pack(uint32_t dim, const uint8_t *codes, uint8_t *high, uint8_t *low)
{
    for (uint32_t d = 0; d < dim; d++) {
        uint32_t at = d / 32 * 16 + d % 16, shift = d % 32 < 16 ? 0 : 4;
        high[at] = (uint8_t)((high[at] & (15 << (4 - shift))) | (codes[d] >> 4) << shift);
        low[at] = (uint8_t)((low[at] & (15 << (4 - shift))) | (codes[d] & 15) << shift);
    }
}

void block_unpack(const dl_index *ix, const block *b, uint32_t i, uint8_t *codes)
{
    size_t row = (size_t)i * ix->padded / 2;
    for (uint32_t d = 0; d < ix->config.dim; d++) {
        uint32_t at = d / 32 * 16 + d % 16, shift = d % 32 < 16 ? 0 : 4;
        codes[d] = (uint8_t)((b->high[row + at] >> shift & 15) << 4 | (b->low[row + at] >> shift & 15));
    }
}

/* Write one vector in `frame_id`, whose kind is the block's. `turned` and `codes` are scratch of [dim]. */
void block_put(const dl_index *ix, block *b, uint32_t i, uint32_t frame_id, const float *plain, float *turned,
               uint8_t *codes)
{
    uint32_t dim = ix->config.dim;
    b->frames[i] = (uint8_t)frame_id;
    if (b->is_float) {
        memcpy(b->rows + (size_t)i * dim, plain, dim * sizeof *plain);
        return;
    }
    const frame *f = frame_of(ix, frame_id);
    if (f->rotated)
        dl_rotate(plain, turned, 1, dim, ix->config.rotation_seed);
    dl_tile_encode(f->rotated ? turned : plain, codes, 1, dim, f->mean, f->inv_scale, f->edges);
    float norm4 = 0, norm8 = 0;
    for (uint32_t d = 0; d < dim; d++) {
        float fine = f->scale[d] * f->table8[codes[d]], coarse = f->scale[d] * f->table4[codes[d] >> 4];
        norm8 += fine * fine;
        norm4 += coarse * coarse;
    }
    b->norm4[i] = norm4;
    b->norm8[i] = norm8;
    pack(dim, codes, b->high + (size_t)i * ix->padded / 2, b->low + (size_t)i * ix->padded / 2);
}

/* Add (or take away) the slot's code to the live counts of its frame. */
void count_codes(dl_index *ix, uint32_t slot, int sign)
{
    const block *b = atomic_load_explicit(&slab_of(ix, slot)->block, memory_order_acquire);
    if (b->is_float)
        return;
    uint32_t i = slot & SLAB_MASK;
    int64_t *counts = frame_of(ix, b->frames[i])->counts;
    block_unpack(ix, b, i, ix->codes);
    for (uint32_t d = 0; d < ix->config.dim; d++)
        counts[d * 16 + (ix->codes[d] >> 4)] += sign;
}

int slab_add(dl_index *ix)
{
    uint32_t count = atomic_load(&ix->slab_count);
    if (count == MAX_SLABS)
        return DL_EFULL;
    slab *s = dl_zalloc(sizeof *s);
    if (!s)
        return DL_ENOMEM;
    size_t link_bytes = (size_t)DL_SLAB * ix->links0 * sizeof(uint32_t);
    s->links = dl_zalloc(link_bytes);
    block *b = block_new(ix, frame_of(ix, ix->write_frame)->is_float);
    if (!s->links || !b) {
        free((void *)s->links);
        free(b);
        free(s);
        return DL_ENOMEM;
    }
    ix->block_bytes += b->bytes;
    ix->link_bytes += link_bytes;
    atomic_store(&s->block, b);
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        atomic_store_explicit(&s->birth[i], NEVER, memory_order_relaxed);
        atomic_store_explicit(&s->death[i], NEVER, memory_order_relaxed);
        atomic_store_explicit(&s->row[i], NO_ROW, memory_order_relaxed);
        s->parent[i] = NONE;
    }
    atomic_store(&ix->slabs[count], s);
    atomic_store(&ix->slab_count, count + 1);
    return DL_OK;
}

void slab_free(dl_index *ix, slab *s)
{
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        free((void *)atomic_load(&s->upper[i]));
        free(atomic_load(&s->records[i]));
    }
    block_free(ix, atomic_load(&s->block));
    free((void *)s->links);
    free(s);
}

/* A slot to write into: a freed one first, so that memory stays dense. */
int slot_take(dl_index *ix, uint32_t *slot)
{
    if (ix->free_count) {
        *slot = ix->free_slots[--ix->free_count];
        return DL_OK;
    }
    uint32_t next = atomic_load(&ix->slot_count);
    if (next >> SLAB_BITS == atomic_load(&ix->slab_count)) {
        int code = slab_add(ix);
        if (code != DL_OK)
            return code;
    }
    /* room for its return is made now, so that releasing cannot fail */
    if (ix->free_capacity < (size_t)next + 1) {
        size_t capacity = ix->free_capacity ? 2 * ix->free_capacity : DL_SLAB;
        uint32_t *slots = dl_grow(ix->free_slots, capacity * sizeof *slots);
        if (!slots)
            return DL_ENOMEM;
        ix->free_slots = slots;
        ix->free_capacity = capacity;
    }
    slab_of(ix, next)->used++;
    atomic_store(&ix->slot_count, next + 1);
    *slot = next;
    return DL_OK;
}

/* No reader can hold the slot any more. */
void slot_release(dl_index *ix, uint32_t slot)
{
    slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    block *b = atomic_load(&s->block);
    record *r = atomic_load(&s->records[i]);
    if (r)
        ix->key_bytes -= sizeof *r + r->key_size + r->payload_size;
    free(r);
    atomic_store(&s->records[i], NULL);
    if (s->level[i])
        ix->link_bytes -= s->level[i] * ix->links1 * sizeof(uint32_t);
    free((void *)atomic_load(&s->upper[i]));
    atomic_store(&s->upper[i], NULL);
    frame_of(ix, b->frames[i])->rows--;
    put(s->links + (size_t)i * ix->links0, 0);
    atomic_store(&s->birth[i], NEVER);
    atomic_store(&s->death[i], NEVER);
    atomic_store(&s->row[i], NO_ROW);
    s->parent[i] = NONE;
    s->level[i] = 0;
    s->state[i] = SLOT_FREE;
    s->version++;
    ix->free_slots[ix->free_count++] = slot;
}
