/* Who may change what at once: the structure, shared or alone, and one slot's links. */
#include <sched.h>

#include "internal.h"

enum { SPINS = 64 }; /* before the processor is given to whoever holds the lock; it is held for a microsecond */

void share_structure(dl_index *ix)
{
    pthread_mutex_lock(&ix->gate);
    atomic_fetch_add(&ix->sharing, 1);
    pthread_mutex_unlock(&ix->gate);
}

void unshare_structure(dl_index *ix)
{
    if (atomic_fetch_sub(&ix->sharing, 1) > 1)
        return;
    pthread_mutex_lock(&ix->leaving);
    pthread_cond_signal(&ix->left);
    pthread_mutex_unlock(&ix->leaving);
}

/* The gate stays shut until leave_structure: nobody joins while the last ones leave. */
void take_structure(dl_index *ix)
{
    pthread_mutex_lock(&ix->gate);
    pthread_mutex_lock(&ix->leaving);
    while (atomic_load(&ix->sharing))
        pthread_cond_wait(&ix->left, &ix->leaving);
    pthread_mutex_unlock(&ix->leaving);
}

void leave_structure(dl_index *ix)
{
    pthread_mutex_unlock(&ix->gate);
}

void lock_slot(dl_index *ix, uint32_t slot)
{
    _Atomic uint8_t *lock = &slab_of(ix, slot)->locks[slot & SLAB_MASK];
    for (int spins = 0; atomic_exchange_explicit(lock, 1, memory_order_acquire); spins++)
        if (spins >= SPINS)
            sched_yield();
}

void unlock_slot(dl_index *ix, uint32_t slot)
{
    atomic_store_explicit(&slab_of(ix, slot)->locks[slot & SLAB_MASK], 0, memory_order_release);
}
