"""A stored snapshot: as a cut whose chunks are read when asked for, and what is wrong with it."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..errors import SnapshotError
from ..index.cut import Chunk, Cut
from .chunks import OTHER_BYTES, chunk_views, is_whole, read_chunk
from .environment import Environment, ReadTransaction
from .manifest import ChunkEntry, Manifest, SnapshotInfo
from .segment_files import damaged_block, segment_problem

__all__ = ["Snapshot", "open_snapshot", "problems"]

THREADS = 4  # that hash: more would wait for the disk, or for memory


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot to restore from. A chunk of its cut is read each time it is asked for; SnapshotError if it
    is damaged."""

    info: SnapshotInfo
    cut: Cut
    skipped: tuple[str, ...] = ()  # newer snapshots that are not whole: which, and why


def open_snapshot(
    environment: Environment,
    txn: ReadTransaction,
    manifest: Manifest,
    skipped: tuple[str, ...] = (),
    *,
    hashed: bool = True,
    held: bool = False,
) -> Snapshot:
    """The snapshot of a manifest, with its state read; SnapshotError if that is damaged.

    hashed False: all its checksums were compared already, and are not again. held: chunks are read by `txn`,
    and only while it is open; else each by a transaction of its own.
    """
    info = manifest.info
    state = _read(txn, info.id, "state", manifest.state, hashed)
    chunks = _StoredChunks((lambda: nullcontext(txn)) if held else environment.read, manifest, hashed)
    cut = Cut(chunks, state, frozenset(manifest.segments), info.live, info.digest)
    return Snapshot(info, cut, skipped)


def problems(txn: ReadTransaction, manifest: Manifest, segments: Path) -> Generator[str]:
    """Read all of a snapshot, in parallel, and say what is wrong, cheap checks first. To be closed before the
    transaction ends."""
    dim = manifest.info.dim
    checks: list[tuple[Callable[..., str | None], tuple[object, ...]]] = []
    for segment, rows in manifest.segments.items():
        problem = segment_problem(segments, segment, dim, rows)
        if problem is not None:
            yield problem
        elif segment in manifest.row_checksums:
            checks.append((damaged_block, (segments, segment, dim, rows, manifest.row_checksums[segment])))
    for name, entry in [("state", manifest.state), *manifest.chunks.items()]:
        try:
            checks.append((_damaged_chunk, (name, entry, chunk_views(txn, entry))))
        except SnapshotError as cause:
            yield f"chunk {name!r}: {cause}"
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        works = [pool.submit(check, *arguments) for check, arguments in checks]
        try:
            for work in works:
                problem = work.result()
                if problem is not None:
                    yield problem
        finally:
            pool.shutdown(
                cancel_futures=True
            )  # whoever asks for the first problem does not wait for the rest


def _damaged_chunk(name: str, entry: ChunkEntry, views: list[memoryview]) -> str | None:
    return None if is_whole(entry, views) else f"chunk {name!r}: {OTHER_BYTES}"


class _StoredChunks(Mapping[str, Chunk]):
    def __init__(
        self, read: Callable[[], AbstractContextManager[ReadTransaction]], manifest: Manifest, hashed: bool
    ) -> None:
        self._read = read
        self._manifest = manifest
        self._hashed = hashed

    def __getitem__(self, name: str) -> Chunk:
        entry = self._manifest.chunks[name]
        with self._read() as txn:
            return Chunk(entry.version, _read(txn, self._manifest.info.id, name, entry, self._hashed))

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.chunks)

    def __len__(self) -> int:
        return len(self._manifest.chunks)


def _read(txn: ReadTransaction, snapshot: int, name: str, entry: ChunkEntry, hashed: bool) -> bytes:
    try:
        return read_chunk(txn, entry, hashed=hashed)
    except SnapshotError as cause:
        raise SnapshotError(f"snapshot {snapshot}: chunk {name!r}: {cause}") from cause
