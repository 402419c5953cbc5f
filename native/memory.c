/* Allocation, with a countdown for tests: after dl_fail_after(n), the n-th allocation from now fails, once. */
#include "internal.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

static _Atomic int64_t countdown = -1;

void dl_fail_after(int64_t allocations)
{
    atomic_store(&countdown, allocations);
}

bool dl_refused(void)
{
    if (atomic_load_explicit(&countdown, memory_order_relaxed) < 0)
        return false;
    return atomic_fetch_sub(&countdown, 1) == 0;
}

void *dl_alloc(size_t bytes)
{
    return dl_refused() ? NULL : malloc(bytes ? bytes : 1);
}

void *dl_zalloc(size_t bytes)
{
    return dl_refused() ? NULL : calloc(1, bytes ? bytes : 1);
}

void *dl_grow(void *memory, size_t bytes)
{
    return dl_refused() ? NULL : realloc(memory, bytes ? bytes : 1);
}

/* The heap's whole free pages go back to the system, where there is a way. Milliseconds: for the end of an evacuation. */
void dl_trim(void)
{
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

void dl_free(void *bytes)
{
    free(bytes);
}

const char *dl_strerror(int code)
{
    switch (code) {
    case DL_OK: return "done";
    case DL_ENOMEM: return "out of memory";
    case DL_EINVAL: return "an argument is out of its range";
    case DL_ECORRUPT: return "the index, or the bytes it was loaded from, are damaged";
    case DL_EFULL: return "no slot or frame is left";
    case DL_EBUSY: return "still in use";
    default: return "unknown error";
    }
}
