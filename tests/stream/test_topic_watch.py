"""The topic that is followed, looked at in steps on the local log, with a clock of the test's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from driftline.errors import BrokerUnavailable, LogError, TopicNotFound
from driftline.stream.applied import Applied
from driftline.stream.config import Settings
from driftline.stream.local_log import LocalLog
from driftline.stream.log import Draft, Topic
from driftline.stream.messages import decode_vectors
from driftline.stream.readiness import CATCHING_UP, RECONCILING, TOPIC_MISSING, Readiness
from driftline.stream.shard import Shard
from driftline.stream.topic_watch import TopicWatch
from driftline.stream.topics import check_retention

from .running import bare, gaussian, read_all

DIM = 4
HOUR_MS = 3_600_000
DEADLINE_S = 30.0


class Clocked(LocalLog):
    """A local log whose topics say what they are told to, and that can be away."""

    tombstones_ms = 10 * HOUR_MS
    cleanup: frozenset[str] | None = frozenset({"compact"})
    failure: LogError | None = None

    async def describe(self, topic: str, *, max_age_s: float = 60.0) -> Topic:
        if self.failure is not None:
            raise self.failure
        told = await super().describe(topic)
        return replace(told, cleanup=self.cleanup, tombstones_ms=self.tombstones_ms)


@dataclass
class Scene:
    """A shard that follows a topic, step by step."""

    settings: Settings
    log: Clocked
    shard: Shard
    now_ms: int = 1_000 * HOUR_MS
    events: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    added: dict[int, int] = field(default_factory=dict[int, int])
    told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def topic(self) -> str:
        return self.settings.topics.vectors

    async def watch(self) -> TopicWatch:
        """As at a start: the offsets that the shard has are those of its snapshot."""
        begins = await self.log.begin_offsets(self.topic)
        self.applied = Applied(begins | self.shard.offsets)
        logger: Any = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[self._told],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        self.ready = Readiness(self.shard, logger)
        topic = await self.log.describe(self.topic)
        return TopicWatch(
            self.settings, self.log, self.shard, self.applied, topic, self.ready, self.added.update, logger,
            lambda: self.now_ms,
        )  # fmt: skip

    def _told(self, _: object, __: str, event: Any) -> str:
        self.events.append(event)
        self.told.set()
        return json.dumps(event)

    async def follow(self) -> None:
        """Apply everything that is in the topic."""
        starts = {(self.topic, p): offset for p, offset in self.applied.offsets.items()}
        reader = await self.log.reader(starts)
        while records := await reader.fetch(timeout_s=0):
            batch = decode_vectors(records, dim=DIM, metric="l2", model=None)
            ends = {p: reader.position(self.topic, p) for p in self.applied.offsets}
            await self.shard.apply(batch, ends, len(records))
            self.applied.advance(ends)

    async def settle(self, watch: TopicWatch) -> None:
        """Run the watch until the service is ready."""
        self.told.clear()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            running = group.create_task(watch.run())
            while self.names[-2:] != ["reconcile.finished", "service.ready"]:
                await self.told.wait()
                self.told.clear()
            running.cancel()

    @property
    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


@asynccontextmanager
async def scene_at(directory: Path, log: Clocked) -> AsyncIterator[Scene]:
    settings = Settings.model_validate({"data_dir": directory / "data", "index": {"dim": DIM}})
    logger: Any = structlog.wrap_logger(
        structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    shard = await asyncio.to_thread(Shard.open, settings, logger)
    try:
        yield Scene(settings, log, shard)
    finally:
        await asyncio.to_thread(shard.close)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Clocked]:
    async with Clocked(tmp_path / "log") as log:
        await log.create_topic("driftline.vectors", compacted=True)
        rows = zip(range(20), gaussian(20, DIM, 1), strict=True)
        await log.append([bare("driftline.vectors", b"k%d" % row, vector) for row, vector in rows])
        yield log


async def save(scene: Scene) -> None:
    pending = await scene.shard.cut()
    assert pending is not None
    await scene.shard.commit(pending)


async def forget(log: Clocked, *keys: bytes) -> None:
    """Delete keys, and let compaction forget that too."""
    await log.append([Draft("driftline.vectors", key, None) for key in keys])
    # Compaction keeps the newest record of a key, whatever it is.
    await log.append([Draft("driftline.vectors", b"k19", b"not a vector")])
    await log.compact("driftline.vectors", tombstones_older_than_s=-1)


async def test_a_fresh_start_needs_no_reconcile(tmp_path: Path, log: Clocked) -> None:
    """Read from the beginning, nothing can have been missed; what was in the log at a look is current once
    applied."""
    async with scene_at(tmp_path, log) as scene:
        watch = await scene.watch()
        began = scene.now_ms
        await watch.look()
        assert scene.shard.current_ms == {0: began}
        scene.now_ms += HOUR_MS
        await watch.look()
        assert scene.shard.current_ms == {0: began}, "not applied yet"
        await scene.follow()
        scene.now_ms += HOUR_MS
        await watch.look()
        assert scene.shard.current_ms == {0: began}, "what was asked for first is reached"
        await watch.look()
        assert scene.shard.current_ms == {0: scene.now_ms}
        scene.ready.release(CATCHING_UP)
        assert scene.ready.is_set()
        assert scene.names == ["service.ready"]


@pytest.mark.parametrize(("hours", "stale"), [(8.9, False), (9.1, True)])
async def test_a_snapshot_older_than_the_tombstones(
    tmp_path: Path, log: Clocked, hours: float, stale: bool
) -> None:
    """Down for more than nine tenths of delete.retention.ms: the keys that the topic has forgotten go, and
    only those; ready only after that. Down for less: nothing is read again."""
    async with scene_at(tmp_path, log) as scene:
        watch = await scene.watch()
        await watch.look()
        await scene.follow()
        await watch.look()
        await save(scene)
    await forget(log, b"k3", b"k7")
    async with scene_at(tmp_path, log) as scene:
        scene.now_ms += int(hours * HOUR_MS)
        watch = await scene.watch()
        scene.ready.release(CATCHING_UP)
        assert scene.ready.is_set() is not stale
        await scene.follow()
        assert scene.shard.live == 20, "the tombstones are gone from the log"
        if not stale:
            await watch.look()
            assert scene.names == ["service.ready"]
            return
        await scene.settle(watch)
        assert scene.names == ["reconcile.started", "reconcile.finished", "service.ready"]
        started, finished, _ = scene.events
        assert started["behind_s"] == pytest.approx(hours * 3600, abs=1)
        # k19's newest record is no vector: what it had before is compacted away, so that an index built anew
        # would not have it.
        assert (finished["keys"], finished["dropped"], finished["live"]) == (20, 3, 17)
        index = scene.shard.index
        assert index is not None
        assert {b"k3", b"k7", b"k19"}.isdisjoint(index.keys())
        assert scene.shard.records_since_snapshot, "the next snapshot holds it"
        assert scene.shard.current_ms == {0: scene.now_ms}
        live = {record.key for record in await read_all(log, scene.topic)} - {b"k19"}
        assert set(index.keys()) == live


async def test_what_comes_meanwhile_is_not_dropped(tmp_path: Path, log: Clocked) -> None:
    """Keys that were forgotten and are written again while the topic is read, and keys that are new."""
    async with scene_at(tmp_path, log) as scene:
        await scene.watch()
        await scene.follow()
        await forget(log, b"k3", b"k7")
        assert await scene.shard.mark() == 20
        await scene.shard.seen([b"k%d" % row for row in range(20) if row not in (3, 7)])
        await log.append([bare(scene.topic, key, gaussian(1, DIM, 2)[0]) for key in (b"k7", b"new")])
        await scene.follow()
        assert await scene.shard.drop_unseen() == 1
        index = scene.shard.index
        assert index is not None
        assert b"k3" not in index.keys()  # noqa: SIM118
        assert {b"k7", b"new"} <= set(index.keys())


async def test_falling_behind_while_running(tmp_path: Path, log: Clocked) -> None:
    """Not read to the end for longer than tombstones stay (paused, slow, cut off): reconciled, too."""
    async with scene_at(tmp_path, log) as scene:
        watch = await scene.watch()
        scene.ready.release(CATCHING_UP)
        await scene.follow()
        await watch.look()
        log.failure = BrokerUnavailable("away")
        scene.now_ms += 20 * HOUR_MS
        await watch.look()
        assert scene.ready.is_set(), "nobody can say anything while the broker is away"
        log.failure = None
        await forget(log, b"k3")
        await scene.settle(watch)
        assert scene.names == [
            "service.ready", "service.unready", "reconcile.started", "reconcile.finished", "service.ready",
        ]  # fmt: skip
        assert scene.events[-2]["dropped"] == 2  # k3, and k19 as above
        await watch.look()
        assert scene.ready.against == (), "one reconcile is enough"


async def test_an_idle_service_stays_current(tmp_path: Path, log: Clocked) -> None:
    """A snapshot is renewed without being written again: days without a record, no reconcile after them."""
    async with scene_at(tmp_path, log) as scene:
        watch = await scene.watch()
        await watch.look()
        await scene.follow()
        await watch.look()
        await save(scene)
        scene.now_ms += 9 * HOUR_MS
        await watch.look()
        await scene.shard.renew()
        later = scene.now_ms
    async with scene_at(tmp_path, log) as scene:
        assert scene.shard.current_ms == {0: later}
        scene.now_ms = later + 8 * HOUR_MS
        await scene.watch()
        assert RECONCILING not in scene.ready.against


async def test_where_tombstones_do_not_go(tmp_path: Path, log: Clocked) -> None:
    """A topic that only deletes by age, and whose records stay, has nothing to reconcile."""
    log.cleanup = frozenset({"delete"})
    async with scene_at(tmp_path, log) as scene:
        await scene.watch()
        await scene.follow()
        await save(scene)
    async with scene_at(tmp_path, log) as scene:
        scene.now_ms += 10_000 * HOUR_MS
        await scene.watch()
        assert scene.ready.against == (CATCHING_UP,)


async def test_a_topic_that_is_gone(tmp_path: Path, log: Clocked) -> None:
    """Said once a minute, not ready, no end; back with the same records: ready again."""
    async with scene_at(tmp_path, log) as scene:
        watch = await scene.watch()
        scene.ready.release(CATCHING_UP)
        await scene.follow()
        log.failure = TopicNotFound("gone")
        await watch.look()
        await watch.look()
        assert scene.ready.against == (TOPIC_MISSING,)
        log.failure = None
        await watch.look()
        assert scene.ready.is_set()
        assert scene.names == [
            "service.ready", "service.unready", "topic.missing", "topic.back", "service.ready",
        ]  # fmt: skip


def test_a_topic_that_deletes_is_refused() -> None:
    """Unless the configuration says that its records stay. What may not be asked is not refused."""
    for policy in ({"delete"}, {"compact", "delete"}):
        topic = Topic("t", (0,), frozenset(policy), 1000)
        with pytest.raises(LogError, match=r'cleanup.policy=.*topics.retention = "keep"'):
            check_retention(topic, Settings())
        check_retention(topic, Settings.model_validate({"topics": {"retention": "keep"}}))
    for policy in (frozenset({"compact"}), frozenset[str](), None):
        check_retention(Topic("t", (0,), policy, 1000), Settings())
