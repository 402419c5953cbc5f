/* Scalar kernels, which are the truth, and the choice among the others, made once. */
#include "internal.h"

static int32_t dot4_scalar(const uint8_t *plane, const int8_t *weights, const uint8_t *table, size_t n)
{
    int32_t sum = 0;
    for (size_t group = 0; group < n; group += 32, plane += 16, weights += 32)
        for (size_t i = 0; i < 16; i++)
            sum += weights[i] * table[plane[i] & 15] + weights[16 + i] * table[plane[i] >> 4];
    return sum;
}

static int32_t dot8_scalar(const uint8_t *high, const uint8_t *low, const int16_t *weights, const int16_t *table, size_t n)
{
    int32_t sum = 0;
    for (size_t group = 0; group < n; group += 32, high += 16, low += 16, weights += 32)
        for (size_t i = 0; i < 16; i++)
            sum += weights[i] * table[(high[i] & 15) << 4 | (low[i] & 15)] +
                   weights[16 + i] * table[(high[i] >> 4) << 4 | low[i] >> 4];
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

const dl_kernels dl_kernels_scalar = {"scalar", dot4_scalar, dot8_scalar, l2_scalar, ip_scalar};

static bool supported(const dl_kernels *k)
{
#if defined(__x86_64__)
    if (k == &dl_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (k == &dl_kernels_avx512)
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#endif
    return k == &dl_kernels_scalar;
}

/* Best first. */
static const dl_kernels *const all[] = {
#if defined(__x86_64__)
    &dl_kernels_avx512,
    &dl_kernels_avx2,
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

int32_t dl_dot4(const uint8_t *plane, const int8_t *weights, const uint8_t *table, size_t n)
{
    return dl_kernels_now()->dot4(plane, weights, table, n);
}

int32_t dl_dot8(const uint8_t *high, const uint8_t *low, const int16_t *weights, const int16_t *table, size_t n)
{
    return dl_kernels_now()->dot8(high, low, weights, table, n);
}

float dl_l2(const float *a, const float *b, size_t n)
{
    return dl_kernels_now()->l2(a, b, n);
}

float dl_ip(const float *a, const float *b, size_t n)
{
    return dl_kernels_now()->ip(a, b, n);
}
