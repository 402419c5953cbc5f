"""Queries: requests of the search topic, each answered on its own way back.

Every request is a task of its own, so that one that waits (for the offsets in `after`, for a reply topic
that does not answer) holds up no other; their number is bounded, and at the bound the topic is read no
further. Those that wait for offsets are parked, and fewer may be: what waits for an index that lags is
refused before it can stop those that need not wait. Searches run in worker threads beside ingestion. A
request whose deadline has passed is counted, not answered: nobody waits for it.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping

from ..errors import DriftlineError, LogError
from .answers import answer
from .applied import Applied
from .canary import LiveCanary
from .config import Settings
from .dimension import claimed_dimension
from .documents import Refused
from .events import Logger
from .log import Log, Reader, Record, record_bytes
from .log_end import LogEnd
from .measures import Measures
from .messages import (
    Offsets,
    Rejection,
    SearchRequest,
    decode_request,
    encode_error,
    read_route,
    reply_form,
)
from .reply_sender import ReplySender
from .room import Room
from .shard import Shard
from .status import Counters

__all__ = ["Queries", "own_offsets"]

FETCH_S = 0.5
# Requests that come in at once. Each costs the event loop some 50 us before it waits or searches, and a batch
# of records that is to be handed over waits for all of them.
FETCH_REQUESTS = 100
COMMIT_S = 1.0  # between commits of the search topic's offsets: so much is asked again after a crash
COMMIT_LIMIT_S = 5.0  # for one commit; a stop waits no longer for the last
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
        self._sender = sender
        self._canary = canary
        self._counters = counters
        self._measures = measures
        self._logger = logger
        self._topic = settings.topics.search
        self._room = Room(settings.search.waiting_max, settings.search.waiting_bytes)
        self._parked = Room(settings.search.parked_max, settings.search.parked_bytes)
        self._threads = asyncio.Semaphore(settings.search.threads)
        self._open: dict[int, dict[int, None]] = {}  # partition -> offsets of requests not done, ascending
        self._committed: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """Requests read and not done with."""
        return sum(map(len, self._open.values()))

    @property
    def parked(self) -> int:
        """Of those, the ones that wait for offsets."""
        return self._parked.items

    async def run(self) -> None:
        """Answer until cancelled. Raises LogError when the search topic cannot be read."""
        reader = await self._log.reader(await self._starts())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_committing(reader))
                while True:
                    for record in await reader.fetch(FETCH_REQUESTS, FETCH_S):
                        await self._room.enter(record_bytes(record))
                        self._open.setdefault(record.partition, {})[record.offset] = None
                        group.create_task(self._handle(record))
        finally:
            await self._commit(reader)
            await reader.close()

    async def _starts(self) -> dict[tuple[str, int], int]:
        """Where the last run came to; at first, the beginning: old requests have expired and cost little."""
        begins = await self._log.begin_offsets(self._topic)
        ends = await self._log.end_offsets(self._topic)
        committed = await self._log.committed(self._settings.broker.group, self._topic)
        return {
            (self._topic, partition): min(max(begin, committed.get(partition, begin)), ends[partition])
            for partition, begin in begins.items()
        }

    async def _keep_committing(self, reader: Reader) -> None:
        while True:
            await asyncio.sleep(COMMIT_S)
            await self._commit(reader)

    async def _commit(self, reader: Reader) -> None:
        """Commit the offsets below which every request is done."""
        try:
            async with asyncio.timeout(COMMIT_LIMIT_S):
                partitions = await self._log.partitions(self._topic)
                now = {
                    p: next(iter(self._open.get(p, ())), reader.position(self._topic, p)) for p in partitions
                }
                if now != self._committed:
                    await self._log.commit(self._settings.broker.group, self._topic, now)
                    self._committed = now
        except (LogError, TimeoutError) as error:
            self._logger.warning("search.commit_failed", reason=str(error) or "no answer in time")

    async def _handle(self, record: Record) -> None:
        try:
            await self._answer(record)
        except Exception as error:
            # One request must never end the service: whatever it was stands in the log, and the next is
            # answered.
            self._counters.failed["internal_error"] += 1
            self._logger.error("search.failed", offset=record.offset, reason=str(error), exc_info=error)
        # Not reached by a request that a stop cuts off: it stays open, is not committed and is asked again.
        del self._open[record.partition][record.offset]
        self._room.leave(record_bytes(record))

    async def _answer(self, record: Record) -> None:
        route = read_route(record, self._settings.topics.replies)
        if isinstance(route, Rejection):
            await self._sender.nowhere(route)
            return
        form = reply_form(record)
        try:
            value = await self._value(record)
        except Refused as refused:
            self._counters.failed[refused.code] += 1
            self._logger.info(
                "search.refused", code=refused.code, reason=refused.reason, offset=record.offset
            )
            value = encode_error(refused.code, refused.reason, form)
        except DriftlineError as error:
            self._counters.failed["internal_error"] += 1
            self._logger.error("search.failed", offset=record.offset, reason=str(error), exc_info=error)
            value = encode_error("internal_error", str(error), form)
        if value is None:
            self._counters.expired += 1
            self._logger.debug("search.expired", offset=record.offset)
        else:
            await self._sender.send(record, route, value, form)

    async def _value(self, record: Record) -> bytes | None:
        """The encoded reply; None when the deadline passed. Raises Refused."""
        began = time.monotonic()
        search = self._settings.search
        now_ms = time.time() * 1000
        # A producer whose clock is ahead gets no more time than others.
        asked_ms = min(record.timestamp_ms, now_ms) if record.timestamp_ms >= 0 else now_ms
        # Before the first vector any dimension may be right; it is checked again when the waiting is over.
        dim = self._shard.dim or claimed_dimension(record)
        request = self._decode(record, dim)
        expires_ms = asked_ms + search.deadline_ms
        if isinstance(request, SearchRequest) and request.expires_ms is not None:
            expires_ms = asked_ms + request.expires_ms - record.timestamp_ms
        if expires_ms <= now_ms:
            return None
        request = _usable(request)
        try:
            deadline = asyncio.get_running_loop().time() + (expires_ms - now_ms) / 1000
            await self._covered(request.after, record_bytes(record), deadline)
            async with asyncio.timeout_at(deadline):
                await self._threads.acquire()
        except TimeoutError:
            return None
        try:
            if self._shard.dim not in (None, dim):
                request = _usable(self._decode(record, self._shard.dim))
            applied = {self._settings.topics.vectors: self._applied.offsets}
            started = time.monotonic()
            arguments = (self._shard.index, request, search, self._canary, applied, began)
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


def _usable(request: SearchRequest | Rejection) -> SearchRequest:
    if isinstance(request, Rejection):
        raise Refused(request.code, request.reason)
    return request
