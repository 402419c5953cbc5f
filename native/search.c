/* Reading: search, exact, get, scan. Each pins the moment it answers for and copies what it returns while it holds the pin. */
#include <math.h>

#include "internal.h"

enum { SCAN_GAIN = 5 }; /* rows scanned in the time of one walked to */

void dl_hits_free(dl_hits *h)
{
    free(h->bytes);
    memset(h, 0, sizeof *h);
}

/* Answers under way: the arrays of fixed size, then what grows. They become one piece at the end. */
typedef struct {
    dl_hits *hits;
    uint8_t *keys, *payloads;
    size_t at, key_size, payload_size, key_capacity, payload_capacity; /* next hit; bytes written, bytes there is room for */
} writer;

/* Where the arrays lie, 8-byte ones first. */
static void lay_out(dl_hits *h)
{
    size_t n = (size_t)h->nq * h->k;
    h->rows = (uint64_t *)(void *)h->bytes;
    h->key_offsets = h->rows + n;
    h->payload_offsets = h->key_offsets + n + 1;
    h->distances = (float *)(h->payload_offsets + n + 1);
    h->counts = (uint32_t *)(h->distances + n);
    h->frames = (uint8_t *)(h->counts + h->nq);
}

static int hits_begin(writer *w, dl_hits *h, uint32_t nq, uint32_t k)
{
    *w = (writer){.hits = h};
    *h = (dl_hits){.nq = nq, .k = k};
    h->size = (size_t)nq * k * (8 + 8 + 8 + 4 + 1) + 16 + 4 * (size_t)nq;
    h->bytes = dl_zalloc(h->size);
    if (!h->bytes)
        return DL_ENOMEM;
    lay_out(h);
    return DL_OK;
}

static int append(uint8_t **bytes, size_t *size, size_t *capacity, const uint8_t *more, size_t extra)
{
    if (*size + extra > *capacity) {
        size_t grown = 2 * (*size + extra) + 64;
        uint8_t *memory = dl_grow(*bytes, grown);
        if (!memory)
            return DL_ENOMEM;
        *bytes = memory;
        *capacity = grown;
    }
    if (extra)
        memcpy(*bytes + *size, more, extra);
    *size += extra;
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
        if (j < count) {
            const slab *s = slab_of(ix, items[j].slot);
            uint32_t i = items[j].slot & SLAB_MASK;
            record *r = atomic_load_explicit(&s->records[i], memory_order_acquire);
            const uint8_t *key = key_of(ix, r);
            /* rounding may take a distance that cannot be negative below zero */
            h->distances[w->at] = ix->config.metric == DL_IP ? items[j].distance : fmaxf(items[j].distance, 0);
            h->rows[w->at] = atomic_load(&s->row[i]);
            h->frames[w->at] = head_of(ix, items[j].slot)->frame;
            if (append(&w->keys, &w->key_size, &w->key_capacity, key, r->key_size) != DL_OK ||
                append(&w->payloads, &w->payload_size, &w->payload_capacity, key + r->key_size, r->payload_size) != DL_OK)
                return DL_ENOMEM;
        }
        h->key_offsets[w->at + 1] = w->key_size;
        h->payload_offsets[w->at + 1] = w->payload_size;
    }
    return DL_OK;
}

/* Put the answers into one piece, or on an error give everything back. */
static int hits_end(writer *w, int code)
{
    dl_hits *h = w->hits;
    uint8_t *bytes = code == DL_OK ? dl_grow(h->bytes, h->size + w->key_size + w->payload_size) : NULL;
    if (bytes) {
        h->bytes = bytes;
        lay_out(h);
        h->keys = bytes + h->size;
        h->payloads = h->keys + w->key_size;
        if (w->key_size)
            memcpy(h->keys, w->keys, w->key_size);
        if (w->payload_size)
            memcpy(h->payloads, w->payloads, w->payload_size);
        h->size += w->key_size + w->payload_size;
    } else {
        dl_hits_free(h);
        code = code == DL_OK ? DL_ENOMEM : code;
    }
    free(w->keys);
    free(w->payloads);
    return code;
}

/* ---- search ---- */

/* A hop among few allowed slots meets mostly others, at a random place each; a scan reads the allowed ones alone, in order, and
 * leaves most by their signs. Measured on the three sets of docs/tuning.md: a scanned row costs a fifth of a walked one. */
static bool scan_pays(const dl_index *ix, const dl_request *ask, uint64_t permitted)
{
    uint64_t live = atomic_load(&ix->live);
    return ask->allowed && permitted * permitted <= SCAN_GAIN * (uint64_t)ask->ef * ix->config.m * (live + 1);
}

static uint32_t slots_of(uint32_t words)
{
    return words < MAX_SLABS * (DL_SLAB / 64) ? words * 64 : MAX_SLABS * DL_SLAB;
}

static uint64_t bits_of(const allowed *only)
{
    uint64_t count = 0;
    for (uint32_t word = 0; word < only->slots / 64; word++)
        count += (uint64_t)__builtin_popcountll(only->bits[word]);
    return count;
}

/* The answer to r->query, into r->picked: routed at five bits, refined at eight, the best `rescore` measured on raw vectors. */
static int search_one(dl_index *ix, reader *r, uint64_t now, const dl_request *ask, uint32_t ef, const allowed *only, bool scanned,
                      uint32_t *count)
{
    uint32_t entry = get(&ix->entry);
    *count = 0;
    if (entry == NONE)
        return DL_OK;
    int code = scanned ? scan(ix, r, ef, now, only) : walk(ix, r, descend(ix, r, entry, 0), 0, ef, now, only);
    if (code == DL_OK)
        code = found(r, count);
    if (code == DL_OK)
        code = sharpen(ix, r, count, ask->rescore > ask->k ? ask->rescore : ask->k, by_codes);
    if (code == DL_OK && ask->rescore) {
        *count = *count < ask->rescore ? *count : ask->rescore;
        code = sharpen(ix, r, count, ask->k, by_raw);
    }
    *count = ask->k < *count ? ask->k : *count;
    return code;
}

/* All within the radius: as wide as it takes for half of what is found to lie outside, so that what lies inside is found as surely
 * as the nearest are by twice as many candidates. */
static int search_radius(dl_index *ix, reader *r, uint64_t now, const dl_request *ask, const allowed *only, bool scanned, uint32_t *count)
{
    uint64_t live = atomic_load(&ix->live);
    for (uint32_t ef = ask->ef;; ef *= 2) {
        dl_request wide = *ask;
        wide.k = ef;
        wide.rescore = ask->rescore ? ef : 0;
        int code = search_one(ix, r, now, &wide, ef, only, scanned, count);
        if (code != DL_OK)
            return code;
        uint32_t inside = 0;
        while (inside < *count && r->picked[inside].distance <= ask->radius)
            inside++;
        bool whole = 2 * inside <= *count || *count < ef || *count >= live || ef / 2 >= ask->k;
        *count = inside < ask->k ? inside : ask->k;
        if (whole)
            return DL_OK;
    }
}

int dl_search(dl_index *ix, const float *queries, uint32_t nq, const dl_request *request, dl_hits *out)
{
    size_t dim = ix->config.dim;
    dl_request ask = *request;
    if (!ask.k || !ask.ef || ask.k > 1u << 24 || ask.ef > 1u << 24 || !all_finite(queries, nq * dim) || isnan(ask.radius) ||
        (uint64_t)nq * ask.k > 1u << 30)
        return DL_EINVAL;
    bool bounded = ask.radius < INFINITY;
    if (ask.ef < ask.k && !bounded)
        ask.ef = ask.k;
    if (ask.rescore && ask.rescore < ask.k)
        ask.rescore = ask.k; /* a hit by its code and one by its raw vector are not compared */
    allowed some = {ask.allowed, slots_of(ask.allowed_words)};
    const allowed *only = ask.allowed ? &some : NULL;
    uint64_t permitted = only ? bits_of(only) : 0, live = atomic_load(&ix->live) + 1;
    bool scanned = only && scan_pays(ix, &ask, permitted);
    if (only && !scanned && !bounded && permitted < live) { /* each allowed node comes with others that show the way to it as well */
        uint32_t fewer = (uint32_t)((double)ask.ef * sqrt((double)permitted / (double)live));
        ask.ef = fewer < ask.k ? ask.k : fewer;
    }
    writer w;
    int code = hits_begin(&w, out, nq, ask.k);
    for (uint32_t q = 0; code == DL_OK && q < nq; q++) {
        uint64_t now;
        uint32_t count;
        reader *r = reader_enter(ix, &now);
        if (!r) {
            code = DL_ENOMEM;
            break;
        }
        to_plain(ix, queries + q * dim, r->plain);
        probe_vector(ix, &r->query, r->plain);
        code = bounded ? search_radius(ix, r, now, &ask, only, scanned, &count)
                       : search_one(ix, r, now, &ask, ask.ef, only, scanned, &count);
        if (code == DL_OK)
            code = hits_add(ix, &w, q, r->picked, count);
        reader_leave(r);
    }
    return hits_end(&w, code);
}

/* ---- exact ---- */

static int exact_all(dl_index *ix, reader *r, uint64_t now, const float *plain, uint32_t nq, heap *heaps, uint32_t k,
                     const allowed *only)
{
    size_t dim = ix->config.dim;
    uint32_t slots = atomic_load(&ix->slot_count);
    for (uint32_t slot = 0; slot < slots; slot++) {
        const slab *s = slab_of(ix, slot);
        uint32_t i = slot & SLAB_MASK;
        if (!answers(ix, slot, flags_of(head_of(ix, slot)), now, only))
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

int dl_exact(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, const uint64_t *bits, uint32_t words, dl_hits *out)
{
    size_t dim = ix->config.dim;
    if (!k || k > 1u << 24 || !all_finite(queries, nq * dim))
        return DL_EINVAL;
    allowed only = {bits, slots_of(words)};
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
        code = exact_all(ix, r, now, plain, nq, heaps, k, bits ? &only : NULL);
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
    return hits_end(&w, code);
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
        pthread_mutex_lock(&ix->commit);
        near item = {0, map_find(ix, key, size, key_hash(key, size))};
        pthread_mutex_unlock(&ix->commit);
        if (item.slot != NONE && vectors) {
            const float *raw = raw_of(ix, atomic_load(&slab_of(ix, item.slot)->row[item.slot & SLAB_MASK]));
            if (raw) {
                memcpy(vectors + q * dim, raw, dim * sizeof *raw);
            } else {
                probe_slot(ix, &r->query, item.slot, r->codes);
                if (!r->query.has_plain)
                    dl_unrotate(r->query.turned, r->query.plain, 1, ix->config.dim, ix->config.rotation_seed);
                memcpy(vectors + q * dim, r->query.plain, dim * sizeof *vectors);
            }
        }
        code = hits_add(ix, &w, (uint32_t)q, &item, item.slot != NONE);
        reader_leave(r);
    }
    return hits_end(&w, code);
}

int dl_scan(dl_index *ix, uint32_t number, uint32_t *slots, dl_hits *out)
{
    writer w;
    uint64_t now;
    near items[DL_SLAB];
    uint32_t count = 0;
    reader *r = reader_enter(ix, &now);
    if (!r)
        return DL_ENOMEM;
    if (number >= atomic_load(&ix->slab_count)) {
        reader_leave(r);
        return DL_EINVAL;
    }
    const slab *s = atomic_load(&ix->slabs[number]);
    for (uint32_t i = 0; i < DL_SLAB; i++) {
        uint32_t slot = number * DL_SLAB + i;
        if (atomic_load(&s->records[i]) && answers(ix, slot, flags_of(head_of(ix, slot)), now, NULL))
            items[count++] = (near){0, slot};
    }
    for (uint32_t i = 0; slots && i < count; i++)
        slots[i] = items[i].slot;
    int code = hits_begin(&w, out, 1, count ? count : 1);
    if (code == DL_OK)
        code = hits_add(ix, &w, 0, items, count);
    reader_leave(r);
    return hits_end(&w, code);
}
