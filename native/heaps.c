/* Lists of near items: heaps, sorting. */
#include "internal.h"

/* In a heap, `max` keeps the farthest on top. */

static inline bool above(near a, near b, bool max)
{
    return max ? a.distance > b.distance : a.distance < b.distance;
}

bool heap_push(heap *h, near item, bool max)
{
    if (h->size == h->capacity) {
        uint32_t capacity = h->capacity ? 2 * h->capacity : 256;
        near *items = dl_grow(h->items, capacity * sizeof *items);
        if (!items)
            return false;
        h->items = items;
        h->capacity = capacity;
    }
    uint32_t at = h->size++;
    while (at && above(item, h->items[(at - 1) / 2], max)) {
        h->items[at] = h->items[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    h->items[at] = item;
    return true;
}

near heap_pop(heap *h, bool max)
{
    near top = h->items[0], last = h->items[--h->size];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < h->size; at = child) {
        if (child + 1 < h->size && above(h->items[child + 1], h->items[child], max))
            child++;
        if (!above(h->items[child], last, max))
            break;
        h->items[at] = h->items[child];
    }
    if (h->size)
        h->items[at] = last;
    return top;
}

static int by_distance(const void *a, const void *b)
{
    const near *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

void near_sort(near *items, size_t n)
{
    if (n > 64) {
        qsort(items, n, sizeof *items, by_distance);
        return;
    }
    for (size_t i = 1; i < n; i++) { /* what comes here is nearly in order */
        near item = items[i];
        size_t at = i;
        for (; at && by_distance(&item, &items[at - 1]) < 0; at--)
            items[at] = items[at - 1];
        items[at] = item;
    }
}

int picked_reserve(reader *r, size_t n)
{
    if (r->picked && n <= r->picked_size)
        return DL_OK;
    near *items = dl_grow(r->picked, n * sizeof *items);
    if (!items)
        return DL_ENOMEM;
    r->picked = items;
    r->picked_size = n;
    return DL_OK;
}
