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
    int16_t *w16 = (int16_t *)(p->turned + dim);
    int8_t *w8 = (int8_t *)(w16 + DL_FRAMES * (size_t)padded);
    for (uint32_t i = 0; i < DL_FRAMES; i++) {
        p->lanes[i].w16 = w16 + (size_t)i * padded;
        p->lanes[i].w8 = w8 + (size_t)i * padded;
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

/* The decoded vector of a slot, at eight bits. `codes` is scratch of [padded]. */
void probe_slot(const dl_index *ix, probe *p, uint32_t slot, uint8_t *codes)
{
    probe_reset(p);
    bool is_float;
    const uint8_t *row = row_of(ix, slot, &is_float);
    const head *h = (const head *)(const void *)row;
    uint32_t dim = ix->config.dim;
    if (is_float) {
        memcpy(p->plain, h + 1, dim * sizeof *p->plain);
        p->has_plain = true;
        return;
    }
    const frame *f = frame_of(ix, h->frame);
    const dl_kernels *k = dl_kernels_now();
    planes at = planes_of(ix, h, rest_of(ix, h, slot));
    k->join(at.signs, at.upper, at.lower, at.lows, codes, ix->padded);
    k->decode(codes, f->mean, f->scale, f->fine, f->rotated ? p->turned : p->plain, dim);
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

enum { SUMS = 16 }; /* side by side: an addition need not wait for the one before */

typedef struct {
    float base[SUMS], sum[SUMS], largest[SUMS];
} summed;

/* `less` is 1 where the mean is subtracted and 0 where it is not: a factor, since a branch would keep compilers from vectors. */
static inline void weigh(const float *q, const float *mean, const float *scale, float less, float *weights, summed *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        float x = q[i] - less * mean[i], weight = x * scale[i], size = fabsf(weight);
        weights[i] = weight;
        s->base[i] += x * (less * x + (1 - less) * mean[i]);
        s->sum[i] += size;
        s->largest[i] = size > s->largest[i] ? size : s->largest[i];
    }
}

/* Integer weights. dot8 sums |w16| * 4096 in 32 bits: the step keeps sum |w16| below 2^19, rounding included. */
void lane_prepare(const dl_index *ix, probe *p, uint32_t id)
{
    lane *l = &p->lanes[id];
    const frame *f = frame_of(ix, id);
    uint32_t dim = ix->config.dim, d = 0;
    float less = ix->config.metric != DL_IP;
    const float *q = coordinates(ix, p, f->rotated);
    float weights[DL_MAX_DIM];
    summed s = {0};
    for (; d + SUMS <= dim; d += SUMS)
        weigh(q + d, f->mean + d, f->scale + d, less, weights + d, &s, SUMS);
    weigh(q + d, f->mean + d, f->scale + d, less, weights + d, &s, dim - d);
    float base = 0, largest = 0, sum = 0;
    for (uint32_t i = 0; i < SUMS; i++) {
        base += s.base[i];
        sum += s.sum[i];
        largest = fmaxf(largest, s.largest[i]);
    }
    bool none = largest < 1e-30f; /* below any distance that matters, and 1 / step would overflow */
    float step8 = none ? 1 : largest / 127;
    float step16 = none ? 1 : fmaxf(largest / 32767, sum / (float)((1 << 19) - 1 - DL_MAX_DIM));
    l->total = dl_kernels_now()->weights(weights, none ? 0 : 1 / step8, none ? 0 : 1 / step16, l->w8, l->w16, dim);
    l->base = ix->config.metric == DL_L2 ? base : ix->config.metric == DL_COSINE ? 0.5f * base : -base;
    l->sign_step = step8;
    l->coarse_factor = step8 * f->coarse_step;
    l->coarse_offset = step8 * f->coarse_low * (float)l->total;
    l->fine_factor = step16 * f->fine_step;
    l->squares = l->margin = 0;
    l->samples = l->tested = l->passed = 0;
    l->ready = true;
}

float distance_float(const dl_index *ix, probe *p, const float *row)
{
    const float *q = coordinates(ix, p, false);
    const dl_kernels *k = dl_kernels_now();
    switch (ix->config.metric) {
    case DL_L2: return k->l2(q, row, ix->config.dim);
    case DL_COSINE: return 0.5f * k->l2(q, row, ix->config.dim);
    default: return -k->ip(q, row, ix->config.dim);
    }
}

float coarse_distance(const dl_index *ix, probe *p, uint32_t slot)
{
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    if (is_float)
        return distance_float(ix, p, (const float *)(h + 1));
    const lane *l = lane_of(ix, p, h->frame);
    int32_t dot = coarse_dot(ix, dl_kernels_now(), l, frame_of(ix, h->frame), h);
    return distance_from(ix, l->base, l->coarse_factor * (float)dot + l->coarse_offset, h->coarse_norm);
}

float fine_distance(const dl_index *ix, probe *p, uint32_t slot)
{
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    if (is_float)
        return distance_float(ix, p, (const float *)(h + 1));
    const lane *l = lane_of(ix, p, h->frame);
    planes at = planes_of(ix, h, rest_of(ix, h, slot));
    int32_t dot = dl_kernels_now()->dot8(at.signs, at.upper, at.lower, at.lows, l->w16, frame_of(ix, h->frame)->fine_int, ix->padded);
    return distance_from(ix, l->base, l->fine_factor * (float)dot, h->fine_norm);
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
