"""What programs talk to driftline with, over any log: FeedClient writes vectors, SearchClient asks and waits.

    async with open_log("kafka:localhost:9092") as log, FeedClient(log) as feed, SearchClient(log) as search:
        token = await feed.upsert(["a", "b"], vectors)
        reply = await search.search(vectors[0], k=2, after=token)

Both belong to the event loop that they were entered on; any number of its tasks may use one at once.
"""

import asyncio
import uuid
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidInput, LogError, SearchFailed
from .log import Draft, Log, Reader, Record
from .messages import (
    DEFAULT_K,
    MAX_DEADLINE_MS,
    Form,
    Offsets,
    Reply,
    ReplyRoute,
    correlation_of,
    decode_reply,
    encode_delete,
    encode_request,
    encode_vector,
    route_headers,
)

__all__ = ["FeedClient", "SearchClient"]

APPEND = 500  # records appended at once: of 768 dimensions they are 1.5 MB
IN_FLIGHT = 256  # searches of one client that wait for replies; further ones wait for a place
DEADLINE_MS = 10_000
FETCH_S = 5.0  # of one fetch; a reply ends it at once, so this is only how often an idle loop turns


class FeedClient:
    """Writes vectors and deletes. Does not know the collection: what it refuses is in its dead letters."""

    def __init__(
        self,
        log: Log,
        topic: str = "driftline.vectors",
        *,
        model: str | None = None,
        form: Form = Form.MSGPACK,
    ) -> None:
        self._log = log
        self._topic = topic
        self._model = model
        self._form = form

    async def __aenter__(self) -> Self:
        """Raises TopicNotFound: better here than at the first vector."""
        await self._log.partitions(self._topic)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Holds nothing back: every call returned when its records were durable."""

    async def upsert(
        self,
        keys: Sequence[bytes | str],
        vectors: ArrayLike,
        attributes: Sequence[Mapping[str, object] | None] | None = None,
    ) -> Offsets:
        """Write one row of `vectors`, float32 [n, dim], per key; durable when this returns.

        The result is the token for `after`: a search that carries it sees these vectors. Raises InvalidInput,
        with nothing written, for what no collection accepts, and LogError as the log does. After a LogError,
        or cancelled, a part of the records may be written; writing all of them again does no harm.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found row by row
            rows = np.asarray(vectors, np.float32)
        if rows.ndim != 2 or len(rows) != len(keys):
            raise InvalidInput(f"{len(keys)} keys need vectors of shape [{len(keys)}, dim], not {rows.shape}")
        if attributes is not None and len(attributes) != len(keys):
            raise InvalidInput(f"{len(keys)} keys need as many attributes, not {len(attributes)}")
        drafts = [
            encode_vector(self._topic, key, row, extra, model=self._model, form=self._form)
            for key, row, extra in zip(keys, rows, attributes or [None] * len(keys), strict=True)
        ]
        return await self._append(drafts)

    async def delete(self, keys: Sequence[bytes | str]) -> Offsets:
        """Delete keys, live or not; as `upsert` otherwise."""
        return await self._append([encode_delete(self._topic, key) for key in keys])

    async def _append(self, drafts: Sequence[Draft]) -> Offsets:
        token: dict[int, int] = {}
        for first in range(0, len(drafts), APPEND):
            for position in await self._log.append(drafts[first : first + APPEND]):
                token[position.partition] = max(token.get(position.partition, 0), position.offset + 1)
        return {self._topic: token} if token else {}


class SearchClient:
    """Asks on the search topic and hands each reply to whoever asked.

    It listens to one partition of the reply topic, from the moment it was entered, and names that one in its
    requests. The topic may be shared: replies with the correlation ids of others are passed over.
    """

    def __init__(
        self,
        log: Log,
        topic: str = "driftline.search",
        reply_topic: str = "driftline.replies",
        *,
        model: str | None = None,
        form: Form = Form.MSGPACK,
        max_in_flight: int = IN_FLIGHT,
    ) -> None:
        self._log = log
        self._topic = topic
        self._reply_topic = reply_topic
        self._model = model
        self._form = form
        self._places = asyncio.Semaphore(max_in_flight)
        self._waiting: dict[bytes, asyncio.Future[Record]] = {}
        self._tasks = asyncio.TaskGroup()
        self._listener: asyncio.Task[None] | None = None
        self._partition = 0
        self._ended: str | None = "the client was not entered: use `async with SearchClient(...)`"

    async def __aenter__(self) -> Self:
        """Raises TopicNotFound for either topic."""
        await self._log.partitions(self._topic)
        partitions = await self._log.partitions(self._reply_topic)
        self._partition = partitions[uuid.uuid4().int % len(partitions)]  # clients spread over what is there
        ends = await self._log.end_offsets(self._reply_topic)
        reader = await self._log.reader({(self._reply_topic, self._partition): ends[self._partition]})
        await self._tasks.__aenter__()
        self._listener = self._tasks.create_task(self._listen(reader))
        self._ended = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends searches under way with LogError."""
        if self._listener is not None:
            self._listener.cancel()
        self._end("the client was closed")
        await self._tasks.__aexit__(None, None, None)

    async def search(
        self,
        vector: ArrayLike | None = None,
        *,
        key: bytes | str | None = None,
        k: int = DEFAULT_K,
        ef: int | None = None,
        after: Offsets | None = None,
        deadline_ms: int = DEADLINE_MS,
        include: Collection[str] = (),
        filter: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The k nearest to `vector`, or to the vector of `key`; see docs/messages.md for the fields.

        `deadline_ms` bounds the whole call; the service drops a request that is older. Raises SearchFailed
        with the service's code, or with code `no_reply` where none came in time; LogError as the log does;
        InvalidInput for arguments that are no request. Cancelling is safe; the service answers all the same.
        """
        if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
            raise InvalidInput(f"deadline_ms is {deadline_ms}; it must be from 1 to {MAX_DEADLINE_MS}")
        correlation = uuid.uuid4().bytes
        draft = encode_request(
            self._topic,
            vector=vector,
            key=key,
            k=k,
            ef=ef,
            after=after,
            deadline_ms=deadline_ms,
            include=include,
            filter=filter,
            model=self._model,
            form=self._form,
            headers=route_headers(ReplyRoute(self._reply_topic, self._partition, correlation)),
        )
        try:
            async with asyncio.timeout(deadline_ms / 1000), self._places:
                return decode_reply(await self._exchange(correlation, draft))
        except TimeoutError:
            raise SearchFailed(
                "no_reply",
                f"no reply on {self._reply_topic}[{self._partition}] within {deadline_ms} ms; "
                f"is a driftline service running that reads {self._topic}?",
            ) from None

    async def _exchange(self, correlation: bytes, draft: Draft) -> Record:
        if self._ended is not None:
            raise LogError(self._ended)
        reply: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = reply
        try:
            await self._log.append([draft])
            return await reply
        finally:
            self._waiting.pop(correlation, None)

    async def _listen(self, reader: Reader) -> None:
        try:
            while True:
                for record in await reader.fetch(timeout_s=FETCH_S):
                    waiter = self._waiting.pop(correlation_of(record) or b"", None)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(record)
        except LogError as error:
            self._end(f"replies cannot be read any more: {error}")
        finally:
            await reader.close()

    def _end(self, reason: str) -> None:
        self._ended = reason
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(LogError(reason))
