/* A random rotation in O(d log d), for any d, that keeps norms: random signs and a Hadamard transform over the first
 * power-of-two window, then the same over the last one; twice (the construction that RaBitQ's library uses for dimensions
 * that are not powers of two; two windows overlap, so every coordinate mixes with every other). */
#include <math.h>

#include "internal.h"

static uint32_t window_of(uint32_t dim)
{
    uint32_t window = 1;
    while (window * 2 <= dim)
        window *= 2;
    return window;
}

/* In place, scaled to be orthonormal; its own inverse. */
static void hadamard(float *x, uint32_t n)
{
    for (uint32_t half = 1; half < n; half *= 2)
        for (uint32_t start = 0; start < n; start += 2 * half)
            for (uint32_t i = start; i < start + half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    float scale = 1.0f / sqrtf((float)n);
    for (uint32_t i = 0; i < n; i++)
        x[i] *= scale;
}

/* Signs of one step over all dimensions: the bits of a counter hashed with the seed. */
static void flip(float *x, uint32_t dim, uint64_t seed, uint32_t step)
{
    for (uint32_t base = 0; base < dim; base += 64) {
        uint64_t bits = dl_mix(seed ^ dl_mix((uint64_t)step << 32 | base));
        uint32_t end = dim - base < 64 ? dim - base : 64;
        for (uint32_t i = 0; i < end; i++)
            x[base + i] *= 1.0f - 2.0f * (float)(bits >> i & 1);
    }
}

enum { STEPS = 4 };

void dl_rotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed)
{
    uint32_t window = window_of(dim);
    for (size_t row = 0; row < n; row++, x += dim, out += dim) {
        memcpy(out, x, dim * sizeof *out);
        for (uint32_t step = 0; step < STEPS; step++) {
            flip(out, dim, seed, step);
            hadamard(step % 2 ? out + (dim - window) : out, window);
        }
    }
}

void dl_unrotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed)
{
    uint32_t window = window_of(dim);
    for (size_t row = 0; row < n; row++, x += dim, out += dim) {
        memcpy(out, x, dim * sizeof *out);
        for (uint32_t step = STEPS; step-- > 0;) {
            hadamard(step % 2 ? out + (dim - window) : out, window);
            flip(out, dim, seed, step);
        }
    }
}
