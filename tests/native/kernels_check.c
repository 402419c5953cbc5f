/* Every set of kernels that this machine has against the scalar one, over random and extreme inputs at many lengths.
 * Each buffer ends at a page that cannot be touched, so that a read beyond its end is a crash. Returns the number of
 * differences, at most 99. Also for an emulated machine: make arm64. */
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driftline.h"
#include "kernels.h"

enum { PAGE = 65536, MOST = 4096 }; /* no machine's pages are larger */

static int differences;

static void expect(bool same, const char *what, const char *set, size_t n)
{
    if (same)
        return;
    printf("%s of %s differs at length %zu\n", what, set, n);
    differences += differences < 99;
}

static uint64_t state = 1;

static uint32_t any(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static float uniform(float low, float high)
{
    return low + (high - low) * (float)(any() >> 7) / (float)(1u << 24);
}

/* Three quarters of a normal law's look, a quarter of outliers. */
static float value(void)
{
    float x = uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1);
    return any() % 4 ? x : x * expf(uniform(-20, 6));
}

/* Memory whose last byte is the last one before a page without access. */
static void *at_end(size_t bytes)
{
    size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    uint8_t *base = mmap(NULL, room + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + room, PAGE, PROT_NONE) != 0) {
        perror("mmap");
        exit(100);
    }
    return base + room - bytes;
}

/* A buffer for the longest row, of which the last `n` items are used. */
typedef struct {
    uint8_t *end;
} area;

static area area_of(size_t bytes)
{
    return (area){(uint8_t *)at_end(bytes) + bytes};
}

static void *last(area a, size_t bytes)
{
    return a.end - bytes;
}

/* Random rows, and those that bring each sum to its bounds: every weight, code and table value at an end. */
enum kind { RANDOM, LEAST, GREATEST };

static void check_codes(const dl_kernels *k, size_t n, enum kind kind)
{
    static area codes, signs, uppers, lowers, lows, out, w8, w16, table3, table5, table8;
    if (!codes.end) {
        codes = area_of(MOST), out = area_of(MOST), signs = area_of(MOST / 8), uppers = area_of(MOST / 4);
        lowers = area_of(MOST / 4), lows = area_of(3 * MOST / 8), w8 = area_of(MOST), w16 = area_of(2 * MOST);
        table3 = area_of(8), table5 = area_of(32), table8 = area_of(512);
    }
    const dl_kernels *truth = &dl_kernels_scalar;
    uint8_t *code = last(codes, n), *sign = last(signs, n / 8), *upper = last(uppers, n / 4);
    uint8_t *lower = last(lowers, n / 4), *low = last(lows, 3 * n / 8), *again = last(out, n);
    uint8_t *three = last(table3, 8), *five = last(table5, 32);
    int8_t *narrow = last(w8, n);
    int16_t *wide = last(w16, 2 * n), *eight = last(table8, 512);
    int32_t bound = (int32_t)(((1u << 19) - 1) / n < 32767 ? ((1u << 19) - 1) / n : 32767);
    int32_t end = kind == LEAST ? -1 : 1;
    for (size_t i = 0; i < n; i++) {
        code[i] = kind != RANDOM ? 255 : (uint8_t)any();
        narrow[i] = (int8_t)(kind != RANDOM ? end * 127 : (int32_t)(any() % 255) - 127);
        wide[i] = (int16_t)(kind != RANDOM ? end * bound : (int32_t)(any() % (2 * (uint32_t)bound + 1)) - bound);
    }
    for (size_t i = 0; i < 8; i++)
        three[i] = kind != RANDOM ? 127 : (uint8_t)(any() % 128);
    for (size_t i = 0; i < 32; i++)
        five[i] = kind != RANDOM ? 127 : (uint8_t)(any() % 128);
    for (size_t i = 0; i < 256; i++)
        eight[i] = (int16_t)(kind != RANDOM ? -4096 : (int32_t)(any() % 8193) - 4096);

    static uint8_t planes[MOST];
    uint8_t *true_upper = planes + n / 8, *true_lower = true_upper + n / 4, *true_low = true_lower + n / 4;
    truth->split(code, planes, true_upper, true_lower, true_low, n);
    k->split(code, sign, upper, lower, low, n);
    expect(!memcmp(sign, planes, n / 8) && !memcmp(upper, true_upper, n / 4) && !memcmp(lower, true_lower, n / 4) &&
               !memcmp(low, true_low, 3 * n / 8),
           "split", k->name, n);
    memset(again, 0, n);
    k->join(sign, upper, lower, low, again, n);
    expect(!memcmp(code, again, n), "join", k->name, n);
    int64_t sum1 = 0, sum3 = 0, sum5 = 0, sum8 = 0;
    for (size_t i = 0; i < n; i++) {
        sum1 += code[i] >> 7 ? narrow[i] : 0;
        sum3 += (int32_t)narrow[i] * three[code[i] >> 5];
        sum5 += (int32_t)narrow[i] * five[code[i] >> 3];
        sum8 += (int32_t)wide[i] * eight[code[i]];
    }
    expect(k->dot1(sign, narrow, n) == sum1, "dot1", k->name, n);
    expect(k->dot3(sign, upper, narrow, three, n) == sum3, "dot3", k->name, n);
    expect(k->dot5(sign, upper, lower, narrow, five, n) == sum5, "dot5", k->name, n);
    expect(k->dot8(sign, upper, lower, low, wide, eight, n) == sum8, "dot8", k->name, n);
}

static bool near(float x, double truth, double size)
{
    return fabs((double)x - truth) <= 1e-5 * size + 1e-30;
}

static void check_floats(const dl_kernels *k, size_t n, bool huge)
{
    static area xs, ys, zs, outs, signs, codes, w8, w16, table;
    if (!xs.end) {
        signs = area_of(4 * MOST);
        xs = area_of(4 * MOST), ys = area_of(4 * MOST), zs = area_of(4 * MOST), outs = area_of(4 * MOST);
        codes = area_of(MOST), w8 = area_of(MOST), w16 = area_of(2 * MOST), table = area_of(1024);
    }
    float *x = last(xs, 4 * n), *y = last(ys, 4 * n), *z = last(zs, 4 * n), *out = last(outs, 4 * n);
    float *decoded = last(table, 1024);
    static float expected[MOST];
    uint8_t *code = last(codes, n);
    double l2 = 0, ip = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        float scale = huge ? 1e14f : 1;
        x[i] = scale * value(), y[i] = scale * value(), z[i] = uniform(0, 2);
        code[i] = (uint8_t)any();
        double d = (double)x[i] - (double)y[i], product = (double)x[i] * (double)y[i];
        l2 += d * d;
        ip += product;
        size += fabs(product);
    }
    for (size_t i = 0; i < 256; i++)
        decoded[i] = value();
    expect(near(k->l2(x, y, n), l2, l2), "l2", k->name, n);
    expect(near(k->ip(x, y, n), ip, size), "ip", k->name, n);

    dl_kernels_scalar.decode(code, x, z, decoded, expected, n);
    k->decode(code, x, z, decoded, out, n);
    for (size_t i = 0; i < n; i++)
        expect(near(out[i], expected[i], fabs((double)x[i]) + fabs((double)z[i] * decoded[code[i]])), "decode", k->name,
               n);

    static int8_t narrow[MOST];
    static int16_t wide[MOST];
    int8_t *own_narrow = last(w8, n);
    int16_t *own_wide = last(w16, 2 * n);
    float inverse8 = huge ? 1e30f : 40, inverse16 = huge ? 1e30f : 10000.5f;
    for (size_t i = 0; i < n && i % 2 == 0; i++)
        x[i] = (float)((int32_t)(any() % 512) - 256) / 80; /* ties, and beyond the clamp */
    int32_t sum = dl_kernels_scalar.weights(x, inverse8, inverse16, narrow, wide, n);
    expect(k->weights(x, inverse8, inverse16, own_narrow, own_wide, n) == sum, "sum of weights", k->name, n);
    expect(!memcmp(narrow, own_narrow, n) && !memcmp(wide, own_wide, 2 * n), "weights", k->name, n);

    if (n && !(n & (n - 1))) {
        uint32_t *sign = last(signs, 4 * n);
        for (size_t i = 0; i < n; i++)
            sign[i] = any() << 31;
        dl_kernels_scalar.hadamard(y, expected, sign, n);
        k->hadamard(y, out, sign, n);
        expect(!memcmp(out, expected, 4 * n), "hadamard", k->name, n);
        k->hadamard(y, y, sign, n);
        expect(!memcmp(y, expected, 4 * n), "hadamard in place", k->name, n);
    }
}

/* Values at, beside and far from the edges, each of which may stand in any lane. */
static void check_encode(const dl_kernels *k, const float *edges, const char *what)
{
    static area grids, xs, zeros, ones, codes;
    if (!grids.end) {
        grids = area_of(sizeof(dl_grid)), xs = area_of(4 * MOST), zeros = area_of(4 * MOST), ones = area_of(4 * MOST);
        codes = area_of(MOST);
    }
    dl_grid *grid = last(grids, sizeof *grid);
    dl_grid_of(edges, grid);
    size_t count = 0;
    static float values[MOST];
    for (int i = 0; i < 255; i++) {
        values[count++] = edges[i];
        values[count++] = nextafterf(edges[i], FLT_MAX);
        values[count++] = nextafterf(edges[i], -FLT_MAX);
        values[count++] = edges[i] * 1e6f;
    }
    const float far[] = {0,       -0.0f,  1e30f,   -1e30f, FLT_MAX,  -FLT_MAX,
                         FLT_MIN, 1e-45f, -1e-45f, 1e18f,  INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++)
        values[count++] = far[i];
    while (count < MOST)
        values[count++] = any() % 2 ? value() : uniform(edges[0], edges[254]);
    for (size_t n = 0; n <= MOST; n = n < 130 ? n + 1 : n + MOST - 130) {
        float *x = last(xs, 4 * n), *mean = last(zeros, 4 * n), *inverse = last(ones, 4 * n);
        uint8_t *code = last(codes, n);
        for (size_t i = 0; i < n; i++) {
            x[i] = n == MOST ? values[i] : values[any() % MOST];
            mean[i] = any() % 4 ? 0 : value();
            inverse[i] = any() % 4 ? 1 : fabsf(value());
        }
        k->encode(x, mean, inverse, grid, code, n);
        for (size_t i = 0; i < n; i++) {
            float z = (x[i] - mean[i]) * inverse[i];
            unsigned expected = 0;
            for (int j = 0; j < 255; j++)
                expected += edges[j] <= z;
            expect(isnan(z) || code[i] == expected, what, k->name, n);
        }
    }
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void check_set(const dl_kernels *k)
{
    for (size_t n = 0; n <= 160; n++)
        for (int round = 0; round < 8; round++)
            check_floats(k, n, round % 2);
    for (size_t n = 256; n <= MOST; n *= 2)
        check_floats(k, n, false);
    for (size_t n = 32; n <= MOST; n = n < 1024 ? n + 32 : 2 * n)
        for (int round = 0; round < 8; round++)
            check_codes(k, n, round == 0 ? LEAST : round == 1 ? GREATEST : RANDOM);

    float edges[255];
    for (int i = 0; i < 255; i++)
        edges[i] = (float)(i - 127) / 32;
    check_encode(k, edges, "encode (even edges)");
    for (int i = 0; i < 255; i++)
        edges[i] = logf((i + 1) / (255.0f - i)); /* wide at the ends, like a law's */
    check_encode(k, edges, "encode (a law's edges)");
    for (int i = 0; i < 255; i++)
        edges[i] = i < 250 ? 1 + (float)i * 1e-6f : 1e3f * (float)i;
    check_encode(k, edges, "encode (crowded edges)");
    for (int i = 0; i < 255; i++)
        edges[i] = (float)(i / 50);
    check_encode(k, edges, "encode (repeated edges)");
    for (int i = 0; i < 255; i++)
        edges[i] = 0.1f;
    check_encode(k, edges, "encode (one edge)");
    for (int i = 0; i < 255; i++)
        edges[i] = (float)(i - 127) * 1e-45f;
    check_encode(k, edges, "encode (least edges)");
    for (int i = 0; i < 255; i++)
        edges[i] = (float)(i - 127) * (FLT_MAX / 128);
    check_encode(k, edges, "encode (largest edges)");
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 255; i++)
            edges[i] = value();
        qsort(edges, 255, sizeof *edges, ascending);
        check_encode(k, edges, "encode (random edges)");
    }
}

int main(void)
{
    const char *const sets[] = {"scalar", "avx2", "avx512", "neon"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        bool here = dl_force_isa(sets[i]) == DL_OK;
        if (here)
            check_set(dl_kernels_now());
        printf("%s: %s\n", sets[i], here ? "checked" : "not on this machine");
    }
    printf("%d differences\n", differences);
    return differences;
}
