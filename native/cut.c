/* Cuts: the index as it was at one moment, saved while it goes on changing.
 *
 * Beginning a cut has the structure alone for as long as it takes to write down, slab by slab, which slots are to be saved. From
 * then on whoever is about to change one of them (before_change) first puts aside how it is saved, its image; the slabs are saved
 * one by one beside everybody, from the images and from the slots that still are as they were. So a pause is short, and what
 * is held in memory is what changed in slabs whose turn had not come.
 *
 * Of a slab that the caller has as an earlier cut saw it, only the slots that changed since are saved: a delta. It is saved whole
 * again once its deltas come to be worth reading less; not all slabs at the same size, or all would come due in one cut. */
#include "internal.h"
#include "store.h"

typedef struct {
    uint8_t *bytes;
    size_t size, capacity;
    bool failed;
} sink;

/* A slab in a cut. */
typedef struct {
    uint64_t version;
    uint32_t used;
    bool is_float, taken;
    uint8_t form;                                /* DL_SAME, DL_DELTA or DL_WHOLE */
    uint64_t wanted[DL_SLAB / 64], renewed[DL_SLAB / 64];
    _Atomic uint64_t pending[DL_SLAB / 64];      /* of the wanted, those that stand as they were and are not saved yet */
    sink images;                                 /* u32 size and record of each slot that was put aside; images lock, as the next */
    uint32_t *places;                            /* [DL_SLAB] 1 + where a slot's record begins */
} part;

struct dl_cut {
    dl_index *ix;
    _Atomic bool failed; /* an image could not be kept */
    uint8_t *head;
    size_t head_size;
    uint32_t slabs;
    part parts[];
};

/* ---- writing ---- */

static void emit(sink *out, const void *bytes, size_t size)
{
    if (out->failed)
        return;
    if (out->size + size > out->capacity) {
        size_t capacity = (out->size + size) / 2 * 3 + 256;
        uint8_t *memory = dl_grow(out->bytes, capacity);
        if (!memory) {
            out->failed = true;
            return;
        }
        out->bytes = memory;
        out->capacity = capacity;
    }
    memcpy(out->bytes + out->size, bytes, size);
    out->size += size;
}

static void emit8(sink *out, uint8_t value)
{
    emit(out, &value, 1);
}

static void emit16(sink *out, uint16_t value)
{
    emit(out, &value, 2);
}

static void emit32(sink *out, uint32_t value)
{
    emit(out, &value, 4);
}

static void emit64(sink *out, uint64_t value)
{
    emit(out, &value, 8);
}

static int finish(sink *out, uint8_t **bytes, size_t *size)
{
    if (out->failed) {
        free(out->bytes);
        return DL_ENOMEM;
    }
    *bytes = out->bytes;
    *size = out->size;
    return DL_OK;
}

static int save_head(dl_index *ix, uint8_t **bytes, size_t *size)
{
    sink out = {0};
    emit(&out, HEAD_MAGIC, 4);
    emit32(&out, ix->config.dim);
    emit32(&out, ix->config.metric);
    emit32(&out, ix->config.m);
    emit32(&out, ix->config.route_bits);
    emit64(&out, ix->config.seed);
    emit64(&out, ix->config.rotation_seed);
    emit64(&out, ix->inserted);
    emit32(&out, atomic_load(&ix->slot_count));
    emit32(&out, get(&ix->entry));
    emit32(&out, ix->write_frame);
    float growth = atomic_load(&ix->growth);
    emit(&out, &growth, sizeof growth);
    return finish(&out, bytes, size);
}

static void save_code(const dl_index *ix, sink *out, const slab *s, uint32_t slot)
{
    const head *h = block_head(ix, s->block, slot & SLAB_MASK);
    if (s->block->is_float) {
        emit(out, h + 1, ix->config.dim * sizeof(float));
        return;
    }
    emit(out, &h->coarse_norm, 4);
    emit(out, &h->fine_norm, 4);
    emit(out, &h->stretch, 2);
    emit(out, h + 1, ix->padded / 8 * ix->config.route_bits);
    emit(out, rest_of(ix, h, slot), ix->rest_bytes);
}

static void save_slot(const dl_index *ix, sink *out, uint32_t slot, bool whole)
{
    const slab *s = slab_of(ix, slot);
    uint32_t i = slot & SLAB_MASK;
    record *r = atomic_load(&s->records[i]);
    if (s->state[i] == SLOT_FREE || s->state[i] == SLOT_LIMBO) {
        emit8(out, SLOT_FREE);
        return;
    }
    emit8(out, (s->state[i] == SLOT_LIVE ? SLOT_LIVE : SLOT_DEAD) | (whole ? 0 : RELINKED));
    if (whole)
        emit8(out, block_head(ix, s->block, i)->frame);
    emit8(out, s->level[i]);
    emit32(out, parent_of(ix, slot));
    emit64(out, atomic_load(&s->row[i]));
    if (ix->config.sources)
        emit(out, s->sources[i], SOURCE_BYTES);
    if (whole) {
        emit32(out, r->payload_size);
        emit16(out, r->key_size);
        emit(out, key_of(ix, r), r->key_size + (size_t)r->payload_size);
    }
    for (uint32_t level = 0; level <= s->level[i]; level++) {
        /* the upper lists of a slot whose row moved are its heir's, and change when that does */
        const _Atomic uint32_t *links = links_of(ix, slot, level);
        uint32_t count = level && s->heir[i] != NONE ? 0 : link_count(links, link_cap(ix, level));
        emit32(out, count);
        for (uint32_t j = 0; j < count; j++)
            emit32(out, get(links + j));
    }
    if (whole)
        save_code(ix, out, s, slot);
}

/* ---- images ---- */

static bool bit_of(const uint64_t *bits, uint32_t i)
{
    return bits[i >> 6] >> (i & 63) & 1;
}

static bool is_pending(const part *p, uint32_t i)
{
    return atomic_load_explicit(&p->pending[i >> 6], memory_order_acquire) >> (i & 63) & 1;
}

/* After it was saved or put aside. */
static void settle_slot(part *p, uint32_t i)
{
    atomic_fetch_and_explicit(&p->pending[i >> 6], ~(1ull << (i & 63)), memory_order_release);
}

static bool saved_whole(const part *p, uint32_t i)
{
    return p->form == DL_WHOLE || bit_of(p->renewed, i);
}

static bool put_aside(const dl_index *ix, part *p, uint32_t slot)
{
    uint32_t i = slot & SLAB_MASK;
    if (!p->places && !(p->places = dl_zalloc(DL_SLAB * sizeof *p->places)))
        return false;
    size_t start = p->images.size;
    emit32(&p->images, 0);
    save_slot(ix, &p->images, slot, saved_whole(p, i));
    if (p->images.failed || p->images.size > UINT32_MAX - 1)
        return false;
    uint32_t size = (uint32_t)(p->images.size - start - 4);
    memcpy(p->images.bytes + start, &size, 4);
    p->places[i] = (uint32_t)start + 1;
    return true;
}

/* Nobody's change fails for want of memory here: the cut does. */
void keep_image(dl_index *ix, uint32_t slot)
{
    dl_cut *cut = atomic_load(&ix->cut);
    uint32_t number = slot >> SLAB_BITS, i = slot & SLAB_MASK;
    if (number >= cut->slabs || !is_pending(&cut->parts[number], i))
        return;
    part *p = &cut->parts[number];
    pthread_mutex_lock(&ix->images);
    if (is_pending(p, i)) {
        if (!cut->failed && !put_aside(ix, p, slot))
            cut->failed = true;
        settle_slot(p, i);
    }
    pthread_mutex_unlock(&ix->images);
}

/* ---- beginning and ending ---- */

/* In units of whole records; see debt. */
static uint32_t delta_cost(const part *p)
{
    uint32_t whole = 0, relinked = 0;
    for (uint32_t word = 0; word < DL_SLAB / 64; word++) {
        whole += (uint32_t)__builtin_popcountll(p->renewed[word]);
        relinked += (uint32_t)__builtin_popcountll(p->wanted[word] & ~p->renewed[word]);
    }
    return DELTA_COST + whole + relinked / RELINKED_PER_WHOLE;
}

/* Half a slab to one and a half. */
static uint32_t most_debt(uint32_t number)
{
    return DL_SLAB / 2 + (uint32_t)(dl_mix(number) % DL_SLAB);
}

static void begin_part(const dl_index *ix, part *p, uint32_t number, uint64_t known)
{
    slab *s = atomic_load(&ix->slabs[number]);
    p->version = atomic_load(&s->version);
    p->used = s->used;
    p->is_float = s->block->is_float;
    for (uint32_t word = 0; word < DL_SLAB / 64; word++) {
        p->wanted[word] = atomic_exchange_explicit(&s->changed[word], 0, memory_order_relaxed);
        p->renewed[word] = atomic_exchange_explicit(&s->renewed[word], 0, memory_order_relaxed);
    }
    uint32_t debt = s->debt + delta_cost(p);
    p->form = known == p->version ? DL_SAME : known == s->base && known != NEVER && debt <= most_debt(number) ? DL_DELTA : DL_WHOLE;
    if (p->form == DL_DELTA)
        s->debt = debt;
    if (p->form == DL_WHOLE)
        s->debt = 0;
    s->base = p->version;
    for (uint32_t word = 0; word < DL_SLAB / 64; word++) {
        uint32_t first = word * 64, left = p->used > first ? p->used - first : 0;
        if (p->form == DL_WHOLE)
            p->wanted[word] = left >= 64 ? ~0ull : (1ull << left) - 1;
        atomic_store_explicit(&p->pending[word], p->form == DL_SAME ? 0 : p->wanted[word], memory_order_relaxed);
    }
}

int dl_cut_begin(dl_index *ix, const uint64_t *known, uint32_t count, dl_cut **out)
{
    take_structure(ix);
    uint32_t slabs = atomic_load(&ix->slab_count);
    int code = atomic_load(&ix->cut) ? DL_EBUSY : DL_OK;
    dl_cut *cut = code == DL_OK ? dl_zalloc(sizeof *cut + slabs * sizeof *cut->parts) : NULL;
    if (code == DL_OK)
        code = cut ? save_head(ix, &cut->head, &cut->head_size) : DL_ENOMEM;
    if (code == DL_OK) {
        cut->ix = ix;
        cut->slabs = slabs;
        for (uint32_t number = 0; number < slabs; number++)
            begin_part(ix, &cut->parts[number], number, number < count ? known[number] : NEVER);
        atomic_store(&ix->cut, cut);
        *out = cut;
    } else {
        free(cut);
    }
    leave_structure(ix);
    return code;
}

void dl_cut_end(dl_cut *cut)
{
    if (!cut)
        return;
    take_structure(cut->ix);
    atomic_store(&cut->ix->cut, NULL);
    leave_structure(cut->ix);
    for (uint32_t number = 0; number < cut->slabs; number++) {
        free(cut->parts[number].images.bytes);
        free(cut->parts[number].places);
    }
    free(cut->head);
    free(cut);
}

/* ---- reading ---- */

void dl_cut_head(const dl_cut *cut, const uint8_t **bytes, size_t *size)
{
    *bytes = cut->head;
    *size = cut->head_size;
}

uint32_t dl_cut_slabs(const dl_cut *cut)
{
    return cut->slabs;
}

void dl_cut_forms(const dl_cut *cut, uint64_t *versions, uint8_t *forms)
{
    for (uint32_t number = 0; number < cut->slabs; number++) {
        versions[number] = cut->parts[number].version;
        forms[number] = cut->parts[number].form;
    }
}

/* One slot of a part, as it was; whoever changes it meanwhile waits for the copy. */
static void save_wanted(dl_cut *cut, part *p, uint32_t slot, sink *out)
{
    uint32_t i = slot & SLAB_MASK;
    pthread_mutex_lock(&cut->ix->images);
    if (is_pending(p, i)) {
        save_slot(cut->ix, out, slot, saved_whole(p, i));
        settle_slot(p, i);
    } else if (!cut->failed) {
        uint32_t size;
        const uint8_t *image = p->images.bytes + p->places[i] - 1;
        memcpy(&size, image, sizeof size);
        emit(out, image + sizeof size, size);
    }
    pthread_mutex_unlock(&cut->ix->images);
}

int dl_cut_save(dl_cut *cut, uint32_t number, uint8_t **bytes, size_t *size)
{
    if (number >= cut->slabs || cut->parts[number].form == DL_SAME || cut->parts[number].taken)
        return DL_EINVAL;
    dl_index *ix = cut->ix;
    part *p = &cut->parts[number];
    sink out = {0};
    emit(&out, p->form == DL_DELTA ? DELTA_MAGIC : SLAB_MAGIC, 4);
    emit32(&out, number);
    emit32(&out, p->used);
    emit32(&out, (p->is_float ? FLOATS : 0) | (ix->config.sources ? SOURCES : 0));
    share_structure(ix); /* so that blocks stay, and slots with something pending have a slab */
    for (uint32_t i = 0; i < p->used; i++) {
        if (!bit_of(p->wanted, i))
            continue;
        if (p->form == DL_DELTA)
            emit16(&out, (uint16_t)i);
        save_wanted(cut, p, number * DL_SLAB + i, &out);
    }
    unshare_structure(ix);
    p->taken = true;
    free(p->images.bytes); /* nothing is pending, so nobody adds to them */
    free(p->places);
    p->images = (sink){0};
    p->places = NULL;
    if (out.failed)
        cut->failed = true; /* some of its slots are neither saved nor pending */
    out.failed |= cut->failed;
    return finish(&out, bytes, size);
}
