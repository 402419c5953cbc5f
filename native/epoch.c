/* Who is reading, and what may therefore not be reused yet.
 *
 * The clock ticks once a visible change. A reader pins the clock's value, then reads the clock again and works on that
 * moment: whatever died or was retired at a tick above its pin stays. Both steps are sequentially consistent, so a
 * writer that finds no pin below a stamp knows that no later reader can reach what was unlinked before it. */
#include "internal.h"

static reader *reader_new(dl_index *ix)
{
    reader *r = dl_zalloc(sizeof *r);
    if (!r)
        return NULL;
    size_t floats = 2 * (size_t)ix->config.dim * sizeof(float);
    r->memory = dl_zalloc(floats + ix->padded);
    if (!r->memory || probe_init(ix, &r->query) != DL_OK) {
        reader_free(ix, r);
        return NULL;
    }
    r->plain = r->memory;
    r->turned = r->plain + ix->config.dim;
    r->codes = (uint8_t *)(r->turned + ix->config.dim);
    atomic_store(&r->claimed, true);
    reader *first = atomic_load(&ix->readers);
    do
        r->next = first;
    while (!atomic_compare_exchange_weak(&ix->readers, &first, r));
    return r;
}

int reader_links(const dl_index *ix, reader *r)
{
    if (r->kept)
        return DL_OK;
    uint32_t count = 2 * ix->config.m + 1;
    probe *kept = dl_zalloc(count * sizeof *kept);
    int code = kept ? DL_OK : DL_ENOMEM;
    for (uint32_t i = 0; code == DL_OK && i < count; i++)
        code = probe_init(ix, &kept[i]);
    for (uint32_t i = 0; code != DL_OK && kept && i < count; i++)
        probe_free(&kept[i]);
    if (code == DL_OK)
        r->kept = kept;
    else
        free(kept);
    return code;
}

/* Without `now` nothing is pinned: for who shares the structure, where no slot is given back meanwhile. */
reader *reader_enter(dl_index *ix, uint64_t *now)
{
    reader *r = atomic_load(&ix->readers);
    for (; r; r = r->next) {
        bool idle = false;
        if (!atomic_load_explicit(&r->claimed, memory_order_relaxed) &&
            atomic_compare_exchange_strong(&r->claimed, &idle, true))
            break;
    }
    if (!r && !(r = reader_new(ix)))
        return NULL;
    if (now) {
        atomic_store(&r->pin, atomic_load(&ix->clock));
        *now = atomic_load(&ix->clock);
    }
    return r;
}

void reader_leave(reader *r)
{
    atomic_store(&r->pin, 0);
    atomic_store(&r->claimed, false);
}

void reader_free(dl_index *ix, reader *r)
{
    probe_free(&r->query);
    for (uint32_t i = 0; r->kept && i <= 2 * ix->config.m; i++)
        probe_free(&r->kept[i]);
    free(r->kept);
    free(r->memory);
    free(r->seen);
    free(r->marked);
    free(r->pool);
    free(r->candidates.items);
    free(r->results.items);
    free(r->picked);
    free(r);
}

uint64_t oldest_pin(dl_index *ix)
{
    uint64_t oldest = NEVER;
    for (reader *r = atomic_load(&ix->readers); r; r = r->next) {
        uint64_t pin = atomic_load(&r->pin);
        if (pin && pin < oldest)
            oldest = pin;
    }
    return oldest;
}

void retire(dl_index *ix, retired *item, int what)
{
    item->what = what;
    item->stamp = atomic_fetch_add(&ix->clock, 1) + 1;
    item->next = ix->retired;
    ix->retired = item;
    retired_sweep(ix);
}

void retired_sweep(dl_index *ix)
{
    if (!ix->retired)
        return;
    uint64_t oldest = oldest_pin(ix);
    for (retired **at = &ix->retired; *at;) {
        retired *item = *at;
        if (item->stamp > oldest) {
            at = &item->next;
            continue;
        }
        *at = item->next;
        if (item->what == RETIRED_FRAME)
            free(item);
        else if (item->what == RETIRED_BLOCK)
            block_free(ix, (block *)item);
        else
            slab_free(ix, (slab *)item);
    }
}

/* Room for `n` more. */
int queue_reserve(queue *q, size_t n)
{
    if (q->end + n <= q->capacity)
        return DL_OK;
    if (q->start)
        memmove(q->items, q->items + q->start, (q->end - q->start) * sizeof *q->items);
    q->end -= q->start;
    q->start = 0;
    if (q->end + n <= q->capacity / 2)
        return DL_OK;
    size_t capacity = 2 * (q->end + n) + 64;
    stamped *items = dl_grow(q->items, capacity * sizeof *items);
    if (!items)
        return DL_ENOMEM;
    q->items = items;
    q->capacity = capacity;
    return DL_OK;
}

void queue_push(queue *q, uint32_t slot, uint64_t stamp)
{
    q->items[q->end++] = (stamped){slot, stamp};
}

/* Give back what it has long outgrown. Nobody has reserved room. */
void queue_trim(queue *q)
{
    size_t size = q->end - q->start;
    if (q->capacity < 4 * size + DL_SLAB)
        return;
    memmove(q->items, q->items + q->start, size * sizeof *q->items);
    q->start = 0;
    q->end = size;
    stamped *items = dl_grow(q->items, (size + 1) * sizeof *items);
    if (!items)
        return; /* the larger one does */
    q->items = items;
    q->capacity = size + 1;
}
