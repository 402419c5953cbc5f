/* The kernels: one file per instruction set, one table of functions, chosen once. The scalar ones are the truth: every
 * other set gives the same integers, and the same floats from hadamard, since it rounds in the same order; l2, ip and
 * decode are within rounding.
 *
 * A row of n codes (n a multiple of 32; positions at or beyond dim hold anything and have weight 0) lies in planes,
 * split so that a search reads as few bits as it judges by, and no bit is stored twice:
 *   signs  bit 7 of the code: n / 8 bytes, position i at bit i % 8 of byte i / 8
 *   upper  bits 6..5: n / 4 bytes. Groups of 64 positions in 16 bytes: byte j holds positions j, 16 + j, 32 + j and
 *          48 + j, from its low bits to its high ones. A last group of 32 in 8 bytes: j, 8 + j, 16 + j and 24 + j.
 *   lower  bits 4..3: n / 4 bytes, laid like upper
 *   lows   bits 2, 1, 0: three planes of n / 8 bytes, laid like signs, in that order
 * Nothing beyond the stated lengths is read or written, and no address need be aligned beyond its type. */
#ifndef DRIFTLINE_KERNELS_H
#define DRIFTLINE_KERNELS_H
#include <stddef.h>
#include <stdint.h>

enum { DL_CELLS = 1024 };

/* The edges of a tile code, with a grid over them for a first guess. */
typedef struct {
    float edges[256];        /* ascending, 255 of them finite; the last is +inf */
    float origin, per_cell;  /* cell of z = clamp((z - origin) * per_cell, 0, DL_CELLS - 1), truncated */
    uint32_t most;           /* the edges in the fullest cell: a guess is at most this much too low */
    uint8_t cells[DL_CELLS]; /* a code that is not above that of any z in the cell */
} dl_grid;

typedef struct {
    const char *name;
    /* Sum of w[i] where bit i of signs is set; w in -127..127. |sum| <= 127 * 4096 < 2^31. */
    int32_t (*dot1)(const uint8_t *signs, const int8_t *w, size_t n);
    /* Sum of w[i] * table[top three bits of code i]; w in -127..127, 8 table values 0..127, no byte more is read.
     * |sum| <= 127 * 127 * 4096 < 2^31. */
    int32_t (*dot3)(const uint8_t *signs, const uint8_t *upper, const int8_t *w, const uint8_t *table, size_t n);
    /* The same of the top five bits; 32 table values 0..127. A shorter prefix's table holds equal neighbours. */
    int32_t (*dot5)(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *w,
                    const uint8_t *table, size_t n);
    /* Sum of w[i] * table[code i]; 256 table values, |table| <= 4096. The caller bounds sum |w| below 2^19, and with it
     * |sum| below 2^31. */
    int32_t (*dot8)(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                    const int16_t *w, const int16_t *table, size_t n);
    float (*l2)(const float *a, const float *b, size_t n);
    float (*ip)(const float *a, const float *b, size_t n);
    /* codes[i] = number of edges <= (x[i] - mean[i]) * inv_scale[i], for any grid that dl_grid_of made. */
    void (*encode)(const float *x, const float *mean, const float *inv_scale, const dl_grid *grid, uint8_t *codes,
                   size_t n);
    /* out[i] = mean[i] + scale[i] * table[codes[i]], table of 256 */
    void (*decode)(const uint8_t *codes, const float *mean, const float *scale, const float *table, float *out,
                   size_t n);
    /* n codes (n a multiple of 32) to planes and back */
    void (*split)(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows, size_t n);
    void (*join)(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows, uint8_t *codes,
                 size_t n);
    /* Floats to integer weights: w8[i] = x[i] * inverse8, w16[i] = x[i] * inverse16, rounded to nearest (ties to even)
     * and clamped to +-127 and +-32767. Returns the sum of w8. */
    int32_t (*weights)(const float *x, float inverse8, float inverse16, int8_t *w8, int16_t *w16, size_t n);
    /* Flips the signs of `in` where the top bits of `signs` are set (their other bits are clear), then the fast Hadamard
     * transform over n a power of two, scaled by 1 / sqrt(n), which is its own inverse. `out` may be `in`. */
    void (*hadamard)(const float *in, float *out, const uint32_t *signs, size_t n);
} dl_kernels;

extern const dl_kernels dl_kernels_scalar;
#if defined(__x86_64__)
extern const dl_kernels dl_kernels_avx2, dl_kernels_avx512;
#elif defined(__aarch64__)
extern const dl_kernels dl_kernels_neon;
#endif
const dl_kernels *dl_kernels_now(void);
void dl_grid_of(const float *edges, dl_grid *grid); /* [255] ascending */
/* tile.c: what every code of eight bits decodes to by its top `bits` bits, and |x - decode(encode(x))|^2 by such a table, [256]. */
void dl_table_by_code(const float *table, uint32_t bits, float *whole);
double dl_row_error(const float *x, uint32_t dim, const float *mean, const float *scale, const float *inv_scale,
                    const dl_grid *grid, const float *whole);
#endif
