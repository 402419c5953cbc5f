"""Ingestion: records of the vectors topic, in order, into the shard.

Two stages with a bounded queue between them: one reads and decodes the next batches while the other has the
shard apply those before. The shard is handed a batch ahead of the one that it applies, so that its thread
goes on without waiting for the event loop. A batch's dead letters are queued before it is handed over, so
that a snapshot cut after it (snapshotting.py) finds every letter of the records it covers already on its way.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import LogError
from ..snapshots.manifest import Anchor
from .anchors import newest_records
from .applied import Applied
from .config import Settings
from .dimension import first_dimension, rejections
from .drift_events import DriftEvents
from .events import Logger
from .log import Log, Reader, Record, Topic
from .measures import Measures
from .memory_limit import MemoryLimit
from .messages import Rejection, VectorBatch, decode_vectors
from .outbox import Outbox, fitting_letter
from .readiness import CATCHING_UP, Readiness
from .room import Room
from .shard import Changes, Shard
from .status import Counters
from .topic_watch import TopicWatch

__all__ = ["Ingest", "starting_offsets"]

FETCH_S = 0.5  # how long a fetch waits for a record before it looks whether positions moved without one
AT_ONCE_BYTES = 16 << 10  # of values: decoded in the event loop, 0.2 ms at most; a thread's turn takes longer
HANDED_OVER = 2  # batches: one that is applied, and the next
REPORT_S = 1.0  # ingest.batch sums up what was applied in this time
CONTESTED = (
    "a key came in two partitions, as after their number was changed: the record with the higher timestamp, "
    "partition and offset holds"
)
NAMED_REJECTIONS = 10  # per batch: more are counted, not logged one by one


@dataclass(frozen=True, slots=True)
class Step:
    """Records on their way from the decoder to the shard."""

    records: int
    bytes: int  # of their values
    batch: VectorBatch | None  # None: no record of the topic has shown the dimension yet
    rejected: Sequence[Rejection]
    positions: Mapping[int, int]  # next offsets once it is applied
    newest: Mapping[int, Anchor]  # the last record of each partition


@dataclass(slots=True)
class Report:
    """What was applied since the last ingest.batch event."""

    since: float = field(default_factory=time.monotonic)
    records: int = 0
    upserted: int = 0
    deleted: int = 0
    contested: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    apply_s: float = 0.0


class Ingest:
    """Reads, decodes, applies; `ready` says whether the index is what the topic says."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        shard: Shard,
        applied: Applied,
        outbox: Outbox,
        drift: DriftEvents,
        vectors: Topic,
        letters: Topic,
        counters: Counters,
        measures: Measures,
        memory: MemoryLimit,
        logger: Logger,
    ) -> None:
        self.ready = Readiness(shard, logger)
        self._settings = settings
        self._log = log
        self._shard = shard
        self._applied = applied
        self._outbox = outbox
        self._drift = drift
        self._letters = letters
        self._counters = counters
        self._measures = measures
        self._memory = memory
        self._logger = logger
        self._topic = settings.topics.vectors
        self._added: dict[int, int] = {}  # partitions that are new, and where they begin
        self._watch = TopicWatch(
            settings, log, shard, applied, vectors, self.ready, self._added.update, logger
        )
        self._queue: asyncio.Queue[Step] = asyncio.Queue()
        self._places = asyncio.Semaphore(HANDED_OVER)
        self._applying: asyncio.Queue[tuple[Step, asyncio.Future[Changes]]] = asyncio.Queue()
        self._room = Room(settings.ingest.queue_batches, settings.ingest.queue_bytes)
        self._report = Report()

    async def run(self) -> None:
        """Catch up, then follow, until cancelled. Raises LogError when the log cannot be followed."""
        offsets = self._applied.offsets
        ends = await self._log.end_offsets(self._topic)
        ends = {partition: ends[partition] for partition in offsets}
        began_ms = time.time_ns() // 1_000_000
        backlog = sum(max(0, end - offsets[partition]) for partition, end in ends.items())
        self._logger.info("ingest.catching_up", offsets=offsets, backlog=backlog)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._decode())
            group.create_task(self._hand_over())
            group.create_task(self._follow())
            group.create_task(self._watch.run())
            await self._applied.reach(ends)
            self._shard.caught_up_ms = began_ms
            self.ready.release(CATCHING_UP)

    async def _decode(self) -> None:
        before = self._applied.offsets
        reader = await self._reader(before)
        try:
            while True:
                if self._added:
                    before |= self._added
                    self._added.clear()
                    await reader.close()
                    reader = await self._reader(before)
                records = await reader.fetch(self._settings.ingest.batch_records, FETCH_S)
                positions = {partition: reader.position(self._topic, partition) for partition in before}
                if positions == before:
                    continue
                size = sum(len(record.value or b"") for record in records)
                if size <= AT_ONCE_BYTES and self._shard.index is not None and self._shard.hook is None:
                    batch, rejected, newest = self._decode_batch(records)
                else:
                    batch, rejected, newest = await self._shard.beside(self._decode_batch, records)
                await self._room.enter(size)
                self._queue.put_nowait(Step(len(records), size, batch, rejected, positions, newest))
                before = positions
        finally:
            await reader.close()

    async def _reader(self, offsets: Mapping[int, int]) -> Reader:
        return await self._log.reader({(self._topic, p): offset for p, offset in offsets.items()})

    def _decode_batch(
        self, records: Sequence[Record]
    ) -> tuple[VectorBatch | None, Sequence[Rejection], Mapping[int, Anchor]]:
        metric, model, hook = self._settings.index.metric, self._shard.model, self._shard.hook
        newest = newest_records(records)
        dim = self._shard.dim or first_dimension(records, metric=metric, model=model, hook=hook)
        if dim is None:
            return None, rejections(records, metric=metric, model=model, hook=hook), newest
        batch = decode_vectors(records, dim=dim, metric=metric, model=model, hook=hook)
        self._shard.learn(dim, batch.model)
        return batch, batch.rejected, newest

    async def _hand_over(self) -> None:
        while True:
            step = await self._queue.get()
            await self._memory.room()
            await self._reject(step.rejected)
            await self._places.acquire()
            changes = self._shard.apply(step.batch, step.positions, step.records, step.newest)
            self._applying.put_nowait((step, changes))

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(REPORT_S):
                        step, applying = await self._applying.get()
                except TimeoutError:
                    self._send_report()
                    continue
                changes = await applying
                self._places.release()
                self._room.leave(step.bytes)
                self._tell(step, changes)
                await self._drift.emit()
        finally:
            self._shard.retry_no_more()
            while not self._applying.empty():  # after an error or at a stop: what has not begun never will
                self._applying.get_nowait()[1].cancel()

    def _tell(self, step: Step, changes: Changes) -> None:
        self._applied.advance(step.positions)
        for tally in (self._counters, self._report):
            tally.records += step.records
            tally.upserted += changes.upserted
            tally.deleted += changes.deleted
            tally.contested += changes.contested
        self._report.apply_s += changes.seconds
        self._measures.apply.update(changes.seconds)
        if step.batch is not None and step.batch.time_ms is not None:
            self._measures.delay.update(max(0.0, time.time() - step.batch.time_ms / 1000))
        if time.monotonic() - self._report.since >= REPORT_S:
            self._send_report()

    async def _reject(self, rejected: Sequence[Rejection]) -> None:
        instance = self._settings.broker.group
        await self._outbox.put([fitting_letter(rejection, self._letters, instance) for rejection in rejected])
        for rejection in rejected[:NAMED_REJECTIONS]:
            self._logger.warning("record.rejected", code=rejection.code, reason=rejection.sentence)
        codes = Counter(rejection.code for rejection in rejected)
        if len(rejected) > NAMED_REJECTIONS:
            self._logger.warning(
                "record.rejected", records=len(rejected), named=NAMED_REJECTIONS, codes=dict(codes)
            )
        self._counters.rejected.update(codes)
        self._report.rejected.update(codes)

    def _send_report(self) -> None:
        report, self._report = self._report, Report()
        if not report.records:
            return
        self._logger.info(
            "ingest.batch",
            records=report.records,
            upserted=report.upserted,
            deleted=report.deleted,
            rejected=dict(report.rejected),
            apply_ms=round(1000 * report.apply_s, 1),
            live=self._shard.live,
            offsets=self._applied.offsets,
        )
        if report.contested:
            self._logger.warning("record.contested", records=report.contested, reason=CONTESTED)


async def starting_offsets(
    log: Log, topic: str, snapshot: Mapping[int, int], wanted: Sequence[int] | None = None
) -> dict[int, int]:
    """Next offset to apply per partition, of those `wanted` or of all: the snapshot's, else the first there
    is.

    Raises LogError where the log no longer holds, or never held, what follows the snapshot, and for a
    partition that does not exist.
    """
    begins, ends = await log.begin_offsets(topic), await log.end_offsets(topic)
    for partition, offset in snapshot.items():
        where = f"partition {partition} of {topic}"
        rebuild = "start with an empty data directory to rebuild the index from the topic"
        if partition not in begins:
            raise LogError(
                f"{where} does not exist any more, and the snapshot was taken at its offset {offset}: "
                f"the topic was re-created; {rebuild}"
            )
        if offset > ends[partition]:
            raise LogError(
                f"{where} ends at offset {ends[partition]}, before the snapshot's {offset}: "
                f"the topic was re-created, or records were lost; {rebuild}"
            )
        if offset < begins[partition]:
            raise LogError(
                f"{where} begins at offset {begins[partition]}, after the snapshot's {offset}: the records "
                f"in between are gone, and with them what they changed; {rebuild}"
            )
    if none := sorted(set(wanted or ()) - begins.keys()):
        raise LogError(
            f"partitions names {', '.join(map(str, none))}, and topic {topic} has partitions 0 to "
            f"{len(begins) - 1}: the partitions of all shards must be those of the topic"
        )
    return {partition: snapshot.get(partition, begins[partition]) for partition in wanted or begins}
