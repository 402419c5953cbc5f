/* The core under a sanitizer: two writers side by side on keys of their own and on shared ones, who now and then delete nearly all
 * and write it again, so that slabs are emptied and come again; one thread that repairs, evacuates, re-encodes, changes frames and
 * saves, two that read, and the oracle every now and then.
 * Usage: stress SECONDS SEED. Exits 0 if every answer and every check was right. */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tiles.h"

enum { ROUTE_BITS = 3 };
/* Keys 0..STILL-1 are written once; those below KEPT are replaced and never deleted; behind them each writer has OWN keys and FLOOD
 * keys that come and go together; the rest are shared. Those written last and once, HIGH, lie in slabs that run sparse, and move. */
enum { DIM = 20, ROWS = 1 << 16, STILL = 10, KEPT = 40, OWN = 250, FLOOD = 1200, SHARED = 300, HIGH = 20 };
enum { WRITERS = 2, READERS = 2, BATCH = 16, CALM = 24 /* batches of a writer between floods */ };
enum { FIRST_FLOOD = KEPT + WRITERS * OWN, FIRST_SHARED = FIRST_FLOOD + WRITERS * FLOOD, FIRST_HIGH = FIRST_SHARED + SHARED };
enum { KEYS = FIRST_HIGH + HIGH, ALL = KEYS /* candidates: all that are ever live */, ATTEMPTS = 4 };

static float *rows;
static dl_index *ix;
static uint32_t still_slots[STILL];
static _Atomic int stop, failures;
static _Atomic long searches, writes, rounds, moves, drops, cuts, deltas;
static _Atomic uint64_t next_row, live_sum; /* of live rows' ids, kept by what writing says that it replaced */
static const dl_config config = {DIM, DL_L2, 5, 24, ROUTE_BITS, 7, 9, 1};

static uint32_t draw(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

static int expect(int good, const char *what)
{
    if (!good && !atomic_exchange(&failures, 1))
        fprintf(stderr, "wrong: %s\n", what);
    return good;
}

/* ---- reading ---- */

static uint32_t key_at(const dl_hits *hits, uint64_t at)
{
    uint32_t key;
    memcpy(&key, hits->bytes + hits->texts[2 * at], sizeof key);
    return key;
}

/* Distances ascend and lie within the radius, and no key comes twice. */
static void expect_sound(const dl_hits *hits, float radius)
{
    uint8_t met[KEYS] = {0};
    expect(hits->counts[0] <= hits->k, "at most k");
    for (uint32_t j = 0; j < hits->counts[0]; j++) {
        expect(!j || hits->distances[j - 1] <= hits->distances[j], "distances ascend");
        expect(hits->distances[j] <= radius, "within the radius");
        expect(!met[key_at(hits, j)]++, "no key twice");
    }
}

static uint32_t count_still(const dl_hits *hits)
{
    uint32_t count = 0;
    for (uint32_t j = 0; j < hits->counts[0]; j++)
        count += key_at(hits, j) < STILL || key_at(hits, j) >= FIRST_HIGH;
    return count;
}

static void ask_once(uint64_t *state)
{
    static const uint32_t some_words = 64;
    uint64_t bits[64] = {0};
    uint32_t k = 10, ef = 50, rescore = 20;
    float radius = INFINITY;
    uint32_t kind = draw(state, 6);
    switch (kind) {
    case 0: /* everything that is live */
        k = ef = ALL;
        break;
    case 1: /* what is written once, by its slots */
        for (uint32_t i = 0; i < STILL; i++)
            bits[still_slots[i] / 64] |= 1ull << still_slots[i] % 64;
        break;
    case 2:
        for (uint32_t i = 0; i < some_words; i++)
            bits[i] = 0x0101010101010101u * draw(state, 256);
        break;
    case 3:
        k = 100;
        ef = 1 + draw(state, 200);
        radius = (float)draw(state, 20);
        break;
    default:
        rescore = draw(state, 2) * 20;
    }
    const uint64_t *allowed = kind == 1 || kind == 2 ? bits : NULL;
    const float *query = rows + (size_t)draw(state, ROWS) * DIM;
    int found = 0;
    /* upkeep moves subtrees and closes up lists beside a walk, which may miss one edge by that (3 of 16,000 here) */
    for (int attempt = 0; !found && attempt < ATTEMPTS; attempt++) {
        dl_hits hits = {0};
        if (!expect(dl_search(ix, query, 1, k, ef, rescore, radius, allowed, some_words, &hits) == DL_OK, "search"))
            return;
        expect_sound(&hits, radius);
        found = kind > 1 || count_still(&hits) == STILL + (kind ? 0 : HIGH);
        expect(kind != 1 || (found && hits.counts[0] == STILL), "the allowed and nothing else");
        dl_hits_free(&hits);
    }
    expect(found, "what is never touched is found among all");
}

/* Its answers are of one moment: none is better than the best of it. */
static void witness_once(uint64_t *state)
{
    enum { K = 10, QUERIES = 18 };
    float found[K * QUERIES], best[K * QUERIES], exact[K * QUERIES];
    const float *queries = rows + (size_t)draw(state, ROWS - QUERIES) * DIM;
    if (!expect(dl_witness(ix, queries, QUERIES, K, 50, 20, found, best, exact) == DL_OK, "witness"))
        return;
    for (uint32_t j = 0; j < K * QUERIES; j++)
        expect(found[j] >= best[j] && best[j] >= exact[j], "nothing is nearer than the nearest");
}

static void get_once(uint64_t *state)
{
    uint32_t key = draw(state, 2) ? draw(state, KEPT) : FIRST_HIGH + draw(state, HIGH);
    uint64_t offsets[2] = {0, sizeof key};
    float vector[DIM];
    dl_hits hits = {0};
    if (expect(dl_get(ix, 1, (uint8_t *)&key, offsets, vector, &hits) == DL_OK, "get")) {
        expect(hits.counts[0] == 1 && !memcmp(vector, rows + hits.rows[0] * DIM, sizeof vector), "a kept key is there");
        dl_hits_free(&hits);
    }
}

static void read_slab(uint64_t *state)
{
    static _Thread_local uint32_t slots[DL_SLAB];
    dl_hits hits = {0};
    int code = dl_scan(ix, draw(state, dl_slabs(ix)), slots, &hits);
    if (expect(code == DL_OK || code == DL_EINVAL, "scan, unless the slab has gone") && code == DL_OK)
        dl_hits_free(&hits);
    if (expect(dl_exact(ix, rows, 1, ALL, NULL, 0, &hits) == DL_OK, "exact")) {
        expect_sound(&hits, INFINITY);
        expect(count_still(&hits) == STILL + HIGH, "exact finds what is never touched");
        dl_hits_free(&hits);
    }
}

static void *read_on(void *argument)
{
    uint64_t state = *(uint64_t *)argument;
    for (; !atomic_load(&stop); atomic_fetch_add(&searches, 1)) {
        ask_once(&state);
        get_once(&state);
        if (draw(&state, 50) == 0)
            read_slab(&state);
        if (draw(&state, 50) == 0)
            witness_once(&state);
    }
    return NULL;
}

/* ---- writing ---- */

typedef struct {
    uint64_t state;
    uint32_t number;
    uint64_t own[OWN]; /* the row of each key of its own; UINT64_MAX: deleted */
} writer;

static uint32_t pick_key(writer *w, int deletes)
{
    uint32_t kind = draw(&w->state, 8);
    if (kind == 0 && !deletes)
        return STILL + draw(&w->state, KEPT - STILL);
    if (kind < 4)
        return KEPT + w->number * OWN + draw(&w->state, OWN);
    return FIRST_SHARED + draw(&w->state, SHARED);
}

static void note(writer *w, uint32_t key, uint64_t row)
{
    uint32_t first = KEPT + w->number * OWN;
    if (key >= first && key < first + OWN)
        w->own[key - first] = row;
}

static void write_rows(uint32_t n, const uint32_t *keys, const uint64_t *ends, uint64_t *ids, const char *what)
{
    uint64_t replaced[BATCH], sources[BATCH][2];
    const float *x = rows + ids[0] * DIM;
    for (uint32_t i = 0; i < n; i++) {
        sources[i][0] = ids[i];
        sources[i][1] = ~ids[i];
    }
    expect(dl_upsert(ix, n, (const uint8_t *)keys, ends, NULL, NULL, x, ids, sources[0], NULL, replaced, NULL) == DL_OK, what);
    for (uint32_t i = 0; i < n; i++)
        atomic_fetch_add(&live_sum, ids[i] - (replaced[i] == UINT64_MAX ? 0 : replaced[i]));
}

static void delete_keys(uint32_t n, const uint32_t *keys, const uint64_t *ends, const char *what)
{
    uint64_t replaced[BATCH], deleted, gone = 0;
    expect(dl_delete(ix, n, (const uint8_t *)keys, ends, replaced, &deleted) == DL_OK, what);
    for (uint32_t i = 0; i < n; i++) {
        gone += replaced[i] != UINT64_MAX;
        atomic_fetch_sub(&live_sum, replaced[i] == UINT64_MAX ? 0 : replaced[i]);
    }
    expect(gone == deleted, what);
}

static void upsert(writer *w, uint32_t n)
{
    uint32_t keys[BATCH];
    uint64_t offsets[BATCH + 1] = {0}, ids[BATCH], first = atomic_fetch_add(&next_row, BATCH) % ROWS;
    for (uint32_t i = 0; i < n; i++) {
        keys[i] = pick_key(w, 0);
        offsets[i + 1] = (i + 1) * sizeof *keys;
        ids[i] = first + i;
        note(w, keys[i], ids[i]);
    }
    write_rows(n, keys, offsets, ids, "upsert");
}

static void delete(writer *w, uint32_t n)
{
    uint32_t keys[BATCH];
    uint64_t offsets[BATCH + 1] = {0};
    for (uint32_t i = 0; i < n; i++) {
        keys[i] = pick_key(w, 1);
        offsets[i + 1] = (i + 1) * sizeof *keys;
        note(w, keys[i], UINT64_MAX);
    }
    delete_keys(n, keys, offsets, "delete");
}

/* A writer sees what it wrote itself. */
static void expect_own(const writer *w)
{
    uint32_t keys[OWN];
    uint64_t offsets[OWN + 1] = {0};
    for (uint32_t i = 0; i < OWN; i++) {
        keys[i] = KEPT + w->number * OWN + i;
        offsets[i + 1] = (i + 1) * sizeof *keys;
    }
    dl_hits hits = {0};
    if (!expect(dl_get(ix, OWN, (uint8_t *)keys, offsets, NULL, &hits) == DL_OK, "get one's own"))
        return;
    for (uint32_t i = 0; i < OWN; i++)
        expect(hits.rows[i] == w->own[i], "a writer reads what it wrote");
    dl_hits_free(&hits);
    uint64_t sources[OWN][2];
    expect(dl_sources(ix, OWN, (uint8_t *)keys, offsets, sources[0]) == DL_OK, "sources of one's own");
    for (uint32_t i = 0; i < OWN; i++) {
        int live = w->own[i] != UINT64_MAX;
        expect(sources[i][0] == (live ? w->own[i] : 0) && sources[i][1] == (live ? ~w->own[i] : 0), "a source stays with its row");
        sources[i][0] += 1;
    }
    expect(dl_set_sources(ix, OWN, (uint8_t *)keys, offsets, sources[0]) == DL_OK, "other sources");
    for (uint32_t i = 0; i < OWN; i++)
        sources[i][0] -= 1;
    expect(dl_set_sources(ix, OWN, (uint8_t *)keys, offsets, sources[0]) == DL_OK, "the same sources again");
}

/* All of its many keys, written or deleted. */
static void flood(writer *w, int deletes)
{
    for (uint32_t at = 0; at < FLOOD && !atomic_load(&stop); at += BATCH) {
        uint32_t keys[BATCH];
        uint64_t offsets[BATCH + 1] = {0}, ids[BATCH], first = atomic_fetch_add(&next_row, BATCH) % ROWS;
        for (uint32_t i = 0; i < BATCH; i++) {
            keys[i] = FIRST_FLOOD + w->number * FLOOD + at + i;
            offsets[i + 1] = (i + 1) * sizeof *keys;
            ids[i] = first + i;
        }
        if (deletes)
            delete_keys(BATCH, keys, offsets, "delete many");
        else
            write_rows(BATCH, keys, offsets, ids, "upsert many");
    }
}

static void *write_on(void *argument)
{
    writer *w = argument;
    for (uint32_t turn = 1; !atomic_load(&stop); turn++, atomic_fetch_add(&writes, 1)) {
        if (turn % CALM == 0)
            flood(w, turn / CALM % 2);
        uint32_t n = 1 + draw(&w->state, BATCH);
        if (draw(&w->state, 3))
            upsert(w, n);
        else
            delete(w, n);
        if (draw(&w->state, 40) == 0)
            expect_own(w);
    }
    expect_own(w);
    return NULL;
}

/* ---- upkeep ---- */

static void open_tile(dl_index *to, uint32_t frame)
{
    expect(open_tile_frame(to, DIM, frame, 0.5f + 0.5f * (float)frame, 1) == DL_OK, "open frame");
}

static dl_index *open_index(void)
{
    dl_index *made = NULL;
    expect(dl_open(&config, &made) == DL_OK, "open");
    expect(dl_attach(made, 0, rows, ROWS) == DL_OK, "attach");
    expect(dl_frame_open(made, 0, NULL) == DL_OK, "open floats");
    open_tile(made, 1);
    open_tile(made, 2);
    return made;
}

/* A cut is saved a slab at a time, between steps of upkeep and beside writers, and loads as the index was when it began. Of slabs
 * that the cut before had, only what changed since is saved. */
enum { MOST_SLABS = 16, MOST_PARTS = 32 };
static struct {
    uint64_t version;
    uint8_t *parts[MOST_PARTS];
    size_t sizes[MOST_PARTS];
    uint32_t count;
} saved[MOST_SLABS];
static dl_cut *cut;
static uint32_t next_slab, cut_frame;
static uint64_t versions[MOST_SLABS];
static uint8_t forms[MOST_SLABS];

static void forget_parts(uint32_t slab)
{
    for (uint32_t i = 0; i < saved[slab].count; i++)
        dl_free(saved[slab].parts[i]);
    saved[slab].count = 0;
}

static void begin_cut(uint32_t frame)
{
    uint64_t known[MOST_SLABS];
    for (uint32_t i = 0; i < MOST_SLABS; i++)
        known[i] = saved[i].count ? saved[i].version : UINT64_MAX;
    if (!expect(dl_slabs(ix) <= MOST_SLABS && dl_cut_begin(ix, known, MOST_SLABS, &cut) == DL_OK, "begin a cut"))
        return;
    dl_cut *second;
    expect(dl_cut_begin(ix, known, MOST_SLABS, &second) == DL_EBUSY, "one cut at a time");
    dl_cut_forms(cut, versions, forms);
    for (uint32_t i = dl_cut_slabs(cut); i < MOST_SLABS; i++)
        forget_parts(i);
    next_slab = 0;
    cut_frame = frame;
}

static void load_cut(void)
{
    const uint8_t *head;
    size_t size;
    char message[256];
    dl_cut_head(cut, &head, &size);
    dl_index *copy = open_index();
    expect(dl_frame_write(copy, cut_frame) == DL_OK, "write in tiles");
    for (uint32_t i = 0; i < dl_cut_slabs(cut); i++)
        expect(dl_load_slab(copy, i, saved[i].version, (const uint8_t *const *)saved[i].parts, saved[i].sizes, saved[i].count) == DL_OK,
               "load a slab");
    expect(dl_load_head(copy, head, size, message, sizeof message) == DL_OK, message);
    expect(dl_check(copy, 1, message, sizeof message) == DL_OK, message);
    for (int more = 1; more;)
        expect(dl_upkeep(copy, 1, &more) == DL_OK, "upkeep of what was loaded");
    expect(dl_check(copy, 1, message, sizeof message) == DL_OK, message);
    dl_close(copy);
}

static void go_on_with_cut(void)
{
    uint32_t i = next_slab++;
    if (i == dl_cut_slabs(cut)) {
        load_cut();
        dl_cut_end(cut);
        cut = NULL;
        atomic_fetch_add(&cuts, 1);
        return;
    }
    atomic_fetch_add(&deltas, forms[i] == DL_DELTA);
    if (forms[i] == DL_WHOLE)
        forget_parts(i);
    saved[i].version = versions[i];
    uint32_t *count = &saved[i].count;
    if (forms[i] != DL_SAME && expect(*count < MOST_PARTS, "few deltas"))
        expect(dl_cut_save(cut, i, &saved[i].parts[*count], &saved[i].sizes[*count]) == DL_OK, "save a slab"), ++*count;
}

/* A search may still read the block that the last move replaced; it ends by itself. */
static int move_slab(uint32_t slab, uint32_t frame)
{
    static const float tables[DL_FRAMES << 4];
    dl_errors errors;
    expect(dl_survey(ix, slab, 0, 8, 4, tables, &errors) == DL_OK, "survey");
    int code;
    while ((code = dl_reencode(ix, slab, frame)) == DL_EBUSY)
        sched_yield();
    if (code == DL_OK)
        code = dl_learn(ix, slab);
    return code;
}

/* Write in the other frame, move all to it, and close and open the one that is left, once no reader is in the way. */
static void change_frames(uint32_t *frame)
{
    uint32_t old = *frame;
    *frame = 3 - old;
    expect(dl_frame_write(ix, *frame) == DL_OK, "write frame");
    for (uint32_t i = 0; i < dl_slabs(ix); i++)
        expect(move_slab(i, *frame) == DL_OK, "reencode all");
    int code = dl_frame_close(ix, old);
    expect(code == DL_OK || code == DL_EBUSY, "close frame");
    if (code == DL_OK)
        open_tile(ix, old);
}

static void *keep_up(void *argument)
{
    uint64_t state = *(uint64_t *)argument;
    uint32_t frame = 1;
    static uint32_t pairs[2 * DL_MOVES];
    for (; !atomic_load(&stop); atomic_fetch_add(&rounds, 1)) {
        int more = 1;
        uint32_t slabs = dl_slabs(ix), count;
        for (int steps = 0; more && steps < 6; steps++)
            expect(dl_upkeep(ix, draw(&state, 4) == 0, &more) == DL_OK, "upkeep");
        dl_moving(ix, pairs, &count);
        for (uint32_t i = 0; i < count; i++)
            expect(pairs[2 * i + 1] / DL_SLAB < pairs[2 * i] / DL_SLAB, "moves go down");
        atomic_fetch_add(&moves, count);
        atomic_fetch_add(&drops, dl_slabs(ix) < slabs);
        if (cut)
            go_on_with_cut();
        else if (draw(&state, 4) == 0)
            begin_cut(frame);
        switch (draw(&state, 60)) {
        case 1: change_frames(&frame); break;
        case 2: expect(move_slab(draw(&state, dl_slabs(ix)), 1 + draw(&state, 2)) == DL_OK, "reencode"); break;
        case 3: expect(dl_detach(ix, 0) == DL_EBUSY, "detach what is in use"); break;
        default: break;
        }
    }
    return NULL;
}

/* ---- all together ---- */

static void first_keys(uint32_t first, uint32_t end)
{
    for (uint32_t key = first; key < end; key++) {
        uint64_t offsets[2] = {0, sizeof key}, id = atomic_fetch_add(&next_row, 1);
        uint32_t slot;
        const float *x = rows + id * DIM;
        expect(dl_upsert(ix, 1, (uint8_t *)&key, offsets, NULL, NULL, x, &id, NULL, &slot, NULL, NULL) == DL_OK, "first upsert");
        atomic_fetch_add(&live_sum, id);
        if (key < STILL)
            still_slots[key] = slot;
    }
}

/* With nobody writing. */
static void expect_live_sum(void)
{
    uint64_t ids[DL_SLAB], sum = 0;
    uint8_t frames[DL_SLAB];
    uint32_t count;
    for (uint32_t slab = 0; slab < dl_slabs(ix); slab++) {
        expect(dl_slab_rows(ix, slab, ids, frames, &count) == DL_OK, "rows of a slab");
        for (uint32_t i = 0; i < count; i++)
            sum += ids[i];
    }
    expect(sum == atomic_load(&live_sum), "writing says which rows it replaced");
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    rows = malloc(sizeof(float) * ROWS * DIM);
    for (size_t i = 0; i < (size_t)ROWS * DIM; i++)
        rows[i] = (float)(draw(&seed, 2000) + draw(&seed, 2000)) / 1000 - 2;
    ix = open_index();
    static writer writers[WRITERS];
    first_keys(0, KEPT);
    expect(dl_frame_write(ix, 1) == DL_OK, "write in tiles");
    atomic_store(&next_row, (KEPT + BATCH - 1) / BATCH * BATCH);
    for (uint32_t i = 0; i < WRITERS; i++) {
        writers[i] = (writer){.state = seed + 100 + i, .number = i};
        flood(&writers[i], 0);
    }
    first_keys(FIRST_HIGH, KEYS);
    atomic_store(&next_row, (atomic_load(&next_row) + BATCH - 1) / BATCH * BATCH);

    static uint64_t seeds[READERS + 1];
    pthread_t threads[WRITERS + READERS + 1];
    uint32_t count = 0;
    for (uint32_t i = 0; i < WRITERS; i++) {
        memset(writers[i].own, 0xFF, sizeof writers[i].own);
        pthread_create(&threads[count++], NULL, write_on, &writers[i]);
    }
    for (uint32_t i = 0; i <= READERS; i++) {
        seeds[i] = seed + 200 + i;
        pthread_create(&threads[count++], NULL, i < READERS ? read_on : keep_up, &seeds[i]);
    }
    char message[256] = "";
    time_t end = time(NULL) + (time_t)ceil(seconds);
    while (time(NULL) < end && !atomic_load(&failures)) {
        nanosleep(&(struct timespec){0, 200000000}, NULL);
        expect(dl_check(ix, 1, message, sizeof message) == DL_OK, message);
    }
    atomic_store(&stop, 1);
    for (uint32_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    expect_live_sum();
    expect(dl_check(ix, 1, message, sizeof message) == DL_OK, message);
    for (int more = 1; more;)
        expect(dl_upkeep(ix, 1, &more) == DL_OK, "last upkeep");
    expect_live_sum();
    expect(dl_check(ix, 1, message, sizeof message) == DL_OK, message);
    while (cut)
        go_on_with_cut();
    printf("%ld batches beside %ld searches and %ld steps of upkeep, %ld moves, %ld times fewer slabs, %ld cuts with %ld deltas: %s\n",
           atomic_load(&writes), atomic_load(&searches), atomic_load(&rounds), atomic_load(&moves), atomic_load(&drops),
           atomic_load(&cuts), atomic_load(&deltas), atomic_load(&failures) ? "FAILED" : "all right");
    for (uint32_t i = 0; i < MOST_SLABS; i++)
        forget_parts(i);
    dl_close(ix);
    free(rows);
    return atomic_load(&failures);
}
