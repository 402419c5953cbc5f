"""Chunks in LMDB: values cut into pieces, written in bounded transactions, found again by entry.

Database `chunks`:

| key, 16 bytes, big-endian | value |
|---|---|
| u64 snapshot that wrote it, u32 ordinal within it, u32 piece | 1,048,560 bytes, the last piece less |

A chunk of no bytes has no pieces. What a chunk is called, its size and its checksum stand in the manifests
that name it. A piece that no manifest's entry covers is an orphan of a commit that did not end.
"""

import struct
from collections.abc import Callable, Iterable, Iterator

from ..errors import SnapshotError
from .checksum import checksum
from .environment import Environment, ReadTransaction, WriteTransaction
from .manifest import ChunkEntry, Manifest

__all__ = [
    "CHUNKS",
    "OTHER_BYTES",
    "ChunkWriter",
    "chunk_views",
    "is_whole",
    "put_chunk",
    "read_chunk",
    "remove_unnamed",
]

CHUNKS = "chunks"
KEY = struct.Struct(">QII")
NUMBER_AT = 12  # what stands before it is the chunk
PIECE_BYTES = (1 << 20) - 16  # with LMDB's 16-byte header exactly 256 pages
OTHER_BYTES = "its bytes are not those that were written (checksum)"
TRANSACTION_BYTES = 4 << 20  # held in memory twice until they are committed: as chunks, and as LMDB's pages


class ChunkWriter:
    """Writes the chunks of one snapshot, a transaction whenever enough has come together.

    Chunks are not copied before their transaction: their bytes must stay as they are until `finish` has
    returned.
    """

    def __init__(self, environment: Environment, snapshot: int, progress: Callable[[int], None]) -> None:
        """progress: is told how many bytes are on disk."""
        self._environment = environment
        self._snapshot = snapshot
        self._progress = progress
        self._done = 0
        self._ordinal = 0
        self._waiting: list[tuple[bytes, memoryview]] = []
        self._waiting_bytes = 0

    def add(self, version: int, data: bytes | memoryview) -> ChunkEntry:
        """Write a chunk, or keep it for the next transaction."""
        view = memoryview(data).cast("B")
        entry = ChunkEntry(version, self._snapshot, self._ordinal, len(view), checksum(view))
        self._ordinal += 1
        for number, key in enumerate(_keys(entry)):
            if self._waiting_bytes + PIECE_BYTES > TRANSACTION_BYTES:
                self.finish()
            piece = view[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
            self._waiting.append((key, piece))
            self._waiting_bytes += len(piece)
        return entry

    def finish(self) -> None:
        """Write what waits."""
        if self._waiting:
            with self._environment.write(room=self._waiting_bytes) as txn:
                for key, piece in self._waiting:
                    txn.put(CHUNKS, key, piece)
        self._done += self._waiting_bytes
        self._waiting.clear()
        self._waiting_bytes = 0
        self._progress(self._done)


def read_chunk(txn: ReadTransaction, entry: ChunkEntry, *, hashed: bool = True) -> bytes:
    """A copy of a chunk; SnapshotError if it is not what was written. `hashed` False: whose checksum was
    compared already."""
    views = chunk_views(txn, entry)
    if hashed and not is_whole(entry, views):
        raise SnapshotError(OTHER_BYTES)
    return b"".join(views)


def put_chunk(txn: WriteTransaction, entry: ChunkEntry, data: bytes) -> None:
    """Store a chunk where a manifest from elsewhere says it lies."""
    for number, key in enumerate(_keys(entry)):
        txn.put(CHUNKS, key, data[number * PIECE_BYTES : (number + 1) * PIECE_BYTES])


def chunk_views(txn: ReadTransaction, entry: ChunkEntry) -> list[memoryview]:
    """What is stored of a chunk, for as long as the transaction; SnapshotError if that is not all."""
    views = list(_pieces(txn, entry))
    if sum(map(len, views)) != entry.size:
        raise SnapshotError(OTHER_BYTES)
    return views


def is_whole(entry: ChunkEntry, views: Iterable[memoryview]) -> bool:
    """Whether these are the bytes that were written, by their checksum; any thread may ask."""
    return checksum(*views) == entry.checksum


def remove_unnamed(txn: WriteTransaction, manifests: Iterable[Manifest]) -> None:
    """Remove every piece of a chunk that none of these manifests names, and whatever else is no piece."""
    named = {
        KEY.pack(entry.snapshot, entry.ordinal, 0)[:NUMBER_AT]
        for manifest in manifests
        for entry in (manifest.state, *manifest.chunks.values())
    }
    for key in list(txn.keys(CHUNKS)):
        if key[:NUMBER_AT] not in named:
            txn.delete(CHUNKS, key)


def _keys(entry: ChunkEntry) -> Iterator[bytes]:
    for number in range(-(-entry.size // PIECE_BYTES)):
        yield KEY.pack(entry.snapshot, entry.ordinal, number)


def _pieces(txn: ReadTransaction, entry: ChunkEntry) -> Iterator[memoryview]:
    for number, key in enumerate(_keys(entry)):
        piece = txn.view(CHUNKS, key)
        if piece is None:
            raise SnapshotError(f"piece {number} is missing")
        yield piece
