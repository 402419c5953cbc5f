"""A stored snapshot: as a cut whose chunks are read when asked for, and what is wrong with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import SnapshotError
from ..index.cut import Chunk, Cut
from .chunks import check_chunk, read_chunk
from .environment import Environment, ReadTransaction
from .manifest import ChunkEntry, Manifest, SnapshotInfo
from .segments import damaged_blocks, segment_problem

__all__ = ["Snapshot", "open_snapshot", "problems"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot to restore from."""

    info: SnapshotInfo
    cut: (
        Cut  # a chunk is read, and its checksum compared, each time it is asked for; SnapshotError if damaged
    )
    skipped: tuple[str, ...] = ()  # newer snapshots that are not whole: which, and why


def open_snapshot(
    environment: Environment, txn: ReadTransaction, manifest: Manifest, skipped: tuple[str, ...] = ()
) -> Snapshot:
    """The snapshot of a manifest, with its state read; SnapshotError if that is damaged."""
    info = manifest.info
    state = _read(txn, info.id, "state", manifest.state)
    chunks = _StoredChunks(environment, manifest)
    cut = Cut(chunks, state, frozenset(manifest.segments), info.live, info.digest)
    return Snapshot(info, cut, skipped)


def problems(txn: ReadTransaction, manifest: Manifest, segments: Path) -> Iterator[str]:
    """Read all of a snapshot and say what is wrong, cheap checks first."""
    sound: dict[int, bytes] = {}
    for segment, rows in manifest.segments.items():
        problem = segment_problem(segments, segment, manifest.info.dim, rows)
        if problem is not None:
            yield problem
        elif segment in manifest.row_checksums:
            sound[segment] = manifest.row_checksums[segment]
    for name, entry in [("state", manifest.state), *manifest.chunks.items()]:
        try:
            check_chunk(txn, entry)
        except SnapshotError as cause:
            yield f"chunk {name!r}: {cause}"
    yield from damaged_blocks(segments, manifest.info.dim, manifest.segments, sound)


class _StoredChunks(Mapping[str, Chunk]):
    def __init__(self, environment: Environment, manifest: Manifest) -> None:
        self._environment = environment
        self._manifest = manifest

    def __getitem__(self, name: str) -> Chunk:
        entry = self._manifest.chunks[name]
        with self._environment.read() as txn:
            return Chunk(entry.version, _read(txn, self._manifest.info.id, name, entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.chunks)

    def __len__(self) -> int:
        return len(self._manifest.chunks)


def _read(txn: ReadTransaction, snapshot: int, name: str, entry: ChunkEntry) -> bytes:
    try:
        return read_chunk(txn, entry)
    except SnapshotError as cause:
        raise SnapshotError(f"snapshot {snapshot}: chunk {name!r}: {cause}") from cause
