/* A tile frame for the programs that try the core: evenly spaced tiles around 0. */
#include "driftline.h"

enum { TILE_DIM = 64 /* at most */ };

static int open_tile_frame(dl_index *ix, uint32_t dim, uint32_t frame, float scale, int rotated)
{
    float mean[TILE_DIM] = {0}, scales[TILE_DIM], edges[255], fine[256], coarse[32];
    int bits = (int)dl_route_bits(ix), width = 256 >> bits;
    for (uint32_t d = 0; d < dim; d++)
        scales[d] = scale;
    for (int c = 0; c < 256; c++)
        fine[c] = (float)(c - 127.5) / 40;
    for (int c = 0; c < 255; c++)
        edges[c] = (fine[c] + fine[c + 1]) / 2;
    for (int c = 0; c < 1 << bits; c++)
        coarse[c] = (fine[c * width + width / 2 - 1] + fine[c * width + width / 2]) / 2;
    dl_tile tile = {mean, scales, edges, fine, coarse, rotated};
    return dl_frame_open(ix, frame, &tile);
}
