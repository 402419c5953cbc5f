"""The service: everything that runs while `driftline serve` does, started and stopped in order.

Nothing has to be undone after a crash: the topic is the truth, the newest snapshot says how far it was
applied, and what follows is read again. A stop in order only saves that work, by a last snapshot.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version

from ..errors import LogError
from ..index.budget import Budget
from .applied import Applied
from .canary import LiveCanary
from .config import Settings
from .control import Arguments, serve_control
from .drift_events import DriftEvents
from .endings import explanation
from .events import Logger
from .ingest import Ingest, starting_offsets
from .inspection import checked
from .log import Log, Topic, open_log
from .outbox import Outbox
from .queries import Queries
from .reencoding import by_hand
from .reply_sender import ReplySender
from .shard import Shard
from .snapshotting import Snapshotting
from .status import Counters, Status, memory_of
from .topics import prepare_topics
from .upkeep import maintain

__all__ = ["serve"]

FLUSH_S = 10.0  # for dead letters and drift events still on their way at a stop
LAG_S = 2.0  # for the log's end offsets, in a status
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: Settings, logger: Logger) -> None:
    """Serve until SIGTERM or SIGINT. Raises DriftlineError where it cannot start or go on."""
    logger.info(
        "service.started",
        version=version("driftline"),
        pid=os.getpid(),
        log=settings.log_url,
        data_dir=str(settings.data_dir),
        topic=settings.topics.vectors,
    )
    try:
        await _start(settings, logger)
    except asyncio.CancelledError:  # a signal before there was anything to save
        pass
    except BaseExceptionGroup as group:
        error = explanation(group)
        if error is None:
            raise
        raise error from group
    logger.info("service.stopped")


async def _start(settings: Settings, logger: Logger) -> None:
    task = asyncio.current_task()
    assert task is not None
    _on_signals(task.cancel)
    shard = await asyncio.to_thread(Shard.open, settings, logger)
    try:
        async with open_log(settings.log_url, ready_within_s=settings.broker.deadline_s) as log:
            names = settings.topics
            needed = [names.vectors, names.search, names.replies, names.dead_letters, names.drift]
            for topic in await prepare_topics(log, settings, needed):
                logger.info("topic.created", topic=topic, partitions=names.partitions)
            offsets = await starting_offsets(log, names.vectors, shard.offsets)
            letters = await log.describe(names.dead_letters)
            service = Service(settings, log, shard, Applied(offsets), letters, logger)
            await service.run()
    finally:
        await asyncio.to_thread(shard.close)


class Service:
    """A shard with everything around it, between its first record and its last snapshot."""

    def __init__(
        self, settings: Settings, log: Log, shard: Shard, applied: Applied, letters: Topic, logger: Logger
    ) -> None:
        self._settings = settings
        self._log = log
        self._shard = shard
        self._applied = applied
        self._logger = logger
        self._began = time.monotonic()
        self._counters = counters = Counters()
        self._outbox = outbox = Outbox(log, logger, settings.ingest.outbox_records)
        self._drift = drift = DriftEvents(settings.topics.drift, settings.topics.vectors, outbox, logger)
        self._reencoding = Budget(settings.reencode.budget, settings.reencode.floor)
        self._snapshots = Snapshotting(settings, log, shard, outbox, logger)
        self._ingest = Ingest(settings, log, shard, applied, outbox, drift, letters, counters, logger)
        sender = ReplySender(log, outbox, letters, settings.broker.group, counters, logger)
        self._canary = canary = LiveCanary(settings, shard, drift, logger)
        self._queries = Queries(settings, log, shard, applied, sender, canary, counters, logger)

    async def run(self) -> None:
        """Run until a signal, then take a last snapshot. Raises DriftlineError, or a group of them."""
        stop = asyncio.Event()
        _on_signals(stop.set)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._outbox.run())
            async with serve_control(
                self._settings.data_dir,
                {
                    "status": self._status,
                    "snapshot": self._snapshot,
                    "reencode": self._reencode,
                    "check": self._check,
                },
            ):
                async with asyncio.TaskGroup() as work:
                    tasks = [
                        work.create_task(self._ingest.run()),
                        work.create_task(self._queries.run()),
                        work.create_task(self._snapshots.run()),
                        work.create_task(maintain(self._shard, self._drift, self._reencoding)),
                        work.create_task(self._canary.run()),
                    ]
                    await stop.wait()
                    self._logger.info("service.stopping", waiting_requests=self._queries.waiting)
                    for task in tasks:
                        task.cancel()
                await self._save()
            sending.cancel()

    async def _save(self) -> None:
        if not self._shard.records_since_snapshot:
            return
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._outbox.flushed()
        except TimeoutError:
            pending = self._outbox.pending
            self._logger.warning(
                "snapshot.skipped", reason=f"{pending} records for the log not acknowledged", then="replay"
            )
            return
        await self._snapshots.take("stop")

    async def _snapshot(self, _: Arguments) -> Mapping[str, object]:
        taken = await self._snapshots.take("asked")
        return {"snapshot": None if taken is None else asdict(taken)}

    async def _check(self, _: Arguments) -> Mapping[str, object]:
        return await self._shard.beside(checked, self._shard.index)

    async def _reencode(self, arguments: Arguments) -> Mapping[str, object]:
        return by_hand(self._shard.index, self._reencoding, self._drift, arguments)

    async def _status(self, _: Arguments) -> Mapping[str, object]:
        settings, shard, counters = self._settings, self._shard, self._counters
        applied = self._applied.offsets
        lag: dict[int, int] | None = None
        try:
            async with asyncio.timeout(LAG_S):
                ends = await self._log.end_offsets(settings.topics.vectors)
            lag = {partition: max(0, end - applied.get(partition, 0)) for partition, end in ends.items()}
        except (TimeoutError, LogError):
            pass  # the status is wanted most when the log does not answer
        index = shard.index
        stats = None if index is None else await shard.beside(index.stats)
        return asdict(
            Status(
                version=version("driftline"),
                pid=os.getpid(),
                uptime_s=round(time.monotonic() - self._began, 3),
                ready=self._ingest.ready.is_set(),
                log=settings.log_url,
                topic=settings.topics.vectors,
                dim=shard.dim,
                metric=settings.index.metric,
                embedding_model=shard.model,
                live=shard.live,
                digest=shard.digest,
                applied=applied,
                lag=lag,
                frames=() if stats is None else stats.frames,
                reencoding=stats is not None and stats.reencoding,
                fit_loss=None if stats is None else stats.fit_loss,
                ef=self._canary.ef,
                recall=self._canary.status,
                snapshot=shard.snapshot,
                records_since_snapshot=shard.records_since_snapshot,
                waiting_requests=self._queries.waiting,
                records=counters.records,
                upserted=counters.upserted,
                deleted=counters.deleted,
                contested=counters.contested,
                deletes_forgotten=0 if index is None else index.deletes_dropped,
                rejected=dict(counters.rejected),
                dead_letters_pending=self._outbox.pending,
                searches=counters.searches,
                failed=dict(counters.failed),
                expired=counters.expired,
                unroutable=counters.unroutable,
                memory=memory_of(stats),
            )
        )


def _on_signals(act: Callable[[], object]) -> None:
    """Do this at the first signal; at a second one the process ends as if nothing had been set up."""
    loop = asyncio.get_running_loop()

    def once() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        act()

    for number in SIGNALS:
        loop.add_signal_handler(number, once)
