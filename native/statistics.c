/* Moments of a stream of rows. One version serves every machine, so that all give the same bits. Compilers make vectors of two
 * doubles of it, which take 5 GB/s of rows (Zen 4); wider ones took 8 to 10, which learning, rotation and all, hardly feels. */
#include <string.h>

#include "driftline.h"

enum {
    ROWS = 64,   /* taken at once, so that what is read of them for one span of columns is still in cache for the next */
    COLUMNS = 16 /* whose sums stay in registers; half as fast with 32 */
};

/* What one row does to weight, mean and squares: all but the row itself. */
typedef struct {
    double share;  /* of the new mean */
    double factor; /* of its squared distance from the old mean */
} step;

/* One product or sum a statement: compilers fuse what is in one expression, where a machine can, and round it once. Inlined by
 * force: only a number of columns that is known keeps the sums in registers, and that doubles the speed. */
static inline __attribute__((always_inline)) void take(const float *x, size_t n, uint32_t dim, uint32_t columns,
                                                       const step *steps, double decay, double *mean, double *squares)
{
    double m[COLUMNS], s[COLUMNS];
    memcpy(m, mean, columns * sizeof *m);
    memcpy(s, squares, columns * sizeof *s);
    for (size_t row = 0; row < n; row++, x += dim)
        for (uint32_t i = 0; i < columns; i++) {
            double apart = x[i] - m[i];
            double move = apart * steps[row].share;
            m[i] += move;
            double square = apart * apart * steps[row].factor;
            double kept = s[i] * decay;
            s[i] = kept + square;
        }
    memcpy(mean, m, columns * sizeof *m);
    memcpy(squares, s, columns * sizeof *s);
}

void dl_moments(const float *x, size_t n, uint32_t dim, double decay, double *weight, double *mean, double *squares)
{
    step steps[ROWS];
    for (size_t rows; n; n -= rows, x += rows * dim) {
        rows = n < ROWS ? n : ROWS;
        for (size_t row = 0; row < rows; row++) {
            double before = *weight * decay;
            *weight = before + 1;
            steps[row] = (step){1 / *weight, before / *weight};
        }
        uint32_t d = 0;
        for (; d + COLUMNS <= dim; d += COLUMNS)
            take(x + d, rows, dim, COLUMNS, steps, decay, mean + d, squares + d);
        if (d < dim)
            take(x + d, rows, dim, dim - d, steps, decay, mean + d, squares + d);
    }
}
