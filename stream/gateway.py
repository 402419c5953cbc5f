"""The gateway: asks all shards of a collection and gives one answer.

A client's request is checked here, sent on to the topic that every shard reads, and answered when all
partitions of the vectors topic have been answered for; at its deadline at the latest, with what there is
then. Between them a request and an answer are records as clients write and read them, in msgpack; the
header of merge.py is all that is added.

A search for the neighbours of a key is two questions: only one shard knows the key's vector.

A shard that let a request pass is not waited for like the others any more until it is heard of again: else
one that is away would delay every answer to its deadline. A request that waits for offsets of its partitions
waits all the same.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from ..errors import InvalidInput
from .aliases import Alias, Target, target_of
from .config import Settings
from .dimension import claimed_dimension
from .documents import Refused, load_document, read_envelope
from .events import Logger
from .log import Draft, Headers, Log, Reader, Record, Topic
from .merge import Answer, answered, merged, read_answer
from .messages import (
    Reply,
    ReplyRoute,
    SearchRequest,
    Vectors,
    correlation_of,
    decode_request,
    encode_reply,
    encode_request,
    route_headers,
)
from .outbox import Outbox
from .partitioner import partition_of
from .reply_sender import ReplySender
from .requests import Requests, time_left_s, usable
from .status import Counters, GatewayStatus

__all__ = ["Gateway"]

FETCH_S = 0.5
# The answer goes out so long before the deadline, and at most this share of the time that was left: it has a
# way to go.
MARGIN_S = 0.25
MARGIN_SHARE = 0.1
TOLD_S = 1.0  # between two events that answers were partial

Answers = asyncio.Queue[Answer]


@dataclass(frozen=True, slots=True)
class Question:
    """What all shards are asked."""

    target: Target
    request: SearchRequest
    filter: Mapping[str, Any] | None  # as the client wrote it
    model: str | None


class Gateway:
    """Reads clients' requests, and answers them with what the shards say."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        outbox: Outbox,
        letters: Topic,
        logger: Logger,
    ) -> None:
        self._settings = settings
        self._log = log
        self._logger = logger
        self._counters = counters = Counters()
        topic, group = settings.topics.search, settings.broker.group
        sender = ReplySender(log, outbox, letters, group, counters, logger)
        self._requests = Requests(settings, log, topic, group, self._value, sender, counters, logger)
        self._inbox = Inbox(log, settings.topics.shard_replies, self._heard, logger)
        # Topic of vectors -> partitions that let the last request pass.
        self._absent: dict[str, set[int]] = {}
        alias = settings.gateway.alias
        self._alias = None if alias is None else Alias(log, settings.topics.aliases, alias, logger)
        self._told = float("-inf")
        self._untold = 0  # partial answers since

    @property
    def status(self) -> GatewayStatus:
        counters, target = self._counters, self._target
        return GatewayStatus(
            searches=counters.searches,
            partial=counters.partial,
            failed=dict(counters.failed),
            expired=counters.expired,
            unroutable=counters.unroutable,
            waiting_requests=self._requests.waiting,
            absent=tuple(sorted(self._absent.get(target.vectors, ()) if target is not None else ())),
        )

    @property
    def _target(self) -> Target | None:
        return target_of(self._settings) if self._alias is None else self._alias.target

    async def run(self) -> None:
        """Answer until cancelled. Raises LogError when a topic cannot be read."""
        async with asyncio.TaskGroup() as group:
            if self._alias is not None:
                group.create_task(self._alias.run(await self._alias.open()))
            reader = await self._inbox.open()
            self._logger.info("gateway.serving", topic=self._settings.topics.search)
            group.create_task(self._inbox.run(reader))
            group.create_task(self._requests.run())

    async def _value(self, record: Record) -> bytes | None:
        """The encoded reply; None when the deadline passed before it was read. Raises Refused."""
        began = time.monotonic()
        search, index = self._settings.search, self._settings.index
        # Of the collection behind an alias nothing is known here: its shards check.
        metric, model = (index.metric, index.embedding_model) if self._alias is None else ("l2", None)
        decoded = decode_request(
            record,
            dim=claimed_dimension(record),
            metric=metric,
            model=model,
            max_k=search.k_max,
            max_ef=search.ef_max,
        )
        left = time_left_s(record, decoded, search)
        if left <= 0:
            return None
        request = usable(decoded)
        deadline = asyncio.get_running_loop().time() + left - min(MARGIN_S, MARGIN_SHARE * left)
        # The filter goes on as it came; that it is well-formed is known by now.
        chosen = None
        if request.filter is not None:
            document = load_document(record.value or b"", request.form)
            chosen = cast("Mapping[str, Any]", document["filter"])
        target = self._target  # once: a request is of one collection, whenever the alias is switched
        if target is None:
            raise Refused("unavailable", f"alias {self._settings.gateway.alias} means no collection")
        question = Question(target, request, chosen, read_envelope(record.headers).model)
        reply = await self._answer(question, deadline)
        self._counters.searches += 1
        if reply.partial:
            self._tell_partial(reply)
        took_us = round(1e6 * (time.monotonic() - began))
        return encode_reply(replace(reply, took_us=took_us), request.form)

    async def _answer(self, question: Question, deadline: float) -> Reply:
        request = question.request
        vector = request.vector
        if vector is None:
            vector = await self._vector_of(question, deadline)
        asked = replace(request, vector=vector, key=None, include=request.include - {"query"})
        topic = question.target.vectors
        partitions = await self._log.partitions(topic)
        answers = await self._ask(replace(question, request=asked), partitions, deadline)
        reply = merged(answers, topic, partitions, request.k, lambda key: partition_of(key, len(partitions)))
        return replace(reply, query=vector) if "query" in request.include else reply

    async def _vector_of(self, question: Question, deadline: float) -> Vectors:
        """The vector of the key that is asked with. Raises Refused where no shard has it."""
        lookup = replace(question.request, k=1, ef=1, include=frozenset({"query"}))
        partitions = await self._log.partitions(question.target.vectors)
        answers = await self._ask(replace(question, request=lookup, filter=None), partitions, deadline)
        refusals: dict[str, Refused] = {}
        for answer in answers:
            if isinstance(answer.reply, Refused):
                refusals.setdefault(answer.reply.code, answer.reply)
            elif answer.reply.query is not None:
                return answer.reply.query
        for answer in answers:
            if isinstance(answer.reply, Refused) and answer.ends:
                raise answer.reply
        silent = sorted(set(partitions) - answered(answer for answer in answers if not answer.about_itself))
        if silent or "unknown_key" not in refusals:
            raise Refused(
                "unavailable",
                f"the id is in none of the partitions that answered; {', '.join(map(str, silent))} did not",
            )
        raise refusals["unknown_key"]

    async def _ask(self, question: Question, partitions: tuple[int, ...], deadline: float) -> list[Answer]:
        """The answers of all shards, or of those that answered before the deadline (by the loop's clock).

        Ends early with one that decides: a vector that was looked up, a fault of the request.
        """
        loop = asyncio.get_running_loop()
        wanted = frozenset(partitions)
        topic = question.target.vectors
        absent = self._absent.setdefault(topic, set())
        patient = not absent.isdisjoint(question.request.after.get(topic, {}))
        answers: list[Answer] = []
        until = deadline
        with self._inbox.listening() as (headers, inbox):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._log.append([self._draft(question, headers, deadline - loop.time())])
            except TimeoutError:
                raise Refused("unavailable", "the log did not take the question in time") from None
            try:
                while missing := wanted - answered(answers):
                    if not patient and until == deadline and missing <= absent:
                        until = min(deadline, loop.time() + self._settings.gateway.absent_ms / 1000)
                    async with asyncio.timeout_at(until):
                        answer = await inbox.get()
                    if answer.topic != topic or answer.partitions <= answered(answers):
                        continue  # another collection's, or a replica was faster
                    answers.append(answer)
                    if answer.ends:
                        break
            except TimeoutError:
                absent |= wanted - answered(answers)
        return answers

    def _draft(self, question: Question, headers: Headers, left: float) -> Draft:
        request = question.request
        return encode_request(
            question.target.shards,
            vector=request.vector,
            key=request.key,
            k=request.k,
            ef=request.ef,
            after=request.after,
            deadline_ms=max(1, int(1000 * left)),
            include=request.include,
            filter=question.filter,
            model=question.model,
            headers=headers,
        )

    def _heard(self, answer: Answer) -> None:
        self._absent.get(answer.topic, set[int]()).difference_update(answer.partitions)

    def _tell_partial(self, reply: Reply) -> None:
        self._counters.partial += 1
        self._untold += 1
        if time.monotonic() - self._told >= TOLD_S:
            self._logger.warning("search.partial", searches=self._untold, partitions=list(reply.partial))
            self._told, self._untold = time.monotonic(), 0


class Inbox:
    """Hands the answers of shards to whoever asked. Reads one partition of the topic that they answer on, so
    that several gateways share it."""

    def __init__(self, log: Log, topic: str, heard: Callable[[Answer], None], logger: Logger) -> None:
        """`heard` is told of every answer, late ones too."""
        self._log = log
        self._topic = topic
        self._heard = heard
        self._logger = logger
        self._partition = 0
        self._waiting: dict[bytes, Answers] = {}

    async def open(self) -> Reader:
        """Begin at the end of the topic: what was answered before was asked by others."""
        partitions = await self._log.partitions(self._topic)
        self._partition = partitions[uuid.uuid4().int % len(partitions)]
        ends = await self._log.end_offsets(self._topic)
        return await self._log.reader({(self._topic, self._partition): ends[self._partition]})

    async def run(self, reader: Reader) -> None:
        """Read until cancelled. Raises LogError."""
        try:
            while True:
                for record in await reader.fetch(timeout_s=FETCH_S):
                    self._hand(record)
        finally:
            await reader.close()

    def _hand(self, record: Record) -> None:
        try:
            answer = read_answer(record)
        except InvalidInput as error:
            self._logger.warning("gateway.misunderstood", reason=str(error), offset=record.offset)
            return
        self._heard(answer)
        waiting = self._waiting.get(correlation_of(record) or b"")
        if waiting is not None:
            waiting.put_nowait(answer)

    @contextmanager
    def listening(self) -> Generator[tuple[Headers, Answers]]:
        """The headers of a question, and where its answers arrive."""
        correlation = uuid.uuid4().bytes
        answers = self._waiting[correlation] = Answers()
        try:
            yield route_headers(ReplyRoute(self._topic, self._partition, correlation)), answers
        finally:
            del self._waiting[correlation]
