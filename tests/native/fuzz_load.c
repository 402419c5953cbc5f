/* libFuzzer on the deserializer: whatever the bytes, loading says so or gives an index that its oracle accepts and that can be
 * searched and written to.
 *
 * Input: a byte that says which of two saved indexes is damaged, then a few edits of four bytes (what: 0 set, 1 cut, 2 insert, 3 add;
 * offset in two; value), applied to the saved slab, and to the head where the first byte's bit 1 is set. With bit 2 the rest of
 * the input is the slab itself. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

enum { ROUTE_BITS = 3 };
enum { DIM = 6, ROWS = 64, MOST = 1 << 16, MOST_EDITS = 4 /* more seldom load */ };

static float rows[ROWS * DIM];
static const dl_config config = {DIM, DL_L2, 2, 8, ROUTE_BITS, 3, 5, 1};

typedef struct {
    uint8_t bytes[MOST];
    size_t size;
} image;
static image slabs[2], deltas[2], heads[2];

static void must(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "wrong: %s\n", what);
        abort();
    }
}

static dl_index *open_index(int tiles)
{
    dl_index *ix = NULL;
    must(dl_open(&config, &ix) == DL_OK && dl_attach(ix, 0, rows, ROWS) == DL_OK, "open");
    must(dl_frame_open(ix, 0, NULL) == DL_OK && open_tile_frame(ix, DIM, 1, 1, 1) == DL_OK, "frames");
    if (tiles)
        must(dl_frame_write(ix, 1) == DL_OK, "write in tiles");
    return ix;
}

static void upsert(dl_index *ix, uint8_t first, uint8_t count)
{
    for (uint8_t key = first; key < first + count; key++) {
        uint64_t offsets[2] = {0, 1}, id = key % ROWS;
        must(dl_upsert(ix, 1, &key, offsets, &key, offsets, rows + id * DIM, &id, NULL, NULL, NULL, NULL) == DL_OK, "upsert");
    }
}

static void delete(dl_index *ix, uint8_t first, uint8_t count)
{
    for (uint8_t key = first; key < first + count; key++) {
        uint64_t offsets[2] = {0, 1}, deleted;
        must(dl_delete(ix, 1, &key, offsets, NULL, &deleted) == DL_OK, "delete");
    }
}

static void keep(image *to, uint8_t *bytes, size_t size)
{
    must(size <= MOST, "the seed fits");
    memcpy(to->bytes, bytes, size);
    to->size = size;
    dl_free(bytes);
}

/* Floats, and tiles in the middle of a round of upkeep. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    for (int i = 0; i < ROWS * DIM; i++)
        rows[i] = (float)(i * 37 % 101) / 50 - 1;
    for (int tiles = 0; tiles < 2; tiles++) {
        dl_index *ix = open_index(tiles);
        uint8_t *bytes;
        size_t size;
        int more;
        upsert(ix, 0, 40);
        delete(ix, 3, 12);
        if (tiles)
            must(dl_upkeep(ix, 1, &more) == DL_OK, "upkeep");
        delete(ix, 20, 2);
        dl_cut *cut;
        const uint8_t *head;
        must(dl_cut_begin(ix, NULL, 0, &cut) == DL_OK && dl_cut_save(cut, 0, &bytes, &size) == DL_OK, "save");
        keep(&slabs[tiles], bytes, size);
        uint64_t version;
        uint8_t form;
        dl_cut_forms(cut, &version, &form);
        dl_cut_end(cut);
        delete(ix, 30, 2);
        upsert(ix, 35, 3);
        must(dl_cut_begin(ix, &version, 1, &cut) == DL_OK && dl_cut_save(cut, 0, &bytes, &size) == DL_OK, "save what changed");
        keep(&deltas[tiles], bytes, size);
        dl_cut_head(cut, &head, &size);
        must(size <= MOST, "the head fits");
        memcpy(heads[tiles].bytes, head, heads[tiles].size = size);
        dl_cut_end(cut);
        dl_close(ix);
    }
    return 0;
}

static void damage(image *it, const uint8_t *edit)
{
    size_t at = edit[1] | (size_t)edit[2] << 8;
    if (!it->size || (at %= it->size, edit[0] % 4 == 1)) {
        it->size = at;
    } else if (edit[0] % 4 == 2 && it->size < MOST) {
        memmove(it->bytes + at + 1, it->bytes + at, it->size++ - at);
        it->bytes[at] = edit[3];
    } else {
        it->bytes[at] = edit[0] % 4 == 3 ? (uint8_t)(it->bytes[at] + edit[3]) : edit[3];
    }
}

static void use(dl_index *ix)
{
    char message[256];
    must(dl_check(ix, 0, message, sizeof message) == DL_OK, message);
    uint64_t live = dl_live(ix), offsets[2] = {0, 1};
    dl_hits hits = {0};
    must(dl_search(ix, rows, 1, 100, 100, 0, INFINITY, NULL, 0, &hits) == DL_OK, "search");
    must(hits.counts[0] == (live < 100 ? live : 100), "all that is live is found");
    dl_hits_free(&hits);
    must(dl_exact(ix, rows, 1, 5, NULL, 0, &hits) == DL_OK, "exact");
    dl_hits_free(&hits);
    must(dl_get(ix, 1, (const uint8_t *)"\x01", offsets, NULL, &hits) == DL_OK, "get");
    dl_hits_free(&hits);
    upsert(ix, 30, 30);
    must(dl_check(ix, 0, message, sizeof message) == DL_OK, message);
    delete(ix, 0, 35);
    for (int more = 1; more;)
        must(dl_upkeep(ix, 1, &more) == DL_OK, "upkeep");
    must(dl_check(ix, 0, message, sizeof message) == DL_OK, message);
    must(dl_reencode(ix, 0, 1) != DL_ENOMEM, "reencode");
    must(dl_check(ix, 0, message, sizeof message) == DL_OK, message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static image slab, delta, head;
    if (!size)
        return 0;
    int tiles = *data & 1, head_too = *data & 2, whole = *data & 4, delta_too = *data & 8;
    slab = slabs[tiles];
    delta = deltas[tiles];
    head = heads[tiles];
    if (whole && size <= MOST) {
        memcpy(slab.bytes, data + 1, size - 1);
        slab.size = size - 1;
    }
    for (size_t at = 1; !whole && at + 4 <= size && at <= 4 * MOST_EDITS; at += 4)
        damage(head_too && data[at] & 0x80 ? &head : delta_too && data[at] & 0x40 ? &delta : &slab, data + at);
    char message[256];
    dl_index *ix = open_index(tiles);
    /* exactly as long as they are, so that the sanitizer sees a read behind them */
    uint8_t *bytes = malloc(slab.size + 1), *since = malloc(delta.size + 1), *more = malloc(head.size + 1);
    memcpy(bytes + 1, slab.bytes, slab.size);
    memcpy(since + 1, delta.bytes, delta.size);
    memcpy(more + 1, head.bytes, head.size);
    const uint8_t *parts[] = {bytes + 1, since + 1};
    if (dl_load_slab(ix, 0, 1, parts, (size_t[]){slab.size, delta.size}, 2) == DL_OK &&
        dl_load_head(ix, more + 1, head.size, message, sizeof message) == DL_OK)
        use(ix);
    free(bytes);
    free(since);
    free(more);
    dl_close(ix);
    return 0;
}
