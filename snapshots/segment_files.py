"""A segment file: its bytes, and whether they are still those that were written.

Nothing here loads numpy: the process that looks through a data directory before it is opened
(examination.py) is to begin at once.

segments/<id>.f32, id in decimal from 0; numbers are little-endian:

| offset | bytes | field |
|---|---|---|
| 0 | 8 | magic "DRFTRAW1" |
| 8 | 4 | format version, u32: 2 |
| 12 | 4 | dim, u32 |
| 16 | 8 | segment id, u64 |
| 24 | 8 | rows the file has room for, u64 |
| 32 | 16 | checksum of bytes 0 to 31: first half of their SHA-256 |
| 48 | 4048 | zeros |
| 4096 | 16 * rows | the hash of each row (index/digest.py), then zeros to a multiple of 4096 |
| | 4 * dim | row 0, float32; row 1 and so on behind it without gaps |

A file is made at its full length, sparse: disk is taken as rows are written. Which rows are meant is in the
manifest (`high_water`), with their checksums; what lies behind them is free. Each segment costs one map and
one file descriptor.

A row's hash covers its key and attributes too, so only who knows these can tell a damaged row by it. What an
opening of the directory compares are the checksums of blocks: of up to 4 MiB of rows, and the hashes of these
rows. They are taken when a manifest first names the rows.
"""

import os
import re
import struct
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from .checksum import CHECKSUM_BYTES, checksum

__all__ = [
    "FILE_NAME",
    "HEADER",
    "PAGE",
    "ROW_HASH_BYTES",
    "block_rows",
    "blocks",
    "damaged_block",
    "each_checksum",
    "file_name",
    "read_all",
    "rows_at",
    "segment_header",
    "segment_problem",
]

MAGIC = b"DRFTRAW1"
VERSION = 2
HEADER = struct.Struct("<8sIIQQ16s")
PAGE = 4096  # the header's, and what row 0 is aligned to, for every vector kernel
ROW_HASH_BYTES = 16  # as index/digest.py has them
BLOCK_BYTES = 4 << 20  # of rows under one checksum: a hundredth of a second to read
FILE_NAME = re.compile(r"(0|[1-9][0-9]*)\.f32")


def file_name(segment: int) -> str:
    return f"{segment}.f32"


def segment_header(segment: int, dim: int, capacity: int) -> bytes:
    head = HEADER.pack(MAGIC, VERSION, dim, segment, capacity, b"")[: HEADER.size - CHECKSUM_BYTES]
    return (head + checksum(head)).ljust(PAGE, b"\0")


def segment_problem(path: Path, segment: int, dim: int, rows: int) -> str | None:
    """Why the first `rows` rows of a segment cannot be what a manifest named; None if they can."""
    name = file_name(segment)
    try:
        with open(path / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(HEADER.size)
    except OSError as cause:
        return f"segment {name}: {cause.strerror or cause}"
    short = f"segment {name}: {size} bytes, too short for its {rows} rows of {dim} float32"
    if len(header) < HEADER.size:
        return short
    magic, version, stored_dim, stored_segment, capacity, digest = HEADER.unpack(header)
    if magic != MAGIC or digest != checksum(header[: HEADER.size - CHECKSUM_BYTES]):
        return f"segment {name}: its header is damaged"
    if version != VERSION:
        return f"segment {name}: format version {version}, this driftline reads {VERSION}"
    if (stored_dim, stored_segment) != (dim, segment) or rows > capacity:
        return f"segment {name}: its header says segment {stored_segment}, dim {stored_dim}, {capacity} rows"
    return short if size < rows_at(capacity) + 4 * dim * rows else None


def damaged_block(path: Path, segment: int, dim: int, rows: int, checksums: bytes) -> str | None:
    """The first block of a segment that is not what it was. The file's header must be in order."""
    name = file_name(segment)
    try:
        with open(path / name, "rb", buffering=0) as file:  # not mapped: a disk that fails is no SIGBUS
            start = rows_at(HEADER.unpack(file.read(HEADER.size))[4])
            for block, expected in zip(blocks(rows, dim), each_checksum(checksums), strict=True):
                hashes = read_all(file, ROW_HASH_BYTES, PAGE, block)
                vectors = read_all(file, 4 * dim, start, block)
                if checksum(hashes, vectors) != expected:
                    span = f"rows {block.start} to {block.stop - 1}"
                    return f"segment {name}: {span} are not those that were written (checksum)"
    except OSError as cause:
        return f"segment {name}: {cause.strerror or cause}"
    return None


def rows_at(capacity: int) -> int:
    """Where the rows of a file begin that has room for so many."""
    return PAGE + -(-ROW_HASH_BYTES * capacity // PAGE) * PAGE


def block_rows(dim: int) -> int:
    return max(1, BLOCK_BYTES // (4 * dim))


def blocks(rows: int, dim: int) -> Iterator[slice]:
    """The spans of rows under one checksum; the last one may be short."""
    step = block_rows(dim)
    return (slice(first, min(rows, first + step)) for first in range(0, rows, step))


def each_checksum(checksums: bytes) -> Iterator[bytes]:
    return (checksums[at : at + CHECKSUM_BYTES] for at in range(0, len(checksums), CHECKSUM_BYTES))


def read_all(file: FileIO, width: int, start: int, rows: slice) -> memoryview:
    data = memoryview(bytearray(width * (rows.stop - rows.start)))
    file.seek(start + width * rows.start)
    read = file.readinto(data)
    return data[:read]
