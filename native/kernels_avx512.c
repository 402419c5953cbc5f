/* Kernels for AVX-512 with VNNI and VBMI. */
#if defined(__x86_64__)
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels.h"

#define ISA __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma")))

enum { SELECT = 0xCA }; /* for ternarylogic: first ? second : third, bit by bit */

/* Of a plane of bits: 64 positions, or the last 32. */
ISA static inline __mmask64 bits64(const uint8_t *plane)
{
    uint64_t bits;
    memcpy(&bits, plane, sizeof bits);
    return bits;
}

ISA static inline __mmask32 bits32(const uint8_t *plane)
{
    uint32_t bits;
    memcpy(&bits, plane, sizeof bits);
    return bits;
}

ISA static inline int32_t sum_epi32(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    int64_t two = _mm_cvtsi128_si64(s);
    return (int32_t)two + (int32_t)(two >> 32);
}

ISA static inline __m256i fold(__m512i v)
{
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

/* The first positions of what is left, up to 16. */
ISA static inline __mmask16 first16(size_t left)
{
    return left >= 16 ? 0xFFFF : (__mmask16)((1u << left) - 1);
}

ISA static int32_t dot1_avx512(const uint8_t *signs, const int8_t *w, size_t n)
{
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, one = _mm512_set1_epi8(1);
    size_t i = 0;
    for (; i + 128 <= n; i += 128) {
        s0 = _mm512_dpbusd_epi32(s0, one, _mm512_maskz_loadu_epi8(bits64(signs + i / 8), w + i));
        s1 = _mm512_dpbusd_epi32(s1, one, _mm512_maskz_loadu_epi8(bits64(signs + i / 8 + 8), w + i + 64));
    }
    if (i + 64 <= n) {
        s0 = _mm512_dpbusd_epi32(s0, one, _mm512_maskz_loadu_epi8(bits64(signs + i / 8), w + i));
        i += 64;
    }
    if (i < n) /* half a group: nothing is read where the mask is zero */
        s1 = _mm512_dpbusd_epi32(s1, one, _mm512_maskz_loadu_epi8(bits32(signs + i / 8), w + i));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(s0, s1));
}

/* The pairs of 64 positions, or of the last 32, from bit `to` on of their bytes, whose other bits hold anything: every
 * quarter starts from the same bytes and moves them its own way. Shifts are a tenth faster than turns (Zen 4), but go
 * one way only. */
ISA static inline __m512i pairs64(const uint8_t *plane, int to)
{
    __m512i group = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)plane));
    if (to == 0)
        return _mm512_srlv_epi64(group, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
    return _mm512_rolv_epi64(group, _mm512_setr_epi64(to, to, to - 2, to - 2, to - 4, to - 4, to - 6, to - 6));
}

ISA static inline __m256i pairs32(const uint8_t *plane, int to)
{
    int64_t group;
    memcpy(&group, plane, sizeof group);
    return _mm256_rolv_epi64(_mm256_set1_epi64x(group), _mm256_setr_epi64x(to, to - 2, to - 4, to - 6));
}

/* Look-ups by the pair alone, of the values for a clear sign and then, where it is set, of the others: vpermb takes six
 * bits of an index, and a table of four values, repeated, makes those above the pair irrelevant. Folding the sign into
 * the index for one look-up is a tenth slower (Zen 4). */
ISA static int32_t dot3_avx512(const uint8_t *signs, const uint8_t *upper, const int8_t *w, const uint8_t *table,
                               size_t n)
{
    int32_t values[2];
    memcpy(&values[0], table, 4);
    memcpy(&values[1], table + 4, 4);
    const __m512i clear = _mm512_set1_epi32(values[0]), set = _mm512_set1_epi32(values[1]);
    __m512i sums = _mm512_setzero_si512();
    for (const int8_t *end = w + n / 64 * 64; w < end; w += 64, signs += 8, upper += 16) {
        __m512i pair = pairs64(upper, 0);
        __m512i t = _mm512_permutexvar_epi8(pair, clear);
        t = _mm512_mask_permutexvar_epi8(t, bits64(signs), pair, set);
        sums = _mm512_dpbusd_epi32(sums, t, _mm512_loadu_si512(w));
    }
    __m256i sum = fold(sums);
    if (n % 64) {
        __m256i pair = pairs32(upper, 0);
        __m256i t = _mm256_permutexvar_epi8(pair, _mm512_castsi512_si256(clear));
        t = _mm256_mask_permutexvar_epi8(t, bits32(signs), pair, _mm512_castsi512_si256(set));
        sum = _mm256_dpbusd_epi32(sum, t, _mm256_loadu_si256((const __m256i *)w));
    }
    return sum_epi32(sum);
}

/* As dot3, with four bits of index and tables of sixteen. */
ISA static int32_t dot5_avx512(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *w,
                               const uint8_t *table, size_t n)
{
    const __m512i clear = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    const __m512i set = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(table + 16)));
    const __m512i first = _mm512_set1_epi8(3);
    __m512i sums = _mm512_setzero_si512();
    for (const int8_t *end = w + n / 64 * 64; w < end; w += 64, signs += 8, upper += 16, lower += 16) {
        __m512i four = _mm512_ternarylogic_epi64(first, pairs64(lower, 0), pairs64(upper, 2), SELECT);
        __m512i t = _mm512_permutexvar_epi8(four, clear);
        t = _mm512_mask_permutexvar_epi8(t, bits64(signs), four, set);
        sums = _mm512_dpbusd_epi32(sums, t, _mm512_loadu_si512(w));
    }
    __m256i sum = fold(sums);
    if (n % 64) {
        __m256i four =
            _mm256_ternarylogic_epi64(_mm512_castsi512_si256(first), pairs32(lower, 0), pairs32(upper, 2), SELECT);
        __m256i t = _mm256_permutexvar_epi8(four, _mm512_castsi512_si256(clear));
        t = _mm256_mask_permutexvar_epi8(t, bits32(signs), four, _mm512_castsi512_si256(set));
        sum = _mm256_dpbusd_epi32(sum, t, _mm256_loadu_si256((const __m256i *)w));
    }
    return sum_epi32(sum);
}

/* Codes, whose sign bits are clear, from pairs at their places and the masks of the lows. */
ISA static inline __m512i codes_of(__m512i upper, __m512i lower, __mmask64 low4, __mmask64 low2, __mmask64 low1)
{
    __m512i code = _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x60), upper, lower, SELECT);
    code = _mm512_and_si512(code, _mm512_set1_epi8(0x78));
    code = _mm512_mask_add_epi8(code, low4, code, _mm512_set1_epi8(4));
    code = _mm512_mask_add_epi8(code, low2, code, _mm512_set1_epi8(2));
    return _mm512_mask_add_epi8(code, low1, code, _mm512_set1_epi8(1));
}

/* The codes of position i of n and of the 63 after it, or of the last 32; their sign bits are clear. */
ISA static inline __m512i codes_at(const uint8_t *upper, const uint8_t *lower, const uint8_t *lows, size_t i, size_t n)
{
    const uint8_t *low4 = lows + i / 8, *low2 = low4 + n / 8, *low1 = low2 + n / 8;
    upper += i / 4;
    lower += i / 4;
    if (n - i >= 64)
        return codes_of(pairs64(upper, 5), pairs64(lower, 3), bits64(low4), bits64(low2), bits64(low1));
    return codes_of(_mm512_zextsi256_si512(pairs32(upper, 5)), _mm512_zextsi256_si512(pairs32(lower, 3)), bits32(low4),
                    bits32(low2), bits32(low1));
}

/* The 16-bit table as low and high bytes, four registers each; a look-up is two two-register permutes, which take the
 * code's low seven bits, and a blend on its sign, per byte. Zipping the bytes orders values by 128-bit lane; weights
 * are brought into the same order. Permutes of words need no split of the table, but twice the look-ups: a fifth
 * slower, at 128 dimensions too. */
ISA static int32_t dot8_avx512(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                               const int16_t *w, const int16_t *table, size_t n)
{
    static const uint8_t evens[64] = {
        0,  2,  4,  6,  8,  10, 12,  14,  16,  18,  20,  22,  24,  26,  28,  30,  32,  34,  36,  38,  40, 42,
        44, 46, 48, 50, 52, 54, 56,  58,  60,  62,  64,  66,  68,  70,  72,  74,  76,  78,  80,  82,  84, 86,
        88, 90, 92, 94, 96, 98, 100, 102, 104, 106, 108, 110, 112, 114, 116, 118, 120, 122, 124, 126,
    };
    const __m512i even = _mm512_loadu_si512(evens), odd = _mm512_add_epi8(even, _mm512_set1_epi8(1));
    __m512i lo[4], hi[4];
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_loadu_si512(table + 64 * i), b = _mm512_loadu_si512(table + 64 * i + 32);
        lo[i] = _mm512_permutex2var_epi8(a, even, b);
        hi[i] = _mm512_permutex2var_epi8(a, odd, b);
    }
    const __m512i pairs0 = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13),
                  pairs1 = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;
    for (size_t i = 0; i < n; i += 64) {
        bool whole = n - i >= 64;
        __mmask64 sign = whole ? bits64(signs + i / 8) : bits32(signs + i / 8);
        __m512i code = codes_at(upper, lower, lows, i, n);
        __m512i w0 = _mm512_loadu_si512(w + i), w1 = whole ? _mm512_loadu_si512(w + i + 32) : _mm512_setzero_si512();
        __m512i vlo = _mm512_mask_blend_epi8(sign, _mm512_permutex2var_epi8(lo[0], code, lo[1]),
                                             _mm512_permutex2var_epi8(lo[2], code, lo[3]));
        __m512i vhi = _mm512_mask_blend_epi8(sign, _mm512_permutex2var_epi8(hi[0], code, hi[1]),
                                             _mm512_permutex2var_epi8(hi[2], code, hi[3]));
        s0 = _mm512_dpwssd_epi32(s0, _mm512_unpacklo_epi8(vlo, vhi), _mm512_permutex2var_epi64(w0, pairs0, w1));
        s1 = _mm512_dpwssd_epi32(s1, _mm512_unpackhi_epi8(vlo, vhi), _mm512_permutex2var_epi64(w0, pairs1, w1));
    }
    return sum_epi32(fold(_mm512_add_epi32(s0, s1)));
}

ISA static float l2_avx512(const float *a, const float *b, size_t n)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512 d0 = _mm512_sub_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i));
        __m512 d1 = _mm512_sub_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16));
        s0 = _mm512_fmadd_ps(d0, d0, s0);
        s1 = _mm512_fmadd_ps(d1, d1, s1);
    }
    for (; i < n; i += 16) {
        __mmask16 mask = first16(n - i);
        __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i));
        s0 = _mm512_fmadd_ps(d, d, s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

ISA static float ip_avx512(const float *a, const float *b, size_t n)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s0);
        s1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16), s1);
    }
    for (; i < n; i += 16) {
        __mmask16 mask = first16(n - i);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

/* A first guess from the grid, then up by one where the next edge is not above. A z that overflowed is pulled back, so
 * that the last edge, +inf, stops every lane. */
ISA static void encode_avx512(const float *x, const float *mean, const float *inv_scale, const dl_grid *grid,
                              uint8_t *codes, size_t n)
{
    /* a byte is the top one of the four that end with it: nothing beyond the grid is read */
    const char *cells = (const char *)grid + offsetof(dl_grid, cells) - 3;
    const __m512 origin = _mm512_set1_ps(grid->origin), per_cell = _mm512_set1_ps(grid->per_cell);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 here = first16(n - i);
        __m512 z =
            _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(here, x + i), _mm512_maskz_loadu_ps(here, mean + i)),
                          _mm512_maskz_loadu_ps(here, inv_scale + i));
        z = _mm512_min_ps(z, _mm512_set1_ps(FLT_MAX));
        __m512 cell = _mm512_mul_ps(_mm512_sub_ps(z, origin), per_cell);
        cell = _mm512_min_ps(_mm512_max_ps(cell, _mm512_setzero_ps()), _mm512_set1_ps(DL_CELLS - 1));
        __m512i code = _mm512_srli_epi32(_mm512_i32gather_epi32(_mm512_cvttps_epi32(cell), cells, 1), 24);
        for (uint32_t step = 0; step < grid->most; step++) {
            __mmask16 low = _mm512_cmp_ps_mask(_mm512_i32gather_ps(code, grid->edges, 4), z, _CMP_LE_OQ);
            if (!low)
                break;
            code = _mm512_mask_add_epi32(code, low, code, _mm512_set1_epi32(1));
        }
        _mm_mask_storeu_epi8(codes + i, here, _mm512_cvtepi32_epi8(code));
    }
}

ISA static void decode_avx512(const uint8_t *codes, const float *mean, const float *scale, const float *table,
                              float *out, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 here = first16(n - i);
        __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, codes + i));
        __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(here, scale + i), _mm512_i32gather_ps(code, table, 4));
        _mm512_mask_storeu_ps(out + i, here, _mm512_add_ps(_mm512_maskz_loadu_ps(here, mean + i), value));
    }
}

/* The pairs that start at bit `from` of each code, to a plane: each quarter turns its own to its place. */
ISA static inline void put_pairs64(uint8_t *plane, __m512i code, int from)
{
    __m512i turns = _mm512_setr_epi64(-from, -from, 2 - from, 2 - from, 4 - from, 4 - from, 6 - from, 6 - from);
    __m512i own = _mm512_setr_epi64(0x0303030303030303, 0x0303030303030303, 0x0C0C0C0C0C0C0C0C, 0x0C0C0C0C0C0C0C0C,
                                    0x3030303030303030, 0x3030303030303030, (long long)0xC0C0C0C0C0C0C0C0,
                                    (long long)0xC0C0C0C0C0C0C0C0);
    __m512i pairs = _mm512_and_si512(_mm512_rolv_epi64(code, turns), own);
    __m256i half = _mm256_or_si256(_mm512_castsi512_si256(pairs), _mm512_extracti64x4_epi64(pairs, 1));
    _mm_storeu_si128((__m128i *)plane,
                     _mm_or_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

ISA static inline void put_pairs32(uint8_t *plane, __m256i code, int from)
{
    __m256i own = _mm256_setr_epi64x(0x0303030303030303, 0x0C0C0C0C0C0C0C0C, 0x3030303030303030,
                                     (long long)0xC0C0C0C0C0C0C0C0);
    __m256i turns = _mm256_setr_epi64x(-from, 2 - from, 4 - from, 6 - from);
    __m256i pairs = _mm256_and_si256(_mm256_rolv_epi64(code, turns), own);
    __m128i half = _mm_or_si128(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storel_epi64((__m128i *)plane, _mm_or_si128(half, _mm_unpackhi_epi64(half, half)));
}

ISA static void split_avx512(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows,
                             size_t n)
{
    uint8_t *planes[4] = {signs, lows, lows + n / 8, lows + n / 4};
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i code = _mm512_loadu_si512(codes + i);
        uint64_t bits[4] = {_mm512_movepi8_mask(code), _mm512_test_epi8_mask(code, _mm512_set1_epi8(4)),
                            _mm512_test_epi8_mask(code, _mm512_set1_epi8(2)),
                            _mm512_test_epi8_mask(code, _mm512_set1_epi8(1))};
        for (int plane = 0; plane < 4; plane++)
            memcpy(planes[plane] + i / 8, &bits[plane], sizeof *bits);
        put_pairs64(upper + i / 4, code, 5);
        put_pairs64(lower + i / 4, code, 3);
    }
    if (i < n) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(codes + i));
        uint32_t bits[4] = {_mm256_movepi8_mask(code), _mm256_test_epi8_mask(code, _mm256_set1_epi8(4)),
                            _mm256_test_epi8_mask(code, _mm256_set1_epi8(2)),
                            _mm256_test_epi8_mask(code, _mm256_set1_epi8(1))};
        for (int plane = 0; plane < 4; plane++)
            memcpy(planes[plane] + i / 8, &bits[plane], sizeof *bits);
        put_pairs32(upper + i / 4, code, 5);
        put_pairs32(lower + i / 4, code, 3);
    }
}

ISA static void join_avx512(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                            uint8_t *codes, size_t n)
{
    const __m512i top = _mm512_set1_epi8((char)128);
    for (size_t i = 0; i < n; i += 64) {
        bool whole = n - i >= 64;
        __m512i code = codes_at(upper, lower, lows, i, n);
        code = _mm512_mask_add_epi8(code, whole ? bits64(signs + i / 8) : bits32(signs + i / 8), code, top);
        if (whole)
            _mm512_storeu_si512(codes + i, code);
        else
            _mm256_storeu_si256((__m256i *)(codes + i), _mm512_castsi512_si256(code));
    }
}

ISA static inline __m512i rounded(__m512 x, float inverse, float most)
{
    x = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-most)), _mm512_set1_ps(most)));
}

ISA static int32_t weights_avx512(const float *x, float inverse8, float inverse16, int8_t *w8, int16_t *w16, size_t n)
{
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 here = first16(n - i);
        __m512 value = _mm512_maskz_loadu_ps(here, x + i);
        __m512i narrow = rounded(value, inverse8, 127);
        _mm_mask_storeu_epi8(w8 + i, here, _mm512_cvtepi32_epi8(narrow));
        _mm256_mask_storeu_epi16(w16 + i, here, _mm512_cvtepi32_epi16(rounded(value, inverse16, 32767)));
        sum = _mm512_add_epi32(sum, narrow);
    }
    return _mm512_reduce_add_epi32(sum);
}

/* One level within a register: the partner, plus or minus x, in one instruction; a product with 1 or -1 does not round.
 */
ISA static inline __m512 butterfly(__m512 x, __m512 partner, __mmask16 second)
{
    return _mm512_fmadd_ps(x, _mm512_mask_blend_ps(second, _mm512_set1_ps(1), _mm512_set1_ps(-1)), partner);
}

ISA static inline __m512 hadamard16(__m512 x)
{
    x = butterfly(x, _mm512_permute_ps(x, 0xB1), 0xAAAA);
    x = butterfly(x, _mm512_permute_ps(x, 0x4E), 0xCCCC);
    x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0xB1), 0xF0F0);
    return butterfly(x, _mm512_shuffle_f32x4(x, x, 0x4E), 0xFF00);
}

ISA static inline __m512 flipped(__m512 x, const uint32_t *signs)
{
    return _mm512_xor_ps(x, _mm512_castsi512_ps(_mm512_loadu_si512(signs)));
}

#define VECTOR __m512
#define LANES 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ALL _mm512_set1_ps
#define FLIPPED flipped
#define WITHIN hadamard16
#include "hadamard.h"

const dl_kernels dl_kernels_avx512 = {
    "avx512",  dot1_avx512,   dot3_avx512,   dot5_avx512,  dot8_avx512, l2_avx512,
    ip_avx512, encode_avx512, decode_avx512, split_avx512, join_avx512, weights_avx512, hadamard_vectors,
};
#endif
