/* The tile code of one dimension at a time: a search among 255 edges, and a table look-up back. */
#include "driftline.h"
#include "kernels.h"

void dl_tile_encode(const float *x, uint8_t *codes, size_t n, uint32_t dim, const float *mean, const float *inv_scale,
                    const float *edges)
{
    const dl_kernels *k = dl_kernels_now();
    dl_grid grid;
    dl_grid_of(edges, &grid);
    for (size_t row = 0; row < n; row++, x += dim, codes += dim)
        k->encode(x, mean, inv_scale, &grid, codes, dim);
}

void dl_tile_decode(const uint8_t *codes, float *out, size_t n, uint32_t dim, const float *mean, const float *scale,
                    const float *table, uint32_t bits)
{
    const dl_kernels *k = dl_kernels_now();
    float whole[256];
    for (uint32_t code = 0; code < 256; code++)
        whole[code] = table[code >> (8 - bits)];
    for (size_t row = 0; row < n; row++, codes += dim, out += dim)
        k->decode(codes, mean, scale, whole, out, dim);
}

void dl_bin_counts(const uint8_t *codes, int64_t *counts, size_t n, uint32_t dim)
{
    for (size_t row = 0; row < n; row++, codes += dim)
        for (uint32_t d = 0; d < dim; d++)
            counts[d * 16 + (codes[d] >> 4)]++;
}
