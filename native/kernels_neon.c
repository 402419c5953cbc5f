/* Kernels for arm64, whose every machine has these instructions. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <float.h>
#include <math.h>

#include "kernels.h"

/* 16 positions of a plane of bits: bytes of all ones where the bit is set. */
static inline uint8x16_t spread(const uint8_t *plane)
{
    static const uint8_t own_bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return vtstq_u8(vcombine_u8(vdup_n_u8(plane[0]), vdup_n_u8(plane[1])), vld1q_u8(own_bit));
}

static int32_t dot1_neon(const uint8_t *signs, const int8_t *w, size_t n)
{
    /* 16-bit sums of pairs, at most 254 each time: the two of 128 times each, 32,512, do not overflow */
    int16x8_t s0 = vdupq_n_s16(0), s1 = s0;
    for (size_t i = 0; i < n; i += 32) {
        s0 = vpadalq_s8(s0, vandq_s8(vld1q_s8(w + i), vreinterpretq_s8_u8(spread(signs + i / 8))));
        s1 = vpadalq_s8(s1, vandq_s8(vld1q_s8(w + i + 16), vreinterpretq_s8_u8(spread(signs + i / 8 + 2))));
    }
    return vaddlvq_s16(s0) + vaddlvq_s16(s1);
}

/* The pairs of 16 positions from i on, in bits 0 and 1, and nothing beside them. */
static inline uint8x16_t pairs_at(const uint8_t *plane, size_t i, size_t n)
{
    size_t start = i / 64 * 64, sixteen = (i - start) / 16;
    uint8x16_t bytes;
    if (n - start >= 64) {
        bytes = vshlq_u8(vld1q_u8(plane + start / 4), vdupq_n_s8((int8_t)(-2 * (int)sixteen)));
    } else { /* two quarters of eight */
        uint8x8_t first = vshl_u8(vld1_u8(plane + start / 4), vdup_n_s8((int8_t)(-4 * (int)sixteen)));
        bytes = vcombine_u8(first, vshr_n_u8(first, 2));
    }
    return vandq_u8(bytes, vdupq_n_u8(3));
}

/* Sums of four products each of table values with weights. */
static inline int32x4_t products(int32x4_t sum, uint8x16_t values, const int8_t *w)
{
    int8x16_t t = vreinterpretq_s8_u8(values), weight = vld1q_s8(w);
    /* 127 * 127 * 2 = 32,258: two products fit 16 bits */
    return vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(t), vget_low_s8(weight)), t, weight));
}

static int32_t dot3_neon(const uint8_t *signs, const uint8_t *upper, const int8_t *w, const uint8_t *table, size_t n)
{
    const uint8x16_t lookup = vcombine_u8(vld1_u8(table), vdup_n_u8(0)), four = vdupq_n_u8(4);
    int32x4_t s0 = vdupq_n_s32(0), s1 = s0;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        uint8x16_t group = vld1q_u8(upper + i / 4), pair = vdupq_n_u8(3), index[4];
        index[0] = vandq_u8(group, pair);
        index[1] = vandq_u8(vshrq_n_u8(group, 2), pair);
        index[2] = vandq_u8(vshrq_n_u8(group, 4), pair);
        index[3] = vshrq_n_u8(group, 6);
        for (size_t j = 0; j < 4; j++)
            index[j] = vorrq_u8(index[j], vandq_u8(spread(signs + i / 8 + 2 * j), four));
        s0 = products(s0, vqtbl1q_u8(lookup, index[0]), w + i);
        s1 = products(s1, vqtbl1q_u8(lookup, index[1]), w + i + 16);
        s0 = products(s0, vqtbl1q_u8(lookup, index[2]), w + i + 32);
        s1 = products(s1, vqtbl1q_u8(lookup, index[3]), w + i + 48);
    }
    for (; i < n; i += 16) {
        uint8x16_t index = vorrq_u8(pairs_at(upper, i, n), vandq_u8(spread(signs + i / 8), four));
        s0 = products(s0, vqtbl1q_u8(lookup, index), w + i);
    }
    return vaddvq_s32(vaddq_s32(s0, s1));
}

static int32_t dot5_neon(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *w,
                         const uint8_t *table, size_t n)
{
    const uint8x16x2_t lookup = {{vld1q_u8(table), vld1q_u8(table + 16)}};
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < n; i += 16) {
        uint8x16_t index = vsliq_n_u8(pairs_at(lower, i, n), pairs_at(upper, i, n), 2);
        index = vorrq_u8(index, vandq_u8(spread(signs + i / 8), vdupq_n_u8(16)));
        sum = products(sum, vqtbl2q_u8(lookup, index), w + i);
    }
    return vaddvq_s32(sum);
}

static inline uint8x16_t codes_at(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower,
                                  const uint8_t *lows, size_t i, size_t n)
{
    uint8x16_t code = vshlq_n_u8(vsliq_n_u8(pairs_at(lower, i, n), pairs_at(upper, i, n), 2), 3);
    code = vorrq_u8(code, vandq_u8(spread(signs + i / 8), vdupq_n_u8(128)));
    code = vorrq_u8(code, vandq_u8(spread(lows + i / 8), vdupq_n_u8(4)));
    code = vorrq_u8(code, vandq_u8(spread(lows + (n + i) / 8), vdupq_n_u8(2)));
    return vorrq_u8(code, vandq_u8(spread(lows + (2 * n + i) / 8), vdupq_n_u8(1)));
}

/* Table values one by one: a table of 512 bytes would be eight look-ups of four registers each for 16 codes. Neither
 * was measured: no such machine was at hand. */
static int32_t dot8_neon(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                         const int16_t *w, const int16_t *table, size_t n)
{
    int32_t sums[4] = {0, 0, 0, 0};
    for (size_t i = 0; i < n; i += 16) {
        uint8_t code[16];
        vst1q_u8(code, codes_at(signs, upper, lower, lows, i, n));
        for (size_t j = 0; j < 16; j++)
            sums[j % 4] += w[i + j] * table[code[j]];
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

static float l2_neon(const float *a, const float *b, size_t n)
{
    float32x4_t s[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 4; j++) {
            float32x4_t d = vsubq_f32(vld1q_f32(a + i + 4 * j), vld1q_f32(b + i + 4 * j));
            s[j] = vfmaq_f32(s[j], d, d);
        }
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s[0], s[1]), vaddq_f32(s[2], s[3])));
    return sum + dl_kernels_scalar.l2(a + i, b + i, n - i);
}

static float ip_neon(const float *a, const float *b, size_t n)
{
    float32x4_t s[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 4; j++)
            s[j] = vfmaq_f32(s[j], vld1q_f32(a + i + 4 * j), vld1q_f32(b + i + 4 * j));
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s[0], s[1]), vaddq_f32(s[2], s[3])));
    return sum + dl_kernels_scalar.ip(a + i, b + i, n - i);
}

enum { FEW = 8 }; /* looks at edges that cost no more than the scalar's halving */

/* A first guess from the grid, then up by one where the next edge is not above, as often as it may be; without a
 * branch, that no predictor would learn. A z that overflowed is pulled back, so that the last edge, +inf, stops it. */
static void encode_neon(const float *x, const float *mean, const float *inv_scale, const dl_grid *grid, uint8_t *codes,
                        size_t n)
{
    const float32x4_t origin = vdupq_n_f32(grid->origin), per_cell = vdupq_n_f32(grid->per_cell);
    size_t i = 0;
    for (; grid->most <= FEW && i + 4 <= n; i += 4) {
        float32x4_t z = vmulq_f32(vsubq_f32(vld1q_f32(x + i), vld1q_f32(mean + i)), vld1q_f32(inv_scale + i));
        z = vminq_f32(z, vdupq_n_f32(FLT_MAX));
        float32x4_t where = vmulq_f32(vsubq_f32(z, origin), per_cell);
        where = vminq_f32(vmaxq_f32(where, vdupq_n_f32(0)), vdupq_n_f32(DL_CELLS - 1));
        float value[4];
        uint32_t cell[4];
        vst1q_f32(value, z);
        vst1q_u32(cell, vcvtq_u32_f32(where));
        for (size_t j = 0; j < 4; j++) {
            uint32_t code = grid->cells[cell[j]];
            for (uint32_t step = 0; step < grid->most; step++)
                code += grid->edges[code] <= value[j];
            codes[i + j] = (uint8_t)code;
        }
    }
    dl_kernels_scalar.encode(x + i, mean + i, inv_scale + i, grid, codes + i, n - i);
}

/* The bits of 16 bytes' tops, in order. */
static inline void put_tops(uint8_t *plane, uint8x16_t bytes)
{
    static const int8_t place[16] = {-7, -6, -5, -4, -3, -2, -1, 0, -7, -6, -5, -4, -3, -2, -1, 0};
    uint8x16_t bits = vshlq_u8(vandq_u8(bytes, vdupq_n_u8(128)), vld1q_s8(place));
    plane[0] = vaddv_u8(vget_low_u8(bits));
    plane[1] = vaddv_u8(vget_high_u8(bits));
}

/* The bits 5 and 6 of the bytes of four quarters, the first one's lowest. */
static inline uint8x16_t packed(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d)
{
    a = vsliq_n_u8(vshrq_n_u8(a, 5), vshrq_n_u8(b, 5), 2);
    return vsliq_n_u8(vsliq_n_u8(a, vshrq_n_u8(c, 5), 4), vshrq_n_u8(d, 5), 6);
}

/* The pairs of the codes of 64 positions, or of 32, to a plane: those at bit 5 after a shift to the left. */
static inline void put_pairs64(uint8_t *plane, const uint8_t *codes, int left)
{
    int8x16_t by = vdupq_n_s8((int8_t)left);
    vst1q_u8(plane, packed(vshlq_u8(vld1q_u8(codes), by), vshlq_u8(vld1q_u8(codes + 16), by),
                           vshlq_u8(vld1q_u8(codes + 32), by), vshlq_u8(vld1q_u8(codes + 48), by)));
}

static inline void put_pairs32(uint8_t *plane, const uint8_t *codes, int left)
{
    int8x16_t by = vdupq_n_s8((int8_t)left);
    uint8x16_t a = vshlq_u8(vld1q_u8(codes), by), c = vshlq_u8(vld1q_u8(codes + 16), by);
    vst1_u8(plane, vget_low_u8(packed(a, vextq_u8(a, a, 8), c, vextq_u8(c, c, 8))));
}

static void split_neon(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        uint8x16_t code = vld1q_u8(codes + i);
        put_tops(signs + i / 8, code);
        put_tops(lows + i / 8, vshlq_n_u8(code, 5));
        put_tops(lows + (n + i) / 8, vshlq_n_u8(code, 6));
        put_tops(lows + (2 * n + i) / 8, vshlq_n_u8(code, 7));
    }
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        put_pairs64(upper + i / 4, codes + i, 0);
        put_pairs64(lower + i / 4, codes + i, 2);
    }
    if (i < n) {
        put_pairs32(upper + i / 4, codes + i, 0);
        put_pairs32(lower + i / 4, codes + i, 2);
    }
}

static void join_neon(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                      uint8_t *codes, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        vst1q_u8(codes + i, codes_at(signs, upper, lower, lows, i, n));
}

static inline int32x4_t rounded(float32x4_t x, float inverse, float most)
{
    x = vmulq_n_f32(x, inverse);
    return vcvtnq_s32_f32(vminq_f32(vmaxq_f32(x, vdupq_n_f32(-most)), vdupq_n_f32(most)));
}

static int32_t weights_neon(const float *x, float inverse8, float inverse16, int8_t *w8, int16_t *w16, size_t n)
{
    int32x4_t sum = vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        float32x4_t x0 = vld1q_f32(x + i), x1 = vld1q_f32(x + i + 4);
        int32x4_t narrow0 = rounded(x0, inverse8, 127), narrow1 = rounded(x1, inverse8, 127);
        sum = vaddq_s32(sum, vaddq_s32(narrow0, narrow1));
        vst1_s8(w8 + i, vmovn_s16(vcombine_s16(vmovn_s32(narrow0), vmovn_s32(narrow1))));
        vst1q_s16(w16 + i,
                  vcombine_s16(vmovn_s32(rounded(x0, inverse16, 32767)), vmovn_s32(rounded(x1, inverse16, 32767))));
    }
    return vaddvq_s32(sum) + dl_kernels_scalar.weights(x + i, inverse8, inverse16, w8 + i, w16 + i, n - i);
}

/* Two levels within a register: the partner, plus or minus x, in one instruction: exact, since a product with
 * 1 or -1 does not round. */
static inline float32x4_t hadamard4(float32x4_t x)
{
    static const float second1[4] = {1, -1, 1, -1}, second2[4] = {1, 1, -1, -1};
    x = vfmaq_f32(vrev64q_f32(x), x, vld1q_f32(second1));
    return vfmaq_f32(vextq_f32(x, x, 2), x, vld1q_f32(second2));
}

static inline float32x4_t flipped(float32x4_t x, const uint32_t *signs)
{
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), vld1q_u32(signs)));
}

#define ISA
#define VECTOR float32x4_t
#define LANES 4
#define LOAD vld1q_f32
#define STORE vst1q_f32
#define ALL vdupq_n_f32
#define FLIPPED flipped
#define WITHIN hadamard4
#include "hadamard.h"

/* Decoding is look-ups one by one on this machine, which is what the scalar does. */
static void decode_neon(const uint8_t *codes, const float *mean, const float *scale, const float *table, float *out,
                        size_t n)
{
    dl_kernels_scalar.decode(codes, mean, scale, table, out, n);
}

const dl_kernels dl_kernels_neon = {
    "neon",  dot1_neon,   dot3_neon,   dot5_neon,  dot8_neon, l2_neon,
    ip_neon, encode_neon, decode_neon, split_neon, join_neon, weights_neon, hadamard_vectors,
};
#endif
