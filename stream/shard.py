"""A shard: one collection's index, the offsets it has applied, and the store that both are saved to.

Writes go through one thread, in order, so that a cut taken there falls between two batches and belongs to
exactly the offsets that stand beside it. Searches call the index directly, from threads of their own.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar, cast

from ..errors import CorruptIndex, SnapshotError, SnapshotsUnusable, StorageRefused
from ..index.budget import Budget
from ..index.cut import Cut
from ..index.digest import digest_text
from ..index.drift import DriftSettings
from ..index.events import Event
from ..index.online import OnlineIndex
from ..snapshots.directory import set_aside
from ..snapshots.manifest import Anchor, Json, Reached
from ..snapshots.store import SnapshotInfo, SnapshotStore
from .anchors import Anchors
from .config import Settings
from .decode_hook import DecodeHook, load_hook
from .events import Logger
from .messages import VectorBatch
from .status import SnapshotStatus

__all__ = ["Changes", "PendingSnapshot", "Shard"]

Result = TypeVar("Result")

STORAGE_RETRY_S = 2.0  # between two tries of a disk that refused: one costs a system call or two
LATE_MS = 120_000  # a producer gives a record up after so long (delivery.timeout.ms): none comes later
OTHER_THREADS = 6  # decoding, upkeep, the canary, a snapshot, a reconcile, a status
DROP_KEYS = 1000  # deleted in one step: a batch waits for it
SHAPE = ("m", "ef_construction", "route_bits", "seed", "compress_after")  # settings that an index keeps


@dataclass(frozen=True, slots=True)
class Changes:
    """What applying a batch did."""

    upserted: int  # rows that are new or different
    deleted: int  # keys that were live
    contested: int  # records whose key another partition's record held
    seconds: float  # that it took


@dataclass(frozen=True, slots=True)
class PendingSnapshot:
    """A cut, the offsets it has applied, how many records those were since the service started, and what the
    index said of its re-encodes (`OnlineIndex.reencode_changes`)."""

    cut: Cut
    offsets: dict[int, int]
    records: int
    reencode_changes: int
    reached: dict[int, Reached]


class Shard:
    """The index of one topic. `index` is None until the dimension is known."""

    def __init__(self, settings: Settings, store: SnapshotStore, logger: Logger) -> None:
        self._settings = settings
        self._store = store
        self._logger = logger
        self._drift = DriftSettings(**settings.drift.model_dump())
        # Every thread that may be inside the index is one of ours, so that `close` can wait for it.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._searchers = ThreadPoolExecutor(settings.search.threads, thread_name_prefix="search")
        self._others = ThreadPoolExecutor(OTHER_THREADS, thread_name_prefix="shard")
        self._offsets: dict[int, int] = {}  # this and the next belong to the writer thread
        self._records = 0
        self._whole = True  # no batch ended half way
        self._no_retry = threading.Event()
        self.paused = False  # the disk does not take what is to be applied
        self._anchors: dict[int, Anchors] = {}
        self._unseen: set[bytes] = set()
        self._info: SnapshotInfo | None = None
        self._records_saved = self._changes_saved = 0
        self._shape: dict[str, Any] = {
            name: getattr(settings.index, name) for name in SHAPE
        }  # what the index was made with
        self.index: OnlineIndex | None = None
        self.dim: int | None = None
        self.caught_up_ms = 0  # records that are not applied yet were made then, or later
        self._newest_ms: dict[int, int] = {}  # highest timestamp applied, by partition; the writer thread's
        self.model: str | None = settings.index.embedding_model
        self.hook: DecodeHook | None = None  # that turns values into vectors
        self.current_ms: dict[int, int] = {}
        """Partition -> ms since the epoch: what was in the log then is applied. Kept by the topic watch."""

    @classmethod
    def open(cls, settings: Settings, logger: Logger) -> Self:
        """Lock the data directory and load its newest snapshot; blocks. Raises SnapshotError, and ConfigError
        where topics.decode cannot be loaded.

        Where all is damaged, or of an older format, it is set aside and the shard begins empty, if the
        settings say so.
        """
        try:
            return cls._open(settings, logger)
        except SnapshotsUnusable as error:
            if settings.snapshots.on_damage == "refuse":
                raise
            moved_to = str(set_aside(settings.data_dir))
            then = "the index is built anew from the topic"
            logger.error("snapshots.set_aside", reason=error.reason, moved_to=moved_to, then=then)
        return cls._open(settings, logger)

    @classmethod
    def _open(cls, settings: Settings, logger: Logger) -> Self:
        index, began = settings.index, time.monotonic()
        hook = load_hook(settings.topics.decode)
        store = SnapshotStore.open(
            settings.data_dir, dim=index.dim, metric=index.metric, keep=settings.snapshots.keep
        )
        shard = cls(settings, store, logger)
        shard.hook = hook
        try:
            while (snapshot := store.newest()) is not None:
                try:
                    shard._restore(snapshot.info, snapshot.cut, logger)
                except CorruptIndex as error:
                    store.reject(snapshot.info.id, str(error))
                    continue
                for skipped in snapshot.skipped:
                    logger.error("snapshot.damaged", reason=skipped, using=snapshot.info.id)
                shard._tell_loaded(snapshot.info, time.monotonic() - began, logger)
                break
            else:
                if index.dim is not None:
                    shard._begin(index.dim)
        except BaseException:
            shard.close()
            raise
        return shard

    @property
    def offsets(self) -> dict[int, int]:
        """Next offsets of the snapshot that was loaded, then as batches are applied."""
        return dict(self._offsets)

    @property
    def anchors(self) -> dict[int, tuple[Anchor, ...]]:
        """Some records that were applied, by partition."""
        return {partition: anchors.value() for partition, anchors in list(self._anchors.items())}

    @property
    def live(self) -> int:
        return 0 if self.index is None else len(self.index)

    @property
    def digest(self) -> str | None:
        """Of the live set (index/digest.py), as people see it; None while there is no index."""
        return None if self.index is None else digest_text(self.index.digest)

    @property
    def snapshot(self) -> SnapshotStatus | None:
        """The newest snapshot."""
        info = self._info
        if info is None:
            return None
        return SnapshotStatus(info.id, round(time.time() - info.created / 1000, 3), info.live, info.bytes)

    @property
    def records_since_snapshot(self) -> int:
        """Records applied that the newest snapshot does not hold: what a crash would replay."""
        return self._records - self._records_saved

    @property
    def unsaved(self) -> bool:
        """Whether a crash would undo anything: records, or work and wishes of re-encoding."""
        changes = 0 if self.index is None else self.index.reencode_changes
        return self.records_since_snapshot > 0 or changes != self._changes_saved

    def learn(self, dim: int, model: str | None) -> None:
        """Take the dimension and the embedding model from what the topic holds; blocks."""
        self.model = self.model or model
        if self.index is None:
            self._begin(dim)

    def apply(
        self,
        batch: VectorBatch | None,
        positions: Mapping[int, int],
        records: int,
        newest: Mapping[int, Anchor] | None = None,
    ) -> asyncio.Future[Changes]:
        """Apply a decoded batch that ends at the next offsets `positions`; `newest`: records of its end.

        It takes its turn at once, before it is awaited: the next one may be handed over while it is applied.
        After one that failed no other is applied, and no cut is taken.
        """
        work = self._apply, batch, positions, records, newest or {}
        return asyncio.get_running_loop().run_in_executor(self._writer, *work)

    def retry_no_more(self) -> None:
        """What the disk refuses fails from now on: the batch that waits for it is given up."""
        self._no_retry.set()

    async def mark(self) -> int:
        """Remember every live key until it is `seen`, or applied again; how many there are."""
        return await self._run(self._writer, self._mark)

    async def seen(self, keys: Iterable[bytes]) -> None:
        """Forget that these were not seen."""
        await self._run(self._writer, self._unseen.difference_update, keys)

    async def drop_unseen(self) -> int:
        """Delete the keys that were live at `mark` and not seen since; how many still were."""
        dropped = 0
        while self._unseen:
            dropped += await self._run(self._writer, self._drop)
        return dropped

    async def search(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run `work`, which searches, in one of search.threads threads."""
        return await self._run(self._searchers, work, *arguments)

    async def beside(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run `work`, which blocks, in a thread that neither writes nor searches."""
        return await self._run(self._others, work, *arguments)

    async def maintain(self, budget_s: float, reencoding: Budget) -> bool:
        """One bounded step of repair and re-encoding: whether more can be done at once."""
        return self.index is not None and await self.beside(self.index.maintain, budget_s, reencoding)

    def take_events(self) -> list[Event]:
        """What the index has to tell since the last call: drift, re-encodes."""
        return [] if self.index is None else self.index.take_events()

    async def cut(self) -> PendingSnapshot | None:
        """A consistent cut between two batches; None while there is no index."""
        return await self._run(self._writer, self._cut, dict(self.current_ms))  # before it, not after

    async def commit(self, pending: PendingSnapshot) -> SnapshotInfo:
        """Write a cut to disk, beside everything else. Raises SnapshotError."""
        topic = self._settings.topics.vectors
        extra: dict[str, Json] = {"embedding_model": self.model, **self._shape}

        def work() -> SnapshotInfo:
            reached = {topic: pending.reached}
            return self._store.commit(pending.cut, {topic: pending.offsets}, extra, reached=reached)

        self._info = info = await self.beside(work)
        self._records_saved = pending.records
        self._changes_saved = pending.reencode_changes
        return info

    async def renew(self) -> None:
        """Say on disk that the newest snapshot is as good as one taken now: no record came since.

        Raises SnapshotError.
        """
        if self._info is not None and not self.records_since_snapshot:
            reached = {self._settings.topics.vectors: self._reached(dict(self.current_ms))}
            await self.beside(self._store.renew, reached)

    def close(self) -> None:
        """Wait for every thread that is inside the index, then close the store; blocks."""
        for threads in (self._searchers, self._others, self._writer):
            threads.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    @staticmethod
    async def _run(threads: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)

    def _begin(self, dim: int) -> None:
        index = self._settings.index
        self.index = OnlineIndex(
            dim,
            index.metric,
            index.m,
            index.ef_construction,
            index.seed,
            route_bits=index.route_bits,
            raw=self._store.open_raw(dim),
            compress_after=index.compress_after,
            drift=self._drift,
            sources=True,
        )
        self.dim = dim

    def _restore(self, info: SnapshotInfo, cut: Cut, logger: Logger) -> None:
        topic, place = self._settings.topics.vectors, self._settings.data_dir
        if topic not in info.offsets:
            raise SnapshotError(
                f"{place} holds the collection of topic {', '.join(info.offsets)}, and topics.vectors is "
                f"{topic}: each collection needs a data directory of its own"
            )
        if other := [partition for partition in info.offsets[topic] if not self._settings.holds(partition)]:
            raise SnapshotError(
                f"{place} holds vectors of partitions {', '.join(map(str, other))} of {topic} too, which "
                "`partitions` does not name: each set of partitions needs a data directory of its own"
            )
        held = info.extra.get("embedding_model")
        if isinstance(held, str) and self.model not in (None, held):
            raise SnapshotError(
                f"{place} holds vectors of embedding model {held}, index.embedding_model is {self.model}: "
                "vectors of two models cannot be compared; use another topic and another data directory"
            )
        for name, configured in self._shape.items():
            if info.extra.get(name) != configured:
                self._shape[name] = info.extra.get(name)
                logger.warning(
                    "settings.ignored",
                    setting=f"index.{name}",
                    configured=configured,
                    held=info.extra.get(name),
                    reason="an index keeps what it was made with; a new data directory takes the new value",
                )
        self.index = OnlineIndex.restore(cut, self._store.open_raw(), self._drift)
        self.dim = info.dim
        self.model = held if isinstance(held, str) else self.model
        self._offsets = dict(info.offsets[topic])
        for partition, reached in info.reached.get(topic, {}).items():
            self._anchors[partition] = Anchors(reached.anchors)
            if reached.current_ms is not None:
                self.current_ms[partition] = reached.current_ms
        self._info = info

    def _tell_loaded(self, info: SnapshotInfo, seconds: float, logger: Logger) -> None:
        logger.info(
            "snapshot.loaded",
            id=info.id,
            live=info.live,
            digest=digest_text(info.digest),
            dim=info.dim,
            metric=info.metric,
            offsets=self.offsets,
            age_s=round(time.time() - info.created / 1000, 1),
            took_s=round(seconds, 3),
        )

    def _apply(
        self,
        batch: VectorBatch | None,
        positions: Mapping[int, int],
        records: int,
        newest: Mapping[int, Anchor],
    ) -> Changes:
        self._expect_whole()
        self._whole = False
        began = time.monotonic()
        upserted = deleted = contested = 0
        index = self.index
        if batch is not None and index is not None:
            contested = -index.contested
            if batch.keys:
                rows = batch.keys, batch.vectors, batch.attributes
                upserted = self._stored(
                    partial(index.upsert, *rows, now_ms=batch.time_ms, sources=batch.sources)
                )
                self._unseen.difference_update(batch.keys)
            if batch.deleted:
                several = len(positions) > 1
                deleted = index.delete(batch.deleted, batch.deleted_sources, remember=several)
            self._forget_deletes(index, batch.newest_ms, positions)
            contested += index.contested
        self._offsets.update(positions)
        self._records += records
        for partition, anchor in newest.items():
            self._anchors.setdefault(partition, Anchors()).update(anchor)
        self._whole = True
        return Changes(upserted, deleted, contested, time.monotonic() - began)

    def _stored(self, write: Callable[[], int]) -> int:
        """What `write` returns; while the disk refuses vectors, it waits and tries again.

        A part may have been written then. To write it again does no harm, as after a crash. Raises
        StorageRefused after `retry_no_more`.
        """
        began = time.monotonic()
        while True:
            try:
                written = write()
            except StorageRefused as error:
                if not self.paused:
                    self.paused = True
                    self._logger.error(
                        "ingest.paused", reason="storage", error=str(error), retry_s=STORAGE_RETRY_S
                    )
                if self._no_retry.wait(STORAGE_RETRY_S):
                    raise
            else:
                if self.paused:
                    self.paused = False
                    self._logger.info("ingest.resumed", paused_s=round(time.monotonic() - began, 3))
                return written

    def _expect_whole(self) -> None:
        if not self._whole:
            raise SnapshotError("a batch of records was not applied to its end: what follows it must wait")

    def _forget_deletes(
        self, index: OnlineIndex, newest_ms: Mapping[int, int], positions: Mapping[int, int]
    ) -> None:
        """Those that every partition has been read beyond."""
        known = self._newest_ms
        known |= {p: max(time_ms, known.get(p, 0)) for p, time_ms in newest_ms.items()}
        read = min(max(known.get(partition, 0), self.caught_up_ms) for partition in positions)
        index.forget_deletes(read - LATE_MS)

    def _mark(self) -> int:
        self._unseen.clear()
        if self.index is not None:
            self._unseen.update(cast("list[bytes]", self.index.keys()))
        return len(self._unseen)

    def _drop(self) -> int:
        keys = [self._unseen.pop() for _ in range(min(DROP_KEYS, len(self._unseen)))]
        if self.index is None:
            return 0
        self._records += len(keys)  # a snapshot that still holds them is older
        return self.index.delete(keys)

    def _cut(self, current_ms: Mapping[int, int]) -> PendingSnapshot | None:
        self._expect_whole()
        if self.index is None:
            return None
        changes = self.index.reencode_changes  # before the cut: what comes meanwhile is saved again
        cut = self.index.cut(self._store.known())
        reached = self._reached(current_ms)
        return PendingSnapshot(cut, dict(self._offsets), self._records, changes, reached)

    def _reached(self, current_ms: Mapping[int, int]) -> dict[int, Reached]:
        return {
            partition: Reached(current_ms.get(partition), self.anchors.get(partition, ()))
            for partition in self._offsets
        }
