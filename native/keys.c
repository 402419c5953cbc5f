/* The key map: open addressing with linear probing over slots; keys themselves lie in the slots' records. Removal shifts the
 * run back, so there are no tombstones and lookups stay short under churn. */
#include "internal.h"

enum { LEAST = 64 }; /* buckets */

uint32_t key_hash(const uint8_t *key, size_t size)
{
    uint64_t hash = dl_mix(size);
    for (; size >= 8; key += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, key, 8);
        hash = dl_mix(hash ^ word);
    }
    uint64_t tail = 0;
    memcpy(&tail, key, size);
    return (uint32_t)(dl_mix(hash ^ tail) >> 32);
}

uint32_t record_hash(const dl_index *ix, record *r)
{
    return key_hash(key_of(ix, r), r->key_size);
}

static uint32_t home_of(const dl_index *ix, uint32_t slot, uint32_t mask)
{
    return record_hash(ix, record_of(ix, slot)) & mask;
}

static void place_slot(uint32_t *buckets, uint32_t mask, uint32_t home, uint32_t slot)
{
    while (buckets[home] != NONE)
        home = (home + 1) & mask;
    buckets[home] = slot;
}

static int resize(dl_index *ix, uint32_t size)
{
    uint32_t *buckets = table_new((size_t)size * sizeof *buckets);
    if (!buckets)
        return DL_ENOMEM;
    memset(buckets, 0xFF, size * sizeof *buckets);
    for (uint32_t i = 0; ix->buckets && i <= ix->bucket_mask; i++)
        if (ix->buckets[i] != NONE)
            place_slot(buckets, size - 1, home_of(ix, ix->buckets[i], size - 1), ix->buckets[i]);
    table_free(ix->buckets, ((size_t)ix->bucket_mask + 1) * sizeof *buckets);
    ix->buckets = buckets;
    ix->bucket_mask = size - 1;
    return DL_OK;
}

/* Room for one more than are being linked, at a load of at most three quarters. */
int map_reserve(dl_index *ix)
{
    if (ix->buckets && ix->bucket_used + ix->linking + 1 <= (ix->bucket_mask + 1) / 4 * 3)
        return DL_OK;
    return resize(ix, ix->buckets ? 2 * (ix->bucket_mask + 1) : LEAST);
}

/* Give back what it has long outgrown: down to a load of a quarter to a half, so that it neither grows nor shrinks soon. */
void map_trim(dl_index *ix)
{
    uint32_t size = LEAST;
    while (size < 2 * ix->bucket_used)
        size *= 2;
    if (ix->buckets && size <= (ix->bucket_mask + 1) / 4)
        resize(ix, size); /* without memory for it the larger one does */
}

uint32_t map_find(const dl_index *ix, const uint8_t *key, size_t size, uint32_t hash)
{
    for (uint32_t at = hash & ix->bucket_mask; ix->buckets && ix->buckets[at] != NONE; at = (at + 1) & ix->bucket_mask) {
        record *r = record_of(ix, ix->buckets[at]);
        if (r->key_size == size && memcmp(key_of(ix, r), key, size) == 0)
            return ix->buckets[at];
    }
    return NONE;
}

static uint32_t bucket_of(const dl_index *ix, uint32_t slot, uint32_t hash)
{
    uint32_t at = hash & ix->bucket_mask;
    while (ix->buckets[at] != slot)
        at = (at + 1) & ix->bucket_mask;
    return at;
}

void map_set(dl_index *ix, uint32_t old, uint32_t slot, uint32_t hash)
{
    if (old != NONE) {
        ix->buckets[bucket_of(ix, old, hash)] = slot;
        return;
    }
    place_slot(ix->buckets, ix->bucket_mask, hash & ix->bucket_mask, slot);
    ix->bucket_used++;
}

void map_remove(dl_index *ix, uint32_t slot, uint32_t hash)
{
    uint32_t hole = bucket_of(ix, slot, hash), mask = ix->bucket_mask;
    for (uint32_t at = (hole + 1) & mask; ix->buckets[at] != NONE; at = (at + 1) & mask) {
        uint32_t home = home_of(ix, ix->buckets[at], mask);
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            ix->buckets[hole] = ix->buckets[at];
            hole = at;
        }
    }
    ix->buckets[hole] = NONE;
    ix->bucket_used--;
}
