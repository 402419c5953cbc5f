"""Compaction of the local log: per key only the newest record stays, and a tombstone only for a while.

Partitions are walked from the end in short transactions. What is found superseded stays so whatever is
appended meanwhile, so nothing is locked between finding and removing.
"""

from collections.abc import Callable

from ..snapshots.environment import ReadTransaction, WriteTransaction
from .local_layout import RECORD_PLACE, decode

__all__ = ["removal", "superseded"]

STEP_RECORDS = 10_000  # looked at, and so at most removed, in one transaction


def superseded(
    topic: str, number: int, partition: int, end: int, seen: set[bytes | None], before_ms: int
) -> Callable[[ReadTransaction], tuple[list[bytes], int]]:
    """A look at the records just below `end`: which may go, and where the next look ends (0: nowhere).

    `seen` are the keys of all records from `end` on; the look adds to it. Tombstones older than `before_ms`
    may go.
    """

    def work(txn: ReadTransaction) -> tuple[list[bytes], int]:
        doomed: list[bytes] = []
        start, stop = (RECORD_PLACE.pack(number, partition, offset) for offset in (0, end))
        for looked, (place, stored) in enumerate(txn.range("records", start, stop, reverse=True), 1):
            record = decode(topic, partition, RECORD_PLACE.unpack(place)[2], stored)
            if record.key in seen or (record.value is None and record.timestamp_ms < before_ms):
                doomed.append(place)
            seen.add(record.key)
            if looked == STEP_RECORDS:
                return doomed, record.offset
        return doomed, 0

    return work


def removal(places: list[bytes]) -> Callable[[WriteTransaction], int]:
    """Remove records; how many were still there (another process may compact too)."""

    def work(txn: WriteTransaction) -> int:
        return sum(txn.delete("records", place) for place in places)

    return work
