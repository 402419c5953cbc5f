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

void dl_table_by_code(const float *table, uint32_t bits, float *whole)
{
    for (uint32_t code = 0; code < 256; code++)
        whole[code] = table[code >> (8 - bits)];
}

void dl_tile_decode(const uint8_t *codes, float *out, size_t n, uint32_t dim, const float *mean, const float *scale,
                    const float *table, uint32_t bits)
{
    const dl_kernels *k = dl_kernels_now();
    float whole[256];
    dl_table_by_code(table, bits, whole);
    for (size_t row = 0; row < n; row++, codes += dim, out += dim)
        k->decode(codes, mean, scale, whole, out, dim);
}

enum { SPAN = 256, SUMS = 8 }; /* dimensions coded at once; sums side by side, as wide as vectors come */

double dl_row_error(const float *x, uint32_t dim, const float *mean, const float *scale, const float *inv_scale,
                    const dl_grid *grid, const float *whole)
{
    const dl_kernels *k = dl_kernels_now();
    double sums[SUMS] = {0};
    for (uint32_t start = 0; start < dim; start += SPAN) {
        uint8_t codes[SPAN];
        float apart[SPAN];
        uint32_t count = dim - start < SPAN ? dim - start : SPAN;
        k->encode(x + start, mean + start, inv_scale + start, grid, codes, count);
        k->decode(codes, mean + start, scale + start, whole, apart, count);
        for (uint32_t i = 0; i < count; i++)
            apart[i] = x[start + i] - apart[i];
        uint32_t i = 0;
        for (; i + SUMS <= count; i += SUMS)
            for (uint32_t j = 0; j < SUMS; j++)
                sums[j] += (double)apart[i + j] * apart[i + j];
        for (; i < count; i++)
            sums[0] += (double)apart[i] * apart[i];
    }
    double error = 0;
    for (uint32_t j = 0; j < SUMS; j++)
        error += sums[j];
    return error;
}

void dl_row_errors(const float *x, double *errors, size_t n, uint32_t dim, const float *mean, const float *scale,
                   const float *inv_scale, const float *edges, const float *table, uint32_t bits)
{
    dl_grid grid;
    dl_grid_of(edges, &grid);
    float whole[256];
    dl_table_by_code(table, bits, whole);
    for (size_t row = 0; row < n; row++, x += dim)
        errors[row] = dl_row_error(x, dim, mean, scale, inv_scale, &grid, whole);
}

void dl_bin_counts(const uint8_t *codes, int64_t *counts, size_t n, uint32_t dim)
{
    for (size_t row = 0; row < n; row++, codes += dim)
        for (uint32_t d = 0; d < dim; d++)
            counts[d * 16 + (codes[d] >> 4)]++;
}
