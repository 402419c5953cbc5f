/* How well the rows of a slab are coded, and how well they would be in the other frames. */
#include "internal.h"

/* |x - decode(encode(x))|^2 of one raw vector in every tile frame alive. */
static void measure(const dl_index *ix, reader *r, const float *raw, float tables[DL_FRAMES][256], double *errors)
{
    uint32_t dim = ix->config.dim;
    bool turned = false;
    to_plain(ix, raw, r->plain);
    for (uint32_t id = 0; id < DL_FRAMES; id++) {
        const frame *f = frame_of(ix, id);
        errors[id] = 0;
        if (!f || f->is_float)
            continue;
        if (f->rotated && !turned)
            dl_rotate(r->plain, r->turned, 1, dim, ix->config.rotation_seed);
        turned = turned || f->rotated;
        errors[id] = dl_row_error(f->rotated ? r->turned : r->plain, dim, f->mean, f->scale, f->inv_scale, &f->grid, tables[id]);
    }
}

/* The structure is locked for a copy of the row ids alone; the reader's pin keeps the raw vectors attached after it. */
int dl_survey(dl_index *ix, uint32_t number, uint32_t first, uint32_t every, uint32_t bits, const float *tables, dl_errors *out)
{
    if (!every || bits < 1 || bits > 8)
        return DL_EINVAL;
    uint64_t now, rows[DL_SLAB];
    uint8_t frames[DL_SLAB];
    uint32_t count;
    reader *r = reader_enter(ix, &now);
    if (!r)
        return DL_ENOMEM;
    int code = dl_slab_rows(ix, number, rows, frames, &count);
    if (code != DL_OK) {
        reader_leave(r);
        return code;
    }
    float by_code[DL_FRAMES][256];
    for (uint32_t id = 0; id < DL_FRAMES; id++)
        dl_table_by_code(tables + ((size_t)id << bits), bits, by_code[id]);
    *out = (dl_errors){0};
    for (uint32_t i = 0; i < count; i++)
        out->live[frames[i]]++;
    for (uint32_t i = first; i < count; i += every) {
        const float *raw = raw_of(ix, rows[i]);
        if (!raw)
            continue;
        double errors[DL_FRAMES];
        measure(ix, r, raw, by_code, errors);
        for (uint32_t id = 0; id < DL_FRAMES; id++)
            out->errors[id] += errors[id];
        out->own += errors[frames[i]];
        out->rows++;
    }
    reader_leave(r);
    return DL_OK;
}
