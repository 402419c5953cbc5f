/* The witness of the recall canary: what a search finds, beside what it should have found, of one and the same moment.
 *
 * The second answer comes from one pass over the codes of all rows, in the order in which they lie: each is decoded once for all
 * queries, and nothing is left by an estimate. It is nearly that of a pass over all raw vectors, which are four times as large and
 * may lie on disk; dl_witness can take that one as well, to tell by how much the two differ. */
#include <math.h>

#include "internal.h"

enum {
    TOGETHER = 16, /* queries a pass, and a pin: while it stands no slot and no replaced block is given back */
    KEPT = 8       /* times k, of the nearest by code, that are measured on raw vectors */
};

typedef struct {
    float *plain, *turned; /* [TOGETHER * dim]: the queries, in original and in rotated coordinates */
    heap nearest[TOGETHER];
} batch;

/* Among the `most` nearest of each query by code. */
static int pass_codes(dl_index *ix, reader *r, uint64_t now, batch *b, uint32_t nq, uint32_t most)
{
    const dl_kernels *k = dl_kernels_now();
    uint32_t metric = ix->config.metric, slots = atomic_load(&ix->slot_count);
    size_t dim = ix->config.dim;
    float (*by)(const float *, const float *, size_t) = metric == DL_IP ? k->ip : k->l2;
    float share = metric == DL_IP ? -1 : metric == DL_COSINE ? 0.5f : 1; /* as distance_float */
    for (uint32_t slot = 0; slot < slots; slot++) {
        bool is_float;
        const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
        if (!answers(ix, slot, flags_of(h), now, NULL)) /* first: a free slot's row means nothing */
            continue;
        const float *row = (const float *)(h + 1), *queries = b->plain;
        if (!is_float) {
            const frame *f = frame_of(ix, h->frame);
            planes at = planes_of(ix, h, rest_of(ix, h, slot));
            k->join(at.signs, at.upper, at.lower, at.lows, r->codes, ix->padded);
            k->decode(r->codes, f->mean, f->scale, f->fine, r->turned, dim);
            row = r->turned;
            queries = f->rotated ? b->turned : b->plain;
        }
        for (uint32_t q = 0; q < nq; q++)
            if (!heap_keep(&b->nearest[q], (near){share * by(queries + q * dim, row, dim), slot}, most))
                return DL_ENOMEM;
    }
    return DL_OK;
}

/* By raw vectors where there are any, so that distances of whatever origin compare. */
static void measure_again(const dl_index *ix, reader *r, near *items, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = items[i].slot;
        const float *raw = raw_of(ix, atomic_load(&slab_of(ix, slot)->row[slot & SLAB_MASK]));
        items[i].distance = raw ? distance_raw(ix, r->query.plain, raw) : fine_distance(ix, &r->query, slot);
    }
}

static void write_distances(const dl_index *ix, near *items, uint32_t count, uint32_t k, float *out)
{
    near_sort(items, count);
    for (uint32_t i = 0; i < k; i++) /* as a search answers */
        out[i] = i >= count ? INFINITY : ix->config.metric == DL_IP ? items[i].distance : fmaxf(items[i].distance, 0);
}

static int witness_batch(dl_index *ix, reader *r, uint64_t now, batch *b, uint32_t nq, const request *ask, float *found,
                         float *best, float *raw)
{
    size_t dim = ix->config.dim;
    uint32_t k = ask->k, count;
    int code = pass_codes(ix, r, now, b, nq, KEPT * k);
    for (uint32_t q = 0; code == DL_OK && q < nq; q++) {
        heap *nearest = &b->nearest[q];
        probe_vector(ix, &r->query, b->plain + q * dim);
        measure_again(ix, r, nearest->items, nearest->size);
        write_distances(ix, nearest->items, nearest->size, k, best + (size_t)q * k);
        nearest->size = 0;
        code = search_one(ix, r, now, ask, ask->ef, NULL, &count);
        if (code == DL_OK) {
            measure_again(ix, r, r->picked, count);
            write_distances(ix, r->picked, count, k, found + (size_t)q * k);
        }
    }
    if (code == DL_OK && raw)
        code = exact_all(ix, r, now, b->plain, nq, b->nearest, k, NULL);
    for (uint32_t q = 0; code == DL_OK && raw && q < nq; q++)
        write_distances(ix, b->nearest[q].items, b->nearest[q].size, k, raw + (size_t)q * k);
    return code;
}

int dl_witness(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, uint32_t ef, uint32_t rescore, float *found,
               float *best, float *raw)
{
    size_t dim = ix->config.dim;
    if (!k || !ef || k > 1u << 24 || ef > 1u << 24 || (uint64_t)nq * k > 1u << 30 || !all_finite(queries, nq * dim) ||
        !all_directed(ix, queries, nq))
        return DL_EINVAL;
    request ask = {k, ef > k ? ef : k, rescore && rescore < k ? k : rescore, INFINITY};
    batch b = {dl_alloc(2 * TOGETHER * dim * sizeof(float)), NULL, {{NULL, 0, 0}}};
    int code = b.plain ? DL_OK : DL_ENOMEM;
    b.turned = b.plain ? b.plain + TOGETHER * dim : NULL;
    for (uint32_t start = 0; code == DL_OK && start < nq; start += TOGETHER) {
        uint32_t count = nq - start < TOGETHER ? nq - start : TOGETHER;
        size_t at = (size_t)start * k;
        uint64_t now;
        for (uint32_t q = 0; q < count; q++) {
            to_plain(ix, queries + (start + q) * dim, b.plain + q * dim);
            b.nearest[q].size = 0;
        }
        dl_rotate(b.plain, b.turned, count, ix->config.dim, ix->config.rotation_seed);
        reader *r = reader_enter(ix, &now);
        if (!r) {
            code = DL_ENOMEM;
            break;
        }
        code = witness_batch(ix, r, now, &b, count, &ask, found + at, best + at, raw ? raw + at : NULL);
        reader_leave(r);
    }
    for (uint32_t q = 0; q < TOGETHER; q++)
        free(b.nearest[q].items);
    free(b.plain);
    return code;
}
