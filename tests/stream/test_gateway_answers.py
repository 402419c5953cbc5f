"""A gateway in the test's own process, and shards that say what they are told to: replicas, strangers, states
and silence."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import structlog
from driftline.errors import SearchFailed
from driftline.stream.clients import SearchClient
from driftline.stream.config import Settings
from driftline.stream.documents import Form
from driftline.stream.gateway import Gateway
from driftline.stream.local_log import LocalLog
from driftline.stream.log import Draft, Record
from driftline.stream.merge import shard_header
from driftline.stream.messages import (
    Hit,
    Reply,
    ReplyRoute,
    correlation_of,
    decode_reply,
    encode_error,
    encode_reply,
    encode_request,
    read_route,
    reply_draft,
    route_headers,
)
from driftline.stream.outbox import Outbox

from .running import eventually

TOPIC = "driftline.vectors"
QUERY = [1.0, 2.0]
REPLIES = "driftline.replies"
DEADLINE_S = 60.0
SHORT_MS = 1000  # of a request that no shard answers

Say = Callable[[dict[str, Any]], list[tuple[bytes, tuple[int, ...]]]]  # a question -> values, and of what


def hits(partitions: tuple[int, ...], *keys: bytes, **more: Any) -> tuple[bytes, tuple[int, ...]]:
    """A shard's reply: the keys at distances 0, 1, 2..."""
    listed = [Hit(key, float(distance)) for distance, key in enumerate(keys)]
    reply = Reply(listed, {TOPIC: dict.fromkeys(partitions, 5)}, 1, 1, **more)
    return encode_reply(reply, Form.MSGPACK), partitions


def error(partitions: tuple[int, ...], code: str) -> tuple[bytes, tuple[int, ...]]:
    return encode_error(code, "why", Form.MSGPACK), partitions


class Scene:
    """The gateway's log, its client, and what the shards say next."""

    def __init__(self, log: LocalLog, gateway: Gateway, client: SearchClient) -> None:
        self.log = log
        self.gateway = gateway
        self.client = client
        self.asked: list[dict[str, Any]] = []
        self.late: list[Draft] = []
        self.say: Say = lambda question: []

    async def shards(self) -> None:
        """Answer questions as `say` has it."""
        reader = await self.log.reader({("driftline.shards", 0): 0})
        while True:
            for record in await reader.fetch():
                question = msgpack.unpackb(record.value or b"")
                self.asked.append(question)
                drafts = [draft_of(record, value, parts) for value, parts in self.say(question)]
                self.late = [draft_of(record, *hits((1,)))]
                if drafts:
                    await self.log.append(drafts)

    async def ask(self, deadline_ms: int) -> Reply:
        """As a client would that waits for its answer beyond the deadline too."""
        reader = await self.log.reader({(REPLIES, 0): (await self.log.end_offsets(REPLIES))[0]})
        correlation = uuid.uuid4().bytes
        headers = route_headers(ReplyRoute(REPLIES, 0, correlation))
        asked = encode_request("driftline.search", vector=QUERY, deadline_ms=deadline_ms, headers=headers)
        await self.log.append([asked])
        while True:
            for record in await reader.fetch():
                if correlation_of(record) == correlation:
                    return decode_reply(record)

    @property
    def absent(self) -> tuple[int, ...]:
        return self.gateway.status.absent


def draft_of(question: Record, value: bytes, partitions: tuple[int, ...]) -> Draft:
    route: Any = read_route(question, "none")
    return reply_draft(route, value, Form.MSGPACK, shard_header(TOPIC, partitions))


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Scene]:
    settings = Settings.model_validate({"data_dir": directory, "gateway": {"absent_ms": 20}})
    names = settings.topics
    logger: Any = structlog.wrap_logger(
        structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    async with LocalLog(directory / "log") as log:
        await log.create_topic(names.vectors, partitions=2, compacted=True)
        for topic in (names.search, names.replies, names.dead_letters, names.shards, names.shard_replies):
            await log.create_topic(topic)
        outbox = Outbox(log, logger, 10)
        gateway = Gateway(settings, log, outbox, await log.describe(names.dead_letters), logger)
        async with SearchClient(log) as client, asyncio.TaskGroup() as group:
            scene = Scene(log, gateway, client)
            tasks = [group.create_task(work) for work in (outbox.run(), gateway.run(), scene.shards())]
            async with asyncio.timeout(DEADLINE_S):
                yield scene
            for task in tasks:
                task.cancel()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with opened(tmp_path) as scene:
        yield scene


async def test_replicas_and_strangers(scene: Scene) -> None:
    """The first of two that hold the same counts; answers for no partition, and records that are none, are
    passed over; both shards make it whole."""
    scene.say = lambda question: [
        hits((0,), b"a"),
        hits((0,), b"replica"),
        hits((), b"nobody"),
        (b"\xc1", (1,)),
        hits((1,), b"b"),
    ]
    reply = await scene.client.search(QUERY)
    assert ([hit.id for hit in reply.hits], tuple(reply.partial)) == ([b"a", b"b"], ())
    (question,) = scene.asked
    assert np.frombuffer(question["vector"], "<f4").tolist() == QUERY
    assert question["deadline_ms"] < 10_000


async def test_another_collections_answer(scene: Scene) -> None:
    """A shard of another topic that answers here by mistake is not heard."""
    stranger = encode_reply(Reply([Hit(b"x", 0.0)], {"other": {1: 5}}, 1, 1), Form.MSGPACK)

    def said(question: dict[str, Any]) -> list[tuple[bytes, tuple[int, ...]]]:
        return [hits((0,), b"a"), hits((1,), b"b")]

    scene.say = said
    reader = await scene.log.reader({("driftline.shards", 0): 0})
    asking = asyncio.create_task(scene.client.search(QUERY))
    (record,) = await reader.fetch(timeout_s=DEADLINE_S)
    route: Any = read_route(record, "none")
    late = reply_draft(route, stranger, Form.MSGPACK, shard_header("other", (0, 1)))
    await scene.log.append([late])
    assert [hit.id for hit in (await asking).hits] == [b"a", b"b"]


async def test_a_shard_that_cannot_answer_now(scene: Scene) -> None:
    """Busy, or catching up: partial at once, without waiting for the deadline."""
    for said in (error((1,), "too_busy"), hits((1,), b"b", partial=(1,))):
        scene.say = lambda question, said=said: [hits((0,), b"a"), said]
        reply = await scene.client.search(QUERY, deadline_ms=60_000)
        assert tuple(reply.partial) == (1,)
        assert scene.absent == ()


async def test_a_fault_ends_the_waiting(scene: Scene) -> None:
    """What one shard refuses is refused, though others were never heard."""
    scene.say = lambda question: [error((0,), "wrong_dimension")]
    with pytest.raises(SearchFailed, match="wrong_dimension"):
        await scene.client.search(QUERY, deadline_ms=60_000)


async def test_silence_and_return(scene: Scene) -> None:
    """Who let a request pass is not waited for any more; a late answer is enough to be waited for again. A
    request that waits for its offsets is waited for all the time."""
    scene.say = lambda question: [hits((0,), b"a")]
    assert tuple((await scene.ask(SHORT_MS)).partial) == (1,)
    assert scene.absent == (1,)
    reply = await scene.client.search(QUERY, deadline_ms=600_000)
    assert tuple(reply.partial) == (1,)
    scene.say = lambda question: []
    with pytest.raises(SearchFailed, match="unavailable"):
        await scene.ask(SHORT_MS)
    assert scene.absent == (0, 1)
    scene.say = lambda question: [hits((0,), b"a"), *([hits((1,), b"b")] if "after" in question else [])]
    reply = await scene.client.search(QUERY, after={TOPIC: {1: 5}}, deadline_ms=60_000)
    assert (tuple(reply.partial), scene.absent) == ((), ())
    scene.say = lambda question: [hits((0,), b"a")]
    assert tuple((await scene.ask(SHORT_MS)).partial) == (1,)
    await scene.log.append(scene.late)
    await eventually(lambda: not scene.absent, "the late answer is heard")
    assert scene.gateway.status.partial == 3


async def test_the_vector_of_a_key(scene: Scene) -> None:
    """Asked first, without the filter; the second question is with the vector and for all. What is nowhere is
    unknown, unless somebody could not say."""
    vector = np.array([3, 4], np.float32)

    def said(question: dict[str, Any]) -> list[tuple[bytes, tuple[int, ...]]]:
        if "key" in question:
            return [error((0,), "unknown_key"), hits((1,), b"k", query=vector)]
        return [hits((0,), b"a"), hits((1,), b"k")]

    scene.say = said
    reply = await scene.client.search(key="k", k=3, filter={"year": 1}, include=["query"])
    assert [hit.id for hit in reply.hits] == [b"a", b"k"]
    assert reply.query is not None
    assert reply.query.tolist() == [3, 4]
    lookup, question = scene.asked
    assert (lookup["key"], lookup["k"], lookup["include"]) == (b"k", 1, ["query"])
    assert "filter" not in lookup
    assert np.frombuffer(question["vector"], "<f4").tolist() == [3, 4]
    assert question["filter"] == {"year": 1}
    for other, code in (("unknown_key", "unknown_key"), ("unavailable", "unavailable")):
        scene.say = lambda question, other=other: [error((0,), "unknown_key"), error((1,), other)]
        with pytest.raises(SearchFailed) as failed:
            await scene.client.search(key="k", deadline_ms=60_000)
        assert failed.value.code == code
