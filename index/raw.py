"""Where raw vectors lie: the protocol that storage implements, and the library's in-memory one."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .digest import Hashes

__all__ = ["MemoryRawVectors", "RawVectors", "RowIds", "runs", "segments_of"]

Vectors = NDArray[np.float32]
RowIds = NDArray[np.uint64]

SEGMENT_BYTES = 4 << 20  # small enough that a library user with a thousand vectors pays for few spare rows


def runs(rows: RowIds) -> list[tuple[int, slice]]:
    """Row ids as segments and neighbouring rows in them, in order."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    parts = [part for part in np.split(rows, ends) if len(part)]
    firsts = [(int(part[0]) >> 32, int(part[0]) & 0xFFFFFFFF, len(part)) for part in parts]
    return [(segment, slice(first, first + count)) for segment, first, count in firsts]


def segments_of(rows: RowIds) -> set[int]:
    """The segments that rows lie in. (numpy's unique takes a megabyte of memory when it is first called.)"""
    return set((rows >> np.uint64(32)).tolist())


class RawVectors(Protocol):
    """Append-only rows of float32, in segments whose memory never moves.

    A row id is `segment << 32 | row` and is never used twice. A segment's rows are contiguous, `dim` float32
    each. Appending is one thread's; reading is anybody's.
    """

    dim: int
    hashed: bool  # a hash is kept beside every row (digest.py)

    def append(self, vectors: Vectors, hashes: Hashes | None = None) -> RowIds:
        """Store float32 [n, dim] and, where they are kept, hashes; uint64 [n] row ids, readable at once."""
        ...

    def read(self, rows: RowIds) -> Vectors:
        """float32 [n, dim], a copy, of uint64 [n] row ids."""
        ...

    def hashes(self, rows: RowIds) -> Hashes:
        """uint32 [n, 4], a copy: the hashes of rows, where they are kept."""
        ...

    def views(self, rows: RowIds) -> list[Vectors]:
        """Vectors, read-only and not copied: an array for each of `runs`, good whatever is forgotten."""
        ...

    def segments(self) -> dict[int, tuple[int, int]]:
        """Segment id -> (address of its first row, rows it has room for)."""
        ...

    def high_water(self) -> dict[int, int]:
        """Segment id -> rows stored; the highest id's is the one that rows are appended to."""
        ...

    def forget(self, live: frozenset[int]) -> frozenset[int]:
        """Release what can be released of the segments not in `live`; the ids of those that are gone."""
        ...

    def close(self) -> None: ...


class MemoryRawVectors:
    """Raw vectors in ordinary memory, for an index without a disk. No hashes: they would be memory too."""

    hashed = False

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._capacity = max(64, SEGMENT_BYTES // (4 * dim))
        self._segments: dict[int, Vectors] = {}
        self._open = -1
        self._used = self._capacity

    def append(self, vectors: Vectors, hashes: Hashes | None = None) -> RowIds:
        rows = np.empty(len(vectors), np.uint64)
        done = 0
        while done < len(vectors):
            if self._used == self._capacity:
                self._open += 1
                self._segments[self._open] = np.empty((self._capacity, self.dim), np.float32)
                self._used = 0
            count = min(len(vectors) - done, self._capacity - self._used)
            self._segments[self._open][self._used : self._used + count] = vectors[done : done + count]
            first = self._open << 32 | self._used
            rows[done : done + count] = np.arange(first, first + count, dtype=np.uint64)
            self._used += count
            done += count
        return rows

    def read(self, rows: RowIds) -> Vectors:
        out = np.empty((len(rows), self.dim), np.float32)
        segment_of = rows >> np.uint64(32)
        for segment in segments_of(rows):
            here = segment_of == segment
            out[here] = self._segments[segment][rows[here] & np.uint64(0xFFFFFFFF)]
        return out

    def hashes(self, rows: RowIds) -> Hashes:
        raise NotImplementedError("no hashes are kept in memory")

    def views(self, rows: RowIds) -> list[Vectors]:
        views = [self._segments[segment][span] for segment, span in runs(rows)]
        for view in views:
            view.flags.writeable = False
        return views

    def segments(self) -> dict[int, tuple[int, int]]:
        return {number: (rows.ctypes.data, self._capacity) for number, rows in self._segments.items()}

    def high_water(self) -> dict[int, int]:
        return {n: self._used if n == self._open else self._capacity for n in self._segments}

    def forget(self, live: frozenset[int]) -> frozenset[int]:
        gone = frozenset(self._segments) - live - {self._open}
        for segment in gone:
            del self._segments[segment]
        return gone

    def close(self) -> None:
        self._segments.clear()
