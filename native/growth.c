/* How distances grow with rank around a row, by which a search tells when to end (search.c): r_j = r_k (j / k)^growth, two over the
 * intrinsic dimension for squared distances (Amsaleg et al., KDD 2015). Learnt from insertions, and from rows that are encoded
 * anew: distances between bad codes grow otherwise than those between good ones. */
#include <math.h>

#include "internal.h"

enum {
    FROM = 10,     /* ranks between which it is measured: the first, */
    TO = 64,       /* and the last at least */
    MEMORY = 4096, /* rows that the mean goes back */
    WALKS = 16     /* rows of a slab that stand for all of it */
};

/* 0 where the distances, ascending, do not tell. */
float growth_of(const dl_index *ix, const near *nearest, uint32_t count)
{
    if (ix->config.metric == DL_IP || count < TO || nearest[FROM - 1].distance <= 0)
        return 0;
    float ratio = nearest[count - 1].distance / nearest[FROM - 1].distance;
    return isfinite(ratio) ? logf(ratio) / logf((float)count / FROM) : 0;
}

/* Into the mean over the last rows, as what `rows` of them met. Commit lock. */
void learn_growth(dl_index *ix, float growth, uint32_t rows)
{
    float mean = atomic_load(&ix->growth), share = (float)rows / (float)(ix->inserted < MEMORY ? ix->inserted : MEMORY);
    if (growth > 0)
        atomic_store(&ix->growth, mean > 0 ? mean + fminf(share, 1) * (growth - mean) : growth);
}

/* Around one row, as if it was not there. */
static int around(dl_index *ix, reader *r, uint32_t slot, const float *raw, float *growth)
{
    uint32_t count = 0;
    to_plain(ix, raw, r->plain);
    probe_vector(ix, &r->query, r->plain);
    int code = walk(ix, r, slot, 0, linking_extent(ix), EVERYTHING, NULL);
    if (code == DL_OK)
        code = found(r, 0, &count);
    if (code != DL_OK)
        return code;
    uint32_t own = count && r->picked[0].slot == slot;
    *growth = growth_of(ix, r->picked + own, count - own);
    return DL_OK;
}

int dl_learn(dl_index *ix, uint32_t number)
{
    reader *r = reader_enter(ix, NULL);
    if (!r)
        return DL_ENOMEM;
    share_structure(ix);
    int code = number < atomic_load(&ix->slab_count) ? DL_OK : DL_EINVAL;
    for (uint32_t i = DL_SLAB / WALKS / 2; code == DL_OK && i < DL_SLAB; i += DL_SLAB / WALKS) {
        uint32_t slot = number * DL_SLAB + i;
        const float *raw = raw_of(ix, atomic_load(&slab_of(ix, slot)->row[i]));
        float growth = 0;
        if (state_of(ix, slot) != SLOT_LIVE || !raw)
            continue;
        code = around(ix, r, slot, raw, &growth);
        pthread_mutex_lock(&ix->commit);
        learn_growth(ix, growth, DL_SLAB / WALKS);
        pthread_mutex_unlock(&ix->commit);
    }
    unshare_structure(ix);
    reader_leave(r);
    return code;
}
