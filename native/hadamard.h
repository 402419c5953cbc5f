/* The fast Hadamard transform of one instruction set, for the file that includes this once it has defined
 *   ISA      the attribute of its functions, or nothing
 *   VECTOR   a vector of LANES floats, with the compilers' own + - *
 *   LOAD(p), STORE(p, v), ALL(f)
 *   FLIPPED(v, signs)  the vector with the signs flipped whose words' top bits are set
 *   WITHIN(v)  the levels inside one vector
 * and which gets hadamard_vectors. Its additions are the scalar's in the same order, so that each rounding is.
 *
 * Eight vectors stay in registers through three levels, and through those inside a vector: 128 floats of AVX-512 pass
 * through memory once. */
#define INLINE ISA static inline __attribute__((always_inline))

enum { HELD = 8, CHUNK = HELD * LANES };

/* The levels among `count` vectors, each times `scale`. */
INLINE void across(VECTOR *v, size_t count, VECTOR scale)
{
    for (size_t half = 1; half < count; half *= 2)
        for (size_t i = 0; i < count; i++)
            if (!(i & half)) {
                VECTOR a = v[i], b = v[i + half];
                v[i] = a + b;
                v[i + half] = a - b;
            }
    for (size_t i = 0; i < count; i++)
        v[i] = v[i] * scale;
}

/* The first levels, of `count` vectors at a time. */
INLINE void first_levels(const float *in, float *out, const uint32_t *signs, size_t n, size_t count, float scale)
{
    for (size_t start = 0; start < n; start += count * LANES) {
        VECTOR v[HELD];
        for (size_t i = 0; i < count; i++) {
            VECTOR x = FLIPPED(LOAD(in + start + i * LANES), signs + start + i * LANES);
            v[i] = WITHIN(x);
        }
        across(v, count, ALL(scale));
        for (size_t i = 0; i < count; i++)
            STORE(out + start + i * LANES, v[i]);
    }
}

/* The levels from `half` on, as many as `count` vectors have. */
INLINE void levels(float *x, size_t n, size_t half, size_t count, float scale)
{
    for (size_t start = 0; start < n; start += count * half)
        for (float *p = x + start; p < x + start + half; p += LANES) {
            VECTOR v[HELD];
            for (size_t i = 0; i < count; i++)
                v[i] = LOAD(p + i * half);
            across(v, count, ALL(scale));
            for (size_t i = 0; i < count; i++)
                STORE(p + i * half, v[i]);
        }
}

/* Scaled in the last pass; a product with 1 does not round. */
ISA static void hadamard_vectors(const float *in, float *out, const uint32_t *signs, size_t n)
{
    if (n < LANES) {
        dl_kernels_scalar.hadamard(in, out, signs, n);
        return;
    }
    const float scale = 1.0f / sqrtf((float)n);
    size_t half = n < CHUNK ? LANES : CHUNK;
    float now = half == n ? scale : 1;
    if (half == CHUNK)
        first_levels(in, out, signs, n, HELD, now);
    else
        first_levels(in, out, signs, n, 1, now);
    while (half < n) {
        size_t left = n / half, count = left < HELD ? left : HELD;
        now = count == left ? scale : 1;
        if (count == 8)
            levels(out, n, half, 8, now);
        else if (count == 4)
            levels(out, n, half, 4, now);
        else
            levels(out, n, half, 2, now);
        half *= count;
    }
}
