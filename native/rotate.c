/* A random rotation in O(d log d), for any d, that keeps norms: random signs and a Hadamard transform over the first
 * power-of-two window, then the same over the last one; twice (the construction that RaBitQ's library uses for
 * dimensions that are not powers of two; two windows overlap, so every coordinate mixes with every other). */
#include "internal.h"
#include "kernels.h"

static uint32_t window_of(uint32_t dim)
{
    uint32_t window = 1;
    while (window * 2 <= dim)
        window *= 2;
    return window;
}

/* Signs of one step over all dimensions: the bits of a counter hashed with the seed. Four at a time from a table:
 * compilers make that one multiplication of a vector on any machine. A shift for each bit cost six times as much as
 * the vectors' Hadamard steps. */
static void flip(float *x, uint32_t dim, uint64_t seed, uint32_t step)
{
    static const float signs[16][4] = {
        {1, 1, 1, 1},   {-1, 1, 1, 1},   {1, -1, 1, 1},   {-1, -1, 1, 1},   {1, 1, -1, 1},  {-1, 1, -1, 1},
        {1, -1, -1, 1}, {-1, -1, -1, 1}, {1, 1, 1, -1},   {-1, 1, 1, -1},   {1, -1, 1, -1}, {-1, -1, 1, -1},
        {1, 1, -1, -1}, {-1, 1, -1, -1}, {1, -1, -1, -1}, {-1, -1, -1, -1},
    };
    for (uint32_t base = 0; base < dim; base += 64) {
        uint64_t bits = dl_mix(seed ^ dl_mix((uint64_t)step << 32 | base));
        float *p = x + base, *end = p + (dim - base < 64 ? dim - base : 64);
        for (; end - p >= 4; p += 4, bits >>= 4)
            for (int i = 0; i < 4; i++)
                p[i] *= signs[bits & 15][i];
        for (int i = 0; i < end - p; i++)
            p[i] *= signs[bits & 15][i];
    }
}

enum { STEPS = 4 };

void dl_rotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t window = window_of(dim);
    for (size_t row = 0; row < n; row++, x += dim, out += dim) {
        memcpy(out, x, dim * sizeof *out);
        for (uint32_t step = 0; step < STEPS; step++) {
            flip(out, dim, seed, step);
            k->hadamard(step % 2 ? out + (dim - window) : out, window);
        }
    }
}

void dl_unrotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t window = window_of(dim);
    for (size_t row = 0; row < n; row++, x += dim, out += dim) {
        memcpy(out, x, dim * sizeof *out);
        for (uint32_t step = STEPS; step-- > 0;) {
            k->hadamard(step % 2 ? out + (dim - window) : out, window);
            flip(out, dim, seed, step);
        }
    }
}
