"""The manifest: the one record that makes a snapshot, naming every chunk and segment of it.

Stored under the snapshot's id (u64, big-endian) in the database `manifests`:

| offset | bytes | field |
|---|---|---|
| 0 | 1 | format version: 1 |
| 1 | 16 | checksum of the key and the rest: first half of their SHA-256 |
| 17 | | msgpack map, below |

| key | value |
|---|---|
| created | ms since the epoch |
| seconds | float: time from the start of the commit to this record |
| dim, metric, live | of the index |
| written, shared | how many chunks this snapshot wrote itself, and how many it has from older ones |
| written_bytes | bytes of those it wrote |
| offsets | topic -> partition -> next offset |
| extra | what the caller gave |
| reached | topic -> partition -> [ms since the epoch or nil, [[offset, ms, hash], ...]]; may be absent |
| segments | raw segment id -> rows that are meant |
| row_checksums | raw segment id -> the checksums of their blocks (segments.py), one behind the other |
| digest | 16 bytes, little-endian: of the live set (index/digest.py); nil: not known |
| state | a chunk entry |
| chunks | chunk name -> chunk entry |

A chunk entry is [version, snapshot that wrote it, ordinal within that snapshot, bytes, their checksum].
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import msgpack

from ..errors import SnapshotError
from .checksum import CHECKSUM_BYTES, checksum
from .environment import ReadTransaction

__all__ = [
    "MANIFESTS",
    "Anchor",
    "ChunkEntry",
    "Json",
    "Manifest",
    "Reached",
    "SnapshotInfo",
    "decode",
    "encode",
    "manifest_key",
    "read_manifests",
]

MANIFESTS = "manifests"
FORMAT = 1
KEY = struct.Struct(">Q")
DIGEST_BYTES = 16
codec: Any = msgpack  # ships no types

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A record that was applied, by which its log is known again."""

    offset: int  # its own
    timestamp_ms: int
    hash: bytes  # 16 bytes: of what it holds


@dataclass(frozen=True, slots=True)
class Reached:
    """What is known of a partition at the time of a snapshot, beside its offset."""

    current_ms: int | None  # ms since the epoch: all that was in the log then is applied; None: not known
    anchors: tuple[Anchor, ...]  # by offset


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot, without its contents."""

    id: int  # grows with every commit
    created: int  # ms since the epoch
    seconds: float  # what the commit took, but for its last transaction
    dim: int
    metric: str
    live: int  # keys
    digest: int | None  # of the live set (index/digest.py)
    bytes: int  # of all its chunks; raw vectors not counted
    bytes_written: int  # of the chunks that were not shared with an older snapshot
    chunks_written: int
    chunks_shared: int
    offsets: Mapping[str, Mapping[int, int]]  # topic -> partition -> next offset
    extra: Mapping[str, Json]  # the caller's
    reached: Mapping[str, Mapping[int, Reached]] = field(
        default_factory=dict[str, Mapping[int, Reached]]
    )  # topic -> partition


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """Where a chunk lies and what it must be."""

    version: int
    snapshot: int  # that wrote it
    ordinal: int  # within that snapshot
    size: int  # bytes
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a snapshot is made of."""

    info: SnapshotInfo
    state: ChunkEntry
    chunks: Mapping[str, ChunkEntry]
    segments: Mapping[int, int]  # raw segment -> rows that are meant
    row_checksums: Mapping[int, bytes]  # raw segment -> of their blocks


def encode(manifest: Manifest) -> bytes:
    """The bytes of the table above."""
    info = manifest.info
    body = cast(
        "bytes",
        codec.packb(
            {
                "created": info.created,
                "seconds": info.seconds,
                "dim": info.dim,
                "metric": info.metric,
                "live": info.live,
                "written": info.chunks_written,
                "shared": info.chunks_shared,
                "written_bytes": info.bytes_written,
                "offsets": {topic: dict(partitions) for topic, partitions in info.offsets.items()},
                "extra": dict(info.extra),
                **({"reached": _reached_fields(info.reached)} if info.reached else {}),
                "segments": dict(manifest.segments),
                "row_checksums": dict(manifest.row_checksums),
                "digest": None if info.digest is None else info.digest.to_bytes(DIGEST_BYTES, "little"),
                "state": _entry_fields(manifest.state),
                "chunks": {name: _entry_fields(entry) for name, entry in manifest.chunks.items()},
            }
        ),
    )
    return bytes([FORMAT]) + checksum(manifest_key(info.id), body) + body


def decode(snapshot: int, stored: bytes) -> Manifest:
    """The manifest of a snapshot id; SnapshotError if the bytes are not what `encode` made."""
    if stored[:1] != bytes([FORMAT]):
        raise SnapshotError(f"its manifest has format {list(stored[:1])}, this driftline reads {FORMAT}")
    body = stored[1 + CHECKSUM_BYTES :]
    if checksum(manifest_key(snapshot), body) != stored[1 : 1 + CHECKSUM_BYTES]:
        raise SnapshotError("its manifest is damaged")
    # From here on the bytes are known to be what `encode` made.
    fields = cast("dict[str, Any]", codec.unpackb(body, strict_map_key=False))
    chunks = {name: ChunkEntry(*entry) for name, entry in fields["chunks"].items()}
    state = ChunkEntry(*fields["state"])
    digest = fields.get("digest")
    info = SnapshotInfo(
        id=snapshot,
        created=fields["created"],
        seconds=fields["seconds"],
        dim=fields["dim"],
        metric=fields["metric"],
        live=fields["live"],
        digest=None if digest is None else int.from_bytes(digest, "little"),
        bytes=state.size + sum(entry.size for entry in chunks.values()),
        bytes_written=fields["written_bytes"],
        chunks_written=fields["written"],
        chunks_shared=fields["shared"],
        offsets=fields["offsets"],
        extra=fields["extra"],
        reached={topic: _reached(held) for topic, held in fields.get("reached", {}).items()},
    )
    return Manifest(info, state, chunks, fields["segments"], fields.get("row_checksums", {}))


def manifest_key(snapshot: int) -> bytes:
    """The key of a snapshot's manifest."""
    return KEY.pack(snapshot)


def read_manifests(txn: ReadTransaction) -> tuple[dict[int, Manifest], dict[int, str]]:
    """Every stored manifest by snapshot id, oldest first, and why the others cannot be read."""
    good: dict[int, Manifest] = {}
    damaged: dict[int, str] = {}
    for key, stored in txn.range(MANIFESTS):
        snapshot = int.from_bytes(key)
        try:
            if len(key) != KEY.size:
                raise SnapshotError("the key of its manifest is damaged")
            good[snapshot] = decode(snapshot, stored)
        except SnapshotError as cause:
            damaged[snapshot] = str(cause)
    return good, damaged


def _entry_fields(entry: ChunkEntry) -> list[int | bytes]:
    return [entry.version, entry.snapshot, entry.ordinal, entry.size, entry.checksum]


def _reached_fields(topics: Mapping[str, Mapping[int, Reached]]) -> dict[str, dict[int, list[Any]]]:
    return {
        topic: {
            partition: [reached.current_ms, [[a.offset, a.timestamp_ms, a.hash] for a in reached.anchors]]
            for partition, reached in partitions.items()
        }
        for topic, partitions in topics.items()
    }


def _reached(partitions: Mapping[int, list[Any]]) -> dict[int, Reached]:
    return {
        partition: Reached(current_ms, tuple(Anchor(*anchor) for anchor in anchors))
        for partition, (current_ms, anchors) in partitions.items()
    }
