"""Queries: requests of the search topic, each answered on its own way back.

Every request is a task of its own, so that one that waits (for the offsets in `after`, for a reply topic
that does not answer) holds up no other; their number is bounded, and at the bound the topic is read no
further. Searches run in worker threads beside ingestion. A request whose deadline has passed is counted,
not answered: nobody waits for it.
"""

import asyncio
import time

from ..errors import DriftlineError, LogError
from .answers import answer
from .applied import Applied
from .canary import LiveCanary
from .config import Settings
from .dimension import claimed_dimension
from .documents import Refused
from .events import Logger
from .log import Log, Reader, Record
from .measures import Measures
from .messages import Rejection, SearchRequest, decode_request, encode_error, read_route, reply_form
from .reply_sender import ReplySender
from .shard import Shard
from .status import Counters

__all__ = ["Queries"]

FETCH_S = 0.5
COMMIT_S = 1.0  # between commits of the search topic's offsets: so much is asked again after a crash
COMMIT_LIMIT_S = 5.0  # for one commit; a stop waits no longer for the last


class Queries:
    """Reads requests and answers them."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        shard: Shard,
        applied: Applied,
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
        self._sender = sender
        self._canary = canary
        self._counters = counters
        self._measures = measures
        self._logger = logger
        self._topic = settings.topics.search
        self._slots = asyncio.Semaphore(settings.search.waiting_max)
        self._threads = asyncio.Semaphore(settings.search.threads)
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
                    for record in await reader.fetch(timeout_s=FETCH_S):
                        await self._slots.acquire()
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
        self._slots.release()

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
        default_ms = (record.timestamp_ms if record.timestamp_ms >= 0 else now_ms) + search.deadline_ms
        # Before the first vector any dimension may be right; it is checked again when the waiting is over.
        dim = self._shard.dim or claimed_dimension(record)
        request = self._decode(record, dim)
        expires_ms = default_ms
        if isinstance(request, SearchRequest) and request.expires_ms is not None:
            expires_ms = request.expires_ms
        if expires_ms <= now_ms:
            return None
        request = _usable(request)
        try:
            async with asyncio.timeout((expires_ms - now_ms) / 1000):
                await self._applied.reach(self._own_offsets(request))
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

    def _own_offsets(self, request: SearchRequest) -> dict[int, int]:
        """The next offsets that a request must see. Raises Refused for those that never come."""
        topic, held = self._settings.topics.vectors, self._applied.offsets
        for name, partitions in request.after.items():
            for partition in partitions:
                if name != topic or partition not in held:
                    raise Refused(
                        "unknown_offsets",
                        f"after names partition {partition} of {name}; this service reads {topic}, "
                        f"partitions {', '.join(map(str, held))}",
                    )
        return dict(request.after.get(topic, {}))


def _usable(request: SearchRequest | Rejection) -> SearchRequest:
    if isinstance(request, Rejection):
        raise Refused(request.code, request.reason)
    return request
