"""The service: everything that runs while `driftline serve` does, started and stopped in order.

Nothing has to be undone after a crash: the topic is the truth, the newest snapshot says how far it was
applied, and what follows is read again. A stop in order only saves that work, by a last snapshot.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version

from ..errors import SnapshotError
from ..index.budget import Budget
from .anchors import check_anchors
from .applied import Applied
from .canary import LiveCanary
from .config import Settings
from .control import Arguments, serve_control
from .drift_events import DriftEvents
from .events import Logger
from .gateway import Gateway
from .http import Page, serve_http
from .ingest import Ingest, starting_offsets
from .inspection import checked
from .log import Headers, Log, Topic
from .log_end import LogEnd
from .measures import Measures
from .memory_limit import MemoryLimit
from .merge import shard_header
from .metrics import CONTENT_TYPE, exposition
from .opening import open_configured
from .outbox import Outbox
from .queries import Queries
from .reencoding import by_hand
from .reply_sender import ReplySender
from .shard import Shard
from .snapshotting import Snapshotting
from .status import Counters, Status, memory_of
from .stopping import on_signals, until_stopped
from .topics import check_retention, prepare_topics
from .upkeep import maintain

__all__ = ["serve"]

FLUSH_S = 10.0  # for dead letters and drift events still on their way at a stop
FRESH_S = 1.0  # how old the log's end may be that a probe or a scrape sees


Acts = dict[int, Callable[[], object]]  # place of a collection -> what a signal does to it


async def serve(collections: Sequence[Settings], logger: Logger) -> None:
    """Serve until SIGTERM or SIGINT, all collections in one process. Raises DriftlineError where one of them
    cannot start or go on."""
    acts: Acts = {}
    stop_s = max(settings.stop_s for settings in collections)
    on_signals(lambda: [act() for act in list(acts.values())], stop_s, logger)
    await until_stopped(_serve_all(collections, acts, logger))
    logger.info("service.stopped")


async def _serve_all(collections: Sequence[Settings], acts: Acts, logger: Logger) -> None:
    async with asyncio.TaskGroup() as group:
        for place, settings in enumerate(collections):
            own = logger if settings.collection is None else logger.bind(collection=settings.collection)
            own.info(
                "service.started",
                version=version("driftline"),
                pid=os.getpid(),
                log=settings.log_url,
                data_dir=str(settings.data_dir),
                topic=settings.topics.vectors,
            )
            group.create_task(_start(settings, acts, place, own))


async def _start(settings: Settings, acts: Acts, place: int, logger: Logger) -> None:
    task = asyncio.current_task()
    assert task is not None
    acts[place] = task.cancel
    shard = await asyncio.to_thread(Shard.open, settings, logger)
    try:
        async with open_configured(settings) as log:
            names = settings.topics
            needed = [names.vectors, names.search, names.replies, names.dead_letters, names.drift]
            if settings.is_shard:
                needed += [names.shards, names.shard_replies]
            if settings.gateway.inside and settings.gateway.alias is not None:
                needed.append(names.aliases)
            for topic in await prepare_topics(log, settings, needed):
                logger.info("topic.created", topic=topic, partitions=names.partitions)
            vectors = await log.describe(names.vectors)
            check_retention(vectors, settings)
            held = None if settings.partitions == "all" else settings.partitions
            offsets = await starting_offsets(log, names.vectors, shard.offsets, held)
            await check_anchors(log, names.vectors, shard.anchors)
            letters = await log.describe(names.dead_letters)
            service = Service(settings, log, shard, Applied(offsets), vectors, letters, logger)
            acts[place] = service.stop.set
            await service.run()
    finally:
        await asyncio.to_thread(shard.close)


class Service:
    """A shard with everything around it, between its first record and its last snapshot."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        shard: Shard,
        applied: Applied,
        vectors: Topic,
        letters: Topic,
        logger: Logger,
    ) -> None:
        self.stop = asyncio.Event()
        self._settings = settings
        self._log = log
        self._shard = shard
        self._applied = applied
        self._logger = logger
        self._began = time.monotonic()
        self._counters = counters = Counters()
        self._measures = measures = Measures()
        whole = settings.partitions == "all"
        self._end = LogEnd(log, settings.topics.vectors, applied, whole=whole)
        self._outbox = outbox = Outbox(
            log, logger, settings.ingest.outbox_records, settings.ingest.outbox_bytes
        )
        self._drift = drift = DriftEvents(settings.topics.drift, vectors.name, shard, outbox, logger)
        self._reencoding = Budget(settings.reencode.budget, settings.reencode.floor)
        self._snapshots = Snapshotting(settings, log, shard, drift, outbox, logger)
        self._memory = memory = MemoryLimit(settings.memory_limit, logger)
        self._ingest = Ingest(
            settings, log, shard, applied, outbox, drift, vectors, letters, counters, measures, memory, logger
        )
        instance = settings.broker.group
        sender = ReplySender(log, outbox, letters, instance, counters, logger, self._reply_headers)
        self._canary = canary = LiveCanary(settings, shard, drift, logger)
        self._queries = Queries(
            settings, log, shard, applied, self._end, sender, canary, counters, measures, logger
        )
        self._gateway = Gateway(settings, log, outbox, letters, logger) if settings.gateway.inside else None

    async def run(self) -> None:
        """Run until told to `stop`, then take a last snapshot. Raises DriftlineError, or a group of them."""
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._outbox.run())
            settings, logger = self._settings, self._logger
            commands = {
                "status": self._status,
                "snapshot": self._snapshot,
                "reencode": self._reencode,
                "check": self._check,
            }
            pages = {"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz}
            async with (
                serve_control(settings.data_dir, commands),
                serve_http(settings.http.host, settings.http.port, pages, logger),
            ):
                async with asyncio.TaskGroup() as work:
                    tasks = [
                        work.create_task(self._ingest.run()),
                        work.create_task(self._queries.run()),
                        work.create_task(self._snapshots.run()),
                        work.create_task(maintain(self._shard, self._drift, self._reencoding)),
                        work.create_task(self._canary.run()),
                    ]
                    if self._gateway is not None:
                        tasks.append(work.create_task(self._gateway.run()))
                    await self.stop.wait()
                    self._logger.info("service.stopping", waiting_requests=self._queries.waiting)
                    for task in tasks:
                        task.cancel()
                await self._save()
            sending.cancel()

    def _reply_headers(self) -> Headers:
        """Beside those that a request asks for: a gateway must know for which vectors an answer speaks."""
        if not self._settings.is_shard:
            return ()
        return shard_header(self._settings.topics.vectors, self._applied.offsets)

    async def _save(self) -> None:
        if not self._shard.unsaved:
            return
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._drift.emit()
                await self._outbox.flushed()
        except TimeoutError:
            pending = self._outbox.pending
            self._logger.warning(
                "snapshot.skipped", reason=f"{pending} records for the log not acknowledged", then="replay"
            )
            return
        try:
            await self._snapshots.take("stop")
        except SnapshotError as error:
            self._logger.error("snapshot.skipped", reason=str(error), then="replay")

    async def _snapshot(self, _: Arguments) -> Mapping[str, object]:
        taken = await self._snapshots.take("asked")
        return {"snapshot": None if taken is None else asdict(taken)}

    async def _check(self, _: Arguments) -> Mapping[str, object]:
        return await self._shard.beside(checked, self._shard.index)

    async def _reencode(self, arguments: Arguments) -> Mapping[str, object]:
        return by_hand(self._shard.index, self._reencoding, self._drift, arguments)

    async def _status(self, _: Arguments) -> Mapping[str, object]:
        return asdict(await self._observe(0.0))

    async def _metrics(self) -> Page:
        status = await self._observe(FRESH_S)
        index = self._shard.index
        progress = None if index is None else index.reencode_progress()
        body = await self._shard.beside(exposition, status, progress, self._measures)
        return Page(200, body, CONTENT_TYPE)

    async def _healthz(self) -> Page:
        """That the event loop turns: whatever else fails ends the process."""
        return Page(200, b"ok\n")

    async def _readyz(self) -> Page:
        why = self._unready(await self._end.lag(FRESH_S))
        return Page(200, b"ready\n") if why is None else Page(503, f"not ready: {why}\n".encode())

    def _unready(self, lag: Mapping[int, int] | None) -> str | None:
        """Why the answers of searches may be old; None when they are not."""
        most = self._settings.ingest.ready_lag
        if not self._ingest.ready.is_set():
            return "; ".join(self._ingest.ready.against)
        if lag is None:
            return "the log does not answer"
        behind = sum(lag.values())
        return f"{behind} records behind, ingest.ready_lag is {most}" if behind > most else None

    async def _observe(self, age_s: float) -> Status:
        """The state now; the lag from where the log ended at most `age_s` ago."""
        settings, shard, counters = self._settings, self._shard, self._counters
        lag = await self._end.lag(age_s)
        applied = self._applied.offsets
        index = shard.index
        stats = None if index is None else await shard.beside(index.stats)
        return Status(
            version=version("driftline"),
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._began, 3),
            ready=self._unready(lag) is None,
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
            paused=self._memory.paused or self._shard.paused,
            waiting_requests=self._queries.waiting,
            parked_requests=self._queries.parked,
            records=counters.records,
            upserted=counters.upserted,
            deleted=counters.deleted,
            contested=counters.contested,
            deletes_forgotten=0 if index is None else index.deletes_dropped,
            rejected=dict(counters.rejected),
            dead_letters_pending=self._outbox.pending,
            dead_letters_refused=self._outbox.refused,
            searches=counters.searches,
            failed=dict(counters.failed),
            expired=counters.expired,
            unroutable=counters.unroutable,
            memory=memory_of(stats),
            gateway=None if self._gateway is None else self._gateway.status,
        )
