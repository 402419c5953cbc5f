"""The log on Apache Kafka: KafkaLog ties connection, topics, producer and readers together.

Read committed, idempotent writes acknowledged by every in-sync replica, Kafka's own partitioner, partitions
assigned by hand, no offset ever reset: a position outside the log is an error and not a jump.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from aiokafka import AIOKafkaConsumer, TopicPartition, errors

from ..errors import BrokerUnavailable, InvalidInput, LogError
from .kafka_batches import as_record, fetch_batch
from .kafka_client import KafkaClient, connection_settings, turned
from .kafka_producer import KafkaProducer
from .kafka_topics import KafkaTopics
from .log import (
    FETCH_RECORDS,
    Compression,
    Draft,
    Position,
    Reader,
    Record,
    Security,
    Topic,
    outside,
    route,
)

__all__ = ["KafkaLog", "KafkaReader"]

POLL_S = 0.1  # how long a broker may hold an empty fetch: 0.8 % of a core for a reader that only waits
# The same where several partitions are read, 1.5 % of a core. While a slow caller leaves records of one where
# they are, aiokafka asks for the others; what comes next in that one then waits until the request is over.
SHARED_POLL_S = 0.04
FETCH_BYTES = 16 << 20  # of one response
PARTITION_BYTES = 4 << 20  # of one partition in it: a thousand records of 3 KB
UNREADABLE = (UnicodeDecodeError, errors.CorruptRecordException)  # of a header's name, see kafka_batches.py


class KafkaLog:
    """A Kafka cluster as a `Log`."""

    def __init__(
        self,
        servers: str,
        *,
        ready_within_s: float = 30.0,
        compression: Compression = "none",
        **security: Unpack[Security],
    ) -> None:
        self._within_s = ready_within_s
        self._settings = connection_settings(servers, **security)
        self._client = KafkaClient(servers, ready_within_s, self._settings)
        self._topics = KafkaTopics(self._client)
        self._tasks = asyncio.TaskGroup()
        self._producer = KafkaProducer(self._client, self._tasks, compression)
        self._readers: set[KafkaReader] = set()
        self._turn = 0
        self._opened = False

    async def __aenter__(self) -> Self:
        await self._client.connect()
        await self._tasks.__aenter__()
        self._opened = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        for reader in list(self._readers):
            await reader.close()
        self._producer.stop()
        await self._tasks.__aexit__(None, None, None)
        await self._client.close()

    async def append(self, drafts: Sequence[Draft]) -> list[Position]:
        topics = {name: await self._topics.describe(name) for name in {draft.topic for draft in drafts}}
        self._turn += 1
        routes = route(drafts, topics, self._turn)
        writes = {
            (topic, partition): self._producer.write(
                topic, partition, topics[topic].max_record_bytes, [drafts[index] for index in indices]
            )
            for (topic, partition), indices in routes.items()
        }
        try:
            async with asyncio.timeout(self._within_s):
                await asyncio.gather(*writes.values(), return_exceptions=True)
        except TimeoutError as late:
            raise self._client.unanswered("append", None) from late
        positions: dict[int, Position] = {}
        problems: list[BaseException] = []
        for place, write in writes.items():
            problem = write.exception()
            if problem is not None:
                problems.append(problem)
                continue
            for index, offset in zip(routes[place], write.result(), strict=True):
                positions[index] = Position(*place, offset)
        if problems:
            raise problems[0]
        return [positions[index] for index in range(len(drafts))]

    async def topics(self) -> frozenset[str]:
        return await self._topics.names()

    async def describe(self, topic: str, *, max_age_s: float = 60.0) -> Topic:
        return await self._topics.describe(topic, max_age_s)

    async def partitions(self, topic: str) -> tuple[int, ...]:
        return (await self._topics.describe(topic)).partitions

    async def create_topic(self, topic: str, *, partitions: int = 1, compacted: bool = False) -> bool:
        return await self._topics.create(topic, partitions, compacted)

    async def begin_offsets(self, topic: str) -> dict[int, int]:
        return await self._topics.begin_offsets(topic)

    async def end_offsets(self, topic: str) -> dict[int, int]:
        return await self._topics.end_offsets(topic)

    async def record_at(self, topic: str, partition: int, offset: int) -> Record | None:
        records, _ = await fetch_batch(self._client, topic, partition, offset)
        return records[0] if records and records[0].offset == offset else None

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        return await self._topics.committed(group, topic)

    async def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        await self._topics.commit(group, topic, offsets)

    async def reader(self, starts: Mapping[tuple[str, int], int]) -> Reader:
        if not starts:
            raise InvalidInput("a reader needs at least one partition")
        for topic, partition in starts:
            if partition not in await self.partitions(topic):
                raise InvalidInput(f"topic {topic} has no partition {partition}")
        reader = KafkaReader(self._settings, starts, self._client, self._topics, self._readers.discard)
        await self._client.ask("open a reader", reader.start)
        self._readers.add(reader)
        return reader


class KafkaReader:
    """Partitions of a Kafka cluster as a `Reader`: a connection of its own."""

    def __init__(
        self,
        settings: dict[str, Any],
        starts: Mapping[tuple[str, int], int],
        client: KafkaClient,
        topics: KafkaTopics,
        closed: Callable[["KafkaReader"], None],
    ) -> None:
        self._settings = settings
        self._client = client
        self._topics = topics
        self._closed = closed
        self._positions = dict(starts)
        self._places = {place: TopicPartition(*place) for place in starts}
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect and go to the starts. Raises aiokafka's errors."""
        consumer: Any = AIOKafkaConsumer(
            **self._settings,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=int(1000 * (POLL_S if len(self._places) == 1 else SHARED_POLL_S)),
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_BYTES,
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        # No await in between: the consumer must not look for a position before it is told one.
        consumer.assign(list(self._places.values()))
        self._consumer = consumer
        self._seek()
        # Its tasks must have begun when it is stopped, or stop() raises their CancelledError.
        await asyncio.sleep(0)

    async def fetch(self, max_records: int = FETCH_RECORDS, timeout_s: float = 1.0) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            consumer = self._consumer
            if consumer is None:
                raise LogError("read: this reader is closed")
            try:
                batches = await consumer.getmany(timeout_ms=min(left, POLL_S) * 1000, max_records=max_records)
            except errors.OffsetOutOfRangeError as error:
                raise await self._outside(error.args[0]) from error
            except UNREADABLE:
                return await self._fetch_batches(max_records)
            except (errors.KafkaError, errors.ConsumerStoppedError) as error:
                raise turned("read", error) from error
            moved = False
            for place, partition in self._places.items():
                position: int = await consumer.position(partition)  # does not wait: it was told a position
                moved |= position != self._positions[place]
                self._positions[place] = position
            if batches or moved or not left:
                return [as_record(record) for records in batches.values() for record in records]

    def position(self, topic: str, partition: int) -> int:
        return self._positions[topic, partition]

    async def close(self) -> None:
        self._closed(self)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _fetch_batches(self, most: int) -> list[Record]:
        """A batch of each partition, past what the consumer cannot read; it is set to what is behind.

        It may have moved past records that it did not return, in any partition: it is set back first, so that
        nothing is lost if this is cancelled.
        """
        self._seek()
        records: list[Record] = []
        positions = dict(self._positions)
        for place, position in self._positions.items():
            try:
                found, positions[place] = await fetch_batch(self._client, *place, position)
            except BrokerUnavailable:
                continue  # as for the consumer: when it is back
            if len(found) > most - len(records):
                found = found[: most - len(records)]
                positions[place] = found[-1].offset + 1 if found else position
            records += found
        self._positions = positions
        self._seek()
        return records

    def _seek(self) -> None:
        for place, partition in self._places.items():
            self._consumer.seek(partition, self._positions[place])

    async def _outside(self, offsets: Mapping[TopicPartition, int]) -> LogError:
        (place, offset), *_ = offsets.items()
        begin = await self._topics.begin_offsets(place.topic)
        end = await self._topics.end_offsets(place.topic)
        return outside(place.topic, place.partition, offset, begin[place.partition], end[place.partition])
