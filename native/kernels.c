/* Scalar kernels, which are the truth, and the choice among the others, made once. */
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "driftline.h"
#include "kernels.h"

static inline unsigned bit_of(const uint8_t *plane, size_t i)
{
    return plane[i / 8] >> i % 8 & 1u;
}

/* From position i of n on: a quarter of a group, whose pairs lie in successive bytes of a plane at one shift. */
typedef struct {
    size_t end, byte;
    unsigned shift;
} quarter;

static inline quarter quarter_at(size_t i, size_t n)
{
    size_t start = i / 64 * 64, length = n - start >= 64 ? 16 : 8;
    return (quarter){i + length, start / 4, (unsigned)((i - start) / length * 2)};
}

static int32_t dot1_scalar(const uint8_t *signs, const int8_t *w, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += w[i] * (int32_t)bit_of(signs, i);
    return sum;
}

static int32_t dot3_scalar(const uint8_t *signs, const uint8_t *upper, const int8_t *w, const uint8_t *table, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n;) {
        quarter q = quarter_at(i, n);
        for (const uint8_t *u = upper + q.byte; i < q.end; i++, u++)
            sum += w[i] * table[bit_of(signs, i) << 2 | (*u >> q.shift & 3u)];
    }
    return sum;
}

static int32_t dot5_scalar(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *w,
                           const uint8_t *table, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n;) {
        quarter q = quarter_at(i, n);
        for (const uint8_t *u = upper + q.byte, *l = lower + q.byte; i < q.end; i++, u++, l++)
            sum += w[i] * table[bit_of(signs, i) << 4 | (*u >> q.shift & 3u) << 2 | (*l >> q.shift & 3u)];
    }
    return sum;
}

/* The code of position i, from the bytes that hold its pairs. */
static inline unsigned code_of(const uint8_t *signs, unsigned upper, unsigned lower, unsigned shift,
                               const uint8_t *lows, size_t i, size_t n)
{
    return bit_of(signs, i) << 7 | (upper >> shift & 3u) << 5 | (lower >> shift & 3u) << 3 | bit_of(lows, i) << 2 |
           bit_of(lows + n / 8, i) << 1 | bit_of(lows + n / 4, i);
}

static void join_scalar(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                        uint8_t *codes, size_t n)
{
    for (size_t i = 0; i < n;) {
        quarter q = quarter_at(i, n);
        for (const uint8_t *u = upper + q.byte, *l = lower + q.byte; i < q.end; i++, u++, l++)
            codes[i] = (uint8_t)code_of(signs, *u, *l, q.shift, lows, i, n);
    }
}

static void split_scalar(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        unsigned sign = 0, low[3] = {0, 0, 0};
        for (size_t j = 0; j < 8; j++) {
            unsigned code = codes[i + j];
            sign |= code >> 7 << j;
            low[0] |= (code >> 2 & 1) << j;
            low[1] |= (code >> 1 & 1) << j;
            low[2] |= (code & 1) << j;
        }
        signs[i / 8] = (uint8_t)sign;
        for (size_t plane = 0; plane < 3; plane++)
            lows[plane * n / 8 + i / 8] = (uint8_t)low[plane];
    }
    memset(upper, 0, n / 4);
    memset(lower, 0, n / 4);
    for (size_t i = 0; i < n;) {
        quarter q = quarter_at(i, n);
        for (uint8_t *u = upper + q.byte, *l = lower + q.byte; i < q.end; i++, u++, l++) {
            *u |= (uint8_t)((codes[i] >> 5 & 3u) << q.shift);
            *l |= (uint8_t)((codes[i] >> 3 & 3u) << q.shift);
        }
    }
}

static int32_t dot8_scalar(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                           const int16_t *w, const int16_t *table, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n;) {
        quarter q = quarter_at(i, n);
        for (const uint8_t *u = upper + q.byte, *l = lower + q.byte; i < q.end; i++, u++, l++)
            sum += w[i] * table[code_of(signs, *u, *l, q.shift, lows, i, n)];
    }
    return sum;
}

static float l2_scalar(const float *a, const float *b, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

static float ip_scalar(const float *a, const float *b, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* The number of edges <= z, by halving. A product, not `? :`, which gcc -O3 turns into a branch that no predictor
 * learns: six times slower. The grid is left to the vector kernels: what is here needs no proof. */
static void encode_scalar(const float *x, const float *mean, const float *inv_scale, const dl_grid *grid,
                          uint8_t *codes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float z = (x[i] - mean[i]) * inv_scale[i];
        uint32_t code = 0;
        for (uint32_t step = 128; step; step /= 2)
            code += (uint32_t)(grid->edges[code + step - 1] <= z) * step;
        codes[i] = (uint8_t)code;
    }
}

static void decode_scalar(const uint8_t *codes, const float *mean, const float *scale, const float *table, float *out,
                          size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = mean[i] + scale[i] * table[codes[i]];
}

static inline float clamp(float x, float low, float high)
{
    return x > low ? x < high ? x : high : low;
}

static int32_t weights_scalar(const float *x, float inverse8, float inverse16, int8_t *w8, int16_t *w16, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        w8[i] = (int8_t)lrintf(clamp(x[i] * inverse8, -127, 127));
        w16[i] = (int16_t)lrintf(clamp(x[i] * inverse16, -32767, 32767));
        sum += w8[i];
    }
    return sum;
}

static void hadamard_scalar(const float *in, float *x, const uint32_t *signs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = signs[i] >> 31 ? -in[i] : in[i];
    for (size_t half = 1; half < n; half *= 2)
        for (size_t start = 0; start < n; start += 2 * half)
            for (size_t i = start; i < start + half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    float scale = 1.0f / sqrtf((float)n);
    for (size_t i = 0; i < n; i++)
        x[i] *= scale;
}

const dl_kernels dl_kernels_scalar = {
    "scalar",  dot1_scalar,   dot3_scalar,   dot5_scalar,  dot8_scalar, l2_scalar,
    ip_scalar, encode_scalar, decode_scalar, split_scalar, join_scalar, weights_scalar, hadamard_scalar,
};

static inline uint32_t cell_of(const dl_grid *grid, float z)
{
    return (uint32_t)clamp((z - grid->origin) * grid->per_cell, 0, DL_CELLS - 1);
}

/* Subtraction, multiplication by a positive factor, clamping and truncation all keep order, rounding included: an edge
 * in a lower cell than z's is below z, so their number is a guess that is never too high. */
void dl_grid_of(const float *edges, dl_grid *grid)
{
    memcpy(grid->edges, edges, 255 * sizeof *edges);
    grid->edges[255] = INFINITY;
    grid->origin = edges[0];
    grid->per_cell = DL_CELLS / (edges[254] - edges[0]);
    if (!isfinite(grid->per_cell))
        grid->per_cell = 0; /* all edges are one: all z are in one cell */
    grid->most = 0;
    uint32_t below = 0, here = 0; /* edges in the cells before, and up to here */
    for (uint32_t cell = 0; cell < DL_CELLS; cell++, below = here) {
        while (here < 255 && cell_of(grid, edges[here]) <= cell)
            here++;
        grid->cells[cell] = (uint8_t)below;
        grid->most = here - below > grid->most ? here - below : grid->most;
    }
}

static bool supported(const dl_kernels *k)
{
#if defined(__x86_64__)
    if (k == &dl_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (k == &dl_kernels_avx512)
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
               __builtin_cpu_supports("avx512vbmi");
#elif defined(__aarch64__)
    if (k == &dl_kernels_neon)
        return true; /* part of every arm64 */
#endif
    return k == &dl_kernels_scalar;
}

/* Best first. */
static const dl_kernels *const all[] = {
#if defined(__x86_64__)
    &dl_kernels_avx512,
    &dl_kernels_avx2,
#elif defined(__aarch64__)
    &dl_kernels_neon,
#endif
    &dl_kernels_scalar,
};

static _Atomic(const dl_kernels *) chosen;

const dl_kernels *dl_kernels_now(void)
{
    const dl_kernels *k = atomic_load_explicit(&chosen, memory_order_relaxed);
    for (size_t i = 0; !k; i++)
        if (supported(all[i])) {
            k = all[i];
            atomic_store_explicit(&chosen, k, memory_order_relaxed);
        }
    return k;
}

const char *dl_isa(void)
{
    return dl_kernels_now()->name;
}

int dl_force_isa(const char *name)
{
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(all[i]->name, name) == 0 && supported(all[i])) {
            atomic_store(&chosen, all[i]);
            return DL_OK;
        }
    return DL_EINVAL;
}

int32_t dl_dot1(const uint8_t *signs, const int8_t *weights, size_t n)
{
    return dl_kernels_now()->dot1(signs, weights, n);
}

int32_t dl_dot3(const uint8_t *signs, const uint8_t *upper, const int8_t *weights, const uint8_t *table, size_t n)
{
    return dl_kernels_now()->dot3(signs, upper, weights, table, n);
}

int32_t dl_dot5(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *weights,
                const uint8_t *table, size_t n)
{
    return dl_kernels_now()->dot5(signs, upper, lower, weights, table, n);
}

int32_t dl_dot8(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                const int16_t *weights, const int16_t *table, size_t n)
{
    return dl_kernels_now()->dot8(signs, upper, lower, lows, weights, table, n);
}

float dl_l2(const float *a, const float *b, size_t n)
{
    return dl_kernels_now()->l2(a, b, n);
}

float dl_ip(const float *a, const float *b, size_t n)
{
    return dl_kernels_now()->ip(a, b, n);
}

void dl_split(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows, size_t n)
{
    dl_kernels_now()->split(codes, signs, upper, lower, lows, n);
}

void dl_join(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows, uint8_t *codes,
             size_t n)
{
    dl_kernels_now()->join(signs, upper, lower, lows, codes, n);
}
