/* Reading: search, exact, get, scan. Each pins the moment it answers for and copies what it returns while it holds the pin. */
#include <math.h>

#include "internal.h"

void dl_hits_free(dl_hits *h)
{
    free(h->counts);
    free(h->distances);
    free(h->rows);
    free(h->frames);
    free(h->key_offsets);
    free(h->payload_offsets);
    free(h->keys);
    free(h->payloads);
    memset(h, 0, sizeof *h);
}

typedef struct {
    dl_hits *hits;
    size_t at, key_capacity, payload_capacity; /* next hit; bytes there is room for */
} writer;

static int hits_begin(writer *w, dl_hits *h, uint32_t nq, uint32_t k)
{
    size_t n = (size_t)nq * k;
    *w = (writer){.hits = h};
    *h = (dl_hits){.nq = nq, .k = k};
    h->counts = dl_zalloc(nq * sizeof *h->counts);
    h->distances = dl_alloc(n * sizeof *h->distances);
    h->rows = dl_alloc(n * sizeof *h->rows);
    h->frames = dl_zalloc(n);
    h->key_offsets = dl_zalloc((n + 1) * sizeof *h->key_offsets);
    h->payload_offsets = dl_zalloc((n + 1) * sizeof *h->payload_offsets);
    if (!h->counts || !h->distances || !h->rows || !h->frames || !h->key_offsets || !h->payload_offsets) {
        dl_hits_free(h);
        return DL_ENOMEM;
    }
    return DL_OK;
}

static int append(uint8_t **bytes, size_t *capacity, size_t size, const uint8_t *more, size_t extra)
{
    if (size + extra > *capacity) {
        size_t grown = 2 * (size + extra) + 64;
        uint8_t *memory = dl_grow(*bytes, grown);
        if (!memory)
            return DL_ENOMEM;
        *bytes = memory;
        *capacity = grown;
    }
    if (extra)
        memcpy(*bytes + size, more, extra);
    return DL_OK;
}

/* One answer of `count` slots, in order; what is missing to k stays empty. */
static int hits_add(const dl_index *ix, writer *w, uint32_t query, const near *items, uint32_t count)
{
    dl_hits *h = w->hits;
    h->counts[query] = count;
    for (uint32_t j = 0; j < h->k; j++, w->at++) {
        h->distances[w->at] = INFINITY;
        h->rows[w->at] = NO_ROW;
        size_t keys = h->key_offsets[w->at], payloads = h->payload_offsets[w->at];
        if (j < count) {
            const slab *s = slab_of(ix, items[j].slot);
            uint32_t i = items[j].slot & SLAB_MASK;
            const record *r = atomic_load_explicit(&s->records[i], memory_order_acquire);
            /* rounding may take a distance that cannot be negative below zero */
            h->distances[w->at] = ix->config.metric == DL_IP ? items[j].distance : fmaxf(items[j].distance, 0);
            h->rows[w->at] = atomic_load(&s->row[i]);
            h->frames[w->at] = atomic_load_explicit(&s->block, memory_order_acquire)->frames[i];
            if (append(&h->keys, &w->key_capacity, keys, r->bytes, r->key_size) != DL_OK ||
                append(&h->payloads, &w->payload_capacity, payloads, r->bytes + r->key_size, r->payload_size) != DL_OK)
                return DL_ENOMEM;
            keys += r->key_size;
            payloads += r->payload_size;
        }
        h->key_offsets[w->at + 1] = keys;
        h->payload_offsets[w->at + 1] = payloads;
    }
    return DL_OK;
}

/* The answer to r->query, into r->picked: routed at four bits, refined at eight, the best `rescore` measured on raw vectors. */
static int search_one(dl_index *ix, reader *r, uint64_t now, uint32_t k, uint32_t ef, uint32_t rescore, uint32_t *count)
{
    uint32_t entry = get(&ix->entry);
    *count = 0;
    if (entry == NONE)
        return DL_OK;
    int code = search_layer(ix, r, descend(ix, &r->query, entry, 0), 0, ef, now);
    if (code != DL_OK || (code = refine(ix, r, count)) != DL_OK)
        return code;
    uint32_t best = rescore < k ? k : rescore;
    best = best < *count ? best : *count;
    if (rescore) {
        for (uint32_t i = 0; i < best; i++) {
            uint32_t slot = r->picked[i].slot;
            const float *raw = raw_of(ix, atomic_load(&slab_of(ix, slot)->row[slot & SLAB_MASK]));
            if (raw)
                r->picked[i].distance = distance_raw(ix, r->query.plain, raw);
        }
        near_sort(r->picked, best);
    }
    *count = k < best ? k : best;
    return DL_OK;
}

int dl_search(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, uint32_t ef, uint32_t rescore, dl_hits *out)
{
    size_t dim = ix->config.dim;
    if (!k || !ef || k > 1u << 24 || ef > 1u << 24 || !all_finite(queries, nq * dim))
        return DL_EINVAL;
    ef = ef < k ? k : ef;
    writer w;
    int code = hits_begin(&w, out, nq, k);
    for (uint32_t q = 0; code == DL_OK && q < nq; q++) {
        uint64_t now;
        uint32_t count;
        reader *r = reader_enter(ix, &now);
        if (!r) {
            code = DL_ENOMEM;
            break;
        }
        to_plain(ix, queries + q * dim, r->query.turned);
        probe_vector(ix, &r->query, r->query.turned);
        code = search_one(ix, r, now, k, ef, rescore, &count);
        if (code == DL_OK)
            code = hits_add(ix, &w, q, r->picked, count);
        reader_leave(r);
    }
    if (code != DL_OK)
        dl_hits_free(out);
    return code;
}

/* ---- exact ---- */

static int exact_all(dl_index *ix, reader *r, uint64_t now, const float *plain, uint32_t nq, heap *heaps, uint32_t k)
{
    size_t dim = ix->config.dim;
    uint32_t slots = atomic_load(&ix->slot_count);
    for (uint32_t slot = 0; slot < slots; slot++) {
        const slab *s = slab_of(ix, slot);
        uint32_t i = slot & SLAB_MASK;
        if (!visible(s, i, now))
            continue;
        const float *raw = raw_of(ix, atomic_load(&s->row[i]));
        for (uint32_t q = 0; q < nq; q++) {
            near item = {0, slot};
            if (raw) {
                item.distance = distance_raw(ix, plain + q * dim, raw);
            } else {
                probe_vector(ix, &r->query, plain + q * dim);
                item.distance = distance8(ix, &r->query, slot);
            }
            if (heaps[q].size == k && item.distance >= heaps[q].items[0].distance)
                continue;
            if (!heap_push(&heaps[q], item, true))
                return DL_ENOMEM;
            if (heaps[q].size > k)
                heap_pop(&heaps[q], true);
        }
    }
    return DL_OK;
}

int dl_exact(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, dl_hits *out)
{
    size_t dim = ix->config.dim;
    if (!k || k > 1u << 24 || !all_finite(queries, nq * dim))
        return DL_EINVAL;
    writer w;
    uint64_t now;
    int code = hits_begin(&w, out, nq, k);
    if (code != DL_OK)
        return code;
    float *plain = dl_alloc(nq * dim * sizeof *plain);
    heap *heaps = dl_zalloc(nq * sizeof *heaps);
    reader *r = plain && heaps ? reader_enter(ix, &now) : NULL;
    code = r ? DL_OK : DL_ENOMEM;
    for (uint32_t q = 0; r && q < nq; q++)
        to_plain(ix, queries + q * dim, plain + q * dim);
    if (r)
        code = exact_all(ix, r, now, plain, nq, heaps, k);
    for (uint32_t q = 0; code == DL_OK && q < nq; q++) {
        near_sort(heaps[q].items, heaps[q].size);
        code = hits_add(ix, &w, q, heaps[q].items, heaps[q].size);
    }
    if (r)
        reader_leave(r);
    for (uint32_t q = 0; heaps && q < nq; q++)
        free(heaps[q].items);
    free(heaps);
    free(plain);
    if (code != DL_OK)
        dl_hits_free(out);
    return code;
}

/* ---- by key ---- */

int dl_get(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, float *vectors, dl_hits *out)
{
    writer w;
    size_t dim = ix->config.dim;
    int code = hits_begin(&w, out, (uint32_t)n, 1);
    for (size_t q = 0; code == DL_OK && q < n; q++) {
        uint64_t now;
        reader *r = reader_enter(ix, &now);
        if (!r) {
            code = DL_ENOMEM;
            break;
        }
        size_t size = key_offsets[q + 1] - key_offsets[q];
        const uint8_t *key = keys + key_offsets[q];
        pthread_mutex_lock(&ix->map_lock);
        near item = {0, map_find(ix, key, size, key_hash(key, size))};
        pthread_mutex_unlock(&ix->map_lock);
        if (item.slot != NONE && vectors) {
            const float *raw = raw_of(ix, atomic_load(&slab_of(ix, item.slot)->row[item.slot & SLAB_MASK]));
            if (raw) {
                memcpy(vectors + q * dim, raw, dim * sizeof *raw);
            } else {
                probe_slot(ix, &r->query, item.slot);
                if (!r->query.has_plain)
                    dl_unrotate(r->query.turned, r->query.plain, 1, ix->config.dim, ix->config.rotation_seed);
                memcpy(vectors + q * dim, r->query.plain, dim * sizeof *vectors);
            }
        }
        code = hits_add(ix, &w, (uint32_t)q, &item, item.slot != NONE);
        reader_leave(r);
    }
    if (code != DL_OK)
        dl_hits_free(out);
    return code;
}

int dl_scan(dl_index *ix, uint32_t number, dl_hits *out)
{
    if (number >= atomic_load(&ix->slab_count))
        return DL_EINVAL;
    writer w;
    uint64_t now;
    near items[DL_SLAB];
    uint32_t count = 0;
    reader *r = reader_enter(ix, &now);
    if (!r)
        return DL_ENOMEM;
    const slab *s = atomic_load(&ix->slabs[number]);
    for (uint32_t i = 0; i < DL_SLAB; i++)
        if (visible(s, i, now))
            items[count++] = (near){0, number * DL_SLAB + i};
    int code = hits_begin(&w, out, 1, count ? count : 1);
    if (code == DL_OK)
        code = hits_add(ix, &w, 0, items, count);
    reader_leave(r);
    if (code != DL_OK)
        dl_hits_free(out);
    return code;
}
