"""Anchors: a few records of each partition that were applied, by which the log is known again.

A topic that is deleted and created again has the same name and, once it has grown, the same offsets.
Following it from an offset of the old one would mix two collections without any error. So the time and a hash
of some records are kept with the offsets, and compared with what the log holds there: another record there
means another log. A record that is gone (compaction, retention) proves nothing.
"""

import asyncio
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

from ..errors import LogError
from ..snapshots.manifest import Anchor
from .log import Log, Record

__all__ = ["Anchors", "anchor_of", "check_anchors", "newest_records"]

KEPT = 8  # per partition; the distances between them double, so that some are old
HASH_BYTES = 16
LENGTH = struct.Struct("<q")


class Anchors:
    """The anchors of one partition, the newest and ever sparser older ones."""

    def __init__(self, anchors: Iterable[Anchor] = ()) -> None:
        self._held = list(anchors)

    def value(self) -> tuple[Anchor, ...]:
        return tuple(self._held)

    def update(self, anchor: Anchor) -> None:
        """Take the newest record in."""
        held = self._held
        held.append(anchor)
        if len(held) > KEPT:
            # The one goes whose neighbours lie closest together, for how long ago it is.
            newest = anchor.offset + 1
            at = min(
                range(1, len(held) - 1),
                key=lambda i: (held[i + 1].offset - held[i - 1].offset) / (newest - held[i].offset),
            )
            del held[at]


def anchor_of(record: Record) -> Anchor:
    """The anchor that a record makes."""
    hashed = hashlib.sha256()
    parts = [record.key, record.value]
    for name, value in record.headers:
        parts += [name.encode(errors="surrogateescape"), value]
    for part in parts:
        hashed.update(LENGTH.pack(-1 if part is None else len(part)))
        hashed.update(part or b"")
    return Anchor(record.offset, record.timestamp_ms, hashed.digest()[:HASH_BYTES])


def newest_records(records: Sequence[Record]) -> dict[int, Anchor]:
    """The anchor of the last record of each partition."""
    return {partition: anchor_of(r) for partition, r in {r.partition: r for r in records}.items()}


async def check_anchors(log: Log, topic: str, partitions: Mapping[int, Sequence[Anchor]]) -> dict[int, int]:
    """How many anchors of each partition are still in the log, which is 0 where nothing can be said.

    Raises LogError where another record stands at the place of one: the log was replaced. All are looked up,
    since the newest of them may be of the new log if that was followed for a moment.
    """

    async def found(partition: int, anchors: Sequence[Anchor]) -> int:
        count = 0
        for anchor in anchors:
            record = await log.record_at(topic, partition, anchor.offset)
            if record is None:
                continue
            if anchor_of(record) != anchor:
                raise LogError(
                    f"partition {partition} of {topic} holds another record at offset {anchor.offset} than "
                    "was applied from there: the topic was deleted and created again, or its log was "
                    "replaced. What the index holds is not of this topic; start with an empty data directory "
                    "to build the index from it"
                )
            count += 1
        return count

    counts = await asyncio.gather(*(found(*item) for item in partitions.items()))
    return dict(zip(partitions, counts, strict=True))
