/* libFuzzer on sequences of operations, against a model: an array of which key holds which row.
 *
 * Input: a byte of settings (metric, m, whether floats come first), then operations of three bytes: what, and two arguments. After
 * each that reads, a search among everything equals the model; saving and loading goes on with what was loaded. Writing a few keys
 * again and again fills slabs, of which upkeep leaves little: so they are evacuated. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

enum { ROUTE_BITS = 3 };
enum { DIM = 4, KEYS = 256, ROWS = 256, NOTHING = -1, WORDS = DL_SLAB / 64, MOST_STEPS = 400, MOST_SLABS = 64,
       MOST_WRITES = 8000 /* a second */ };

static float rows[ROWS * DIM];
static int model[KEYS]; /* the row of each key */
static dl_config config;
static dl_index *ix;
static uint32_t slots[KEYS], writes;

static void must(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "wrong: %s\n", what);
        abort();
    }
}

static void check(void)
{
    char message[256];
    must(dl_check(ix, 1, message, sizeof message) == DL_OK, message);
}

static void open_tile(uint32_t frame)
{
    must(open_tile_frame(ix, DIM, frame, (float)frame, frame == 1) == DL_OK, "open frame");
}

static void open_index(void)
{
    must(dl_open(&config, &ix) == DL_OK && dl_attach(ix, 0, rows, ROWS) == DL_OK, "open");
    must(dl_frame_open(ix, 0, NULL) == DL_OK, "open floats");
    open_tile(1);
    open_tile(2);
}

static void upsert(uint8_t key, uint8_t row)
{
    uint64_t offsets[2] = {0, 1}, id = row;
    writes++;
    must(dl_upsert(ix, 1, &key, offsets, NULL, NULL, rows + (size_t)row * DIM, &id, NULL, &slots[key], NULL, NULL) == DL_OK, "upsert");
    model[key] = row;
}

static void delete(uint8_t key)
{
    uint64_t offsets[2] = {0, 1}, deleted;
    must(dl_delete(ix, 1, &key, offsets, NULL, &deleted) == DL_OK && deleted == (model[key] != NOTHING), "delete");
    model[key] = NOTHING;
}

/* Rows may have moved; each key is in one place. */
static void find_slots(void)
{
    static uint32_t found[DL_SLAB];
    uint32_t live = 0;
    for (uint32_t slab = 0; slab < dl_slabs(ix); slab++) {
        dl_hits hits = {0};
        must(dl_scan(ix, slab, found, &hits) == DL_OK, "scan");
        live += hits.counts[0];
        for (uint32_t j = 0; j < hits.counts[0]; j++) {
            uint8_t key = (uint8_t)hits.bytes[hits.texts[2 * j]];
            must(model[key] != NOTHING && hits.rows[j] == (uint64_t)model[key], "a scanned key is the model's");
            slots[key] = found[j];
        }
        dl_hits_free(&hits);
    }
    for (int key = 0; key < KEYS; key++)
        live -= model[key] != NOTHING;
    must(live == 0, "as many are scanned as the model holds");
}

static void keep_up(int steps, int eager)
{
    for (int more = 1; steps-- && more;)
        must(dl_upkeep(ix, eager, &more) == DL_OK, "upkeep");
    find_slots();
    check();
}

static float measured(const float *query, const float *row)
{
    double squares = 0, dot = 0, q = 0, x = 0;
    for (int d = 0; d < DIM; d++) {
        squares += (double)(query[d] - row[d]) * (query[d] - row[d]);
        dot += (double)query[d] * row[d];
        q += (double)query[d] * query[d];
        x += (double)row[d] * row[d];
    }
    double both = sqrt(q * x);
    return (float)(config.metric == DL_L2 ? squares : config.metric == DL_IP ? -dot : 1 - (both > 0 ? dot / both : 0));
}

/* Every key that the model holds and `wanted` names, once, with its row and its distance, in order. */
static void expect_hits(const dl_hits *hits, const float *query, const uint8_t *wanted)
{
    uint32_t count = 0;
    for (int key = 0; key < KEYS; key++)
        count += wanted[key] != 0;
    must(hits->counts[0] == count, "as many as the model holds");
    uint8_t met[KEYS] = {0};
    for (uint32_t j = 0; j < count; j++) {
        uint8_t key = hits->bytes[hits->texts[2 * j]];
        must(wanted[key] && !met[key]++, "a wanted key, once");
        must(hits->rows[j] == (uint64_t)model[key], "the row of the model");
        must(fabsf(hits->distances[j] - measured(query, rows + hits->rows[j] * DIM)) < 1e-3f, "the distance of the model");
        must(!j || hits->distances[j - 1] <= hits->distances[j], "in order");
    }
}

static void search(uint8_t about, uint8_t how)
{
    const float *query = rows + (size_t)about * DIM;
    uint64_t bits[WORDS] = {0};
    uint8_t wanted[KEYS];
    uint32_t ef = how & 1 ? KEYS : 2000;
    float radius = INFINITY;
    const uint64_t *allowed = NULL;
    for (int key = 0; key < KEYS; key++)
        wanted[key] = model[key] != NOTHING;
    if (how & 2) {
        allowed = bits;
        for (int key = 0; key < KEYS; key++) {
            wanted[key] &= key % 8 <= how >> 5 && slots[key] < WORDS * 64;
            if (wanted[key])
                bits[slots[key] / 64] |= 1ull << slots[key] % 64;
        }
    }
    dl_hits hits = {0};
    must(dl_exact(ix, query, 1, KEYS, allowed, WORDS, &hits) == DL_OK, "exact");
    expect_hits(&hits, query, wanted);
    dl_hits_free(&hits);
    if (how & 4) {
        radius = (float)(how >> 3) / 8 - (config.metric == DL_IP);
        for (int key = 0; key < KEYS; key++) {
            float d = wanted[key] ? measured(query, rows + (size_t)model[key] * DIM) : 0;
            if (wanted[key] && fabsf(d - radius) < 1e-3f)
                return; /* rounding decides */
            wanted[key] &= d <= radius;
        }
        ef = KEYS;
    }
    must(dl_search(ix, query, 1, KEYS, ef, KEYS, radius, allowed, WORDS, &hits) == DL_OK, "search");
    expect_hits(&hits, query, wanted);
    dl_hits_free(&hits);
}

static void save_and_load(void)
{
    const uint8_t *stored;
    uint8_t *bytes[MOST_SLABS], *head, forms[MOST_SLABS];
    size_t head_size, sizes[MOST_SLABS];
    uint64_t versions[MOST_SLABS];
    char message[256];
    uint32_t n = dl_slabs(ix);
    dl_cut *cut;
    must(n <= MOST_SLABS && dl_cut_begin(ix, NULL, 0, &cut) == DL_OK, "begin a cut of few slabs");
    dl_cut_forms(cut, versions, forms);
    for (uint32_t i = 0; i < n; i++)
        must(forms[i] == DL_WHOLE && dl_cut_save(cut, i, &bytes[i], &sizes[i]) == DL_OK, "save");
    dl_cut_head(cut, &stored, &head_size);
    head = malloc(head_size);
    memcpy(head, stored, head_size);
    dl_cut_end(cut);
    dl_close(ix);
    open_index();
    for (uint32_t i = 0; i < n; i++) {
        must(dl_load_slab(ix, i, versions[i], (const uint8_t *const *)&bytes[i], &sizes[i], 1) == DL_OK, "load");
        dl_free(bytes[i]);
    }
    must(dl_load_head(ix, head, head_size, message, sizeof message) == DL_OK, message);
    free(head);
    check();
}

static void step(const uint8_t *operation, uint32_t *frame)
{
    uint8_t a = operation[1], b = operation[2];
    switch (operation[0] % 10) {
    case 0:
    case 1: upsert(a, b); break;
    case 2:
        for (int i = 0; i < b % 64 * (b & 64 ? 16 : 1) && writes < MOST_WRITES; i++)
            upsert((uint8_t)(a + i), (uint8_t)(b + i));
        break;
    case 3: delete(a); break;
    case 4:
        for (int i = 0; i < b; i++)
            delete((uint8_t)(a + i));
        break;
    case 5:
        keep_up(a & 64 ? 1000 : 1 + a % 8, b & 1);
        break;
    case 6: search(a, b); break;
    case 7:
        if (*frame && dl_slabs(ix))
            must(dl_reencode(ix, a % dl_slabs(ix), 1 + b % 2) == DL_OK, "reencode");
        check();
        break;
    case 8:
        *frame = 1 + a % 2;
        must(dl_frame_write(ix, *frame) == DL_OK, "write frame");
        if (b & 1 && dl_frame_close(ix, 3 - *frame) == DL_OK)
            open_tile(3 - *frame);
        break;
    default: save_and_load(); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    config = (dl_config){DIM, *data % 3, *data & 4 ? 2 : 4, *data & 8 ? 4 : 16, ROUTE_BITS, *data, 5, *data >> 4 & 1};
    for (int i = 0; i < ROWS * DIM; i++) /* in the second half many are equal */
        rows[i] = (float)((i < ROWS * DIM / 2 ? i * 37 : i / DIM / 40 * 13) % 101) / 50 - 0.99f;
    for (int key = 0; key < KEYS; key++)
        model[key] = NOTHING;
    writes = 0;
    open_index();
    uint32_t frame = *data & 16 ? 1 : 0;
    must(dl_frame_write(ix, frame) == DL_OK, "write frame");
    for (size_t at = 1, steps = 0; at + 3 <= size && steps < MOST_STEPS; at += 3, steps++)
        step(data + at, &frame);
    check();
    search(1, 0);
    save_and_load();
    search(2, 0);
    dl_close(ix);
    return 0;
}
