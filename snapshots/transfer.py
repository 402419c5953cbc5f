"""A snapshot as one file, from which another machine can start; numbers are little-endian:

| bytes | what |
|---|---|
| 8 | magic "DRFTEXP1" |
| 4 | format version, u32: 1 |
| 4 | length of the manifest, u32 |
| 8 | the snapshot's id, u64 |
| | the manifest, as it is stored (manifest.py) |
| | the bytes of its state, then of its chunks in the manifest's order |
| | of each raw segment, by id: the hashes of the rows that are meant, then these rows |
| 8 | "DRFTEND1" |

Every length stands in the manifest, and a checksum of everything. Both ends compare them: what was exported
was whole, and what was imported is. A segment is imported with room for no more than its rows.
"""

import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ..errors import SnapshotError
from .checksum import checksum
from .chunks import is_whole, put_chunk, read_chunk
from .directory import DirectoryLock, segments_path, snapshots_path, write_format
from .environment import Environment, ReadTransaction, sync_directory
from .examination import DATABASES
from .manifest import MANIFESTS, Manifest, SnapshotInfo, decode, encode, manifest_key
from .segment_files import (
    HEADER,
    PAGE,
    ROW_HASH_BYTES,
    blocks,
    each_checksum,
    file_name,
    read_all,
    rows_at,
    segment_header,
)

__all__ = ["export_snapshot", "import_snapshot"]

MAGIC, END = b"DRFTEXP1", b"DRFTEND1"
FORMAT = 1
HEAD = struct.Struct("<8sIIQ")
IMPORTING = "importing"  # in the data directory, until all is there


def export_snapshot(txn: ReadTransaction, manifest: Manifest, segments: Path, target: Path) -> int:
    """Write a snapshot to `target`, replacing it once all is on disk; the bytes of the file.

    SnapshotError if anything of the snapshot is not what was written, or the disk refuses; then what `target`
    was before is left.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        with ExitStack() as files:
            # Opened before the first byte is copied: a service that removes a segment meanwhile does no harm.
            raw = {
                segment: files.enter_context(open(segments / file_name(segment), "rb", buffering=0))
                for segment in sorted(manifest.segments)
            }
            with open(partial, "wb") as out:
                for part in _parts(txn, manifest, raw):
                    out.write(part)
                out.flush()
                os.fsync(out.fileno())
                size = out.tell()
        partial.rename(target)
        sync_directory(target.parent)
    except OSError as cause:
        raise SnapshotError(f"{cause.filename or target}: {cause.strerror or cause}") from cause
    finally:
        with suppress(OSError):  # it is the target by now, or could not be made
            partial.unlink()
    return size


def import_snapshot(directory: Path, source: Path, check: Callable[[SnapshotInfo], None]) -> SnapshotInfo:
    """Make a data directory of an exported snapshot. `check` may refuse it (by raising) before anything is
    written; what was written is taken back where it does not come to an end.

    SnapshotError if the file is damaged, no export or of a newer format, if the directory holds snapshots
    already or is in use, or if the disk refuses.
    """
    lock = DirectoryLock.acquire(directory)
    place = directory / IMPORTING
    try:
        if snapshots_path(directory).exists():
            raise SnapshotError(f"{directory}: holds snapshots already; import into a new directory")
        with open(source, "rb") as file:
            manifest = _manifest(file, source)
            check(manifest.info)
            shutil.rmtree(place, ignore_errors=True)
            segments_path(place).mkdir(parents=True)
            _import_segments_and_chunks(file, source, manifest, place)
        shutil.rmtree(segments_path(directory), ignore_errors=True)  # of a directory whose snapshots are gone
        segments_path(place).rename(segments_path(directory))
        snapshots_path(place).rename(snapshots_path(directory))  # last: it makes the directory one
        sync_directory(directory)
    except OSError as cause:
        raise SnapshotError(f"{cause.filename or directory}: {cause.strerror or cause}") from cause
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.release()
    return manifest.info


def _parts(
    txn: ReadTransaction, manifest: Manifest, raw: Mapping[int, FileIO]
) -> Iterator[bytes | memoryview]:
    stored = encode(manifest)
    yield HEAD.pack(MAGIC, FORMAT, len(stored), manifest.info.id)
    yield stored
    for entry in (manifest.state, *manifest.chunks.values()):
        yield read_chunk(txn, entry)
    for segment, file in raw.items():
        start = rows_at(HEADER.unpack(file.read(HEADER.size))[4])
        spans = list(blocks(manifest.segments[segment], manifest.info.dim))
        expected = _expected(manifest, segment, len(spans))
        hashes = [read_all(file, ROW_HASH_BYTES, PAGE, span) for span in spans]
        yield from hashes
        for span, beside, known in zip(spans, hashes, expected, strict=True):
            rows = read_all(file, 4 * manifest.info.dim, start, span)
            if known is not None and checksum(beside, rows) != known:
                raise SnapshotError(f"segment {file_name(segment)}: its rows are not those that were written")
            yield rows
    yield END


def _import_segments_and_chunks(file: BinaryIO, source: Path, manifest: Manifest, place: Path) -> None:
    info = manifest.info
    with Environment(snapshots_path(place), DATABASES, error=SnapshotError, durable=False) as environment:
        with environment.write(room=0) as txn:
            write_format(txn)
        for entry in (manifest.state, *manifest.chunks.values()):
            data = _exactly(file, entry.size, source)
            if not is_whole(entry, [memoryview(data)]):
                raise _damaged(source)
            with environment.write(room=len(data)) as txn:
                put_chunk(txn, entry, data)
        for segment, rows in sorted(manifest.segments.items()):
            _import_segment(file, source, manifest, segment, rows, segments_path(place))
        if file.read() != END:
            raise _damaged(source)
        sync_directory(segments_path(place))
        stored = encode(manifest)
        with environment.write(room=len(stored)) as txn:
            txn.put(MANIFESTS, manifest_key(info.id), stored)
        environment.sync()


def _import_segment(
    file: BinaryIO, source: Path, manifest: Manifest, segment: int, rows: int, segments: Path
) -> None:
    dim = manifest.info.dim
    spans = list(blocks(rows, dim))
    with open(segments / file_name(segment), "wb") as out:
        out.write(segment_header(segment, dim, rows))
        hashes = [_exactly(file, ROW_HASH_BYTES * (span.stop - span.start), source) for span in spans]
        out.writelines(hashes)
        out.seek(rows_at(rows))
        for span, beside, known in zip(spans, hashes, _expected(manifest, segment, len(spans)), strict=True):
            data = _exactly(file, 4 * dim * (span.stop - span.start), source)
            if known is not None and checksum(beside, data) != known:
                raise _damaged(source)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _manifest(file: BinaryIO, source: Path) -> Manifest:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        raise SnapshotError(f"{source}: not a snapshot that driftline exported")
    _, version, length, snapshot = HEAD.unpack(head)
    if version != FORMAT:
        raise SnapshotError(f"{source}: format version {version}, this driftline reads {FORMAT}")
    try:
        return decode(snapshot, _exactly(file, length, source))
    except SnapshotError as cause:
        raise _damaged(source) from cause


def _expected(manifest: Manifest, segment: int, count: int) -> list[bytes | None]:
    """The checksums of a segment's blocks; None where the snapshot has none."""
    known = manifest.row_checksums.get(segment)
    return [None] * count if known is None else list(each_checksum(known))


def _exactly(file: BinaryIO, size: int, source: Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _damaged(source)
    return data


def _damaged(source: Path) -> SnapshotError:
    return SnapshotError(f"{source}: damaged, or cut off: not what was exported; nothing was imported")
