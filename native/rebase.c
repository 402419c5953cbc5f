/* Raw vectors that change their place: their segment is rewritten, since few rows in it are still wanted. Searches may read a vector at
 * the old row or the new one, where the same bytes stand. */
#include "internal.h"

enum { SCAN_SLABS = 256 }; /* a quarter of a million slots: a millisecond */

void dl_referring(dl_index *ix, size_t n, const uint32_t *segments, uint32_t *slots)
{
    for (size_t i = 0; i < n; i++)
        slots[i] = segments[i] < MAX_SEGMENTS ? atomic_load(&ix->referring[segments[i]]) : 0;
}

uint32_t dl_segment_slots(dl_index *ix, uint32_t segment, uint32_t first, uint32_t *slots, uint64_t *rows, uint32_t most, uint32_t *count)
{
    uint32_t end = first + SCAN_SLABS;
    *count = 0;
    share_structure(ix);
    for (; first < end && first < atomic_load(&ix->slab_count) && most - *count >= DL_SLAB; first++)
        for (uint32_t slot = first * DL_SLAB; slot < (first + 1) * DL_SLAB; slot++) {
            uint64_t row = atomic_load(&slab_of(ix, slot)->row[slot & SLAB_MASK]);
            if (row >> 32 != segment || state_of(ix, slot) != SLOT_LIVE)
                continue;
            slots[*count] = slot;
            rows[(*count)++] = row;
        }
    unshare_structure(ix);
    return first;
}

int dl_rebase(dl_index *ix, size_t n, const uint32_t *slots, const uint64_t *rows, const uint64_t *others)
{
    share_structure(ix);
    int code = DL_OK;
    for (size_t i = 0; code == DL_OK && i < n; i++)
        code = row_exists(ix, others[i]) ? DL_OK : DL_EINVAL;
    for (size_t i = 0; code == DL_OK && i < n; i++) {
        if (slots[i] >= atomic_load(&ix->slot_count))
            continue;
        pthread_mutex_lock(&ix->commit); /* so that it does not die meanwhile */
        if (state_of(ix, slots[i]) == SLOT_LIVE && atomic_load(&slab_of(ix, slots[i])->row[slots[i] & SLAB_MASK]) == rows[i]) {
            before_change(ix, slots[i], false);
            set_row(ix, slots[i], others[i]);
        }
        pthread_mutex_unlock(&ix->commit);
    }
    unshare_structure(ix);
    return code;
}
