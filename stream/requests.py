"""A topic of requests, each answered on its own way back.

Every request is a task of its own, so that one that waits (for the offsets in `after`, for a reply topic
that does not answer) holds up no other; their number is bounded, and at the bound the topic is read no
further. What answers them is given: the index (queries.py), or the shards of one (gateway.py).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from ..errors import DriftlineError, LogError
from .config import Search, Settings
from .documents import Refused
from .events import Logger
from .log import Log, Reader, Record, record_bytes
from .messages import Rejection, SearchRequest, encode_error, read_route, reply_form
from .reply_sender import ReplySender
from .room import Room
from .status import Counters

__all__ = ["Requests", "time_left_s", "usable"]

FETCH_S = 0.5
# That come in at once. Each costs the event loop some 50 us before it waits or searches, and a batch of
# records that is to be handed over waits for all of them.
FETCH_REQUESTS = 100
COMMIT_S = 1.0  # between commits of the topic's offsets: so much is asked again after a crash
COMMIT_LIMIT_S = 5.0  # for one commit; a stop waits no longer for the last


class Requests:
    """Reads requests, and sends what `value` makes of each: an encoded reply, None for one whose deadline
    has passed; it raises Refused for one that cannot be answered."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        topic: str,
        group: str,
        value: Callable[[Record], Awaitable[bytes | None]],
        sender: ReplySender,
        counters: Counters,
        logger: Logger,
    ) -> None:
        self._settings = settings
        self._log = log
        self._topic = topic
        self._group = group
        self._value = value
        self._sender = sender
        self._counters = counters
        self._logger = logger
        self._room = Room(settings.search.waiting_max, settings.search.waiting_bytes)
        self._open: dict[int, dict[int, None]] = {}  # partition -> offsets of requests not done, ascending
        self._committed: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """Requests read and not done with."""
        return sum(map(len, self._open.values()))

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
        committed = await self._log.committed(self._group, self._topic)
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
                    await self._log.commit(self._group, self._topic, now)
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


def time_left_s(record: Record, request: SearchRequest | Rejection, search: Search) -> float:
    """Seconds until the deadline of a request, by the wall clock; not above 0 where it has passed."""
    now_ms = time.time() * 1000
    # A producer whose clock is ahead gets no more time than others.
    asked_ms = min(record.timestamp_ms, now_ms) if record.timestamp_ms >= 0 else now_ms
    given_ms: float = search.deadline_ms
    if isinstance(request, SearchRequest) and request.expires_ms is not None:
        given_ms = request.expires_ms - record.timestamp_ms
    return (asked_ms + given_ms - now_ms) / 1000


def usable(request: SearchRequest | Rejection) -> SearchRequest:
    """Raises Refused for a rejection."""
    if isinstance(request, Rejection):
        raise Refused(request.code, request.reason)
    return request
