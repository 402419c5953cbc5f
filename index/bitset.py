"""A compressed bitmap as the flat bitset that the core reads while it searches.

The way is through the bitmap's portable serialization (github.com/RoaringBitmap/RoaringFormatSpec), because
it is a plain copy of the containers: half of 1,000,000 slots take 0.03 ms, scattering `to_array` 1.7 ms.

| part    | layout, little-endian                                                                           |
|---------|-------------------------------------------------------------------------------------------------|
| cookie  | u32: 12346, then u32 n; or low half 12347 and high half n - 1, then a bit per container: a run? |
| heads   | n times u16 high half of the slots, u16 how many - 1                                            |
| offsets | n times u32 from the start; left out where there are runs and n < 4                             |
| run     | u16 runs, then so many u16 first, u16 length - 1                                                |
| array   | u16 each, where it is no run and holds at most 4096                                             |
| bits    | 8192 bytes, where it holds more                                                                 |
"""

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

__all__ = ["Bitset", "bitset_of"]

Bitset = NDArray[np.uint64]

NO_RUNS, RUNS = 12346, 12347
WITHOUT_OFFSETS = 4  # fewer containers, with runs among them, have no offsets
CONTAINER = 1 << 16  # slots
SPARSE = 4096  # an array holds at most so many


def bitset_of(slots: BitMap, size: int) -> Bitset:
    """uint64 [ceil(size / 64)]: bit s & 63 of item s >> 6 stands for slot s. Slots must be below `size`."""
    words = -(-size // 64)
    containers = -(-size // CONTAINER)
    bits = np.zeros(containers * (CONTAINER // 64), np.uint64)
    if not slots:
        return bits[:words]
    data = slots.serialize()
    cookie = int.from_bytes(data[:4], "little")
    runs = cookie & 0xFFFF == RUNS
    if not runs and cookie != NO_RUNS:
        raise AssertionError(f"pyroaring serialized with cookie {cookie}, not the portable format")
    count = (cookie >> 16) + 1 if runs else int.from_bytes(data[4:8], "little")
    flags = np.zeros(count, np.bool_)
    at = 8
    if runs:
        at = 4 + -(-count // 8)
        flags = np.unpackbits(np.frombuffer(data, np.uint8, at - 4, 4), bitorder="little")[:count] != 0
    heads = np.frombuffer(data, "<u2", 2 * count, at).reshape(count, 2).tolist()
    at += 4 * count
    if not runs or count >= WITHOUT_OFFSETS:
        at += 4 * count

    octets = bits.view(np.uint8).reshape(containers, CONTAINER // 8)
    flat = np.zeros(CONTAINER, np.bool_)
    for (high, less), is_run in zip(heads, flags.tolist(), strict=True):
        if not is_run and less >= SPARSE:
            octets[high] = np.frombuffer(data, np.uint8, CONTAINER // 8, at)
            at += CONTAINER // 8
            continue
        flat[:] = False
        if is_run:
            pairs = np.frombuffer(data, "<u2", 1, at)[0].item()
            for first, length in np.frombuffer(data, "<u2", 2 * pairs, at + 2).reshape(pairs, 2).tolist():
                flat[first : first + length + 1] = True
            at += 2 + 4 * pairs
        else:
            flat[np.frombuffer(data, "<u2", less + 1, at)] = True
            at += 2 * (less + 1)
        octets[high] = np.packbits(flat, bitorder="little")
    return bits[:words]
