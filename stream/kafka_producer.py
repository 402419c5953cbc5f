"""Writes to Kafka: idempotent, acknowledged by every in-sync replica, in order, each batch within a deadline.

One *lane* per partition. A lane has one batch on its way; what is appended meanwhile gathers and becomes the
next one, so many small appends share a round trip and a lone one waits for nothing.

Sequence numbers: a batch carries producer id, epoch and the number of its first record. Until its outcome is
known, a batch is sent again with the same bytes, which the broker stores once. Where the outcome stays
unknown (deadline passed) or the broker says the numbers do not fit, the producer asks for a new id, under
which every lane counts from 0 again.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from aiokafka import errors
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from ..errors import LogError
from .kafka_client import REQUEST_S, KafkaClient, check, turned
from .log import Compression, Draft, record_bytes

__all__ = ["KafkaProducer"]

BATCH_BYTES = 512 << 10  # half of Kafka's default limit; larger ones gained nothing
UNBOUNDED = 2**31 - 1  # for the builder, which would leave records out: `fill` minds the size
ALL_REPLICAS = -1
MAGIC = 2  # the record batch format since Kafka 0.11
# As a batch names its codec. A batch that a codec does not make smaller goes as it is.
CODECS: dict[Compression, int] = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
NO_TRANSACTIONS: Any = None  # allowed by the protocol, forbidden by aiokafka's annotation
TRANSACTION_MS = 60_000  # must be given, means nothing without a transactional id
# The broker and we disagree about sequence numbers: nothing is stored, and nothing will be under this
# producer id.
OUT_OF_STEP = (
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerIdMapping,
    errors.InvalidProducerEpoch,
)


@dataclass(slots=True, eq=False)
class Waiting:
    """Drafts of one append for one partition; `done` gets the offset of each."""

    drafts: Sequence[Draft]
    done: asyncio.Future[list[int]]
    taken: int = 0
    offsets: list[int] = field(default_factory=list[int])


@dataclass(slots=True, eq=False)
class Lane:
    """One partition: what waits, and the sequence number that its next batch begins with."""

    topic: str
    partition: int
    batch_bytes: int
    waiting: deque[Waiting] = field(default_factory=deque[Waiting])
    driver: asyncio.Task[None] | None = None
    producer: tuple[int, int] | None = None  # id and epoch that `sequence` counts under
    sequence: int = 0


class KafkaProducer:
    """Lanes over one client. `tasks` runs them; closing that group ends this producer."""

    def __init__(self, client: KafkaClient, tasks: asyncio.TaskGroup, compression: Compression) -> None:
        self._client = client
        self._tasks = tasks
        self._codec = CODECS[compression]
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._producer: tuple[int, int] | None = None
        self._asking = asyncio.Lock()
        self._stopped = False

    def write(
        self, topic: str, partition: int, max_bytes: int, drafts: Sequence[Draft]
    ) -> asyncio.Future[list[int]]:
        """Queue drafts for a partition; a future of their offsets, or of the LogError that stopped them.

        Cancelling the future withdraws what is not on its way yet.
        """
        if self._stopped:
            raise LogError("the log was closed")
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = Lane(topic, partition, 0)
        lane.batch_bytes = min(BATCH_BYTES, max_bytes)
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        lane.waiting.append(Waiting(drafts, done))
        if lane.driver is None:
            lane.driver = self._tasks.create_task(self._drive(lane), name=f"produce {topic}/{partition}")
        return done

    def stop(self) -> None:
        """End every lane; what was not acknowledged fails, and may still be written."""
        self._stopped = True
        for lane in self._lanes.values():
            if lane.driver is not None:
                lane.driver.cancel()

    async def _drive(self, lane: Lane) -> None:
        try:
            while lane.waiting:
                await self._one_batch(lane)
        finally:
            lane.driver = None
            give_up(lane.waiting, LogError("the log was closed"))  # nobody is left, unless this was cancelled

    async def _one_batch(self, lane: Lane) -> None:
        taken: list[tuple[Waiting, int]] = []
        what = f"append to {lane.topic}/{lane.partition}"
        try:
            producer = await self._client.ask(what, self._producer_id)
            if lane.producer != producer:
                lane.producer, lane.sequence = producer, 0
            batch: Any = DefaultRecordBatchBuilder(MAGIC, self._codec, 0, *producer, lane.sequence, UNBOUNDED)
            count = fill(batch, lane, taken)
            if not count:
                return
            offset = await self._send(what, lane, bytes(batch.build()))
            lane.sequence = (lane.sequence + count) & 0x7FFFFFFF  # 31 bits, as Kafka counts
        except Exception as error:  # of whatever kind: it is the appends' business and must not end the log
            ours = error if isinstance(error, LogError) else turned(what, error)
            # Those in the batch have failed; before there was one, all who waited for it.
            give_up([entry for entry, _ in taken] or lane.waiting, ours)
            return
        except asyncio.CancelledError:
            give_up([entry for entry, _ in taken], LogError("the log was closed"))
            raise
        for entry, records in taken:
            entry.offsets.extend(range(offset, offset + records))
            offset += records
            if len(entry.offsets) == len(entry.drafts) and not entry.done.done():
                entry.done.set_result(entry.offsets)

    async def _send(self, what: str, lane: Lane, batch: bytes) -> int:
        """The offset of a batch's first record, once it is acknowledged."""
        request = ProduceRequest(
            None, ALL_REPLICAS, int(REQUEST_S * 1000), [(lane.topic, [(lane.partition, batch)])]
        )

        async def attempt() -> int:
            leader = await self._client.leader(lane.topic, lane.partition)
            response = await self._client.send(request, leader, write=True)
            _, code, offset, *_ = response.topics[0][1][0]
            try:
                check(code, f"{lane.topic}/{lane.partition}")
            except OUT_OF_STEP as error:
                ours = turned(what, error)
                ours.retriable = True  # under a new producer id
                raise ours from error
            return offset

        try:
            return await self._client.ask(what, attempt)
        except BaseException:
            # Refused for good, or unknown: these sequence numbers are spent either way.
            if self._producer == lane.producer:
                self._producer = None
            raise

    async def _producer_id(self) -> tuple[int, int]:
        async with self._asking:
            if self._producer is None:
                response: Any = await self._client.send(
                    InitProducerIdRequest(NO_TRANSACTIONS, TRANSACTION_MS)
                )
                check(response.error_code, "producer id")
                self._producer = (response.producer_id, response.producer_epoch)
            return self._producer


def give_up(entries: Iterable[Waiting], error: LogError) -> None:
    for entry in entries:
        if not entry.done.done():
            entry.done.set_exception(error)


def fill(batch: Any, lane: Lane, taken: list[tuple[Waiting, int]]) -> int:
    """Move what fits from a lane's queue into a batch; how many records. `taken` gets whose they are."""
    count = size = 0
    while lane.waiting:
        entry = lane.waiting[0]
        if entry.done.done():  # withdrawn, or failed with an earlier batch
            lane.waiting.popleft()
            continue
        first = entry.taken
        for draft in islice(entry.drafts, first, None):
            size += record_bytes(draft)
            if count and size > lane.batch_bytes:
                break
            batch.append(count, draft.timestamp_ms, draft.key, draft.value, list(draft.headers))
            count += 1
            entry.taken += 1
        taken.append((entry, entry.taken - first))
        if entry.taken < len(entry.drafts):
            break
        lane.waiting.popleft()
    return count
