/* The key map: open addressing with linear probing over slots; keys themselves lie in the slots' records. Removal shifts the
 * run back, so there are no tombstones and lookups stay short under churn. */
#include "internal.h"

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

uint32_t record_hash(const record *r)
{
    return key_hash(r->bytes, r->key_size);
}

static record *record_of(const dl_index *ix, uint32_t slot)
{
    return atomic_load_explicit(&slab_of(ix, slot)->records[slot & SLAB_MASK], memory_order_acquire);
}

static void place(bucket *buckets, uint32_t mask, bucket item)
{
    uint32_t at = item.hash & mask;
    while (buckets[at].slot != NONE)
        at = (at + 1) & mask;
    buckets[at] = item;
}

/* Room for one more at a load of at most three quarters. */
int map_reserve(dl_index *ix)
{
    if (ix->buckets && ix->bucket_used + 1 <= (ix->bucket_mask + 1) / 4 * 3)
        return DL_OK;
    uint32_t size = ix->buckets ? 2 * (ix->bucket_mask + 1) : 64;
    bucket *buckets = dl_alloc(size * sizeof *buckets);
    if (!buckets)
        return DL_ENOMEM;
    memset(buckets, 0xFF, size * sizeof *buckets);
    for (uint32_t i = 0; ix->buckets && i <= ix->bucket_mask; i++)
        if (ix->buckets[i].slot != NONE)
            place(buckets, size - 1, ix->buckets[i]);
    pthread_mutex_lock(&ix->map_lock);
    bucket *old = ix->buckets;
    ix->buckets = buckets;
    ix->bucket_mask = size - 1;
    pthread_mutex_unlock(&ix->map_lock);
    free(old);
    return DL_OK;
}

static uint32_t bucket_of(const dl_index *ix, const uint8_t *key, size_t size, uint32_t hash)
{
    for (uint32_t at = hash & ix->bucket_mask;; at = (at + 1) & ix->bucket_mask) {
        bucket b = ix->buckets[at];
        if (b.slot == NONE)
            return NONE;
        if (b.hash != hash)
            continue;
        const record *r = record_of(ix, b.slot);
        if (r->key_size == size && memcmp(r->bytes, key, size) == 0)
            return at;
    }
}

uint32_t map_find(const dl_index *ix, const uint8_t *key, size_t size, uint32_t hash)
{
    if (!ix->buckets)
        return NONE;
    uint32_t at = bucket_of(ix, key, size, hash);
    return at == NONE ? NONE : ix->buckets[at].slot;
}

static uint32_t bucket_of_slot(const dl_index *ix, uint32_t slot, uint32_t hash)
{
    uint32_t at = hash & ix->bucket_mask;
    while (ix->buckets[at].slot != slot)
        at = (at + 1) & ix->bucket_mask;
    return at;
}

void map_set(dl_index *ix, uint32_t old, uint32_t slot, uint32_t hash)
{
    if (old != NONE) {
        ix->buckets[bucket_of_slot(ix, old, hash)].slot = slot;
        return;
    }
    place(ix->buckets, ix->bucket_mask, (bucket){hash, slot});
    ix->bucket_used++;
}

void map_remove(dl_index *ix, uint32_t slot, uint32_t hash)
{
    uint32_t hole = bucket_of_slot(ix, slot, hash), mask = ix->bucket_mask;
    for (uint32_t at = (hole + 1) & mask; ix->buckets[at].slot != NONE; at = (at + 1) & mask) {
        uint32_t home = ix->buckets[at].hash & mask;
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            ix->buckets[hole] = ix->buckets[at];
            hole = at;
        }
    }
    ix->buckets[hole].slot = NONE;
    ix->bucket_used--;
}
