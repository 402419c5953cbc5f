/* Measuring a vector against codes.
 *
 * For an affine frame the decoded vector is mean + scale * T[code], so with q' = q - mean
 *     |q - x^|^2 = |q'|^2 - 2 <q', x^ - mean> + |x^ - mean|^2   and   <q', x^ - mean> = sum (q'_d scale_d) T[code_d]:
 * one table for all dimensions, integer weights, and a norm stored with the code (of the decoded vector: the norm of the
 * true one costs recall). A query is turned into weights once per frame, on first touch.
 *
 * Cosine is half the squared distance between unit vectors: for near neighbours its error is that of the difference,
 * where 1 - <q, x^> would carry the error of the whole. */
#include <math.h>

#include "internal.h"

int probe_init(const dl_index *ix, probe *p)
{
    uint32_t dim = ix->config.dim, padded = ix->padded;
    size_t floats = 2 * (size_t)dim * sizeof(float), weights = (size_t)padded * (sizeof(int8_t) + sizeof(int16_t));
    p->memory = dl_zalloc(floats + DL_FRAMES * weights);
    if (!p->memory)
        return DL_ENOMEM;
    p->plain = p->memory;
    p->turned = p->plain + dim;
    int16_t *w8 = (int16_t *)(p->turned + dim);
    int8_t *w4 = (int8_t *)(w8 + DL_FRAMES * (size_t)padded);
    for (uint32_t i = 0; i < DL_FRAMES; i++) {
        p->lanes[i].w8 = w8 + (size_t)i * padded;
        p->lanes[i].w4 = w4 + (size_t)i * padded;
    }
    return DL_OK;
}

void probe_free(probe *p)
{
    free(p->memory);
}

static void probe_reset(probe *p)
{
    for (uint32_t i = 0; i < DL_FRAMES; i++)
        p->lanes[i].ready = false;
    p->has_plain = p->has_turned = false;
}

void probe_vector(const dl_index *ix, probe *p, const float *plain)
{
    probe_reset(p);
    memcpy(p->plain, plain, ix->config.dim * sizeof *plain);
    p->has_plain = true;
}

/* The decoded vector of a slot, at eight bits. */
void probe_slot(const dl_index *ix, probe *p, uint32_t slot)
{
    probe_reset(p);
    const block *b = atomic_load_explicit(&slab_of(ix, slot)->block, memory_order_acquire);
    uint32_t i = slot & SLAB_MASK, dim = ix->config.dim;
    if (b->is_float) {
        memcpy(p->plain, b->rows + (size_t)i * dim, dim * sizeof *p->plain);
        p->has_plain = true;
        return;
    }
    const frame *f = frame_of(ix, b->frames[i]);
    const uint8_t *high = b->high + (size_t)i * ix->padded / 2, *low = b->low + (size_t)i * ix->padded / 2;
    float *out = f->rotated ? p->turned : p->plain;
    for (uint32_t base = 0; base < dim; base += 32, high += 16, low += 16)
        for (uint32_t j = 0; j < 32 && base + j < dim; j++) {
            uint32_t shift = j < 16 ? 0 : 4, code = (high[j % 16] >> shift & 15u) << 4 | (low[j % 16] >> shift & 15u);
            out[base + j] = f->mean[base + j] + f->scale[base + j] * f->table8[code];
        }
    p->has_turned = f->rotated;
    p->has_plain = !f->rotated;
}

static const float *coordinates(const dl_index *ix, probe *p, bool rotated)
{
    if (rotated && !p->has_turned) {
        dl_rotate(p->plain, p->turned, 1, ix->config.dim, ix->config.rotation_seed);
        p->has_turned = true;
    } else if (!rotated && !p->has_plain) {
        dl_unrotate(p->turned, p->plain, 1, ix->config.dim, ix->config.rotation_seed);
        p->has_plain = true;
    }
    return rotated ? p->turned : p->plain;
}

/* Integer weights. dot8 sums |w8| * 4096 in 32 bits: the step keeps sum |w8| below 2^19, rounding included. */
static void prepare(const dl_index *ix, probe *p, lane *l, const frame *f)
{
    uint32_t dim = ix->config.dim;
    bool centred = ix->config.metric != DL_IP;
    const float *q = coordinates(ix, p, f->rotated);
    float base = 0, largest = 0, total = 0;
    for (uint32_t d = 0; d < dim; d++) {
        float x = centred ? q[d] - f->mean[d] : q[d];
        base += centred ? x * x : x * f->mean[d];
        float size = fabsf(x * f->scale[d]);
        total += size;
        largest = size > largest ? size : largest;
    }
    bool none = largest < 1e-30f; /* below any distance that matters, and 1 / step would overflow */
    float step4 = none ? 1 : largest / 127;
    float step8 = none ? 1 : fmaxf(largest / 32767, total / (float)((1 << 19) - 1 - DL_MAX_DIM));
    float inverse4 = none ? 0 : 1 / step4, inverse8 = none ? 0 : 1 / step8;
    int32_t sum4 = 0;
    for (uint32_t d = 0; d < dim; d++) {
        float w = (centred ? q[d] - f->mean[d] : q[d]) * f->scale[d];
        l->w4[d] = (int8_t)lrintf(w * inverse4);
        l->w8[d] = (int16_t)lrintf(w * inverse8);
        sum4 += l->w4[d];
    }
    l->base = base;
    l->factor4 = step4 * f->step4;
    l->offset4 = step4 * f->low4 * (float)sum4;
    l->factor8 = step8 * f->step8;
    l->ready = true;
}

static inline float finish(const dl_index *ix, float base, float dot, float norm)
{
    switch (ix->config.metric) {
    case DL_L2: return base - 2 * dot + norm;
    case DL_COSINE: return 0.5f * (base - 2 * dot + norm);
    default: return -(base + dot);
    }
}

static float distance_float(const dl_index *ix, probe *p, const float *row)
{
    const float *q = coordinates(ix, p, false);
    const dl_kernels *k = dl_kernels_now();
    switch (ix->config.metric) {
    case DL_L2: return k->l2(q, row, ix->config.dim);
    case DL_COSINE: return 0.5f * k->l2(q, row, ix->config.dim);
    default: return -k->ip(q, row, ix->config.dim);
    }
}

static inline float distance(const dl_index *ix, probe *p, uint32_t slot, bool fine)
{
    const block *b = atomic_load_explicit(&slab_of(ix, slot)->block, memory_order_acquire);
    uint32_t i = slot & SLAB_MASK;
    if (b->is_float)
        return distance_float(ix, p, b->rows + (size_t)i * ix->config.dim);
    const frame *f = frame_of(ix, b->frames[i]);
    lane *l = &p->lanes[b->frames[i]];
    if (!l->ready)
        prepare(ix, p, l, f);
    const dl_kernels *k = dl_kernels_now();
    const uint8_t *high = b->high + (size_t)i * ix->padded / 2;
    if (!fine)
        return finish(ix, l->base, l->factor4 * (float)k->dot4(high, l->w4, f->int4table, ix->padded) + l->offset4,
                      b->norm4[i]);
    const uint8_t *low = b->low + (size_t)i * ix->padded / 2;
    return finish(ix, l->base, l->factor8 * (float)k->dot8(high, low, l->w8, f->int8table, ix->padded), b->norm8[i]);
}

float distance4(const dl_index *ix, probe *p, uint32_t slot)
{
    return distance(ix, p, slot, false);
}

float distance8(const dl_index *ix, probe *p, uint32_t slot)
{
    return distance(ix, p, slot, true);
}

/* Between a query in plain coordinates and a raw row as the user gave it. */
float distance_raw(const dl_index *ix, const float *query, const float *row)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t dim = ix->config.dim;
    switch (ix->config.metric) {
    case DL_L2: return k->l2(query, row, dim);
    case DL_COSINE: {
        float norm = k->ip(row, row, dim);
        return norm > 0 ? 1 - k->ip(query, row, dim) / sqrtf(norm) : 1;
    }
    default: return -k->ip(query, row, dim);
    }
}
