/* The saved form. Little-endian, no padding. Version 3 of the head, 4 of slabs; older ones are refused: rebuild from the log.
 *   head    "DLH3", u32 dim, metric, m, route bits; u64 seed, rotation seed, inserted; u32 slots, entry, write frame; f32 growth
 *   slab    "DLS4", u32 slab, used, flags: 1 floats, 2 sources; then a record of each used slot
 *   delta   "DLD4", the same head; then u16 place in the slab and a record of each slot that changed since the slab was saved,
 *           or its last delta
 *   record  u8 state: 0 free, 1 live, 2 dead; + 4 in a delta, where all but this, row, source, parent and links is as it was.
 *           Unless free: u8 frame (not with 4), u8 level, u32 parent, u64 row, with sources 2 u64;
 *           u32 payload size, u16 key size, key, payload (not with 4);
 *           per level 0..level: u32 count, count * u32 slot (bit 31: an edge of the tree);
 *           the code (not with 4): f32[dim], or f32 coarse norm, f32 fine norm, u16 stretch, the planes of kernels.h
 * A node that is being unlinked is saved as dead; one in limbo, which nothing links to, as free. */
#ifndef DRIFTLINE_STORE_H
#define DRIFTLINE_STORE_H

#define HEAD_MAGIC "DLH3"
#define SLAB_MAGIC "DLS4"
#define DELTA_MAGIC "DLD4"
enum { FLOATS = 1, SOURCES = 2 }; /* flags */
enum { RELINKED = 4 };            /* of a record */

/* What a delta adds to a slab's debt: something for itself, and its records in units of whole ones. */
enum { DELTA_COST = DL_SLAB / 16, RELINKED_PER_WHOLE = 4 };

#endif
