"""Every byte that the local log stores: five LMDB databases, integers big-endian. Format 1.

| database | key                                              | value                                        |
|----------|--------------------------------------------------|----------------------------------------------|
| meta     | "format"                                         | u32: 1                                       |
| topics   | name                                             | u32 number, u32 partitions, u8 compacted     |
| ends     | u32 topic number, u32 partition                  | u64: the next offset to be written           |
| records  | u32 topic number, u32 partition, u64 offset      | a record, below                              |
| groups   | group, UTF-8; 0; u32 topic number, u32 partition | u64: the next offset the group committed     |

A record:

| bytes    | what                                                                                  |
|----------|---------------------------------------------------------------------------------------|
| 4        | CRC-32 (zlib) of everything after it                                                  |
| 1        | flags: 1 = the key is null, 2 = the value is null                                     |
| 8        | timestamp, milliseconds since 1970, signed                                            |
| 4        | k: length of the key (0 if null)                                                      |
| 2        | h: number of headers                                                                  |
| h times  | u16 length of the name, the name (UTF-8), u32 length of the value, the value          |
| k        | the key                                                                               |
| the rest | the value                                                                             |
"""

import struct
import zlib
from typing import Final

from ..errors import InvalidInput, LogError
from .log import Draft, Headers, Record

__all__ = [
    "DATABASES",
    "FORMAT",
    "FORMAT_KEY",
    "NUMBER",
    "OFFSET",
    "PLACE",
    "RECORD_PLACE",
    "TOPIC",
    "decode",
    "encode",
    "group_key",
]

DATABASES: Final = ("meta", "topics", "ends", "records", "groups")
FORMAT: Final = 1
FORMAT_KEY: Final = b"format"
NUMBER: Final = struct.Struct(">I")
TOPIC: Final = struct.Struct(">IIB")
PLACE: Final = struct.Struct(">II")
RECORD_PLACE: Final = struct.Struct(">IIQ")
OFFSET: Final = struct.Struct(">Q")

CRC: Final = struct.Struct(">I")
HEAD: Final = struct.Struct(">BqIH")
NAME: Final = struct.Struct(">H")
NULL_KEY, NULL_VALUE = 1, 2


def group_key(group: str, topic_number: int, partition: int) -> bytes:
    return group.encode() + b"\0" + PLACE.pack(topic_number, partition)


def encode(draft: Draft, now_ms: int) -> bytes:
    """A draft as it is stored, of `now_ms` if it names no time. Raises InvalidInput for what does not fit."""
    key, value = draft.key, draft.value
    flags = (NULL_KEY if key is None else 0) | (NULL_VALUE if value is None else 0)
    timestamp = now_ms if draft.timestamp_ms is None else draft.timestamp_ms
    try:
        parts = [HEAD.pack(flags, timestamp, len(key or b""), len(draft.headers))]
        for name, content in draft.headers:
            encoded = name.encode()
            parts += [NAME.pack(len(encoded)), encoded, NUMBER.pack(len(content)), content]
    except struct.error as error:
        raise InvalidInput(
            f"draft with key {key!r:.80}: too many headers, or one with too long a name"
        ) from error
    parts += [key or b"", value or b""]
    body = b"".join(parts)
    return CRC.pack(zlib.crc32(body)) + body


def decode(topic: str, partition: int, offset: int, stored: bytes) -> Record:
    """A stored record. Raises LogError for bytes that `encode` did not make."""
    try:
        (checksum,) = CRC.unpack_from(stored)
        if zlib.crc32(memoryview(stored)[CRC.size :]) != checksum:
            raise LogError(f"{topic}/{partition} is damaged at offset {offset}: the checksum does not fit")
        flags, timestamp, key_length, header_count = HEAD.unpack_from(stored, CRC.size)
        at = CRC.size + HEAD.size
        headers: list[tuple[str, bytes]] = []
        for _ in range(header_count):
            (length,) = NAME.unpack_from(stored, at)
            at += NAME.size
            name = stored[at : at + length].decode()
            at += length
            (length,) = NUMBER.unpack_from(stored, at)
            at += NUMBER.size
            headers.append((name, stored[at : at + length]))
            at += length
    except (struct.error, UnicodeDecodeError) as error:
        raise LogError(f"{topic}/{partition} is damaged at offset {offset}: {error}") from error
    key = None if flags & NULL_KEY else stored[at : at + key_length]
    value = None if flags & NULL_VALUE else stored[at + key_length :]
    frozen: Headers = tuple(headers)
    return Record(topic, partition, offset, timestamp, key, value, frozen)
