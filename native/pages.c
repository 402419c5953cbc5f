/* Memory for slabs, blocks, links and records: carved from large chunks that ask for huge pages, since a walk jumps all over it
 * and each jump would miss the TLB. A piece that is given back is used again by the next of its size; meanwhile the system has
 * its pages. Nothing that stays lies in malloc's heap: between what stays, what the caller takes for a moment leaves holes there.
 *
 * Records are small and many: they are *cells*, whose sizes are multiples of 8 bytes without a header. A cell that is given back
 * is used again by the next of its size, so cells never take more than the most there was of each size. */
#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise */
#endif
#include <sys/mman.h>

#include "internal.h"

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 /* since Linux 6.1; older ones refuse it */
#endif

#define HUGE ((size_t)2 << 20)
#define CHUNK ((size_t)64 << 20) /* of address space; memory comes as it is touched */
#define PAGE ((size_t)4096)
#define RUN ((size_t)64 << 10) /* from which cells are carved */
#define CELL_UNIT ((size_t)8)

/* A piece that was given back, or a spare one of these: there are as many as there are pieces, so that giving back cannot fail. It
 * does not lie in the piece, where it would keep a page of it. */
struct piece {
    piece *next;
    void *memory;
    size_t bytes;
};

struct cell {
    cell *next;
};

struct chunk {
    chunk *next;
    uint8_t *memory, *at, *end;
    uint8_t *huge; /* as far as huge pages were asked for */
    size_t mapped;
};

#if defined(__has_feature) /* clang */
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#if defined(__SANITIZE_ADDRESS__)
/* Each piece by itself, so that the sanitizer sees where it ends. */
void *pages_take(dl_index *ix, size_t bytes)
{
    (void)ix;
    void *memory = dl_refused() ? NULL : aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (memory)
        memset(memory, 0, bytes);
    return memory;
}

void pages_give(dl_index *ix, void *memory, size_t bytes)
{
    (void)ix, (void)bytes;
    free(memory);
}

void pages_free(dl_index *ix)
{
    (void)ix;
}

void *cell_take(dl_index *ix, size_t bytes)
{
    (void)ix;
    return dl_alloc(bytes);
}

void cell_give(dl_index *ix, void *memory, size_t bytes)
{
    (void)ix, (void)bytes;
    free(memory);
}

void *table_new(size_t bytes)
{
    return dl_zalloc(bytes);
}

void table_free(void *table, size_t bytes)
{
    (void)bytes;
    free(table);
}
#else

/* Whether the system may back these pages by huge ones, now or later. */
static void allow_huge(void *memory, size_t bytes, bool huge)
{
#if defined(MADV_HUGEPAGE) && defined(MADV_NOHUGEPAGE)
    madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    (void)memory, (void)bytes, (void)huge;
#endif
}

static void *mapped(size_t bytes)
{
    void *memory = dl_refused() ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    allow_huge(memory, bytes, false);
    return memory;
}

static chunk *chunk_new(size_t least)
{
    chunk *c = dl_zalloc(sizeof *c);
    if (!c)
        return NULL;
    c->mapped = (least > CHUNK ? least : CHUNK) + HUGE;
    c->memory = mapped(c->mapped);
    if (!c->memory) {
        free(c);
        return NULL;
    }
    c->huge = c->at = c->memory + (HUGE - (uintptr_t)c->memory % HUGE) % HUGE;
    c->end = c->memory + c->mapped;
    return c;
}

/* Huge pages for what is carved completely: asked for sooner, the last would take 2 MB for whatever of it is used. They are a
 * wish: small pages do too. */
static void ask_huge(chunk *c)
{
    uint8_t *whole = c->at - (uintptr_t)c->at % HUGE;
    if (whole <= c->huge)
        return;
    allow_huge(c->huge, (size_t)(whole - c->huge), true);
#if defined(MADV_COLLAPSE)
    madvise(c->huge, (size_t)(whole - c->huge), MADV_COLLAPSE); /* or small ones that are there already would stay for long */
#endif
    c->huge = whole;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* A piece of this size that was given back; pages lock. */
static void *take_given(dl_index *ix, size_t bytes)
{
    for (piece **at = &ix->given; *at; at = &(*at)->next)
        if ((*at)->bytes == bytes) {
            piece *found = *at;
            *at = found->next;
            found->next = ix->spare;
            ix->spare = found;
            allow_huge(found->memory, bytes, true);
            return found->memory;
        }
    return NULL;
}

/* The next bytes of the chunks; pages lock. */
static void *carve(dl_index *ix, size_t bytes)
{
    if (!ix->chunks || (size_t)(ix->chunks->end - ix->chunks->at) < bytes) {
        chunk *c = chunk_new(bytes);
        if (!c)
            return NULL;
        c->next = ix->chunks;
        ix->chunks = c;
    }
    void *memory = ix->chunks->at;
    ix->chunks->at += bytes;
    ask_huge(ix->chunks);
    return memory;
}

/* The same with what giving it back will need; pages lock. */
static void *carve_piece(dl_index *ix, size_t bytes)
{
    piece *p = dl_alloc(sizeof *p);
    void *memory = p ? carve(ix, bytes) : NULL;
    if (!memory) {
        free(p);
        return NULL;
    }
    p->next = ix->spare;
    ix->spare = p;
    return memory;
}

/* Zeroed, whole pages; NULL if there is none. */
void *pages_take(dl_index *ix, size_t bytes)
{
    bytes = whole_pages(bytes);
    pthread_mutex_lock(&ix->pages);
    void *memory = take_given(ix, bytes);
    if (!memory)
        memory = carve_piece(ix, bytes);
    pthread_mutex_unlock(&ix->pages);
    return memory;
}

/* Its pages go to the system, which zeroes them. Small pages only, until it is used again: the next touch nearby would bring all
 * of two megabytes. */
void pages_give(dl_index *ix, void *memory, size_t bytes)
{
    if (!memory)
        return;
    bytes = whole_pages(bytes);
    allow_huge(memory, bytes, false);
    if (madvise(memory, bytes, MADV_DONTNEED))
        memset(memory, 0, bytes); /* the process locks its memory */
    pthread_mutex_lock(&ix->pages);
    piece *p = ix->spare;
    ix->spare = p->next;
    *p = (piece){ix->given, memory, bytes};
    ix->given = p;
    pthread_mutex_unlock(&ix->pages);
}

static void free_cell(dl_index *ix, void *memory, size_t bytes)
{
    cell *c = memory;
    c->next = ix->cells[bytes / CELL_UNIT];
    ix->cells[bytes / CELL_UNIT] = c;
}

/* Not zeroed, 8-byte aligned; NULL if there is none. */
void *cell_take(dl_index *ix, size_t bytes)
{
    bytes = (bytes + CELL_UNIT - 1) & ~(CELL_UNIT - 1);
    if (bytes > CELL_MOST)
        return dl_alloc(bytes);
    if (dl_refused())
        return NULL;
    pthread_mutex_lock(&ix->pages);
    cell *memory = ix->cells[bytes / CELL_UNIT];
    size_t left = (size_t)(ix->run_end - ix->run);
    if (memory) {
        ix->cells[bytes / CELL_UNIT] = memory->next;
    } else if (left < bytes) {
        uint8_t *run = carve(ix, RUN);
        if (run && left)
            free_cell(ix, ix->run, left);
        if (run) {
            ix->run = run;
            ix->run_end = run + RUN;
        }
        left = run ? RUN : 0;
    }
    if (!memory && left) {
        memory = (cell *)(void *)ix->run;
        ix->run += bytes;
    }
    pthread_mutex_unlock(&ix->pages);
    return memory;
}

void cell_give(dl_index *ix, void *memory, size_t bytes)
{
    bytes = (bytes + CELL_UNIT - 1) & ~(CELL_UNIT - 1);
    if (bytes > CELL_MOST) {
        free(memory);
        return;
    }
    pthread_mutex_lock(&ix->pages);
    free_cell(ix, memory, bytes);
    pthread_mutex_unlock(&ix->pages);
}

/* Zeroed, and only what is touched takes memory: from malloc it may be used memory, zeroed by writing to all of it. */
void *table_new(size_t bytes)
{
    return mapped(bytes);
}

void table_free(void *table, size_t bytes)
{
    if (table)
        munmap(table, bytes);
}

static void free_pieces(piece *p)
{
    for (piece *next; p; p = next) {
        next = p->next;
        free(p);
    }
}

void pages_free(dl_index *ix)
{
    for (chunk *c = ix->chunks, *next; c; c = next) {
        next = c->next;
        munmap(c->memory, c->mapped);
        free(c);
    }
    free_pieces(ix->given);
    free_pieces(ix->spare);
}
#endif
