"""FeedClient and SearchClient on the local log, against a service of a few lines."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.errors import InvalidInput, LogError, SearchFailed, TopicNotFound
from driftline.index.filters import parse_filter
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import Log, Reader, Record, open_log
from driftline.stream.messages import (
    Form,
    Hit,
    Rejection,
    Reply,
    ReplyRoute,
    SearchRequest,
    decode_request,
    decode_vectors,
    encode_error,
    encode_reply,
    read_route,
    reply_draft,
    reply_form,
    unpack_attributes,
)

DIM = 4
ROWS = np.random.default_rng(3).normal(size=(600, DIM)).astype(np.float32)
QUERY = ROWS[0]
Answer = Callable[[Record, SearchRequest], bytes | None]


@asynccontextmanager
async def topics(directory: Path, replies: int = 3) -> AsyncGenerator[Log]:
    async with open_log(f"local:{directory}") as log:
        await log.create_topic("driftline.vectors", partitions=2, compacted=True)
        await log.create_topic("driftline.search")
        await log.create_topic("driftline.replies", partitions=replies)
        yield log


def echo(record: Record, request: SearchRequest) -> bytes | None:
    """One hit that repeats what was asked: k as its distance, the key as its id, the vector."""
    asked: dict[str, Any] = {"include": sorted(request.include)}
    if request.filter is not None:
        asked["filter"] = repr(request.filter)
    hit = Hit(request.key or b"vector", float(request.k), asked, request.vector)
    return encode_reply(Reply([hit], request.after, frame=0, took_us=1), request.form)


@asynccontextmanager
async def responder(log: Log, answer: Answer = echo) -> AsyncGenerator[None]:
    """Answers the search topic as a service would, as long as the block lasts."""
    reader = await log.reader({("driftline.search", 0): 0})

    async def respond() -> None:
        while True:
            for record in await reader.fetch():
                route = read_route(record, "driftline.replies")
                assert isinstance(route, ReplyRoute)
                request = decode_request(record, dim=DIM, metric="l2", model="m", max_k=1000, max_ef=1000)
                form = reply_form(record)
                if isinstance(request, Rejection):
                    value = encode_error(request.code, request.reason, form)
                else:
                    value = answer(record, request)
                if value is not None:
                    await log.append([reply_draft(route, value, form)])

    async with asyncio.TaskGroup() as group:
        task = group.create_task(respond())
        yield
        task.cancel()
    await reader.close()


async def read_all(log: Log, topic: str) -> list[Record]:
    ends = await log.end_offsets(topic)
    reader = await log.reader({(topic, partition): 0 for partition in ends})
    records: list[Record] = []
    async with asyncio.timeout(10):
        while any(reader.position(topic, partition) < end for partition, end in ends.items()):
            records += await reader.fetch()
    await reader.close()
    return records


async def request_written(watcher: Reader) -> None:
    """Returns when a reader of the search topic has seen one."""
    async with asyncio.timeout(10):
        while not await watcher.fetch():
            pass
    await watcher.close()


async def test_feed(tmp_path: Path) -> None:
    """Vectors, attributes and deletes arrive as sent, in several appends; tokens are next offsets."""
    keys = [f"id-{i}" for i in range(len(ROWS))]
    async with topics(tmp_path) as log, FeedClient(log, model="m") as feed:
        token = await feed.upsert(keys, ROWS, [{"n": i} if i % 2 else None for i in range(len(ROWS))])
        assert token == {"driftline.vectors": await log.end_offsets("driftline.vectors")}
        assert await feed.upsert([], np.empty((0, DIM))) == {}
        after = await feed.delete([b"id-0"])
        (partition,) = after["driftline.vectors"]
        assert after == {"driftline.vectors": {partition: token["driftline.vectors"][partition] + 1}}
        records = await read_all(log, "driftline.vectors")
    batch = decode_vectors(records, dim=DIM, metric="l2", model=None)
    assert (batch.rejected, batch.deleted, batch.model) == ([], [b"id-0"], "m")
    assert sorted(batch.keys) == sorted(key.encode() for key in keys[1:])
    for key, row, kept in zip(batch.keys, batch.vectors, batch.attributes, strict=True):
        i = keys.index(key.decode())
        np.testing.assert_array_equal(row, ROWS[i])
        assert unpack_attributes(kept) == ({"n": i} if i % 2 else {})


async def test_feed_refuses_before_it_writes(tmp_path: Path) -> None:
    """Wrong shapes, keys, numbers and a topic that is not there; nothing of a refused call is written."""
    async with topics(tmp_path) as log:
        async with FeedClient(log) as feed:
            for keys, vectors in ((["a"], ROWS[:2]), (["a", "b"], ROWS[0]), (["a", ""], ROWS[:2])):
                with pytest.raises(InvalidInput):
                    await feed.upsert(keys, vectors)
            with pytest.raises(InvalidInput, match="'b': component 3 of the vector is nan"):
                await feed.upsert(["a", "b"], [[1, 2, 3, 4], [1, 2, 3, float("nan")]])
            with pytest.raises(InvalidInput, match="as many attributes"):
                await feed.upsert(["a"], ROWS[:1], [])
            with pytest.raises(InvalidInput):
                await feed.delete(["a", "x" * 512])
        assert await log.end_offsets("driftline.vectors") == {0: 0, 1: 0}
        with pytest.raises(TopicNotFound):
            await FeedClient(log, "nowhere").__aenter__()


@pytest.mark.parametrize("form", [Form.JSON, Form.MSGPACK])
async def test_search(tmp_path: Path, form: Form) -> None:
    """Every argument reaches the service and every field of the reply comes back, in both forms."""
    async with topics(tmp_path) as log, responder(log), SearchClient(log, form=form, model="m") as search:
        reply = await search.search(QUERY, k=3, after={"driftline.vectors": {1: 0}}, include=["vector"])
        assert (reply.applied, reply.frame, reply.took_us) == ({"driftline.vectors": {1: 0}}, 0, 1)
        (hit,) = reply.hits
        assert (hit.id, hit.distance, hit.attributes) == (b"vector", 3.0, {"include": ["vector"]})
        assert hit.vector is not None
        np.testing.assert_array_equal(hit.vector, QUERY)
        assert (await search.search(key=b"\xff")).hits[0].id == b"\xff"
        hit = (await search.search(key="a", filter={"lang": "en"})).hits[0]
        assert hit.attributes == {"include": [], "filter": repr(parse_filter({"lang": "en"}))}
        with pytest.raises(InvalidInput, match=r"filter\.lang is null"):
            await search.search(key="a", filter={"lang": None})
        with pytest.raises(SearchFailed, match="k is 5000") as failed:
            await search.search(QUERY, k=5000)
        assert failed.value.code == "k_out_of_range"
        with pytest.raises(InvalidInput):
            await search.search(QUERY, key="a")
        with pytest.raises(InvalidInput, match="deadline_ms"):
            await search.search(QUERY, deadline_ms=0)


async def test_many_searches_at_once(tmp_path: Path) -> None:
    """300 searches of two clients that share a reply topic, 20 places each: all get their own reply."""
    async with (
        topics(tmp_path, replies=1) as log,
        responder(log),
        SearchClient(log, max_in_flight=20) as one,
        SearchClient(log, max_in_flight=20) as other,
        asyncio.TaskGroup() as group,
    ):
        asked = {
            key: group.create_task(client.search(key=key, k=i + 1))
            for i in range(150)
            for client, key in ((one, f"one-{i}"), (other, f"other-{i}"))
        }
    for key, task in asked.items():
        (hit,) = task.result().hits
        assert (hit.id.decode(), hit.distance) == (key, int(key.partition("-")[2]) + 1)


async def test_answers_may_come_in_any_order(tmp_path: Path) -> None:
    """A reply that takes its time holds up no other; one that comes twice, or to nobody, is passed over."""
    held: list[tuple[Record, SearchRequest]] = []

    def reverse(record: Record, request: SearchRequest) -> bytes | None:
        if request.key == b"slow":
            held.append((record, request))
            return None
        return echo(record, request)

    async with topics(tmp_path) as log, responder(log, reverse), SearchClient(log) as search:
        slow = asyncio.ensure_future(search.search(key="slow"))
        assert (await search.search(key="fast")).hits[0].id == b"fast"
        assert not slow.done()
        record, request = held[0]
        route = read_route(record, "driftline.replies")
        assert isinstance(route, ReplyRoute)
        value = echo(record, request)
        assert value is not None
        stranger = ReplyRoute(route.topic, route.partition, b"not one of ours")
        await log.append([reply_draft(r, value, request.form) for r in (stranger, route, route)])
        assert (await slow).hits[0].id == b"slow"
        assert (await search.search(key="fast")).hits[0].id == b"fast"


async def test_nobody_answers(tmp_path: Path) -> None:
    """After the deadline: SearchFailed that says where it listened; the place in the queue is free again."""
    async with topics(tmp_path) as log, SearchClient(log, max_in_flight=1) as search:
        for _ in range(2):
            with pytest.raises(SearchFailed, match=r"driftline\.replies\[\d\] within 50 ms") as failed:
                await search.search(QUERY, deadline_ms=50)
            assert failed.value.code == "no_reply"
        assert len(await read_all(log, "driftline.search")) == 2


async def test_replies_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the log fails the listener, everyone who waits is told why, and so is who asks later."""
    broken = asyncio.Event()

    class Outside:
        async def fetch(self, max_records: int = 1, timeout_s: float = 1.0) -> list[Record]:
            await broken.wait()
            raise LogError("offset 7 is outside the log")

        async def close(self) -> None:
            pass

    async def reader(starts: object) -> Outside:
        return Outside()

    async with topics(tmp_path) as log:
        watcher = await log.reader({("driftline.search", 0): 0})
        monkeypatch.setattr(log, "reader", reader)
        async with SearchClient(log) as search:
            waiting = asyncio.ensure_future(search.search(QUERY))
            await request_written(watcher)
            broken.set()
            for each in (waiting, search.search(QUERY)):
                with pytest.raises(LogError, match="offset 7 is outside the log"):
                    await each


async def test_cancelled_searches_leave_nothing(tmp_path: Path) -> None:
    """A cancelled search frees its place; its late reply is passed over."""
    async with topics(tmp_path) as log, SearchClient(log, max_in_flight=1) as search:
        waiting = asyncio.ensure_future(search.search(key="late"))
        await request_written(await log.reader({("driftline.search", 0): 0}))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with responder(log):
            assert (await search.search(key="next")).hits[0].id == b"next"


async def test_closing_ends_what_waits(tmp_path: Path) -> None:
    """Leaving the client: searches under way raise LogError, later ones too, as before entering."""
    async with topics(tmp_path) as log:
        search = SearchClient(log)
        with pytest.raises(LogError, match="async with"):
            await search.search(QUERY)
        async with search:
            waiting = asyncio.ensure_future(search.search(QUERY))
            await request_written(await log.reader({("driftline.search", 0): 0}))
        with pytest.raises(LogError, match="was closed"):
            await waiting
        with pytest.raises(LogError, match="was closed"):
            await search.search(QUERY)
        for topic, replies in (("nowhere", "driftline.replies"), ("driftline.search", "nowhere")):
            with pytest.raises(TopicNotFound):
                await SearchClient(log, topic, replies).__aenter__()
