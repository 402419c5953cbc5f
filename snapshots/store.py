"""The snapshots of one data directory: committed whole, a few retained, chunks shared between them.

What lies where: directory.py, chunks.py, manifest.py and segments.py.

A commit syncs the raw vectors, writes the chunks that changed in transactions of at most 8 MiB, and in a
last one the manifest: that makes the snapshot, and drops those that are no longer retained. A process that
dies earlier leaves orphans, which the next open removes. A chunk that did not change is named again, not
written again; it goes when no manifest names it.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import InvalidInput, SnapshotError, SnapshotsUnusable
from ..index.cut import Cut
from .chunks import CHUNKS, ChunkWriter, remove_unnamed
from .directory import (
    DirectoryLock,
    check_format,
    check_shape,
    segments_path,
    snapshots_path,
    write_format,
)
from .environment import Environment, ReadTransaction
from .examination import DATABASES, examine_directory
from .manifest import (
    MANIFESTS,
    ChunkEntry,
    Json,
    Manifest,
    Reached,
    SnapshotInfo,
    encode,
    manifest_key,
    read_manifests,
)
from .segments import FileRawVectors
from .snapshot import Snapshot, open_snapshot, problems
from .transfer import export_snapshot

__all__ = ["Snapshot", "SnapshotInfo", "SnapshotStore"]


NAMED = 3  # damaged snapshots in one message


class SnapshotStore:
    """The snapshots in a data directory: open for writing (`open`, one process) or looking (`inspect`, any).

    Any thread may call; commits run one after the other, each in its caller's thread. A data directory is
    open at most once in a process.
    """

    def __init__(
        self,
        path: Path,
        environment: Environment,
        lock: DirectoryLock | None,
        dim: int | None,
        metric: str,
        keep: int,
    ) -> None:
        """Not for callers: `open` or `inspect`."""
        self.path = path
        self._environment = environment
        self._lock = lock
        self._dim = dim
        self._metric = metric
        self._keep = keep
        self._raw: FileRawVectors | None = None
        self._base: Manifest | None = None  # what an unchanged chunk is unchanged since
        self._unusable: frozenset[int] = frozenset()  # found damaged; they go with the next commit
        self._problems: dict[int, tuple[str, ...]] = {}  # of snapshots that were read through; none: whole
        self._committing = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, *, dim: int | None, metric: str, keep: int = 2) -> Self:
        """Open for writing, created if need be; the newest `keep` snapshots are retained.

        `dim` None: the dimension of what is there, else the one that `open_raw` is called with.

        What is there is looked through by a child process first. SnapshotsUnusable if it is damaged, or of an
        older format; SnapshotError if another process writes here, or if what is there is of another
        dimension or metric, of a newer format, cannot be read or written, or is not driftline's.
        """
        if keep < 1:
            raise InvalidInput(f"keep = {keep}: at least one snapshot must be retained")
        path = Path(path)
        lock = DirectoryLock.acquire(path)
        try:
            found = examine_directory(path, alone=True)
            environment = Environment(snapshots_path(path), DATABASES, error=SnapshotError)
        except BaseException:
            lock.release()
            raise
        store = cls(path, environment, lock, dim, metric, keep)
        store._problems.update(found)
        try:
            with environment.read() as txn:
                manifests, damaged = read_manifests(txn)
            if not manifests and not damaged:
                with environment.write(room=0) as txn:
                    write_format(txn)
            with environment.read() as txn:
                check_format(path, txn)
            for manifest in manifests.values():
                check_shape(path, manifest.info, dim or manifest.info.dim, metric)
                store._dim = manifest.info.dim
            with (
                suppress(SnapshotError),
                environment.write(room=0) as txn,
            ):  # a full disk: the next commit does
                remove_unnamed(txn, manifests.values())
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def inspect(cls, path: str | Path) -> Self:
        """Open for looking only, whoever writes meanwhile; a child process has looked first.

        SnapshotError if nothing is there, or as for `open`.
        """
        path = Path(path)
        if not snapshots_path(path).is_dir():
            raise SnapshotError(f"{path}: not a data directory of driftline")
        examine_directory(path, alone=False)
        environment = Environment(snapshots_path(path), DATABASES, error=SnapshotError, readonly=True)
        store = cls(path, environment, None, 0, "", 0)
        try:
            if environment.empty:
                raise SnapshotError(f"{path}: no snapshot yet")
            with environment.read() as txn:
                check_format(path, txn)
        except BaseException:
            store.close()
            raise
        return store

    def list(self) -> tuple[SnapshotInfo, ...]:
        """The retained snapshots, oldest first; without any whose manifest is damaged."""
        with self._environment.read() as txn:
            return tuple(manifest.info for manifest in read_manifests(txn)[0].values())

    def newest(self) -> Snapshot | None:
        """The newest snapshot that is whole, by the checksums of all its bytes; None if there never was one.

        Newer ones that are not whole are in its `skipped`, and go with the next commit. SnapshotsUnusable if
        none is whole. The next cut may leave out what did not change since this one, see `known`.
        """
        skipped: dict[int, str] = {}
        with self._environment.read() as txn:
            manifests, damaged = read_manifests(txn)
            for number in sorted(manifests.keys() | damaged.keys(), reverse=True):
                problem = damaged.get(number) or self._problem(txn, manifests[number])
                if problem is None:
                    self._base, self._unusable = manifests[number], frozenset(skipped)
                    found = tuple(skipped.values())
                    return open_snapshot(self._environment, txn, self._base, found, hashed=False)
                skipped[number] = f"snapshot {number}: {problem}"
        if skipped:
            shown = list(skipped.values())[:NAMED]
            reasons = "; ".join(shown) + ("; ..." if len(skipped) > NAMED else "")
            raise SnapshotsUnusable(f"{self.path}: no snapshot is whole ({reasons})", self.path)
        return None

    def reject(self, snapshot: int, reason: str) -> None:
        """Take a snapshot for damaged, though its checksums agree: nothing can be restored from it."""
        self._problems[snapshot] = (reason,)

    def get(self, snapshot: int) -> Snapshot:
        """A retained snapshot by its id, not read through first; SnapshotError if it is not there."""
        with self._environment.read() as txn:
            return open_snapshot(self._environment, txn, self._manifest(txn, snapshot))

    def verify(self, snapshot: int) -> tuple[str, ...]:
        """Have a child process read all of a snapshot, raw vectors too: everything that is wrong, or
        nothing."""
        found = examine_directory(self.path, alone=False, snapshot=snapshot)
        return found.get(snapshot, (f"there is no snapshot {snapshot}",))

    @contextmanager
    def view(self, snapshot: int) -> Generator[tuple[Snapshot, FileRawVectors]]:
        """A retained snapshot and its raw vectors to read, which stay what they are whatever another process
        commits or prunes: the snapshot's chunks within the block, the raw vectors until they are closed.

        A child process has read all of it first. SnapshotError if it is not whole, or not there.
        """
        self._expect_whole(snapshot)
        with self._environment.read() as txn:
            manifest = self._manifest(txn, snapshot)
            named, sums = manifest.segments, manifest.row_checksums
            raw = FileRawVectors(segments_path(self.path), manifest.info.dim, named, sums, readonly=True)
            if named.keys() - raw.segments().keys():
                raise SnapshotError(f"{self.path}: snapshot {snapshot} was removed meanwhile")
            yield open_snapshot(self._environment, txn, manifest, held=True), raw

    def export(self, snapshot: int, target: Path) -> tuple[SnapshotInfo, int]:
        """Write a retained snapshot to one file (transfer.py); its bytes. A child process has read all of it
        first. SnapshotError if it is not whole, or the disk refuses."""
        self._expect_whole(snapshot)
        with self._environment.read() as txn:
            manifest = self._manifest(txn, snapshot)
            return manifest.info, export_snapshot(txn, manifest, segments_path(self.path), target)

    def restore(self, snapshot: int) -> SnapshotInfo:
        """Make an older snapshot the newest, under a new id; those in between stay, as many as are kept.

        Who opens next replays the log from its offsets. SnapshotError if it is not whole.
        """
        self._expect_whole(snapshot)
        with self._committing:
            number = self._next_id()
            with self._environment.read() as txn:
                manifest = self._manifest(txn, snapshot)
            again = replace(manifest, info=replace(manifest.info, id=number))
            self._conclude(again)
            return again.info

    def prune(self, keep: int) -> tuple[int, ...]:
        """Remove all but the newest `keep` snapshots, and those that are newer than the newest whole one;
        the ids of what went. SnapshotsUnusable if none is whole."""
        if keep < 1:
            raise InvalidInput(f"keep = {keep}: at least one snapshot must be retained")
        self.newest()
        with self._committing, self._environment.write(room=0) as txn:
            manifests, damaged = read_manifests(txn)
            usable = [number for number in manifests if number not in self._unusable]
            kept = [manifests[number] for number in usable[-keep:]]
            gone = sorted((manifests.keys() | damaged.keys()) - {manifest.info.id for manifest in kept})
            for number in gone:
                txn.delete(MANIFESTS, manifest_key(number))
            remove_unnamed(txn, kept)
        if kept:
            self.open_raw()  # removes the segments that none names any more
        return tuple(gone)

    def known(self) -> dict[str, int]:
        """Chunk versions of the snapshot that this object last committed or returned from `newest`.

        The next cut may leave out the data of chunks that still have these versions.
        """
        base = self._base
        return {} if base is None else {name: entry.version for name, entry in base.chunks.items()}

    def open_raw(self, dim: int | None = None) -> FileRawVectors:
        """The raw vectors beside the snapshots; the same object at every call, closed with the store.

        `dim` is needed where `open` was not told and nothing is there. InvalidInput if it is another one.
        """
        if self._lock is None:
            raise InvalidInput(f"{self.path}: raw vectors belong to the process that writes")
        self._dim = self._dim or dim
        if self._dim is None or dim not in (None, self._dim):
            raise InvalidInput(f"{self.path}: raw vectors of dimension {dim}, where it is {self._dim}")
        if self._raw is None:
            named: dict[int, int] = {}
            checksums: dict[int, bytes] = {}
            with self._environment.read() as txn:
                for manifest in read_manifests(txn)[0].values():
                    for segment, rows in manifest.segments.items():
                        if rows >= named.get(segment, 0):
                            named[segment] = rows
                            checksums[segment] = manifest.row_checksums.get(segment, b"")
            self._raw = FileRawVectors(segments_path(self.path), self._dim, named, checksums)
        return self._raw

    def commit(
        self,
        cut: Cut,
        offsets: Mapping[str, Mapping[int, int]],
        extra: Mapping[str, Json] | None = None,
        *,
        reached: Mapping[str, Mapping[int, Reached]] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> SnapshotInfo:
        """Make a cut, with the next offset of every topic and partition it has applied, the newest snapshot.

        On disk when it returns; after an error, or a crash at any moment before, it never was. The cut's
        chunks are asked for one by one as there is room to write them; `progress` is told how many bytes of
        them are on disk. SnapshotError if the disk refuses, or if a segment that the cut names was removed
        meanwhile (cut again); InvalidInput for a chunk said to be unchanged since a version that is not
        stored.
        """
        with self._committing:
            try:
                return self._write(cut, offsets, extra or {}, reached or {}, progress)
            except BaseException:
                with suppress(SnapshotError):  # what cannot be removed now is removed at the next open
                    self._discard()
                raise

    def renew(self, reached: Mapping[str, Mapping[int, Reached]]) -> None:
        """Replace what the newest snapshot says of its partitions: nothing was applied since, so that it is
        as good as a new one. SnapshotError if the disk refuses, or nothing was committed or read as newest.
        """
        with self._committing:
            if self._base is None:
                raise SnapshotError(f"{self.path}: there is no snapshot to renew")
            renewed = replace(self._base, info=replace(self._base.info, reached=reached))
            stored = encode(renewed)
            with self._environment.write(room=len(stored)) as txn:
                txn.put(MANIFESTS, manifest_key(renewed.info.id), stored)
            self._base = renewed

    def close(self) -> None:
        """Wait for a commit that runs, then close, raw vectors too; again is allowed."""
        with self._committing:
            if self._raw is not None:
                self._raw.close()
            self._environment.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _expect_whole(self, snapshot: int) -> None:
        if wrong := self.verify(snapshot):
            raise SnapshotError(f"{self.path}: snapshot {snapshot}: {'; '.join(wrong)}")

    def _manifest(self, txn: ReadTransaction, snapshot: int) -> Manifest:
        manifests, damaged = read_manifests(txn)
        if snapshot not in manifests:
            reason = damaged.get(snapshot, "is not there")
            raise SnapshotError(f"{self.path}: snapshot {snapshot}: {reason}")
        return manifests[snapshot]

    def _problem(self, txn: ReadTransaction, manifest: Manifest) -> str | None:
        """The first thing that is wrong with a snapshot; each is read through once."""
        number = manifest.info.id
        if number not in self._problems:
            with closing(problems(txn, manifest, segments_path(self.path))) as found:
                self._problems[number] = tuple(islice(found, 1))
        return next(iter(self._problems[number]), None)

    def _write(
        self,
        cut: Cut,
        offsets: Mapping[str, Mapping[int, int]],
        extra: Mapping[str, Json],
        reached: Mapping[str, Mapping[int, Reached]],
        progress: Callable[[int], None],
    ) -> SnapshotInfo:
        dim = self._dim
        if dim is None:
            raise InvalidInput(f"{self.path}: no dimension was given, and none is there")
        created, started = time.time_ns() // 1_000_000, time.monotonic()
        segments = self._hold_raw(cut.segments)
        number = self._next_id()
        writer = ChunkWriter(self._environment, number, progress)
        state = writer.add(0, cut.state)
        chunks: dict[str, ChunkEntry] = {}
        for name, chunk in cut.chunks.items():
            if chunk.data is None:
                chunks[name] = self._unchanged(name, chunk.version)
            else:
                chunks[name] = writer.add(chunk.version, chunk.data)
        writer.finish()
        changed = [entry for entry in chunks.values() if entry.snapshot == number]
        row_checksums = {}
        if self._raw is not None:  # last: until they are asked for, chunks cost memory
            self._raw.sync()
            row_checksums = self._raw.checksums(segments)
        info = SnapshotInfo(
            id=number,
            created=created,
            seconds=time.monotonic() - started,
            dim=dim,
            metric=self._metric,
            live=cut.live,
            digest=cut.digest,
            bytes=state.size + sum(entry.size for entry in chunks.values()),
            bytes_written=state.size + sum(entry.size for entry in changed),
            chunks_written=len(changed),
            chunks_shared=len(chunks) - len(changed),
            offsets=offsets,
            extra=extra,
            reached=reached,
        )
        self._conclude(Manifest(info, state, chunks, segments, row_checksums))
        return info

    def _hold_raw(self, segments: frozenset[int]) -> dict[int, int]:
        # How many rows of each are meant; they must be on disk before a manifest names them.
        if self._raw is None:
            if segments:
                raise InvalidInput(f"{self.path}: the cut names raw segments, but none are kept here")
            return {}
        self._raw.hold(segments)
        rows = self._raw.high_water()
        return {segment: rows[segment] for segment in sorted(segments)}

    def _unchanged(self, name: str, version: int) -> ChunkEntry:
        entry = None if self._base is None else self._base.chunks.get(name)
        if entry is None or entry.version != version:
            stored = "none" if entry is None else f"version {entry.version}"
            raise InvalidInput(f"chunk {name!r} is called unchanged since {version}, stored is {stored}")
        return entry

    def _next_id(self) -> int:
        with self._environment.read() as txn:
            last = next(txn.keys(CHUNKS, reverse=True), bytes(8))  # of a commit that failed, perhaps
            return 1 + max(0, int.from_bytes(last[:8]), *read_manifests(txn)[0])

    def _conclude(self, manifest: Manifest) -> None:
        # In one transaction: the new snapshot is there, and those no longer retained are not.
        stored = encode(manifest)
        with self._environment.write(room=len(stored)) as txn:
            older = read_manifests(txn)[0]
            usable = [older[number] for number in older if number not in self._unusable]
            kept = [*usable, manifest][-self._keep :]
            kept_keys = {manifest_key(retained.info.id) for retained in kept}
            for key in list(txn.keys(MANIFESTS)):
                if key not in kept_keys:
                    txn.delete(MANIFESTS, key)
            txn.put(MANIFESTS, manifest_key(manifest.info.id), stored)
            remove_unnamed(txn, kept)
        self._base, self._unusable = manifest, frozenset()
        self._hold_only(kept)

    def _discard(self) -> None:
        with self._environment.write(room=0) as txn:
            manifests = read_manifests(txn)[0].values()
            remove_unnamed(txn, manifests)
        self._hold_only(manifests)

    def _hold_only(self, manifests: Iterable[Manifest]) -> None:
        if self._raw is not None:
            self._raw.hold_only(frozenset(segment for manifest in manifests for segment in manifest.segments))
