/* From what a walk found to what is answered: measured by all eight bits, and on raw vectors. */
#include "walk.h"

#define HOPE 3.5f /* standard deviations in favour, of coarser against more exact distances; measured: docs/tuning.md */

enum {
    CALIBRATING = 8, /* measurements that tell how far coarser ones are off */
    ASKED = 12,      /* rows asked of memory before they are measured */
    STREAM = 8       /* lines of a raw row that are asked for */
};

/* What the walk found, by the bits that route and in order, into r->picked: as far as it would have walked, and `want` at least,
 * if so many were kept. */
int found(reader *r, uint32_t want, uint32_t *count)
{
    bool pooled = r->reach.most <= POOL_MOST;
    *count = pooled ? r->pool_size : r->results.size;
    for (float limit = worst(r); pooled && *count > r->reach.least && *count > want && r->pool[*count - 1].distance > limit;)
        --*count;
    int code = picked_reserve(r, *count);
    if (code != DL_OK)
        return code;
    if (*count)
        memcpy(r->picked, pooled ? r->pool : r->results.items, *count * sizeof(near));
    for (uint32_t i = 0; i < *count; i++)
        r->picked[i].slot &= ~EXPANDED;
    if (!pooled)
        near_sort(r->picked, *count);
    return DL_OK;
}

/* Measure r->picked, which is in order, more exactly, as far as the `want` best may lie: the first ones show how far the coarser
 * distances are off, and the first whose own leaves it no hope ends it. In order again; *count is how many were measured. */
int sharpen(const dl_index *ix, reader *r, uint32_t *count, uint32_t want, measured by)
{
    near *items = r->picked;
    float sum = 0, squares = 0, slack = 0;
    uint32_t i = 0, asked = 0, least = want < CALIBRATING ? CALIBRATING : want;
    r->results.size = 0;
    for (; i < *count; i++) {
        float coarse = items[i].distance;
        if (i >= least && coarse - slack > r->results.items[0].distance)
            break;
        for (uint32_t sure = i < least && least < *count ? least : *count; asked < sure && asked < i + ASKED; asked++)
            by(ix, r, items[asked].slot, 0, true);
        items[i].distance = by(ix, r, items[i].slot, coarse, false);
        if (i < least) {
            float error = coarse - items[i].distance;
            sum += error;
            squares += error * error;
            float mean = sum / (float)(i + 1);
            slack = mean + HOPE * sqrtf(fmaxf(squares / (float)(i + 1) - mean * mean, 0));
        }
        if (i >= want && items[i].distance >= r->results.items[0].distance)
            continue;
        if (!heap_push(&r->results, items[i], true))
            return DL_ENOMEM;
        if (r->results.size > want)
            heap_pop(&r->results, true);
    }
    *count = i;
    near_sort(items, i);
    return DL_OK;
}

float by_codes(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead)
{
    (void)coarse;
    if (!ahead)
        return fine_distance(ix, &r->query, slot);
    bool is_float;
    const head *h = (const head *)(const void *)row_of(ix, slot, &is_float);
    if (!is_float)
        fetch_row(rest_of(ix, h, slot), ix->rest_bytes);
    return 0;
}

/* A row that was not attached keeps its coarser distance. */
float by_raw(const dl_index *ix, reader *r, uint32_t slot, float coarse, bool ahead)
{
    const float *raw = raw_of(ix, atomic_load_explicit(&slab_of(ix, slot)->row[slot & SLAB_MASK], memory_order_acquire));
    if (ahead && raw)
        fetch_row(raw, STREAM * LINE); /* the rest of it streams */
    return ahead ? 0 : raw ? distance_raw(ix, r->query.plain, raw) : coarse;
}
