/* Kernels for AVX2 and FMA. */
#if defined(__x86_64__)
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

#define ISA __attribute__((target("avx2,fma")))

ISA static inline int32_t sum_epi32(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    int64_t two = _mm_cvtsi128_si64(s);
    return (int32_t)two + (int32_t)(two >> 32);
}

ISA static inline float sum_ps(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

/* 32 positions of a plane of bits, from byte `first` of each lane on: bytes of all ones where the bit is set. */
ISA static inline __m256i spread_from(__m256i bytes, char first)
{
    const __m256i own_byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i own_bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    bytes = _mm256_shuffle_epi8(bytes, _mm256_add_epi8(own_byte, _mm256_set1_epi8(first)));
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own_bit), own_bit);
}

ISA static inline __m256i spread(const uint8_t *plane)
{
    int32_t bits;
    memcpy(&bits, plane, sizeof bits);
    return spread_from(_mm256_set1_epi32(bits), 0);
}

ISA static inline __m256i eight_bytes(const uint8_t *plane)
{
    int64_t bytes;
    memcpy(&bytes, plane, sizeof bytes);
    return _mm256_set1_epi64x(bytes);
}

ISA static inline __m256i sixteen_bytes(const uint8_t *plane)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)plane));
}

/* The pairs of 32 positions: the first and the second 32 of a group of 64 from its bytes, or the last 32. They lie in
 * bits 0 and 1, or a step higher in bits 2 and 3; the other bits hold anything. */
ISA static inline __m256i pairs_first(__m256i group)
{
    return _mm256_srlv_epi64(group, _mm256_setr_epi64x(0, 0, 2, 2));
}

ISA static inline __m256i pairs_second(__m256i group)
{
    return _mm256_srlv_epi64(group, _mm256_setr_epi64x(4, 4, 6, 6));
}

ISA static inline __m256i pairs_last(const uint8_t *plane)
{
    return _mm256_srlv_epi64(eight_bytes(plane), _mm256_setr_epi64x(0, 2, 4, 6));
}

ISA static inline __m256i higher_first(__m256i group)
{
    return _mm256_sllv_epi64(group, _mm256_setr_epi64x(2, 2, 0, 0));
}

ISA static inline __m256i higher_second(__m256i group)
{
    return _mm256_srlv_epi64(group, _mm256_setr_epi64x(2, 2, 4, 4));
}

ISA static inline __m256i higher_last(const uint8_t *plane)
{
    return _mm256_slli_epi64(pairs_last(plane), 2);
}

ISA static int32_t dot1_avx2(const uint8_t *signs, const int8_t *w, size_t n)
{
    /* 16-bit sums of pairs, at most 254 each time: 128 times, 32,512, do not overflow */
    __m256i sum = _mm256_setzero_si256(), one = _mm256_set1_epi8(1);
    for (size_t i = 0; i < n; i += 32) {
        __m256i chosen = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(w + i)), spread(signs + i / 8));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(one, chosen));
    }
    return sum_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
}

ISA static inline __m256i products(__m256i t, const int8_t *w)
{
    /* 127 * 127 * 2 = 32,258: the 16-bit pair sum does not saturate */
    __m256i pairs = _mm256_maddubs_epi16(t, _mm256_loadu_si256((const __m256i *)w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* A set sign, all ones, taken from a pair in bits 2 and 3 adds one: an index of the table as dot3_avx2 lays it. */
ISA static inline __m256i look_up3(__m256i table, __m256i higher, __m256i sign)
{
    return _mm256_shuffle_epi8(table, _mm256_sub_epi8(_mm256_and_si256(higher, _mm256_set1_epi8(12)), sign));
}

ISA static int32_t dot3_avx2(const uint8_t *signs, const uint8_t *upper, const int8_t *w, const uint8_t *table,
                             size_t n)
{
    const __m128i laid = _mm_setr_epi8(0, 4, 0, 4, 1, 5, 1, 5, 2, 6, 2, 6, 3, 7, 3, 7);
    const __m256i t = _mm256_shuffle_epi8(eight_bytes(table), _mm256_broadcastsi128_si256(laid));
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;
    for (const int8_t *end = w + n / 64 * 64; w < end; w += 64, signs += 8, upper += 16) {
        __m256i group = sixteen_bytes(upper), sign = eight_bytes(signs);
        s0 = _mm256_add_epi32(s0, products(look_up3(t, higher_first(group), spread_from(sign, 0)), w));
        s1 = _mm256_add_epi32(s1, products(look_up3(t, higher_second(group), spread_from(sign, 4)), w + 32));
    }
    if (n % 64)
        s0 = _mm256_add_epi32(s0, products(look_up3(t, higher_last(upper), spread(signs)), w));
    return sum_epi32(_mm256_add_epi32(s0, s1));
}

ISA static inline __m256i look_up5(__m256i clear, __m256i set, __m256i higher, __m256i lower, __m256i sign)
{
    __m256i four = _mm256_or_si256(_mm256_and_si256(higher, _mm256_set1_epi8(12)),
                                   _mm256_and_si256(lower, _mm256_set1_epi8(3)));
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(clear, four), _mm256_shuffle_epi8(set, four), sign);
}

ISA static int32_t dot5_avx2(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const int8_t *w,
                             const uint8_t *table, size_t n)
{
    const __m256i clear = sixteen_bytes(table), set = sixteen_bytes(table + 16);
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;
    for (const int8_t *end = w + n / 64 * 64; w < end; w += 64, signs += 8, upper += 16, lower += 16) {
        __m256i high = sixteen_bytes(upper), low = sixteen_bytes(lower), sign = eight_bytes(signs);
        __m256i t0 = look_up5(clear, set, higher_first(high), pairs_first(low), spread_from(sign, 0));
        __m256i t1 = look_up5(clear, set, higher_second(high), pairs_second(low), spread_from(sign, 4));
        s0 = _mm256_add_epi32(s0, products(t0, w));
        s1 = _mm256_add_epi32(s1, products(t1, w + 32));
    }
    if (n % 64) {
        __m256i t = look_up5(clear, set, higher_last(upper), pairs_last(lower), spread(signs));
        s0 = _mm256_add_epi32(s0, products(t, w));
    }
    return sum_epi32(_mm256_add_epi32(s0, s1));
}

/* The pairs of position i of n and of the 31 after it, in bits 0 and 1, and nothing beside them. */
ISA static inline __m256i pairs_at(const uint8_t *plane, size_t i, size_t n)
{
    __m256i pairs = i % 64 ? pairs_second(sixteen_bytes(plane + i / 64 * 16))
                           : n - i >= 64 ? pairs_first(sixteen_bytes(plane + i / 4)) : pairs_last(plane + i / 4);
    return _mm256_and_si256(pairs, _mm256_set1_epi8(3));
}

ISA static inline __m256i codes_at(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower,
                                   const uint8_t *lows, size_t i, size_t n)
{
    __m256i code = _mm256_slli_epi16(pairs_at(upper, i, n), 5); /* nothing crosses into the next byte */
    code = _mm256_or_si256(code, _mm256_slli_epi16(pairs_at(lower, i, n), 3));
    code = _mm256_or_si256(code, _mm256_and_si256(spread(signs + i / 8), _mm256_set1_epi8((char)128)));
    code = _mm256_or_si256(code, _mm256_and_si256(spread(lows + i / 8), _mm256_set1_epi8(4)));
    code = _mm256_or_si256(code, _mm256_and_si256(spread(lows + (n + i) / 8), _mm256_set1_epi8(2)));
    return _mm256_or_si256(code, _mm256_and_si256(spread(lows + (2 * n + i) / 8), _mm256_set1_epi8(1)));
}

/* Table values one by one. A gather is no faster (Zen 4, 128 dimensions: 67 ns, this: 64), and slow where
 * CVE-2022-40982 is patched. Sixteen byte shuffles and fifteen blends for either byte of a value: 66 ns, and a tenth
 * less than this from 384 on. */
ISA static int32_t dot8_avx2(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                             const int16_t *w, const int16_t *table, size_t n)
{
    const int16_t *t = table;
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 32) {
        uint8_t code[32];
        _mm256_storeu_si256((__m256i *)code, codes_at(signs, upper, lower, lows, i, n));
        for (const uint8_t *c = code; c < code + 32; c += 16, w += 16) {
            __m256i values =
                _mm256_setr_epi16(t[c[0]], t[c[1]], t[c[2]], t[c[3]], t[c[4]], t[c[5]], t[c[6]], t[c[7]], t[c[8]],
                                  t[c[9]], t[c[10]], t[c[11]], t[c[12]], t[c[13]], t[c[14]], t[c[15]]);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(values, _mm256_loadu_si256((const __m256i *)w)));
        }
    }
    return sum_epi32(sum);
}

ISA static float l2_avx2(const float *a, const float *b, size_t n)
{
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 d0 = _mm256_sub_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
        __m256 d1 = _mm256_sub_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8));
        s0 = _mm256_fmadd_ps(d0, d0, s0);
        s1 = _mm256_fmadd_ps(d1, d1, s1);
    }
    float sum = sum_ps(_mm256_add_ps(s0, s1));
    for (; i < n; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

ISA static float ip_avx2(const float *a, const float *b, size_t n)
{
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
    }
    float sum = sum_ps(_mm256_add_ps(s0, s1));
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* The low bytes of eight numbers below 256. */
ISA static inline void store_bytes(uint8_t *out, __m256i v)
{
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)out, _mm_packus_epi16(words, words));
}

/* A first guess from the grid, then up by one where the next edge is not above. A z that overflowed is pulled back, so
 * that the last edge, +inf, stops every lane. */
ISA static void encode_avx2(const float *x, const float *mean, const float *inv_scale, const dl_grid *grid,
                            uint8_t *codes, size_t n)
{
    /* a byte is the top one of the four that end with it: nothing beyond the grid is read */
    const int *cells = (const int *)(const void *)((const char *)grid + offsetof(dl_grid, cells) - 3);
    const __m256 origin = _mm256_set1_ps(grid->origin), per_cell = _mm256_set1_ps(grid->per_cell);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 z = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(mean + i)),
                                 _mm256_loadu_ps(inv_scale + i));
        z = _mm256_min_ps(z, _mm256_set1_ps(FLT_MAX));
        __m256 cell = _mm256_mul_ps(_mm256_sub_ps(z, origin), per_cell);
        cell = _mm256_min_ps(_mm256_max_ps(cell, _mm256_setzero_ps()), _mm256_set1_ps(DL_CELLS - 1));
        __m256i code = _mm256_srli_epi32(_mm256_i32gather_epi32(cells, _mm256_cvttps_epi32(cell), 1), 24);
        for (uint32_t step = 0; step < grid->most; step++) {
            __m256 low = _mm256_cmp_ps(_mm256_i32gather_ps(grid->edges, code, 4), z, _CMP_LE_OQ);
            if (!_mm256_movemask_ps(low))
                break;
            code = _mm256_sub_epi32(code, _mm256_castps_si256(low)); /* all ones: minus one */
        }
        store_bytes(codes + i, code);
    }
    dl_kernels_scalar.encode(x + i, mean + i, inv_scale + i, grid, codes + i, n - i);
}

ISA static void decode_avx2(const uint8_t *codes, const float *mean, const float *scale, const float *table, float *out,
                            size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(scale + i), _mm256_i32gather_ps(table, code, 4));
        _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_loadu_ps(mean + i), value));
    }
    dl_kernels_scalar.decode(codes + i, mean + i, scale + i, table, out + i, n - i);
}

static inline void put_bits(uint8_t *plane, int bits)
{
    memcpy(plane, &bits, sizeof bits);
}

/* The pairs that start at bit `from` of the codes of 64 positions, or of 32, to a plane. */
ISA static inline void put_pairs64(uint8_t *plane, __m256i first, __m256i second, int from)
{
    const __m256i pair = _mm256_set1_epi8(3);
    first = _mm256_and_si256(_mm256_srli_epi16(first, from), pair);
    second = _mm256_and_si256(_mm256_srli_epi16(second, from), pair);
    __m256i halves = _mm256_or_si256(first, _mm256_slli_epi16(second, 4));
    __m128i odd = _mm_slli_epi16(_mm256_extracti128_si256(halves, 1), 2);
    _mm_storeu_si128((__m128i *)plane, _mm_or_si128(_mm256_castsi256_si128(halves), odd));
}

ISA static inline void put_pairs32(uint8_t *plane, __m256i codes, int from)
{
    __m256i pairs = _mm256_and_si256(_mm256_srli_epi16(codes, from), _mm256_set1_epi8(3));
    __m128i second = _mm_slli_epi16(_mm256_extracti128_si256(pairs, 1), 4);
    __m128i halves = _mm_or_si128(_mm256_castsi256_si128(pairs), second);
    __m128i odd = _mm_slli_epi16(_mm_unpackhi_epi64(halves, halves), 2);
    _mm_storel_epi64((__m128i *)plane, _mm_or_si128(halves, odd));
}

ISA static void split_avx2(const uint8_t *codes, uint8_t *signs, uint8_t *upper, uint8_t *lower, uint8_t *lows,
                           size_t n)
{
    for (size_t i = 0; i < n; i += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(codes + i));
        put_bits(signs + i / 8, _mm256_movemask_epi8(code));
        put_bits(lows + i / 8, _mm256_movemask_epi8(_mm256_slli_epi16(code, 5)));
        put_bits(lows + (n + i) / 8, _mm256_movemask_epi8(_mm256_slli_epi16(code, 6)));
        put_bits(lows + (2 * n + i) / 8, _mm256_movemask_epi8(_mm256_slli_epi16(code, 7)));
    }
    for (const uint8_t *end = codes + n / 64 * 64; codes < end; codes += 64, upper += 16, lower += 16) {
        __m256i first = _mm256_loadu_si256((const __m256i *)codes);
        __m256i second = _mm256_loadu_si256((const __m256i *)(codes + 32));
        put_pairs64(upper, first, second, 5);
        put_pairs64(lower, first, second, 3);
    }
    if (n % 64) {
        __m256i code = _mm256_loadu_si256((const __m256i *)codes);
        put_pairs32(upper, code, 5);
        put_pairs32(lower, code, 3);
    }
}

ISA static void join_avx2(const uint8_t *signs, const uint8_t *upper, const uint8_t *lower, const uint8_t *lows,
                          uint8_t *codes, size_t n)
{
    for (size_t i = 0; i < n; i += 32)
        _mm256_storeu_si256((__m256i *)(codes + i), codes_at(signs, upper, lower, lows, i, n));
}

ISA static inline __m256i rounded(__m256 x, float inverse, float most)
{
    x = _mm256_mul_ps(x, _mm256_set1_ps(inverse));
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-most)), _mm256_set1_ps(most)));
}

ISA static int32_t weights_avx2(const float *x, float inverse8, float inverse16, int8_t *w8, int16_t *w16, size_t n)
{
    __m256i sum = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 value = _mm256_loadu_ps(x + i);
        __m256i narrow = rounded(value, inverse8, 127), wide = rounded(value, inverse16, 32767);
        sum = _mm256_add_epi32(sum, narrow);
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1));
        _mm_storel_epi64((__m128i *)(w8 + i), _mm_packs_epi16(words, words));
        _mm_storeu_si128((__m128i *)(w16 + i),
                         _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
    }
    return sum_epi32(sum) + dl_kernels_scalar.weights(x + i, inverse8, inverse16, w8 + i, w16 + i, n - i);
}

/* Three levels within a register: the partner, plus or minus x, in one instruction: exact, since a product with
 * 1 or -1 does not round. */
ISA static inline __m256 hadamard8(__m256 x)
{
    x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(x, 0xB1));
    x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(x, 0x4E));
    return _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(x, x, 1));
}

ISA static inline __m256 flipped(__m256 x, const uint32_t *signs)
{
    return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)signs)));
}

#define VECTOR __m256
#define LANES 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ALL _mm256_set1_ps
#define FLIPPED flipped
#define WITHIN hadamard8
#include "hadamard.h"

const dl_kernels dl_kernels_avx2 = {
    "avx2",  dot1_avx2,   dot3_avx2,   dot5_avx2,  dot8_avx2, l2_avx2,
    ip_avx2, encode_avx2, decode_avx2, split_avx2, join_avx2, weights_avx2, hadamard_vectors,
};
#endif
