"""Queries: requests answered from the index.

Those that wait for offsets are parked, and fewer may be than requests in all: what waits for an index that
lags is refused before it can stop those that need not wait. Searches run in worker threads beside ingestion.
A request whose deadline has passed is counted, not answered: nobody waits for it.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping

from .answers import answer
from .applied import Applied
from .canary import LiveCanary
from .config import Settings
from .dimension import claimed_dimension
from .documents import Refused
from .events import Logger
from .log import Log, Record, record_bytes
from .log_end import LogEnd
from .measures import Measures
from .messages import Offsets, Rejection, SearchRequest, decode_request
from .reply_sender import ReplySender
from .requests import Requests, time_left_s, usable
from .room import Room
from .shard import Shard
from .status import Counters

__all__ = ["Queries", "own_offsets"]

# Who waits in vain for an offset hears of it before giving up: so much before the deadline, and at most this
# share of the time that was left.
NOTICE_S = 0.25
NOTICE_SHARE = 0.1
END_S = 0.1  # how old the log's end may be by which an offset is called unknown


class Queries:
    """Reads requests and answers them."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        shard: Shard,
        applied: Applied,
        end: LogEnd,
        sender: ReplySender,
        canary: LiveCanary,
        counters: Counters,
        measures: Measures,
        logger: Logger,
    ) -> None:
        self._settings = settings
        self._log = log
        self._shard = shard
        self._applied = applied
        self._end = end
        self._canary = canary
        self._counters = counters
        self._measures = measures
        self._logger = logger
        topic, group = settings.topics.search, settings.broker.group
        if settings.is_shard:
            topic, group = settings.topics.shards, settings.shard_group
        self._requests = Requests(settings, log, topic, group, self._value, sender, counters, logger)
        self._parked = Room(settings.search.parked_max, settings.search.parked_bytes)
        self._threads = asyncio.Semaphore(settings.search.threads)

    @property
    def waiting(self) -> int:
        """Requests read and not done with."""
        return self._requests.waiting

    @property
    def parked(self) -> int:
        """Of those, the ones that wait for offsets."""
        return self._parked.items

    async def run(self) -> None:
        """Answer until cancelled. Raises LogError when the topic of requests cannot be read."""
        await self._requests.run()

    async def _value(self, record: Record) -> bytes | None:
        """The encoded reply; None when the deadline passed. Raises Refused."""
        began = time.monotonic()
        search = self._settings.search
        # Before the first vector any dimension may be right; it is checked again when the waiting is over.
        dim = self._shard.dim or claimed_dimension(record)
        request = self._decode(record, dim)
        left = time_left_s(record, request, search)
        if left <= 0:
            return None
        request = usable(request)
        try:
            deadline = asyncio.get_running_loop().time() + left
            await self._covered(request.after, record_bytes(record), deadline)
            async with asyncio.timeout_at(deadline):
                await self._threads.acquire()
        except TimeoutError:
            return None
        try:
            if self._shard.dim not in (None, dim):
                request = usable(self._decode(record, self._shard.dim))
            applied = {self._settings.topics.vectors: self._applied.offsets}
            started = time.monotonic()
            behind = self._behind()
            arguments = (self._shard.index, request, search, self._canary, applied, began, behind)
            value = await self._shard.search(answer, *arguments)
        finally:
            self._threads.release()
        self._counters.searches += 1
        ended = time.monotonic()
        self._measures.search.update(ended - started)
        self._measures.answer.update(ended - began)
        took_ms = round(1000 * (ended - started), 1)
        if took_ms > search.slow_ms:
            ef = request.ef or self._canary.ef
            self._logger.warning("search.slow", took_ms=took_ms, k=request.k, ef=ef, offset=record.offset)
        return value

    def _behind(self) -> tuple[int, ...] | None:
        """Of a shard, the partitions that it is still catching up with after its start."""
        if not self._settings.is_shard:
            return None
        return () if self._shard.caught_up_ms else tuple(sorted(self._applied.offsets))

    def _decode(self, record: Record, dim: int) -> SearchRequest | Rejection:
        search = self._settings.search
        return decode_request(
            record,
            dim=dim,
            metric=self._settings.index.metric,
            model=self._shard.model,
            max_k=search.k_max,
            max_ef=search.ef_max,
        )

    async def _covered(self, after: Offsets, size: int, deadline: float) -> None:
        """Return when all of `after` that is read here is applied.

        Raises Refused where that will never be, where too many wait already, and, shortly before the
        deadline, where the log does not reach so far; TimeoutError at the deadline (by the loop's clock).
        """
        if not after:
            return
        topic = self._settings.topics.vectors
        own = own_offsets(after, topic, self._applied.offsets, await self._log.partitions(topic))
        if self._applied.covers(own):
            return
        if not self._parked.try_enter(size):
            raise Refused("too_busy", f"{self._parked.items} requests wait for offsets already: ask later")
        left_s = deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left_s - min(NOTICE_S, NOTICE_SHARE * left_s)):
                await self._applied.reach(own)
        except TimeoutError:
            await self._known(own)  # if it comes late all the same, it still says what was wrong
            async with asyncio.timeout_at(deadline):
                await self._applied.reach(own)
        finally:
            self._parked.leave(size)

    async def _known(self, own: Mapping[int, int]) -> None:
        """Raises Refused for next offsets beyond the log's end."""
        ends = await self._end.offsets(END_S)
        for partition, offset in own.items():
            if ends is not None and offset > ends[partition]:
                raise Refused(
                    "offset_unknown",
                    f"after names offset {offset} of partition {partition}, which ends at {ends[partition]}",
                )


def own_offsets(after: Offsets, topic: str, held: Iterable[int], partitions: Iterable[int]) -> dict[int, int]:
    """The next offsets that a request must see here: those of the partitions `held`, of all that the topic
    has. Raises Refused for a topic or a partition that no instance reads."""
    for name, named in after.items():
        for partition in named:
            if name != topic or partition not in partitions:
                raise Refused(
                    "unknown_offsets",
                    f"after names partition {partition} of {name}; this service reads {topic}, "
                    f"partitions {', '.join(map(str, partitions))}",
                )
    return {partition: offset for partition, offset in after.get(topic, {}).items() if partition in held}
