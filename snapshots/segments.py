"""Raw vectors in append-only segment files, mapped for reading.

A row id is `segment << 32 | row`. A row never changes and, among all that a manifest can name, its id is
never used twice: it can be read before and after a snapshot, and everything an old snapshot names is still
there.

A file's bytes stand in segment_files.py, with the checksums that tell whether they are still the same.

Rows are written with pwrite and read through a shared read-only mapping, which the kernel keeps coherent.
`append` is one thread's; everything else is anybody's, beside it.
"""

import mmap
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput, SnapshotError, StorageRefused
from ..index.digest import HASH_BYTES, Hashes
from ..index.raw import RowIds, runs, segments_of
from .checksum import checksum
from .environment import sync_directory
from .segment_files import (
    FILE_NAME,
    HEADER,
    PAGE,
    block_rows,
    blocks,
    each_checksum,
    file_name,
    rows_at,
    segment_header,
    segment_problem,
)

__all__ = ["FileRawVectors"]

Vectors = NDArray[np.float32]

SEGMENT_BYTES = 64 << 20  # few files for millions of rows, and little to rewrite when one empties
MIN_ROWS = 1024


class FileRawVectors:
    """The raw vectors of one index on disk; implements the `RawVectors` that index/ asks for.

    `named` gives, for every segment that a manifest names, how many of its rows are meant (the most that any
    manifest says), `checksums` those of their blocks where they are known. They are mapped, appending goes on
    behind them, and files of other segments are removed. A file that was cut off is mapped as far as it goes,
    one with a damaged header not at all, and none is mended: a snapshot that misses rows stays recognisable.
    SnapshotError where directory or disk refuse. `readonly`: for looking at a snapshot beside the process
    that writes; nothing is created, removed or appended.
    """

    hashed = True

    def __init__(
        self,
        path: str | Path,
        dim: int,
        named: Mapping[int, int],
        checksums: Mapping[int, bytes] | None = None,
        *,
        segment_rows: int | None = None,
        readonly: bool = False,
    ) -> None:
        self.path = Path(path)
        self.dim = dim
        self._capacity = segment_rows or max(MIN_ROWS, (SEGMENT_BYTES - 2 * PAGE) // (HASH_BYTES + 4 * dim))
        self._rows: dict[int, Vectors] = {}  # each segment's mapping, as an array
        self._hashes: dict[int, Hashes] = {}  # likewise
        self._checksums = {  # of whole blocks; the thread's that commits
            segment: list(each_checksum(sums))[: named[segment] // block_rows(dim)]
            for segment, sums in (checksums or {}).items()
        }
        self._tails: dict[int, tuple[int, bytes]] = {}  # after so many rows, of the block that is not full
        self._used: dict[int, int] = {}
        self._files: dict[int, int] = {}  # for writing: the open segment's, and those not synced yet
        self._dirty: set[int] = set()
        self._held = frozenset(named)
        self._lock = threading.Lock()  # the fields above
        self._sync_lock = threading.Lock()  # taken before _lock: no descriptor is closed while it is synced
        self._open = max(named, default=-1)
        try:
            if not readonly:
                self.path.mkdir(parents=True, exist_ok=True)
            removed = [] if readonly else self._remove_others(named)
            self._next = 1 + max([*named, *removed], default=-1)
            for segment, rows in named.items():
                if segment_problem(self.path, segment, dim, 0) is None:
                    self._files[segment] = os.open(
                        self._file(segment), os.O_RDONLY if readonly else os.O_RDWR
                    )
                    self._map(segment, self._files[segment])
                    self._used[segment] = min(rows, len(self._rows[segment]))
                    if readonly or segment != self._open:
                        os.close(self._files.pop(segment))
        except OSError as cause:
            self.close()
            raise SnapshotError(f"{self.path}: {cause.strerror or cause}") from cause

    def append(self, vectors: Vectors, hashes: Hashes | None = None) -> RowIds:
        """Store float32 [n, dim] and their hashes (None: zeros); uint64 [n] row ids, readable at once, on
        disk after the next `sync`. StorageRefused where the disk is full, read-only or failing."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise InvalidInput(f"vectors of shape {vectors.shape} do not fit rows of {self.dim} float32")
        vectors = np.ascontiguousarray(vectors, np.float32)
        if hashes is None:
            hashes = np.zeros((len(vectors), HASH_BYTES // 4), np.uint32)
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
                self._write(first, vectors[done : done + count], hashes[done : done + count])
                row = self._open << 32 | first
                ids[done : done + count] = np.arange(row, row + count, dtype=np.uint64)
                done += count
        except OSError as cause:
            raise StorageRefused(f"{self.path}: cannot store vectors: {cause.strerror or cause}") from cause
        return ids

    def read(self, rows: RowIds) -> Vectors:
        """float32 [n, dim], a copy, of uint64 [n] row ids; CorruptIndex for one that was never given out."""
        return self._gathered(self._rows, rows, np.empty((len(rows), self.dim), np.float32))

    def hashes(self, rows: RowIds) -> Hashes:
        """uint32 [n, 4], a copy, of uint64 [n] row ids; CorruptIndex for one that was never given out."""
        return self._gathered(self._hashes, rows, np.empty((len(rows), HASH_BYTES // 4), np.uint32))

    def _gathered(self, parts: Mapping[int, NDArray[Any]], rows: RowIds, out: NDArray[Any]) -> NDArray[Any]:
        segment_of = (rows >> np.uint64(32)).astype(np.int64)
        row_of = (rows & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for segment in segments_of(rows):
            here = np.flatnonzero(segment_of == segment)
            wanted = row_of[here]
            stored = parts.get(segment)
            if stored is None or int(wanted.max()) >= self._used[segment]:
                raise CorruptIndex(f"{self.path}: no row {int(wanted.max())} in segment {segment}")
            out[here] = stored[wanted]
        return out

    def views(self, rows: RowIds) -> list[Vectors]:
        """Vectors, read-only and not copied: an array for each of `runs`, good whatever is forgotten."""
        return [self._rows[segment][span] for segment, span in runs(rows)]

    def segments(self) -> dict[int, tuple[int, int]]:
        """Segment id -> (address of its first row, rows it has room for)."""
        with self._lock:
            return {segment: (rows.ctypes.data, len(rows)) for segment, rows in self._rows.items()}

    def high_water(self) -> dict[int, int]:
        """Segment id -> rows written; what a manifest says of the segments it names. Rows are appended to the
        segment with the highest id."""
        with self._lock:
            return dict(self._used)

    def checksums(self, named: Mapping[int, int]) -> dict[int, bytes]:
        """Segment id -> the checksums of the blocks of its first rows, for a manifest; one thread's.

        Each block is read once, when it is full, and the one that is not whenever there is more of it.
        """
        return {segment: self._blocks(segment, rows) for segment, rows in named.items()}

    def _blocks(self, segment: int, rows: int) -> bytes:
        with self._lock:
            vectors, hashes = self._rows[segment], self._hashes[segment]
        known = self._checksums.setdefault(segment, [])
        whole, last = rows // block_rows(self.dim), b""
        if (tail := self._tails.get(segment)) is not None and tail[0] == rows:
            return b"".join(known[:whole]) + tail[1]
        for block in list(blocks(rows, self.dim))[len(known) :]:
            last = checksum(hashes[block].data.cast("B"), vectors[block].data.cast("B"))
            if len(known) < whole:
                known.append(last)
                last = b""
        self._tails[segment] = rows, last
        return b"".join(known[:whole]) + last

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
                del self._rows[segment], self._hashes[segment], self._used[segment]
                self._checksums.pop(segment, None)  # unmapped with the last reader's array
                self._tails.pop(segment, None)
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
            self._hashes.clear()
            self._used.clear()

    def _file(self, segment: int) -> Path:
        return self.path / file_name(segment)

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
        self._next += 1
        file = os.open(self._file(segment), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.pwrite(file, segment_header(segment, self.dim, self._capacity), 0)
            os.ftruncate(file, rows_at(self._capacity) + self._capacity * 4 * self.dim)
            rows, hashes = self._mapped(file)
        except OSError:
            os.close(file)
            self._file(segment).unlink()  # whoever tries again leaves no heap of files on a full disk
            raise
        with self._lock:  # in one step, because `sync` closes what is neither dirty nor open
            self._rows[segment], self._hashes[segment] = rows, hashes
            self._used[segment], self._files[segment] = 0, file
            self._open = segment

    def _map(self, segment: int, file: int) -> None:
        self._rows[segment], self._hashes[segment] = self._mapped(file)

    def _mapped(self, file: int) -> tuple[Vectors, Hashes]:
        room = HEADER.unpack(os.pread(file, HEADER.size, 0))[4]
        start = rows_at(room)
        left = (os.fstat(file).st_size - start) // (4 * self.dim)  # a map beyond the end would be SIGBUS
        length = start + min(room, left) * 4 * self.dim
        mapped = memoryview(mmap.mmap(file, length, mmap.MAP_SHARED, mmap.PROT_READ))
        rows = np.frombuffer(mapped[start:], np.float32).reshape(-1, self.dim)
        hashes = np.frombuffer(mapped[PAGE : PAGE + HASH_BYTES * room], np.uint32)
        return rows, hashes.reshape(-1, HASH_BYTES // 4)

    def _write(self, first: int, vectors: Vectors, hashes: Hashes) -> None:
        file = self._files[self._open]
        start = rows_at(len(self._rows[self._open]))
        write_all(file, hashes, PAGE + first * HASH_BYTES)
        write_all(file, vectors, start + first * 4 * self.dim)
        with self._lock:
            self._used[self._open] = first + len(vectors)
            self._dirty.add(self._open)  # after the write: a sync between the two would lose sight of it


def write_all(file: int, array: NDArray[Any], offset: int) -> None:
    data = array.data.cast("B")
    while data:  # one call, unless the kernel takes less
        written = os.pwrite(file, data, offset)
        data = data[written:]
        offset += written
