/* Reading: search, exact, get, scan. Each pins the moment it answers for and copies what it returns while it holds the pin. */
#include <math.h>

#include "internal.h"

enum { SCAN_GAIN = 5 }; /* rows scanned, for each walked to, that are worth their time */

void dl_hits_free(dl_hits *h)
{
    free(h->bytes);
    memset(h, 0, sizeof *h);
}

/* Where the arrays lie, 8-byte ones first. */
static void lay_out(dl_hits *h)
{
    size_t n = (size_t)h->nq * h->k;
    h->rows = (uint64_t *)(void *)h->bytes;
    h->texts = h->rows + n;
    h->distances = (float *)(h->texts + 2 * n + 1);
    h->counts = (uint32_t *)(h->distances + n);
    h->frames = (uint8_t *)(h->counts + h->nq);
}

/* Room for `more` bytes behind those that are written. */
static int reserve(dl_hits *h, size_t more)
{
    if (h->size + more <= h->capacity)
        return DL_OK;
    size_t capacity = h->size + h->size / 2 + more;
    char *bytes = dl_grow(h->bytes, capacity);
    if (!bytes)
        return DL_ENOMEM;
    h->bytes = bytes;
    h->capacity = capacity;
    lay_out(h);
    return DL_OK;
}

static int hits_begin(dl_hits *h, uint32_t nq, uint32_t k)
{
    size_t n = (size_t)nq * k, arrays = n * (8 + 2 * 8 + 4 + 1) + 8 + 4 * (size_t)nq;
    h->nq = nq;
    h->k = k;
    h->size = 0;
    if (reserve(h, arrays) != DL_OK)
        return DL_ENOMEM;
    lay_out(h);
    h->size = h->texts[0] = arrays;
    return DL_OK;
}

/* Records lie anywhere: all are asked of memory before the first is read. */
static void fetch_records(const dl_index *ix, const near *items, uint32_t count)
{
    for (uint32_t j = 0; j < count; j++)
        __builtin_prefetch(&slab_of(ix, items[j].slot)->records[items[j].slot & SLAB_MASK], 0, 3);
    for (uint32_t j = 0; j < count; j++)
        __builtin_prefetch(record_of(ix, items[j].slot), 0, 3);
}

/* One answer of `count` slots, in order, each after the one before; what is missing to k stays empty. */
static int hits_add(const dl_index *ix, dl_hits *h, uint32_t query, const near *items, uint32_t count)
{
    size_t at = (size_t)query * h->k, end = at + h->k;
    fetch_records(ix, items, count);
    h->counts[query] = count;
    for (uint32_t j = 0; j < count; j++, at++) { /* no items may be NULL */
        const near *item = &items[j];
        const slab *s = slab_of(ix, item->slot);
        uint32_t i = item->slot & SLAB_MASK;
        record *r = atomic_load_explicit(&s->records[i], memory_order_acquire);
        size_t size = (size_t)r->key_size + r->payload_size;
        if (reserve(h, size) != DL_OK)
            return DL_ENOMEM;
        memcpy(h->bytes + h->size, key_of(ix, r), size);
        h->texts[2 * at + 1] = h->size + r->key_size;
        h->size += size;
        h->texts[2 * at + 2] = h->size;
        /* rounding may take a distance that cannot be negative below zero */
        h->distances[at] = ix->config.metric == DL_IP ? item->distance : fmaxf(item->distance, 0);
        h->rows[at] = atomic_load(&s->row[i]);
        h->frames[at] = head_of(ix, item->slot)->frame;
    }
    for (; at < end; at++) {
        h->texts[2 * at + 1] = h->texts[2 * at + 2] = h->size;
        h->distances[at] = INFINITY;
        h->rows[at] = NO_ROW;
        h->frames[at] = 0;
    }
    return DL_OK;
}

/* On an error everything is given back. */
static int hits_end(dl_hits *h, int code)
{
    if (code != DL_OK)
        dl_hits_free(h);
    return code;
}

/* ---- search ---- */

/* The candidates of a walk among the allowed: each comes with others that show the way to it as well. */
static uint32_t narrowed(const dl_index *ix, uint32_t ef, uint32_t k, const allowed *only)
{
    uint64_t live = atomic_load(&ix->live);
    uint32_t fewer = only->count < live ? (uint32_t)((double)ef * sqrt((double)only->count / (double)live)) : ef;
    return fewer < k ? k : fewer;
}

/* A hop among few allowed slots meets mostly others, at a random place each; a scan reads the allowed ones alone, in order, and
 * leaves most by their signs. It misses none of them, so it may take up to twice as long (on the sets of docs/tuning.md). */
static bool scan_pays(const dl_index *ix, uint32_t ef, const allowed *only)
{
    uint64_t live = atomic_load(&ix->live);
    return only->count * only->count <= SCAN_GAIN * (uint64_t)ef * ix->config.m * (live + 1);
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

enum { WIDEST = 3 }; /* times ef: as far as a hard query may go; docs/tuning.md */

/* How far to go for the k nearest. Where distances grow with rank as usual, `ef` nodes lie within ratio times the k-th; a query among
 * many equally near ones meets more of them and one that stands clear fewer, which spends the same work where it is needed (distance
 * adaptive beam search, arXiv 2505.15636). Half of ef is walked from at least, so that a poor start is left. More are kept than are
 * walked from: measured exactly, some of them are nearer. */
static extent reach_of(const dl_index *ix, uint32_t k, uint32_t ef)
{
    float growth = atomic_load(&ix->growth);
    uint32_t most = WIDEST * ef < POOL_MOST ? WIDEST * ef : ef < POOL_MOST ? POOL_MOST : ef;
    if (k >= ef || !(growth > 0))
        return (extent){ef, ef, most, 1, false};
    return (extent){k, k > ef / 2 ? k : ef / 2, most, powf((float)ef / (float)k, growth), false};
}

/* The answer to r->query, into r->picked: routed by the first bits of the codes, refined by all, the best `rescore` measured on raw vectors. */
int search_one(dl_index *ix, reader *r, uint64_t now, const request *ask, uint32_t ef, const allowed *only, uint32_t *count)
{
    uint32_t entry = get(&ix->entry);
    *count = 0;
    if (entry == NONE)
        return DL_OK;
    int code;
    extent reach = reach_of(ix, ask->k, ef);
    if (!only)
        code = walk(ix, r, descend(ix, r, entry, 0), 0, reach, now, NULL);
    else if (scan_pays(ix, ef, only))
        code = scan(ix, r, ef, now, only);
    else
        code = walk_allowed(ix, r, descend(ix, r, entry, 0), narrowed(ix, ef, ask->k, only), ef, reach, now, only);
    uint32_t want = ask->rescore > ask->k ? ask->rescore : ask->k;
    if (code == DL_OK)
        code = found(r, want, count);
    if (code == DL_OK)
        code = sharpen(ix, r, count, want, by_codes);
    if (code == DL_OK && ask->rescore) {
        *count = *count < ask->rescore ? *count : ask->rescore;
        code = sharpen(ix, r, count, ask->k, by_raw);
    }
    *count = ask->k < *count ? ask->k : *count;
    return code;
}

/* All within the radius: as wide as it takes for half of what is found to lie outside, so that what lies inside is found as surely
 * as the nearest are by twice as many candidates. */
static int search_radius(dl_index *ix, reader *r, uint64_t now, const request *ask, const allowed *only, uint32_t *count)
{
    uint64_t live = atomic_load(&ix->live);
    for (uint32_t ef = ask->ef;; ef *= 2) {
        request wide = *ask;
        wide.k = ef;
        wide.rescore = ask->rescore ? ef : 0;
        int code = search_one(ix, r, now, &wide, ef, only, count);
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

int dl_search(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, uint32_t ef, uint32_t rescore, float radius,
              const uint64_t *bits, uint32_t words, dl_hits *out)
{
    size_t dim = ix->config.dim;
    request ask = {k, ef, rescore, radius};
    if (!ask.k || !ask.ef || ask.k > 1u << 24 || ask.ef > 1u << 24 || !all_finite(queries, nq * dim) ||
        !all_directed(ix, queries, nq) || isnan(ask.radius) || (uint64_t)nq * ask.k > 1u << 30)
        return DL_EINVAL;
    bool bounded = ask.radius < INFINITY;
    if (ask.ef < ask.k && !bounded)
        ask.ef = ask.k;
    if (ask.rescore && ask.rescore < ask.k)
        ask.rescore = ask.k; /* a hit by its code and one by its raw vector are not compared */
    allowed some = {bits, slots_of(words), 0};
    const allowed *only = bits ? &some : NULL;
    some.count = only ? bits_of(only) : 0;
    int code = hits_begin(out, nq, ask.k);
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
        code = bounded ? search_radius(ix, r, now, &ask, only, &count) : search_one(ix, r, now, &ask, ask.ef, only, &count);
        if (code == DL_OK)
            code = hits_add(ix, out, q, r->picked, count);
        reader_leave(r);
    }
    return hits_end(out, code);
}

/* ---- exact ---- */

/* The k nearest of each query, into its heap. */
int exact_all(dl_index *ix, reader *r, uint64_t now, const float *plain, uint32_t nq, heap *heaps, uint32_t k, const allowed *only)
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
                item.distance = fine_distance(ix, &r->query, slot);
            }
            if (!heap_keep(&heaps[q], item, k))
                return DL_ENOMEM;
        }
    }
    return DL_OK;
}

int dl_exact(dl_index *ix, const float *queries, uint32_t nq, uint32_t k, const uint64_t *bits, uint32_t words, dl_hits *out)
{
    size_t dim = ix->config.dim;
    if (!k || k > 1u << 24 || (uint64_t)nq * k > 1u << 30 || !all_finite(queries, nq * dim) || !all_directed(ix, queries, nq))
        return DL_EINVAL;
    allowed only = {bits, slots_of(words), 0};
    uint64_t now;
    int code = hits_begin(out, nq, k);
    if (code != DL_OK)
        return hits_end(out, code);
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
        code = hits_add(ix, out, q, heaps[q].items, heaps[q].size);
    }
    if (r)
        reader_leave(r);
    for (uint32_t q = 0; heaps && q < nq; q++)
        free(heaps[q].items);
    free(heaps);
    free(plain);
    return hits_end(out, code);
}

/* ---- by key ---- */

int dl_get(dl_index *ix, size_t n, const uint8_t *keys, const uint64_t *key_offsets, float *vectors, dl_hits *out)
{
    size_t dim = ix->config.dim;
    int code = hits_begin(out, (uint32_t)n, 1);
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
        code = hits_add(ix, out, (uint32_t)q, &item, item.slot != NONE);
        reader_leave(r);
    }
    return hits_end(out, code);
}

int dl_scan(dl_index *ix, uint32_t number, uint32_t *slots, dl_hits *out)
{
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
    int code = hits_begin(out, 1, count ? count : 1);
    if (code == DL_OK)
        code = hits_add(ix, out, 0, items, count);
    reader_leave(r);
    return hits_end(out, code);
}
