"""The log on this machine: an LMDB file that many processes append to and read at once; nothing else need be
running.

The same meaning as Kafka's, one record an entry (see `local_layout`). An append is acknowledged after fsync;
appends that wait together share one. A reader that waits looks at LMDB's last transaction number, which is a
read of shared memory: that wakes it whichever process wrote, and there is no signal that could be lost.
"""

import asyncio
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import InvalidInput, LogError, TopicNotFound
from ..snapshots.environment import ReadTransaction, WriteTransaction
from .local_compaction import removal, superseded
from .local_files import LocalFiles
from .local_layout import OFFSET, PLACE, RECORD_PLACE, TOPIC, decode, encode, group_key
from .log import (
    FETCH_RECORDS,
    MAX_RECORD_BYTES,
    TOMBSTONES_MS,
    Draft,
    Position,
    Reader,
    Record,
    Topic,
    check_topic_name,
    is_topic_name,
    outside,
    route,
)

__all__ = ["LocalLog", "LocalReader"]

POLL_S = 0.005  # a reader that waits: 2.5 ms of delay on average for 0.5 % of a core
FETCH_BYTES = 16 << 20  # of one fetch


class LocalLog:
    """A directory as a `Log`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: LocalFiles | None = None
        self._known: dict[str, tuple[int, Topic]] = {}  # topics never change and are never deleted
        self._readers: weakref.WeakSet[LocalReader] = weakref.WeakSet()
        self._turn = 0

    async def __aenter__(self) -> Self:
        self._files = await asyncio.to_thread(LocalFiles.acquire, self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._files is not None:
            files, self._files = self._files, None
            for reader in list(self._readers):
                await reader.close()
            await asyncio.to_thread(files.release)

    async def append(self, drafts: Sequence[Draft]) -> list[Position]:
        known = {name: await self._topic(name) for name in {draft.topic for draft in drafts}}
        self._turn += 1
        routes = route(drafts, {name: topic for name, (_, topic) in known.items()}, self._turn)
        now_ms = time.time_ns() // 1_000_000
        stored = [encode(draft, now_ms) for draft in drafts]

        def work(txn: WriteTransaction) -> list[Position]:
            positions: dict[int, Position] = {}
            for (topic, partition), indices in routes.items():
                number = known[topic][0]
                offset = end_of(txn, number, partition)
                for index in indices:
                    txn.put("records", RECORD_PLACE.pack(number, partition, offset), stored[index])
                    positions[index] = Position(topic, partition, offset)
                    offset += 1
                txn.put("ends", PLACE.pack(number, partition), OFFSET.pack(offset))
            return [positions[index] for index in range(len(drafts))]

        return await asyncio.wrap_future(self._open.write(work, sum(map(len, stored))))

    async def topics(self) -> frozenset[str]:
        names = await asyncio.wrap_future(self._open.read(lambda txn: list(txn.keys("topics"))))
        return frozenset(name.decode() for name in names)

    async def describe(self, topic: str, *, max_age_s: float = 60.0) -> Topic:
        return (await self._topic(topic))[1]

    async def partitions(self, topic: str) -> tuple[int, ...]:
        return (await self.describe(topic)).partitions

    async def create_topic(self, topic: str, *, partitions: int = 1, compacted: bool = False) -> bool:
        check_topic_name(topic)
        if partitions < 1:
            raise InvalidInput(f"topic {topic}: {partitions} partitions, needs at least one")

        def work(txn: WriteTransaction) -> bool:
            row = TOPIC.pack(txn.count("topics"), partitions, compacted)
            return txn.put("topics", topic.encode(), row, overwrite=False)

        return await asyncio.wrap_future(self._open.write(work))

    async def begin_offsets(self, topic: str) -> dict[int, int]:
        return dict.fromkeys(await self.partitions(topic), 0)  # compaction leaves gaps, as Kafka's does

    async def end_offsets(self, topic: str) -> dict[int, int]:
        number, known = await self._topic(topic)
        return await asyncio.wrap_future(
            self._open.read(
                lambda txn: {partition: end_of(txn, number, partition) for partition in known.partitions}
            )
        )

    async def record_at(self, topic: str, partition: int, offset: int) -> Record | None:
        number, _ = await self._topic(topic)
        place = RECORD_PLACE.pack(number, partition, offset)
        stored = await asyncio.wrap_future(self._open.read(lambda txn: txn.get("records", place)))
        return None if stored is None else decode(topic, partition, offset, stored)

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        number, known = await self._topic(topic)

        def work(txn: ReadTransaction) -> dict[int, int]:
            stored = {
                partition: txn.get("groups", group_key(group, number, partition))
                for partition in known.partitions
            }
            return {partition: OFFSET.unpack(row)[0] for partition, row in stored.items() if row is not None}

        return await asyncio.wrap_future(self._open.read(work))

    async def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        number, known = await self._topic(topic)
        if not 1 <= len(group.encode()) <= 249 or "\0" in group:
            raise InvalidInput(f"group {group!r}: 1 to 249 bytes, none of them zero")
        if not set(known.partitions).issuperset(offsets):
            raise InvalidInput(
                f"topic {topic} has only partitions {known.partitions}; offsets are for {sorted(offsets)}"
            )

        def work(txn: WriteTransaction) -> None:
            for partition, offset in offsets.items():
                txn.put("groups", group_key(group, number, partition), OFFSET.pack(offset))

        await asyncio.wrap_future(self._open.write(work))

    async def reader(self, starts: Mapping[tuple[str, int], int]) -> Reader:
        if not starts:
            raise InvalidInput("a reader needs at least one partition")
        numbers: dict[str, int] = {}
        for topic, partition in starts:
            numbers[topic], known = await self._topic(topic)
            if partition not in known.partitions:
                raise InvalidInput(f"topic {topic} has no partition {partition}")
        reader = LocalReader(self._open, numbers, starts)
        self._readers.add(reader)
        return reader

    async def compact(self, topic: str, *, tombstones_older_than_s: float = TOMBSTONES_MS / 1000) -> int:
        """Remove records that a newer one of the same key replaces, and tombstones of that age; how many
        went.

        Offsets stay what they are. Appends and readers go on meanwhile; a reader that is behind misses what
        is removed, which is what compaction means. Holds the keys of one partition in memory.
        """
        number, known = await self._topic(topic)
        if not known.compacted:
            raise InvalidInput(f"topic {topic} is not compacted")
        before_ms = int((time.time() - tombstones_older_than_s) * 1000)
        removed = 0
        for partition in known.partitions:
            seen: set[bytes | None] = set()
            end = (await self.end_offsets(topic))[partition]
            while end > 0:
                work = superseded(topic, number, partition, end, seen, before_ms)
                doomed, end = await asyncio.wrap_future(self._open.read(work))
                if doomed:
                    removed += await asyncio.wrap_future(self._open.write(removal(doomed)))
        return removed

    async def _topic(self, topic: str) -> tuple[int, Topic]:
        known = self._known.get(topic)
        if known is None:
            row = None
            if is_topic_name(topic):
                row = await asyncio.wrap_future(
                    self._open.read(lambda txn: txn.get("topics", topic.encode()))
                )
            if row is None:
                raise TopicNotFound(f"topic {topic} does not exist in the local log at {self.path}")
            number, partitions, compacted = TOPIC.unpack(row)
            cleanup = frozenset({"compact"} if compacted else ())
            known = (number, Topic(topic, tuple(range(partitions)), cleanup, MAX_RECORD_BYTES))
            self._known[topic] = known
        return known

    @property
    def _open(self) -> LocalFiles:
        if self._files is None:
            raise LogError(f"the local log at {self.path} is not open")
        return self._files


class LocalReader:
    """Partitions of a local log as a `Reader`."""

    def __init__(
        self, files: LocalFiles, numbers: Mapping[str, int], starts: Mapping[tuple[str, int], int]
    ) -> None:
        self._files: LocalFiles | None = files
        self._numbers = numbers
        self._positions = dict(starts)
        self._seen = -1  # the commit up to which there is nothing more to read

    async def fetch(self, max_records: int = FETCH_RECORDS, timeout_s: float = 1.0) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._files is None:
                raise LogError("read: this reader is closed")
            if self._files.environment.last_commit() != self._seen:
                records, positions, seen = await asyncio.wrap_future(
                    self._files.read(lambda txn: self._read(txn, max_records))
                )
                moved = positions != self._positions
                # The partition that was read first is read last the next time, so that none starves another.
                first, *others = positions.items()
                self._positions = dict([*others, first])
                if records or moved:
                    return records
                self._seen = seen
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            await asyncio.sleep(min(left, POLL_S))

    def position(self, topic: str, partition: int) -> int:
        return self._positions[topic, partition]

    async def close(self) -> None:
        self._files = None

    def _read(self, txn: ReadTransaction, most: int) -> tuple[list[Record], dict[tuple[str, int], int], int]:
        """Records, the positions after them, and the commit that was looked at.

        Changes nothing of the reader: a fetch may be cancelled while this runs.
        """
        records: list[Record] = []
        positions = dict(self._positions)
        room = FETCH_BYTES
        for (topic, partition), position in self._positions.items():
            number = self._numbers[topic]
            end = end_of(txn, number, partition)
            if not 0 <= position <= end:
                raise outside(topic, partition, position, 0, end)
            start, stop = (RECORD_PLACE.pack(number, partition, offset) for offset in (position, end))
            for place, stored in txn.range("records", start, stop):
                if len(records) == most or room <= 0:
                    return records, positions, txn.number
                records.append(decode(topic, partition, RECORD_PLACE.unpack(place)[2], stored))
                positions[topic, partition] = records[-1].offset + 1
                room -= len(stored)
            positions[topic, partition] = end  # past what compaction removed
        return records, positions, txn.number


def end_of(txn: ReadTransaction, topic_number: int, partition: int) -> int:
    row = txn.get("ends", PLACE.pack(topic_number, partition))
    return 0 if row is None else OFFSET.unpack(row)[0]
