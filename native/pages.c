/* Memory for blocks and links: carved from large chunks that ask for huge pages, since a walk jumps all over it and each jump
 * would miss the TLB. A piece that is given back is used again by the next of its size; meanwhile the system has its pages. */
#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise */
#endif
#include <sys/mman.h>

#include "internal.h"

#define HUGE ((size_t)2 << 20)
#define CHUNK ((size_t)64 << 20) /* of address space; memory comes as it is touched */
#define PAGE ((size_t)4096)

/* A piece that was given back, or a spare one of these: there are as many as there are pieces, so that giving back cannot fail. It
 * does not lie in the piece, where it would keep a page of it. */
struct piece {
    piece *next;
    void *memory;
    size_t bytes;
};

struct chunk {
    chunk *next;
    uint8_t *memory, *at, *end;
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

void pages_trim(dl_index *ix)
{
    (void)ix;
}

void pages_free(dl_index *ix)
{
    (void)ix;
}
#else

/* Whether huge pages are wanted: small ones do too, so a refusal is no error. Not where a piece was given back: the next touch
 * nearby would bring all of two megabytes. */
static void wish_huge(void *memory, size_t bytes, bool wanted)
{
#if defined(MADV_HUGEPAGE)
    madvise(memory, bytes, wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    (void)memory, (void)bytes, (void)wanted;
#endif
}

static chunk *chunk_new(size_t least)
{
    chunk *c = dl_zalloc(sizeof *c);
    if (!c)
        return NULL;
    c->mapped = (least > CHUNK ? least : CHUNK) + HUGE;
    c->memory = dl_refused() ? MAP_FAILED : mmap(NULL, c->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c->memory == MAP_FAILED) {
        free(c);
        return NULL;
    }
    c->at = c->memory + (HUGE - (uintptr_t)c->memory % HUGE) % HUGE;
    c->end = c->memory + c->mapped;
    wish_huge(c->at, (size_t)(c->end - c->at), true);
    return c;
}

static void *take_given(dl_index *ix, size_t bytes)
{
    for (piece **at = &ix->given; *at; at = &(*at)->next)
        if ((*at)->bytes == bytes) {
            piece *found = *at;
            *at = found->next;
            found->next = ix->spare;
            ix->spare = found;
            wish_huge(found->memory, bytes, true);
            return found->memory;
        }
    return NULL;
}

static void *carve(dl_index *ix, size_t bytes)
{
    piece *p = dl_alloc(sizeof *p);
    if (!p)
        return NULL;
    if (!ix->chunks || (size_t)(ix->chunks->end - ix->chunks->at) < bytes) {
        chunk *c = chunk_new(bytes);
        if (!c) {
            free(p);
            return NULL;
        }
        c->next = ix->chunks;
        ix->chunks = c;
    }
    p->next = ix->spare;
    ix->spare = p;
    uint8_t *memory = ix->chunks->at;
    ix->chunks->at += bytes;
    return memory;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* Zeroed, whole pages; NULL if there is none. */
void *pages_take(dl_index *ix, size_t bytes)
{
    bytes = whole_pages(bytes);
    pthread_mutex_lock(&ix->pages);
    void *memory = take_given(ix, bytes);
    if (!memory)
        memory = carve(ix, bytes);
    pthread_mutex_unlock(&ix->pages);
    return memory;
}

/* Its pages go to the system, which zeroes them. */
void pages_give(dl_index *ix, void *memory, size_t bytes)
{
    if (!memory)
        return;
    bytes = whole_pages(bytes);
    if (madvise(memory, bytes, MADV_DONTNEED))
        memset(memory, 0, bytes); /* the process locks its memory */
    wish_huge(memory, bytes, false);
    pthread_mutex_lock(&ix->pages);
    piece *p = ix->spare;
    ix->spare = p->next;
    *p = (piece){ix->given, memory, bytes};
    ix->given = p;
    pthread_mutex_unlock(&ix->pages);
}

/* What a huge page brought beyond the last piece goes back too. */
void pages_trim(dl_index *ix)
{
    pthread_mutex_lock(&ix->pages);
    chunk *c = ix->chunks;
    size_t beyond = c ? (HUGE - (uintptr_t)c->at % HUGE) % HUGE : 0;
    if (c && beyond && beyond <= (size_t)(c->end - c->at))
        madvise(c->at, beyond, MADV_DONTNEED);
    pthread_mutex_unlock(&ix->pages);
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
