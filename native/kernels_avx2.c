/* Kernels for AVX2 and FMA. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "internal.h"

#define ISA __attribute__((target("avx2,fma")))

ISA static inline int32_t sum_epi32(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
}

ISA static inline float sum_ps(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

/* 32 nibbles of 16 bytes: the low ones in the low lane. */
ISA static inline __m256i nibbles(const uint8_t *p)
{
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(x), _mm_srli_epi16(x, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

ISA static int32_t dot4_avx2(const uint8_t *plane, const int8_t *weights, const uint8_t *table, size_t n)
{
    __m256i lut = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    __m256i one = _mm256_set1_epi16(1), sum = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 32, plane += 16) {
        __m256i t = _mm256_shuffle_epi8(lut, nibbles(plane));
        __m256i w = _mm256_loadu_si256((const __m256i *)(weights + i));
        /* 127 * 127 * 2 = 32,258: the 16-bit pair sum does not saturate */
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(t, w), one));
    }
    return sum_epi32(sum);
}

/* Eight table values at a time by gather; the table is read four bytes at an entry, so the upper half is shifted away. */
ISA static int32_t dot8_avx2(const uint8_t *high, const uint8_t *low, const int16_t *weights, const int16_t *table, size_t n)
{
    __m256i sum = _mm256_setzero_si256();
    const int *base = (const int *)(const void *)table;
    for (size_t i = 0; i < n; i += 32, high += 16, low += 16) {
        __m256i codes = _mm256_or_si256(_mm256_slli_epi16(nibbles(high), 4), nibbles(low));
        uint8_t code[32];
        _mm256_storeu_si256((__m256i *)code, codes);
        for (size_t j = 0; j < 32; j += 8) {
            __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(code + j)));
            __m256i t = _mm256_i32gather_epi32(base, index, 2);
            __m256i value = _mm256_srai_epi32(_mm256_slli_epi32(t, 16), 16);
            __m256i w = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(weights + i + j)));
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(value, w));
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

const dl_kernels dl_kernels_avx2 = {"avx2", dot4_avx2, dot8_avx2, l2_avx2, ip_avx2};
#endif
