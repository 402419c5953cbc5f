"""Where a row comes from in a log of several partitions, and which of two records of a key holds.

In one partition the later record holds. Of records in two partitions, as there are after the number of
partitions changed, the one with the higher (timestamp, partition, offset) does, where a record's timestamp
is the highest that its partition has shown for the key so far. What holds in the end is then the last record
of the partition with the highest (highest timestamp, partition), in whatever order partitions were read: what
holds only ever rises, and a record that loses can be forgotten.

A source is two uint64, ordered as that rule has it; both are 0 where there is none.

| word | bits | what |
|---|---|---|
| 0 | 16 to 63 | timestamp, ms since the epoch; 0 where there is none |
| 0 | 0 to 15 | upper half of the partition |
| 1 | 48 to 63 | lower half of the partition |
| 1 | 0 to 47 | next offset: that of the record plus one |
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sources", "another_partition", "contest", "pack_sources", "time_word"]

Sources = NDArray[np.uint64]  # [n, 2]
Mask = NDArray[np.bool_]

HALF = 16
OFFSET_BITS = 48
OFFSETS = np.uint64((1 << OFFSET_BITS) - 1)
PARTITIONS = np.uint64((1 << HALF) - 1)


def pack_sources(partitions: Sequence[int], offsets: Sequence[int], times_ms: Sequence[int]) -> Sources:
    """uint64 [n, 2] of n partitions, offsets of records and timestamps in ms (negative: none)."""
    partition, offset = np.array(partitions, np.uint64), np.array(offsets, np.uint64)
    time = np.maximum(np.array(times_ms, np.int64), 0).astype(np.uint64)
    low = (partition & PARTITIONS) << np.uint64(OFFSET_BITS) | (offset + np.uint64(1))
    return np.stack([time << np.uint64(HALF) | partition >> np.uint64(HALF), low], axis=1)


def time_word(time_ms: int) -> int:
    """What a source of an earlier timestamp has a lower word 0 than."""
    return max(time_ms, 0) << HALF


def another_partition(held: Sources, new: Sources) -> Mask:
    """bool [n]: something is held, and it is of another partition than what is new."""
    low = (held[:, 1] ^ new[:, 1]) >> np.uint64(OFFSET_BITS)
    high = (held[:, 0] ^ new[:, 0]) & PARTITIONS
    return (held[:, 1] != 0) & ((low | high) != 0)


def contest(held: Sources, new: Sources) -> tuple[Mask, Sources]:
    """bool [n], which of the new records hold from now on, and [n, 2], their sources then.

    A record that was applied before holds again: an identical one changes nothing.
    """
    other = another_partition(held, new)
    raised = new.copy()
    raised[:, 0] = np.where(other, new[:, 0], np.maximum(held[:, 0], new[:, 0]))
    later = (held[:, 1] & OFFSETS) <= (new[:, 1] & OFFSETS)
    higher = (new[:, 0] > held[:, 0]) | ((new[:, 0] == held[:, 0]) & (new[:, 1] > held[:, 1]))
    return np.where(other, higher, later), raised
