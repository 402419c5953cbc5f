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

/* A piece that was given back; lies at its own beginning. */
struct piece {
    piece *next;
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

void pages_free(dl_index *ix)
{
    (void)ix;
}
#else

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
#if defined(MADV_HUGEPAGE)
    madvise(c->at, (size_t)(c->end - c->at), MADV_HUGEPAGE); /* a wish: small pages do too */
#endif
    return c;
}

static void *take_given(dl_index *ix, size_t bytes)
{
    for (piece **at = &ix->given; *at; at = &(*at)->next)
        if ((*at)->bytes == bytes) {
            piece *found = *at;
            *at = found->next;
            *found = (piece){0};
            return found;
        }
    return NULL;
}

/* Zeroed, 64-byte aligned; NULL if there is none. */
void *pages_take(dl_index *ix, size_t bytes)
{
    bytes = (bytes + 63) & ~(size_t)63;
    pthread_mutex_lock(&ix->pages);
    uint8_t *memory = take_given(ix, bytes);
    if (!memory && (!ix->chunks || (size_t)(ix->chunks->end - ix->chunks->at) < bytes)) {
        chunk *c = chunk_new(bytes);
        if (c) {
            c->next = ix->chunks;
            ix->chunks = c;
        } else {
            pthread_mutex_unlock(&ix->pages);
            return NULL;
        }
    }
    if (!memory) {
        memory = ix->chunks->at;
        ix->chunks->at += bytes;
    }
    pthread_mutex_unlock(&ix->pages);
    return memory;
}

/* Whole pages inside the piece go to the system, which zeroes them; the rest is zeroed here. */
void pages_give(dl_index *ix, void *memory, size_t bytes)
{
    if (!memory)
        return;
    bytes = (bytes + 63) & ~(size_t)63;
    uint8_t *begin = memory, *end = begin + bytes;
    uint8_t *first = begin + PAGE - (uintptr_t)begin % PAGE, *last = end - (uintptr_t)end % PAGE;
    memset(begin, 0, first < end ? (size_t)(first - begin) : bytes);
    if (last > first) {
        madvise(first, (size_t)(last - first), MADV_DONTNEED);
        memset(last, 0, (size_t)(end - last));
    } else if (first < end) {
        memset(first, 0, (size_t)(end - first));
    }
    pthread_mutex_lock(&ix->pages);
    piece *p = memory;
    p->bytes = bytes;
    p->next = ix->given;
    ix->given = p;
    pthread_mutex_unlock(&ix->pages);
}

void pages_free(dl_index *ix)
{
    for (chunk *c = ix->chunks, *next; c; c = next) {
        next = c->next;
        munmap(c->memory, c->mapped);
        free(c);
    }
}
#endif
