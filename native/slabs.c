/* Slots, slabs and blocks: where codes and links lie. */
#include <math.h>

#include "internal.h"

block *block_new(dl_index *ix, bool is_float)
{
    block *b = dl_zalloc(sizeof *b);
    if (!b)
        return NULL;
    b->is_float = is_float;
    b->bytes = (size_t)DL_SLAB * (is_float ? ix->float_bytes : ix->row_bytes + ix->rest_bytes);
    b->rows = pages_take(ix, b->bytes);
    if (!b->rows) {
        free(b);
        return NULL;
    }
    b->rest = b->rows + (size_t)DL_SLAB * ix->row_bytes;
    for (uint32_t i = 0; i < DL_SLAB; i++)
        atomic_store_explicit(&block_head(ix, b, i)->flags, UNBORN, memory_order_relaxed);
    atomic_fetch_add(&ix->block_bytes, b->bytes);
    return b;
}

void block_free(dl_index *ix, block *b)
{
    if (!b)
        return;
    atomic_fetch_sub(&ix->block_bytes, b->bytes);
    pages_give(ix, b->rows, b->bytes);
    free(b);
}

/* From now on readers see this one. */
void block_publish(dl_index *ix, uint32_t number, block *b)
{
    atomic_load(&ix->slabs[number])->block = b;
    atomic_store_explicit(&ix->places[number].rows, (uintptr_t)b->rows | b->is_float, memory_order_release);
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

/* The 256 codes of slot i; [padded]. */
void block_codes(const dl_index *ix, const block *b, uint32_t i, uint8_t *codes)
{
    planes p = planes_of(ix, block_head(ix, b, i), b->rest + (size_t)i * ix->rest_bytes);
    dl_kernels_now()->join(p.signs, p.upper, p.lower, p.lows, codes, ix->padded);
}

/* By how much a sum over signs is stretched to estimate an inner product: <x', x'> / <x', s> with s the signs in units of scale
 * (RaBitQ, arXiv 2405.12497, section 3.2: so the estimate has no bias). Kept to 8 bits of mantissa. */
static uint16_t stretch_of(float norm, float along)
{
    float stretch = along > 0 ? norm / along : 0;
    uint32_t bits;
    memcpy(&bits, &stretch, sizeof bits);
    return (uint16_t)((bits + 0x8000u) >> 16);
}

/* Write one vector in `frame_id`, whose kind is the block's. `turned` and `codes` are scratch of [dim] and [padded]. */
void block_put(const dl_index *ix, block *b, uint32_t i, uint32_t frame_id, const float *plain, float *turned,
               uint8_t *codes)
{
    uint32_t dim = ix->config.dim;
    head *h = block_head(ix, b, i);
    h->frame = (uint8_t)frame_id;
    if (b->is_float) {
        memcpy(h + 1, plain, dim * sizeof *plain);
        return;
    }
    const frame *f = frame_of(ix, frame_id);
    const dl_kernels *k = dl_kernels_now();
    if (f->rotated)
        dl_rotate(plain, turned, 1, dim, ix->config.rotation_seed);
    memset(codes + dim, 0, ix->padded - dim);
    k->encode(f->rotated ? turned : plain, f->mean, f->inv_scale, &f->grid, codes, dim);
    float coarse_norm = 0, fine_norm = 0, along = 0;
    for (uint32_t d = 0; d < dim; d++) {
        float fine = f->scale[d] * f->fine[codes[d]], coarse = f->scale[d] * f->coarse_by_code[codes[d]];
        fine_norm += fine * fine;
        coarse_norm += coarse * coarse;
        along += f->scale[d] * fabsf(coarse);
    }
    h->coarse_norm = coarse_norm;
    h->fine_norm = fine_norm;
    h->stretch = stretch_of(coarse_norm, along);
    planes p = planes_of(ix, h, b->rest + (size_t)i * ix->rest_bytes);
    k->split(codes, p.signs, p.upper, p.lower, p.lows, ix->padded);
}

/* Add (or take away) the slot's code to the live counts of its frame. `codes` is scratch of [padded]. Commit lock. */
void count_codes(dl_index *ix, uint32_t slot, int sign, uint8_t *codes)
{
    const block *b = slab_of(ix, slot)->block;
    if (b->is_float)
        return;
    uint32_t i = slot & SLAB_MASK;
    int64_t *counts = frame_of(ix, block_head(ix, b, i)->frame)->counts;
    block_codes(ix, b, i, codes);
    for (uint32_t d = 0; d < ix->config.dim; d++)
        counts[d * 16 + (codes[d] >> 4)] += sign;
}

static size_t record_bytes(const dl_index *ix, size_t level, size_t key_size, size_t payload_size)
{
    return sizeof(record) + level * ix->config.m * sizeof(uint32_t) + key_size + payload_size;
}

/* Without a link yet. */
record *record_new(dl_index *ix, uint8_t level, const uint8_t *key, size_t key_size, const uint8_t *payload, size_t payload_size)
{
    size_t bytes = record_bytes(ix, level, key_size, payload_size);
    record *r = cell_take(ix, bytes);
    if (!r)
        return NULL;
    r->key_size = (uint16_t)key_size;
    r->payload_size = (uint32_t)payload_size;
    r->level = level;
    memset((void *)r->upper, 0xFF, level * ix->config.m * sizeof(uint32_t));
    memcpy(key_of(ix, r), key, key_size);
    if (payload_size)
        memcpy(key_of(ix, r) + key_size, payload, payload_size);
    atomic_fetch_add(&ix->key_bytes, bytes);
    return r;
}

void record_free(dl_index *ix, record *r)
{
    if (!r)
        return;
    size_t bytes = record_bytes(ix, r->level, r->key_size, r->payload_size);
    atomic_fetch_sub(&ix->key_bytes, bytes);
    cell_give(ix, r, bytes);
}

/* Commit lock, or the structure alone. */
int slab_add(dl_index *ix)
{
    uint32_t count = atomic_load(&ix->slab_count);
    if (count == MAX_SLABS)
        return DL_EFULL;
    slab *s = pages_take(ix, slab_bytes(ix));
    if (!s)
        return DL_ENOMEM;
    size_t link_bytes = (size_t)DL_SLAB * ix->links0 * sizeof(uint32_t);
    s->links = pages_take(ix, link_bytes);
    block *b = s->links ? block_new(ix, frame_of(ix, ix->write_frame)->is_float) : NULL;
    if (!b) {
        pages_give(ix, (void *)s->links, link_bytes);
        pages_give(ix, s, slab_bytes(ix));
        return DL_ENOMEM;
    }
    atomic_fetch_add(&ix->link_bytes, link_bytes);
    memset((void *)s->links, 0xFF, link_bytes);
    memset(s->heir, 0xFF, sizeof s->heir);
    s->version = ix->versions; /* never one that a slab of this number had before */
    s->base = NEVER;
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        atomic_store_explicit(&s->row[i], NO_ROW, memory_order_relaxed);
        atomic_store_explicit(&s->parent[i], NO_PARENT, memory_order_relaxed);
    }
    atomic_store(&ix->slabs[count], s);
    atomic_store_explicit(&ix->places[count].links, s->links, memory_order_release);
    block_publish(ix, count, b);
    atomic_store(&ix->slab_count, count + 1);
    return DL_OK;
}

void slab_free(dl_index *ix, slab *s)
{
    size_t link_bytes = (size_t)DL_SLAB * ix->links0 * sizeof(uint32_t);
    for (uint32_t i = 0; i < DL_SLAB; i++)
        if (s->heir[i] == NONE)
            record_free(ix, atomic_load(&s->records[i]));
    block_free(ix, s->block);
    atomic_fetch_sub(&ix->link_bytes, link_bytes);
    pages_give(ix, (void *)s->links, link_bytes);
    pages_give(ix, s, slab_bytes(ix));
}

/* The lowest vacant slot of a slab that has one. Commit lock. */
uint32_t slot_take_in(dl_index *ix, uint32_t number)
{
    slab *s = atomic_load(&ix->slabs[number]);
    uint32_t word = 0;
    while (!s->vacant[word])
        word++;
    uint32_t i = word * 64 + (uint32_t)__builtin_ctzll(s->vacant[word]);
    s->vacant[word] &= s->vacant[word] - 1;
    if (--s->vacancies == 0)
        ix->roomy[number >> 6] &= ~(1ull << (number & 63));
    ix->vacancies--;
    return number * DL_SLAB + i;
}

void slot_vacate(dl_index *ix, uint32_t slot)
{
    slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK, number = slot >> SLAB_BITS;
    s->vacant[i >> 6] |= 1ull << (i & 63);
    s->vacancies++;
    ix->roomy[number >> 6] |= 1ull << (number & 63);
    ix->vacancies++;
}

/* A slot to write into: the lowest that was freed, so that memory stays dense and high slabs run empty. Commit lock. */
int slot_take(dl_index *ix, uint32_t *slot)
{
    uint32_t slabs = atomic_load(&ix->slab_count);
    for (uint32_t word = 0; ix->vacancies && word * 64 < slabs; word++)
        if (ix->roomy[word]) {
            *slot = slot_take_in(ix, word * 64 + (uint32_t)__builtin_ctzll(ix->roomy[word]));
            return DL_OK;
        }
    uint32_t next = atomic_load(&ix->slot_count);
    if (next >> SLAB_BITS == atomic_load(&ix->slab_count)) {
        int code = slab_add(ix);
        if (code != DL_OK)
            return code;
    }
    slab_of(ix, next)->used++;
    atomic_store(&ix->slot_count, next + 1);
    *slot = next;
    return DL_OK;
}

/* No reader can hold the slot any more. Commit lock. */
void slot_release(dl_index *ix, uint32_t slot)
{
    slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    before_change(ix, slot, true);
    if (s->heir[i] == NONE) /* else the record is the heir's */
        record_free(ix, atomic_load(&s->records[i]));
    atomic_store(&s->records[i], NULL);
    s->heir[i] = NONE;
    frame_of(ix, block_head(ix, s->block, i)->frame)->rows--;
    memset((void *)(s->links + (size_t)i * ix->links0), 0xFF, ix->links0 * sizeof(uint32_t));
    atomic_store(&block_head(ix, s->block, i)->flags, UNBORN);
    set_row(ix, slot, NO_ROW);
    atomic_store(&s->parent[i], NO_PARENT);
    s->level[i] = 0;
    set_state(ix, slot, SLOT_FREE);
    slot_vacate(ix, slot);
}
