"""Watching the topic that is followed: is it there, is it the same, has it grown, was any of it missed.

A Kafka client that follows a topic is told of none of these. A deleted topic reads as one without new
records; one that was created again is followed from the old offset as soon as it has grown so far; new
partitions are not read; tombstones that compaction removed before they were read are missing without a trace.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from ..errors import LogError, TopicNotFound
from .anchors import check_anchors
from .applied import Applied
from .config import Settings
from .events import Logger
from .log import Log, Topic
from .readiness import RECONCILING, TOPIC_MISSING, Readiness
from .reconcile import reconcile
from .shard import Shard

__all__ = ["TopicWatch"]

LOOK_S = 5.0  # between looks at the topic: two small requests
CHECK_S = 60.0  # between two comparisons of the log with what was applied from it
TOLD_S = 60.0  # between two events that say the topic is missing
SHARE = 0.9  # of delete.retention.ms: clocks differ, and a look takes its time
# While it follows, a service is at most some looks behind; a topic whose tombstones go sooner than this could
# make it reconcile without end.
FOLLOWING_S = 60.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class TopicWatch:
    """Keeps `shard.current_ms` and what stands against readiness; reconciles."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        shard: Shard,
        applied: Applied,
        topic: Topic,
        ready: Readiness,
        added: Callable[[Mapping[int, int]], None],
        logger: Logger,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        """`added` is told partitions that are new while it runs, with the offsets they begin at."""
        self._settings = settings
        self._log = log
        self._shard = shard
        self._applied = applied
        self._topic = topic
        self._ready = ready
        self._added = added
        self._logger = logger
        self._clock_ms = clock_ms
        self._known = set(applied.offsets)  # the partitions that are followed
        self._probes: dict[int, tuple[int, int]] = {}  # partition -> when its end was asked for, and that end
        self._checked = time.monotonic()
        self._told = -math.inf
        self._missing = False
        self._reconciling = False
        held = shard.offsets  # a partition without a snapshot is read from its beginning, as of now
        self._shard.current_ms = {p: shard.current_ms.get(p, 0) for p in held} | dict.fromkeys(
            self._known - held.keys(), clock_ms()
        )
        if held and self._known - held.keys() and settings.partitions == "all":
            self._tell_partitions(len(held), len(self._known))
        if topic.cleanup is None:
            self._logger.warning(
                "topic.unknown_policy", topic=topic.name, taken_as="compact", reason=FORBIDDEN
            )
        self._missed = self._behind(0.0)  # however little it is: nobody followed
        if self._missed:
            ready.hold(RECONCILING)

    async def run(self) -> None:
        """Look until cancelled. Raises LogError when the topic is not the one that was applied."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self.look()
                if self._missed and not self._reconciling and not self._missing:
                    self._reconciling = True
                    group.create_task(self._reconcile())
                await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask the log once and draw the consequences. Raises LogError."""
        began_ms = self._clock_ms()
        name = self._topic.name
        try:
            topic = await self._log.describe(name, max_age_s=0.0)
            ends = await self._log.end_offsets(name)
            if self._missing or time.monotonic() - self._checked >= CHECK_S:
                await check_anchors(self._log, name, self._shard.anchors)
                self._checked = time.monotonic()
        except TopicNotFound:
            self._tell_missing()
            return
        except LogError as error:
            if error.retriable:
                return
            raise
        if self._missing:
            self._missing = False
            self._logger.info("topic.back", topic=name)
            self._ready.release(TOPIC_MISSING)
        before, self._topic = self._topic, topic
        if len(topic.partitions) > len(before.partitions):
            self._tell_partitions(len(before.partitions), len(topic.partitions))
        if new := set(filter(self._settings.holds, topic.partitions)) - self._known:
            await self._add(new, began_ms)
        self._missed |= self._behind(FOLLOWING_S)
        if not self._missed:  # else only a reconcile makes it current
            self._note(began_ms, ends)

    def _note(self, asked_ms: int, ends: Mapping[int, int]) -> None:
        offsets = self._applied.offsets
        for partition, end in ends.items():
            if partition not in self._known:
                continue
            since, target = self._probes.setdefault(partition, (asked_ms, end))
            if offsets.get(partition, -1) >= target:
                del self._probes[partition]
                self._shard.current_ms[partition] = since

    def _behind(self, least_s: float) -> bool:
        """Whether tombstones may be gone that were not read."""
        if not self._topic.compacted:
            return False
        limit_ms = max(SHARE * self._topic.tombstones_ms, 1000 * least_s)
        return any(self._clock_ms() - since > limit_ms for since in self._shard.current_ms.values())

    async def _reconcile(self) -> None:
        began_ms = self._clock_ms()
        since_ms = min(self._shard.current_ms.values())
        self._ready.hold(RECONCILING)
        self._logger.warning(
            "reconcile.started",
            topic=self._topic.name,
            behind_s=round((began_ms - since_ms) / 1000, 1) if since_ms else None,
            tombstones_s=self._topic.tombstones_ms / 1000,
        )
        try:
            done = await reconcile(self._settings, self._log, self._shard, self._known)
        except LogError as error:
            if not error.retriable and not isinstance(error, TopicNotFound):
                raise
            self._logger.warning("reconcile.interrupted", reason=str(error))  # a later look begins anew
            self._reconciling = False
            return
        self._logger.warning("reconcile.finished", **asdict(done), live=self._shard.live)
        self._probes.clear()
        self._shard.current_ms = dict.fromkeys(self._known, began_ms)
        self._missed = self._reconciling = False
        self._ready.release(RECONCILING)

    async def _add(self, new: set[int], since_ms: int) -> None:
        begins = await self._log.begin_offsets(self._topic.name)
        self._known |= new
        self._shard.current_ms |= dict.fromkeys(new, since_ms)
        self._added({partition: begins[partition] for partition in new})

    def _tell_partitions(self, before: int, now: int) -> None:
        self._logger.warning(
            "topic.partitions_changed", topic=self._topic.name, before=before, now=now, reason=MOVED_KEYS
        )

    def _tell_missing(self) -> None:
        self._missing = True
        self._ready.hold(TOPIC_MISSING)
        if time.monotonic() - self._told >= TOLD_S:
            self._told = time.monotonic()
            self._logger.error("topic.missing", topic=self._topic.name, reason=DELETED)


FORBIDDEN = (
    "cleanup.policy and delete.retention.ms may not be read: grant DescribeConfigs on the topic, or make "
    "sure that it is compacted and keeps tombstones for a day"
)
DELETED = (
    "the topic does not exist any more. Searches are answered from what was applied; nothing new comes. "
    "Should a new topic of this name appear, the service will end: its records are not those applied"
)
MOVED_KEYS = (
    "the new partitions are read, unless `partitions` names others: then some instance must be given them. "
    "But producers now send many keys to other partitions than before: the "
    "older record of such a key stays in its old partition for ever, its tombstone will go to the new one "
    "and be forgotten there, and an index built from the topic after that has the key again. Feed the "
    "collection into a new topic instead"
)
