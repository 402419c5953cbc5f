"""Raw vectors in append-only segment files, mapped for reading.

A row id is `segment << 32 | row`. A row never changes and, among all that a manifest can name, its id is
never used twice: it can be read before and after a snapshot, and everything an old snapshot names is still
there.

segments/<id>.f32, id in decimal from 0; numbers are little-endian:

| offset | bytes | field |
|---|---|---|
| 0 | 8 | magic "DRFTRAW1" |
| 8 | 4 | format version, u32: 1 |
| 12 | 4 | dim, u32 |
| 16 | 8 | segment id, u64 |
| 24 | 8 | rows the file has room for, u64 |
| 32 | 16 | checksum of bytes 0 to 31: first half of their SHA-256 |
| 48 | 4048 | zeros |
| 4096 | 4 * dim | row 0, float32; row 1 and so on behind it without gaps |

A file is made at its full length, sparse: disk is taken as rows are written. Rows carry no checksum; which
rows are meant is in the manifest (`high_water`), and what lies behind them is free. Each segment costs one
map and one file descriptor.

Rows are written with pwrite and read through a shared read-only mapping, which the kernel keeps coherent.
`append` is one thread's; everything else is anybody's, beside it.
"""

import mmap
import os
import re
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput, SnapshotError
from ..index.raw import RowIds, runs, segments_of
from .checksum import CHECKSUM_BYTES, checksum
from .environment import sync_directory

__all__ = ["FileRawVectors", "segment_problem"]

Vectors = NDArray[np.float32]

MAGIC = b"DRFTRAW1"
VERSION = 1
HEADER = struct.Struct("<8sIIQQ16s")
HEADER_BYTES = 4096  # a page, so that row 0 is aligned for every vector kernel
SEGMENT_BYTES = 64 << 20  # few files for millions of rows, and little to rewrite when one empties
MIN_ROWS = 1024
FILE_NAME = re.compile(r"(0|[1-9][0-9]*)\.f32")


class FileRawVectors:
    """The raw vectors of one index on disk; implements the `RawVectors` that index/ asks for.

    `named` gives, for every segment that a manifest names, how many of its rows are meant (the most that any
    manifest says). They are mapped, appending goes on behind them, and files of other segments are removed.
    A file that was cut off is mapped as far as it goes, one with a damaged header not at all, and none is
    mended: a snapshot that misses rows stays recognisable. SnapshotError where directory or disk refuse.
    """

    def __init__(
        self, path: str | Path, dim: int, named: Mapping[int, int], *, segment_rows: int | None = None
    ) -> None:
        self.path = Path(path)
        self.dim = dim
        self._capacity = segment_rows or max(MIN_ROWS, (SEGMENT_BYTES - HEADER_BYTES) // (4 * dim))
        self._rows: dict[int, Vectors] = {}  # each segment's mapping, as an array
        self._used: dict[int, int] = {}
        self._files: dict[int, int] = {}  # for writing: the open segment's, and those not synced yet
        self._dirty: set[int] = set()
        self._held = frozenset(named)
        self._lock = threading.Lock()  # the fields above
        self._sync_lock = threading.Lock()  # taken before _lock: no descriptor is closed while it is synced
        self._open = max(named, default=-1)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._next = 1 + max([*named, *self._remove_others(named)], default=-1)
            for segment, rows in named.items():
                if segment_problem(self.path, segment, dim, 0) is None:
                    self._files[segment] = os.open(self._file(segment), os.O_RDWR)
                    self._rows[segment] = self._map(self._files[segment])
                    self._used[segment] = min(rows, len(self._rows[segment]))
                    if segment != self._open:
                        os.close(self._files.pop(segment))
        except OSError as cause:
            self.close()
            raise SnapshotError(f"{self.path}: {cause.strerror or cause}") from cause

    def append(self, vectors: Vectors) -> RowIds:
        """Store float32 [n, dim]; uint64 [n] row ids, readable at once, on disk after the next `sync`."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise InvalidInput(f"vectors of shape {vectors.shape} do not fit rows of {self.dim} float32")
        vectors = np.ascontiguousarray(vectors, np.float32)
        ids = np.empty(len(vectors), np.uint64)
        done = 0
        try:
            while done < len(vectors):
                room = len(self._rows[self._open]) - self._used[self._open] if self._open in self._rows else 0
                if room == 0:
                    self._start_segment()
                    continue
                count = min(room, len(vectors) - done)
                first = self._used[self._open]
                self._write(first, vectors[done : done + count])
                row = self._open << 32 | first
                ids[done : done + count] = np.arange(row, row + count, dtype=np.uint64)
                done += count
        except OSError as cause:
            raise SnapshotError(f"{self.path}: cannot store vectors: {cause.strerror or cause}") from cause
        return ids

    def read(self, rows: RowIds) -> Vectors:
        """float32 [n, dim], a copy, of uint64 [n] row ids; CorruptIndex for one that was never given out."""
        out = np.empty((len(rows), self.dim), np.float32)
        segment_of = (rows >> np.uint64(32)).astype(np.int64)
        row_of = (rows & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for segment in segments_of(rows):
            here = np.flatnonzero(segment_of == segment)
            wanted = row_of[here]
            stored = self._rows.get(segment)
            if stored is None or int(wanted.max()) >= self._used[segment]:
                raise CorruptIndex(f"{self.path}: no row {int(wanted.max())} in segment {segment}")
            out[here] = stored[wanted]
        return out

    def views(self, rows: RowIds) -> list[Vectors]:
        """The same, read-only and not copied: an array for each of `runs`, good whatever is forgotten."""
        return [self._rows[segment][span] for segment, span in runs(rows)]

    def segments(self) -> dict[int, tuple[int, int]]:
        """Segment id -> (address of its first row, rows it has room for)."""
        with self._lock:
            return {segment: (rows.ctypes.data, len(rows)) for segment, rows in self._rows.items()}

    def high_water(self) -> dict[int, int]:
        """Segment id -> rows written; what a manifest says of the segments it names."""
        with self._lock:
            return dict(self._used)

    def sync(self) -> None:
        """Put every row appended before this call on disk, file names included."""
        with self._sync_lock:
            with self._lock:
                dirty = {segment: self._files[segment] for segment in self._dirty}
                self._dirty.clear()
            try:
                for file in dirty.values():
                    os.fdatasync(file)
                if dirty:
                    sync_directory(self.path)  # a new segment's name
            except OSError as cause:
                with self._lock:
                    self._dirty.update(dirty)
                raise SnapshotError(f"{self.path}: cannot sync: {cause.strerror or cause}") from cause
            with self._lock:
                for segment in set(self._files) - self._dirty - {self._open}:
                    os.close(self._files.pop(segment))

    def hold(self, segments: frozenset[int]) -> None:
        """Keep these too, whatever `forget` says; SnapshotError if one is gone already."""
        with self._lock:
            missing = segments - self._rows.keys()
            if missing:
                raise SnapshotError(f"{self.path}: segment {min(missing)} is gone")
            self._held |= segments

    def hold_only(self, segments: frozenset[int]) -> None:
        """Keep these, and no others that were held."""
        with self._lock:
            self._held = segments

    def forget(self, live: frozenset[int]) -> frozenset[int]:
        """Remove the segments that are not in `live`, not held and not open; their ids.

        Nobody may use their addresses any more.
        """
        with self._sync_lock, self._lock:
            gone = self._rows.keys() - live - self._held - {self._open}
            for segment in gone:
                self._file(segment).unlink(missing_ok=True)
                del self._rows[segment], self._used[segment]  # unmapped with the last reader's array
                self._dirty.discard(segment)
                if segment in self._files:
                    os.close(self._files.pop(segment))
            return frozenset(gone)

    def close(self) -> None:
        """Drop maps and descriptors; nobody may use the addresses any more. Does not sync."""
        with self._sync_lock, self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()
            self._dirty.clear()
            self._rows.clear()
            self._used.clear()

    def _file(self, segment: int) -> Path:
        return self.path / f"{segment}.f32"

    def _remove_others(self, named: Mapping[int, int]) -> list[int]:
        removed: list[int] = []
        for file in self.path.iterdir():
            match = FILE_NAME.fullmatch(file.name)
            if match and int(match[1]) not in named:
                file.unlink()
                removed.append(int(match[1]))
        return removed

    def _start_segment(self) -> None:
        segment = self._next
        self._next += 1  # first: a file that could not be finished stays behind, unnamed, and its id is spent
        file = os.open(self._file(segment), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.pwrite(file, _header(segment, self.dim, self._capacity), 0)
            os.ftruncate(file, HEADER_BYTES + self._capacity * 4 * self.dim)
            rows = self._map(file)
        except OSError:
            os.close(file)
            raise
        with self._lock:  # in one step, because `sync` closes what is neither dirty nor open
            self._rows[segment], self._used[segment], self._files[segment] = rows, 0, file
            self._open = segment

    def _map(self, file: int) -> Vectors:
        room = HEADER.unpack(os.pread(file, HEADER.size, 0))[4]
        left = (os.fstat(file).st_size - HEADER_BYTES) // (
            4 * self.dim
        )  # a map beyond the end would be SIGBUS
        mapped = mmap.mmap(
            file, HEADER_BYTES + min(room, left) * 4 * self.dim, mmap.MAP_SHARED, mmap.PROT_READ
        )
        return np.frombuffer(memoryview(mapped)[HEADER_BYTES:], np.float32).reshape(-1, self.dim)

    def _write(self, first: int, vectors: Vectors) -> None:
        file = self._files[self._open]
        data = vectors.data.cast("B")
        offset = HEADER_BYTES + first * 4 * self.dim
        while data:  # one call, unless the kernel takes less
            written = os.pwrite(file, data, offset)
            data = data[written:]
            offset += written
        with self._lock:
            self._used[self._open] = first + len(vectors)
            self._dirty.add(self._open)  # after the write: a sync between the two would lose sight of it


def segment_problem(path: Path, segment: int, dim: int, rows: int) -> str | None:
    """Why the first `rows` rows of a segment cannot be what a manifest named; None if they can."""
    name = f"{segment}.f32"
    try:
        with open(path / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(HEADER.size)
    except OSError as cause:
        return f"segment {name}: {cause.strerror or cause}"
    if size < HEADER_BYTES + 4 * dim * rows:
        return f"segment {name}: {size} bytes, too short for its {rows} rows of {dim} float32"
    magic, version, stored_dim, stored_segment, capacity, digest = HEADER.unpack(header)
    if magic != MAGIC or digest != checksum(header[: HEADER.size - CHECKSUM_BYTES]):
        return f"segment {name}: its header is damaged"
    if version != VERSION:
        return f"segment {name}: format version {version}, this driftline reads {VERSION}"
    if (stored_dim, stored_segment) != (dim, segment) or rows > capacity:
        return f"segment {name}: its header says segment {stored_segment}, dim {stored_dim}, {capacity} rows"
    return None


def _header(segment: int, dim: int, capacity: int) -> bytes:
    head = HEADER.pack(MAGIC, VERSION, dim, segment, capacity, b"")[: HEADER.size - CHECKSUM_BYTES]
    return (head + checksum(head)).ljust(HEADER_BYTES, b"\0")
