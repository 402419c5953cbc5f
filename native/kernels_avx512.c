/* Kernels for AVX-512 with VNNI and VBMI. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "internal.h"

#define ISA __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma")))

ISA static inline __m256i nibbles(const uint8_t *p)
{
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(x), _mm_srli_epi16(x, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* 64 nibbles of 32 bytes: four 128-bit lanes, low and high nibbles of each 16 bytes in turn. */
ISA static inline __m512i nibbles64(const uint8_t *p)
{
    __m512i lanes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3),
                                             _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p)));
    __m512i shifted = _mm512_mask_srli_epi16(lanes, 0xFF00FF00u, lanes, 4);
    return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
}

ISA static int32_t dot4_avx512(const uint8_t *plane, const int8_t *weights, const uint8_t *table, size_t n)
{
    __m128i lut = _mm_loadu_si128((const __m128i *)table);
    __m512i sum = _mm512_setzero_si512(), lut4 = _mm512_broadcast_i32x4(lut);
    size_t i = 0;
    for (; i + 64 <= n; i += 64, plane += 32)
        sum = _mm512_dpbusd_epi32(sum, _mm512_shuffle_epi8(lut4, nibbles64(plane)), _mm512_loadu_si512(weights + i));
    if (i < n) {
        __m256i t = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(lut), nibbles(plane));
        __m256i last = _mm256_dpbusd_epi32(_mm256_setzero_si256(), t, _mm256_loadu_si256((const __m256i *)(weights + i)));
        sum = _mm512_add_epi32(sum, _mm512_zextsi256_si512(last));
    }
    return _mm512_reduce_add_epi32(sum);
}

/* The 16-bit table as low and high bytes in four registers each; a look-up is two two-register permutes and a blend on the
 * code's top bit, per byte. Zipping bytes orders values by 128-bit lane; weights are zipped along by permuting words. */
ISA static int32_t dot8_avx512(const uint8_t *high, const uint8_t *low, const int16_t *weights, const int16_t *table, size_t n)
{
    __m512i lo[4], hi[4];
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_loadu_si512(table + 64 * i), b = _mm512_loadu_si512(table + 64 * i + 32);
        lo[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
        hi[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srli_epi16(a, 8))),
                                   _mm512_cvtepi16_epi8(_mm512_srli_epi16(b, 8)), 1);
    }
    const __m512i pairs0 = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), pairs1 = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 64, high += 32, low += 32) {
        bool whole = i + 64 <= n;
        __m512i h = whole ? nibbles64(high) : _mm512_zextsi256_si512(nibbles(high));
        __m512i l = whole ? nibbles64(low) : _mm512_zextsi256_si512(nibbles(low));
        __m512i code = _mm512_or_si512(_mm512_slli_epi16(h, 4), l);
        __mmask64 upper = _mm512_movepi8_mask(code);
        __m512i vlo = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(lo[0], code, lo[1]),
                                             _mm512_permutex2var_epi8(lo[2], code, lo[3]));
        __m512i vhi = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(hi[0], code, hi[1]),
                                             _mm512_permutex2var_epi8(hi[2], code, hi[3]));
        __m512i w0 = _mm512_loadu_si512(weights + i);
        __m512i w1 = whole ? _mm512_loadu_si512(weights + i + 32) : _mm512_setzero_si512();
        sum = _mm512_dpwssd_epi32(sum, _mm512_unpacklo_epi8(vlo, vhi), _mm512_permutex2var_epi64(w0, pairs0, w1));
        sum = _mm512_dpwssd_epi32(sum, _mm512_unpackhi_epi8(vlo, vhi), _mm512_permutex2var_epi64(w0, pairs1, w1));
    }
    return _mm512_reduce_add_epi32(sum);
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
        __mmask16 mask = n - i >= 16 ? 0xFFFF : (__mmask16)((1u << (n - i)) - 1);
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
        __mmask16 mask = n - i >= 16 ? 0xFFFF : (__mmask16)((1u << (n - i)) - 1);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

const dl_kernels dl_kernels_avx512 = {"avx512", dot4_avx512, dot8_avx512, l2_avx512, ip_avx512};
#endif
