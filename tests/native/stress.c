/* The core under a sanitizer: one writer that upserts, deletes, repairs, re-encodes and saves, and readers beside it.
 * Usage: stress SECONDS SEED. Exits 0 if every answer and every check was right. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "driftline.h"

enum { DIM = 20, KEYS = 1500, ROWS = 1 << 16, READERS = 2 };

static float *rows;
static dl_index *ix;
static _Atomic int stop, failures;
static _Atomic long searches;

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "wrong: %s\n", what);
        atomic_store(&failures, 1);
    }
}

/* A search's keys are distinct and its distances ascend. Keys 0..9 are never deleted, only replaced: they are found. */
static void *read_on(void *argument)
{
    uint32_t seed = *(uint32_t *)argument;
    while (!atomic_load(&stop)) {
        seed = seed * 747796405u + 1;
        dl_hits hits;
        const float *query = rows + (size_t)(seed % ROWS) * DIM;
        dl_request ask = {.k = 10, .ef = 50, .rescore = 20, .radius = INFINITY};
        expect(dl_search(ix, query, 1, &ask, &hits) == DL_OK, "search");
        for (uint32_t j = 1; j < hits.counts[0]; j++) {
            expect(hits.distances[j - 1] <= hits.distances[j], "ascending");
            for (uint32_t i = 0; i < j; i++)
                expect(memcmp(hits.keys + hits.key_offsets[i], hits.keys + hits.key_offsets[j], 4) != 0, "distinct keys");
        }
        dl_hits_free(&hits);
        uint32_t key = seed % 10;
        uint64_t offsets[2] = {0, 4};
        expect(dl_get(ix, 1, (uint8_t *)&key, offsets, NULL, &hits) == DL_OK && hits.counts[0] == 1, "get");
        dl_hits_free(&hits);
        atomic_fetch_add(&searches, 1);
    }
    return NULL;
}

static void write_some(uint64_t *row)
{
    uint32_t keys[32];
    uint64_t offsets[33] = {0}, ids[32], deleted;
    uint32_t n = 1 + draw(32);
    for (uint32_t i = 0; i < n; i++) {
        keys[i] = draw(KEYS);
        offsets[i + 1] = 4 * (i + 1);
        ids[i] = (*row + i) % ROWS;
    }
    switch (draw(8)) {
    case 0:
        for (uint32_t i = 0; i < n; i++)
            keys[i] = 10 + keys[i] % (KEYS - 10);
        expect(dl_delete(ix, n, (uint8_t *)keys, offsets, &deleted) == DL_OK, "delete");
        break;
    case 1:
        expect(dl_reencode(ix, draw(dl_slabs(ix)), 1 + draw(2)) == DL_OK, "reencode");
        break;
    case 2: {
        uint8_t *bytes;
        size_t size;
        dl_lock(ix);
        expect(dl_save_slab(ix, draw(dl_slabs(ix)), &bytes, &size) == DL_OK, "save");
        dl_unlock(ix);
        dl_free(bytes);
        break;
    }
    default:
        /* contiguous rows, as a batch has them */
        if (*row % ROWS + n > ROWS)
            *row += ROWS - *row % ROWS;
        for (uint32_t i = 0; i < n; i++)
            ids[i] = (*row + i) % ROWS;
        expect(dl_upsert(ix, n, (uint8_t *)keys, offsets, NULL, NULL, rows + (*row % ROWS) * DIM, ids, NULL) == DL_OK, "upsert");
        *row += n;
    }
    int more;
    expect(dl_upkeep(ix, draw(4) == 0, &more) == DL_OK, "upkeep");
}

static void open_tile(uint32_t frame, float scale)
{
    float mean[DIM] = {0}, scales[DIM], edges[255], table8[256], table5[32];
    for (int d = 0; d < DIM; d++)
        scales[d] = scale;
    for (int c = 0; c < 256; c++)
        table8[c] = (float)(c - 127.5) / 40;
    for (int c = 0; c < 255; c++)
        edges[c] = (table8[c] + table8[c + 1]) / 2;
    for (int c = 0; c < 32; c++)
        table5[c] = (table8[8 * c + 3] + table8[8 * c + 4]) / 2;
    dl_tile tile = {mean, scales, edges, table8, table5, 1};
    expect(dl_frame_open(ix, frame, &tile) == DL_OK, "open frame");
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    rows = malloc(sizeof(float) * ROWS * DIM);
    for (size_t i = 0; i < (size_t)ROWS * DIM; i++)
        rows[i] = (float)(draw(2000) + draw(2000)) / 1000 - 2;
    dl_config config = {DIM, DL_L2, 5, 24, 7, 9};
    expect(dl_open(&config, &ix) == DL_OK, "open");
    expect(dl_attach(ix, 0, rows, ROWS) == DL_OK, "attach");
    expect(dl_frame_open(ix, 0, NULL) == DL_OK, "open floats");
    open_tile(1, 1);
    open_tile(2, 1.5f);

    uint64_t row = 0;
    for (uint32_t key = 0; key < 600; key++) {
        uint64_t offsets[2] = {0, 4}, id = row++;
        expect(dl_upsert(ix, 1, (uint8_t *)&key, offsets, NULL, NULL, rows + id * DIM, &id, NULL) == DL_OK, "first upsert");
    }
    expect(dl_frame_write(ix, 1) == DL_OK, "write in tiles");
    pthread_t threads[READERS];
    uint32_t seeds[READERS];
    for (uint32_t i = 0; i < READERS; i++) {
        seeds[i] = i + 1;
        pthread_create(&threads[i], NULL, read_on, &seeds[i]);
    }
    time_t end = time(NULL) + (time_t)ceil(seconds);
    char message[256];
    long writes = 0;
    for (; time(NULL) < end && !atomic_load(&failures); writes++) {
        write_some(&row);
        if (writes % 500 == 0)
            expect(dl_check(ix, 0, message, sizeof message) == DL_OK, message);
    }
    atomic_store(&stop, 1);
    for (uint32_t i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    for (int more = 1; more;)
        expect(dl_upkeep(ix, 1, &more) == DL_OK, "last upkeep");
    expect(dl_check(ix, 1, message, sizeof message) == DL_OK, message);
    printf("%ld writes beside %ld searches: %s\n", writes, atomic_load(&searches), atomic_load(&failures) ? "FAILED" : "all right");
    dl_close(ix);
    free(rows);
    return atomic_load(&failures);
}
