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

enum { STEPS = 4 };

/* The signs that each step flips, [STEPS] rows of dim words with the top bit alone: the bits of a counter hashed with the seed.
 * Four at a time from a table: a shift for each bit cost six times as much. */
static void signs_of(uint32_t *signs, uint32_t dim, uint64_t seed)
{
    enum { NO = 0, YES = 1u << 31 };
    static const uint32_t four[16][4] = {
        {NO, NO, NO, NO},   {YES, NO, NO, NO},   {NO, YES, NO, NO},   {YES, YES, NO, NO},
        {NO, NO, YES, NO},  {YES, NO, YES, NO},  {NO, YES, YES, NO},  {YES, YES, YES, NO},
        {NO, NO, NO, YES},  {YES, NO, NO, YES},  {NO, YES, NO, YES},  {YES, YES, NO, YES},
        {NO, NO, YES, YES}, {YES, NO, YES, YES}, {NO, YES, YES, YES}, {YES, YES, YES, YES},
    };
    for (uint32_t step = 0; step < STEPS; step++)
        for (uint32_t base = 0; base < dim; base += 64) {
            uint64_t bits = dl_mix(seed ^ dl_mix((uint64_t)step << 32 | base));
            uint32_t *end = signs + (dim - base < 64 ? dim - base : 64);
            for (; end - signs >= 4; signs += 4, bits >>= 4)
                memcpy(signs, four[bits & 15], sizeof *four);
            for (int i = 0; signs < end; i++)
                *signs++ = four[bits & 15][i];
        }
}

static void flip(const float *in, float *out, const uint32_t *signs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, in + i, sizeof bits);
        bits ^= signs[i];
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* Flips all dimensions, then transforms those of the step's window. */
static void turn(const dl_kernels *k, const float *in, float *out, const uint32_t *signs, uint32_t dim, uint32_t step)
{
    uint32_t window = window_of(dim), start = step % 2 ? dim - window : 0, end = start + window;
    flip(in, out, signs, start);
    k->hadamard(in + start, out + start, signs + start, window);
    flip(in + end, out + end, signs + end, dim - end);
}

void dl_rotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t signs[STEPS * DL_MAX_DIM];
    signs_of(signs, dim, seed);
    for (size_t row = 0; row < n; row++, x += dim, out += dim)
        for (uint32_t step = 0; step < STEPS; step++)
            turn(k, step ? out : x, out, signs + step * dim, dim, step);
}

/* Backwards, where a step's signs come after its window: with the next turn, and the first step's at the end. */
void dl_unrotate(const float *x, float *out, size_t n, uint32_t dim, uint64_t seed)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t signs[(STEPS + 1) * DL_MAX_DIM];
    signs_of(signs, dim, seed);
    memset(signs + STEPS * dim, 0, dim * sizeof *signs);
    for (size_t row = 0; row < n; row++, x += dim, out += dim) {
        for (uint32_t step = STEPS; step-- > 0;)
            turn(k, step == STEPS - 1 ? x : out, out, signs + (step + 1) * dim, dim, step);
        flip(out, out, signs, dim);
    }
}
