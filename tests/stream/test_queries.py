"""Queries over topics: forms, ways back, waiting, deadlines, and everything that can be wrong with one."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline.errors import SearchFailed
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.documents import Refused
from driftline.stream.log import Draft, Headers, Log, Record, open_log
from driftline.stream.messages import Form, Reply
from driftline.stream.queries import own_offsets
from driftline.stream.room import Room

from .running import DEADLINE_S, Place, eventually, gaussian, log_url, read_all, reasons

DIM = 8
ROWS = 500
VECTORS = gaussian(ROWS, DIM, 1)
JSON: Headers = (("content-type", b"application/json"),)


@pytest.fixture(scope="module", params=["local", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One service with 500 vectors, for all tests of this file."""
    directory = tmp_path_factory.mktemp("queries")
    place = Place(log_url(request, directory), "queries", directory, index__dim=DIM, search__slow_ms=0.001)
    with place.service.start():
        asyncio.run(fill(place))
        yield place


async def fill(place: Place) -> None:
    async with open_log(place.url) as log, FeedClient(log, place.vectors) as feed:
        attributes = [{"row": row} for row in range(ROWS)]
        token = await feed.upsert([f"v{row}" for row in range(ROWS)], VECTORS, attributes)
        async with SearchClient(log, place.search, place.replies) as client:
            await client.search(VECTORS[0], after=token, deadline_ms=60_000)


@pytest.fixture
async def log(place: Place) -> AsyncIterator[Log]:
    async with open_log(place.url) as log:
        yield log


@pytest.fixture
async def client(place: Place, log: Log) -> AsyncIterator[SearchClient]:
    async with SearchClient(log, place.search, place.replies) as client:
        yield client


def way_back(topic: str | None, correlation: bytes, partition: int | None = None) -> Headers:
    headers = [("kafka_correlationId", correlation)]
    if topic is not None:
        headers.append(("kafka_replyTopic", topic.encode()))
    if partition is not None:
        headers.append(("kafka_replyPartition", partition.to_bytes(4, "big")))
    return tuple(headers)


async def reply_to(log: Log, topic: str, correlation: bytes) -> Record:
    """The first reply with this correlation id."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for record in await read_all(log, topic):
                if dict(record.headers).get("kafka_correlationId") == correlation:
                    return record


async def letter_of(log: Log, place: Place, offset: int) -> Record:
    """The dead letter of a request."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for record in await read_all(log, place.letters):
                said = reasons(record)
                if (said["topic"], said["offset"]) == (place.search, str(offset)):
                    return record


@pytest.mark.parametrize("form", [Form.MSGPACK, Form.JSON])
async def test_hits_are_the_exact_ones(place: Place, log: Log, form: Form) -> None:
    """In both forms: ids, distances, attributes and vectors, against numpy; and the offsets that the answer
    saw."""
    query = gaussian(1, DIM, 2)[0]
    distances = ((VECTORS - query) ** 2).sum(1)
    nearest = np.argsort(distances)[:5]
    async with SearchClient(log, place.search, place.replies, form=form) as client:
        reply = await client.search(query, k=5, ef=ROWS, include=["attributes", "vector"])
    assert [hit.id for hit in reply.hits] == [b"v%d" % row for row in nearest]
    assert np.allclose([hit.distance for hit in reply.hits], distances[nearest], rtol=1e-5)
    assert [hit.attributes for hit in reply.hits] == [{"row": row} for row in nearest]
    assert all(
        np.array_equal(np.asarray(h.vector), VECTORS[r]) for h, r in zip(reply.hits, nearest, strict=True)
    )
    assert reply.applied[place.vectors][0] >= ROWS
    assert reply.took_us > 0


async def test_asking_with_a_key(client: SearchClient) -> None:
    """The vector of a live id is the query, and itself the first hit; an id that is not live is said so."""
    reply = await client.search(key="v7", k=3)
    assert (reply.hits[0].id, reply.hits[0].distance) == (b"v7", 0.0)
    with pytest.raises(SearchFailed, match="unknown_key"):
        await client.search(key="never there")


@pytest.mark.parametrize("form", [Form.JSON, Form.MSGPACK])
async def test_filters(place: Place, log: Log, form: Form) -> None:
    """In both forms: the nearest among those that the filter chooses, for few and for many; a filter that is
    malformed, or names what no vector has, is an error that says so."""
    query = gaussian(1, DIM, 2)[0]
    distances = ((VECTORS - query) ** 2).sum(1)
    async with SearchClient(log, place.search, place.replies, form=form) as client:
        for document, rows in (
            ({"row": {"gte": 100, "lt": 400}}, np.arange(100, 400)),
            ({"row": {"in": [7, 8, 499]}}, np.array([7, 8, 499])),
            ({"not": {"row": {"gt": 1}}}, np.array([0, 1])),
            ({"row": -1}, np.array([], np.intp)),
        ):
            reply = await client.search(query, k=5, ef=ROWS, filter=document, deadline_ms=60_000)
            nearest = rows[np.argsort(distances[rows])[:5]]
            assert [hit.id for hit in reply.hits] == [b"v%d" % row for row in nearest]
        reply = await client.search(key="v7", k=1, filter={"row": {"lt": 7}})
        assert reply.hits[0].id != b"v7"
        with pytest.raises(SearchFailed, match="unknown field 'raw'; known are 'row'") as failed:
            await client.search(query, filter={"or": [{"row": 1}, {"raw": 1}]})
        assert failed.value.code == "bad_filter"
    request = b'{"key": "v7", "filter": {"row": {"above": 1}}}'
    await log.append([Draft(place.search, None, request, (*JSON, *way_back(None, form.encode())))])
    answer = await reply_to(log, place.replies, form.encode())
    assert json.loads(answer.value or b"")["error"] == {
        "code": "bad_filter",
        "message": "filter.row has the operator 'above'; there are eq, in, gt, gte, lt, lte, exists",
    }


async def test_many_at_once(client: SearchClient) -> None:
    """Each reply finds the one who asked."""
    asked = range(0, ROWS, 5)
    replies = await asyncio.gather(*(client.search(VECTORS[row], k=1, ef=100) for row in asked))
    assert [reply.hits[0].id for reply in replies] == [b"v%d" % row for row in asked]


async def test_the_default_way_back(place: Place, log: Log) -> None:
    """A request that names no reply topic is answered on the default one, in its own form, its correlation
    returned."""
    correlation = uuid.uuid4().bytes
    value = json.dumps({"vector": VECTORS[3].tolist(), "k": 1}).encode()
    await log.append([Draft(place.search, None, value, way_back(None, correlation))])
    reply = await reply_to(log, place.replies, correlation)
    assert json.loads(reply.value or b"")["hits"][0]["id"] == "v3"


async def test_a_named_topic_and_partition(place: Place, log: Log) -> None:
    """As Spring's template sends it: topic as text, partition as four bytes."""
    topic, correlation = f"own-{uuid.uuid4().hex}", uuid.uuid4().bytes
    await log.create_topic(topic, partitions=3)
    value = msgpack.packb({"key": "v3", "k": 1})
    await log.append([Draft(place.search, None, value, way_back(topic, correlation, 2))])
    reply = await reply_to(log, topic, correlation)
    assert reply.partition == 2
    assert msgpack.unpackb(reply.value or b"")["hits"][0]["id"] == b"v3"


@pytest.mark.parametrize("value", [msgpack.packb({"key": "v3"}), b"\xc1"], ids=["hits", "error"])
async def test_a_trace_goes_on(place: Place, log: Log, value: bytes) -> None:
    """A reply, of hits or an error, carries the request's trace context as bytes: the last of doubled ones,
    none that is too long."""
    correlation = uuid.uuid4().bytes
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers: Headers = (
        ("traceparent", b"an older one"), ("TraceParent", trace), ("tracestate", b"\xff=1"),
        ("baggage", b"x" * 8193), *way_back(None, correlation),
    )  # fmt: skip
    await log.append([Draft(place.search, None, value, headers)])
    reply = await reply_to(log, place.replies, correlation)
    carried = [header for header in reply.headers if header[0] in ("traceparent", "tracestate", "baggage")]
    assert carried == [("traceparent", trace), ("tracestate", b"\xff=1")]


async def test_waiting_for_offsets_blocks_nobody(place: Place, log: Log, client: SearchClient) -> None:
    """`after` ahead of the log: parked; others are answered meanwhile; it is, as soon as the records are
    applied."""
    ends = await log.end_offsets(place.vectors)
    after = {place.vectors: {0: ends[0] + 1}}
    async with asyncio.TaskGroup() as group, FeedClient(log, place.vectors) as feed:
        parked = [group.create_task(client.search(key="fresh", k=1, after=after)) for _ in range(50)]
        for row in range(20):
            await client.search(VECTORS[row], k=1)
        assert not any(task.done() for task in parked)
        await feed.upsert(["fresh"], gaussian(1, DIM, 3))
    for task in parked:
        assert task.result().hits[0].id == b"fresh"
        assert task.result().applied[place.vectors][0] >= after[place.vectors][0]


async def test_what_is_fed_is_found(place: Place, log: Log, client: SearchClient) -> None:
    """Read your writes: with the token of an upsert or a delete, the next search sees it. Every time."""
    async with FeedClient(log, place.vectors) as feed:
        for row, vector in enumerate(gaussian(30, DIM, 4) + 10):
            token = await feed.upsert([f"own{row}"], vector[np.newaxis])
            reply = await client.search(vector, k=1, after=token)
            assert reply.hits[0].id == b"own%d" % row
            token = await feed.delete([f"own{row}"])
            reply = await client.search(vector, k=1, after=token)
            assert reply.hits[0].id != b"own%d" % row


async def test_expired_requests_are_counted_not_answered(place: Place, log: Log) -> None:
    """By the record's timestamp: old when they arrive."""
    before = place.service.status()
    assert before is not None
    value = msgpack.packb({"key": "v1"})
    old = int(time.time() * 1000) - 60_000
    correlation = uuid.uuid4().bytes
    await log.append([Draft(place.search, None, value, way_back(None, correlation), timestamp_ms=old)])

    def counted() -> bool:
        status = place.service.status()
        return status is not None and status["expired"] == before["expired"] + 1

    await eventually(counted, "one expired")
    answered = {
        dict(record.headers).get("kafka_correlationId") for record in await read_all(log, place.replies)
    }
    assert correlation not in answered


async def test_an_offset_that_never_comes(place: Place, log: Log, client: SearchClient) -> None:
    """Beyond the log's end until shortly before the deadline: said so, with where the log ends, in time for
    who waits; by a producer whose clock is an hour ahead too."""
    (end,) = (await log.end_offsets(place.vectors)).values()
    with pytest.raises(SearchFailed, match=f"offset 1099511627776 .* ends at {end}") as failed:
        await client.search(key="v1", after={place.vectors: {0: 2**40}}, deadline_ms=3000)
    assert failed.value.code == "offset_unknown"
    value = msgpack.packb({"key": "v1", "deadline_ms": 1000, "after": {place.vectors: {"0": 2**40}}})
    correlation, ahead = uuid.uuid4().bytes, int(time.time() * 1000) + 3_600_000
    await log.append([Draft(place.search, None, value, way_back(None, correlation), timestamp_ms=ahead)])
    reply = await reply_to(log, place.replies, correlation)
    assert msgpack.unpackb(reply.value or b"")["error"]["code"] == "offset_unknown"


async def test_too_many_that_wait(tmp_path: Path) -> None:
    """Beyond the bound in number, and in bytes: `too_busy` at once, the others go on waiting and are
    answered, and who need not wait is answered meanwhile."""
    place = Place(f"local:{tmp_path / 'log'}", "busy", tmp_path, index__dim=DIM, search__parked_max=3,
                  search__waiting_max=4, search__parked_bytes=2000, search__waiting_bytes=4000)  # fmt: skip
    with place.service.start():
        async with (
            open_log(place.url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
            asyncio.TaskGroup() as group,
        ):
            await feed.upsert(["a"], VECTORS[:1])
            after = {place.vectors: {0: 2}}

            def ask(**more: Any) -> asyncio.Task[Reply]:
                asked = client.search(key="b", k=1, after=after, deadline_ms=60_000, **more)
                return group.create_task(asked)

            def parked(count: int) -> Callable[[], bool]:
                return lambda: (place.service.status() or {})["parked_requests"] == count

            few = [ask(), ask()]
            await eventually(parked(2), "two wait")
            long = {"or": [{"text": "x" * 250}] * 7}
            with pytest.raises(SearchFailed, match="too_busy"):
                await client.search(key="b", after=after, filter=long)
            few.append(ask())
            await eventually(parked(3), "three wait")
            with pytest.raises(SearchFailed, match="too_busy"):
                await client.search(key="b", after=after)
            assert (await client.search(VECTORS[0], k=1)).hits[0].id == b"a"
            await feed.upsert(["b"], VECTORS[1:2])
        assert all(task.result().hits[0].id == b"b" for task in few)
        await eventually(parked(0), "none waits")


def test_offsets_of_other_instances() -> None:
    """A request waits for the partitions that are read here; others of the topic are no error, and what
    nobody reads is."""
    after = {"t": {0: 5, 2: 7}}
    assert own_offsets(after, "t", {0: 1, 1: 1}, (0, 1, 2)) == {0: 5}
    assert own_offsets(after, "t", {1: 1}, (0, 1, 2)) == {}
    with pytest.raises(Refused, match="partition 2 of t; this service reads t, partitions 0, 1"):
        own_offsets(after, "t", {0: 1}, (0, 1))
    with pytest.raises(Refused, match="partition 0 of u"):
        own_offsets({"u": {0: 1}}, "t", {0: 1}, (0, 1))


async def test_room_is_bounded_in_items_and_bytes() -> None:
    """Who finds no room waits until there is; what is larger than all of it comes in alone."""
    room = Room(3, 10)
    assert room.try_enter(6)
    assert not room.try_enter(5)
    assert room.try_enter(2)
    assert room.try_enter(2)
    assert not room.try_enter(0)
    waiting = asyncio.create_task(room.enter(100))
    for size in (6, 2, 2):
        await asyncio.sleep(0)
        assert not waiting.done()
        room.leave(size)
    await asyncio.wait_for(waiting, 10)
    assert (room.items, room.bytes) == (1, 100)
    assert not room.try_enter(0)


WRONG: dict[str, tuple[str, bytes | None, Headers]] = {
    "no value": ("undecodable_value", None, ()),
    "undecodable": ("undecodable_value", b"\xc1", ()),
    "undecodable json": ("undecodable_value", b"{", ()),
    "unknown content type": ("unknown_content_type", b"<q/>", (("content-type", b"text/xml"),)),
    "schema registry framing": ("schema_registry_framing", b"\0\0\0\0\x01x", ()),
    "wrong dimension": ("wrong_dimension", msgpack.packb({"vector": [1.0]}), ()),
    "NaN": ("not_finite", msgpack.packb({"vector": np.full(DIM, np.nan, "<f4").tobytes()}), ()),
    "empty key": ("empty_key", msgpack.packb({"key": ""}), ()),
    "oversized key": ("oversized_key", msgpack.packb({"key": "k" * 512}), ()),
    "no query": ("no_query", msgpack.packb({"k": 3}), ()),
    "k too small": ("k_out_of_range", msgpack.packb({"key": "v1", "k": 0}), ()),
    "k too large": ("k_out_of_range", json.dumps({"key": "v1", "k": 1001}).encode(), JSON),
    "ef too large": ("ef_out_of_range", msgpack.packb({"key": "v1", "ef": 1 << 30}), ()),
    "another partition": (
        "unknown_offsets",
        msgpack.packb({"key": "v1", "after": {"queries.vectors": {"9": 1}}}),
        (),
    ),
    "another topic": ("unknown_offsets", msgpack.packb({"key": "v1", "after": {"other": {"0": 1}}}), ()),
    "misspelt field": ("unknown_field", msgpack.packb({"key": "v1", "kk": 3}), ()),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_request_is_answered_with_its_reason(
    place: Place, log: Log, client: SearchClient, case: str
) -> None:
    """An error reply with code and sentence, on the request's way back; the next request is served."""
    code, value, headers = WRONG[case]
    correlation = uuid.uuid4().bytes
    await log.append([Draft(place.search, None, value, (*headers, *way_back(place.replies, correlation)))])
    reply = await reply_to(log, place.replies, correlation)
    content = dict(reply.headers)["content-type"]
    document = json.loads(reply.value or b"") if b"json" in content else msgpack.unpackb(reply.value or b"")
    assert document["error"]["code"] == code
    assert document["error"]["message"]
    assert (await client.search(key="v1", k=1)).hits


@pytest.mark.parametrize(
    ("topic", "partition", "reason"),
    [("nowhere", None, "does not exist"), (None, 9, "has no partition 9")],
    ids=["topic", "partition"],
)
async def test_a_reply_topic_that_does_not_exist(
    place: Place, log: Log, client: SearchClient, topic: str | None, partition: int | None, reason: str
) -> None:
    """The requests go to the dead-letter topic with the reason; nobody else waits for them; no topic is
    made."""
    value, wrong = msgpack.packb({"key": "v1"}), topic or place.replies
    asked = [Draft(place.search, None, value, way_back(wrong, b"%d" % n, partition)) for n in range(20)]
    positions = await log.append(asked)
    began = time.monotonic()
    assert (await client.search(key="v2", k=1)).hits
    assert time.monotonic() - began < 1.0
    letter = await letter_of(log, place, positions[-1].offset)
    said = reasons(letter)
    assert said["exception.class.name"] == "driftline.unknown_reply_topic"
    assert reason in said["exception.message"]
    assert letter.value == value
    assert "nowhere" not in await log.topics()


async def test_a_malformed_way_back(place: Place, log: Log) -> None:
    """Reply headers that cannot be read: there is nowhere to say so but the dead-letter topic."""
    (position,) = await log.append(
        [Draft(place.search, None, msgpack.packb({"key": "v1"}), (("kafka_replyTopic", b"no topic!"),))]
    )
    letter = await letter_of(log, place, position.offset)
    assert reasons(letter)["exception.class.name"] == "driftline.bad_reply_route"


async def test_a_reply_that_is_too_large(place: Place, log: Log) -> None:
    """500 hits of 8 floats as JSON fit; with attributes of 16 kB each they do not: said so instead of
    silence."""
    async with (
        FeedClient(log, place.vectors) as feed,
        SearchClient(log, place.search, place.replies) as client,
    ):
        far = gaussian(100, DIM, 5) + 100
        text = [{"text": "x" * 16_000}] * 100
        token = await feed.upsert([f"large{row}" for row in range(100)], far, text)
        with pytest.raises(SearchFailed, match="reply_too_large"):
            await client.search(far[0], k=100, ef=200, after=token, include=["attributes"])
        assert len((await client.search(far[0], k=20, ef=200, include=["attributes"])).hits) == 20
        await feed.delete([f"large{row}" for row in range(100)])


async def test_slow_searches_are_logged(place: Place, client: SearchClient) -> None:
    """Slower than search.slow_ms, here a microsecond: search.slow, with what was asked."""
    await client.search(key="v1", k=7)
    (event, *_) = [event for event in place.service.events("search.slow") if event["k"] == 7]
    assert event["took_ms"] >= 0
    assert event["ef"] == 64


async def test_requests_of_a_service_that_was_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Asked while nobody serves, within the deadline: answered after the start; those before it are not
    asked again."""
    directory = tmp_path_factory.mktemp("down")
    place = Place(f"local:{directory / 'log'}", "down", directory, index__dim=DIM)
    with place.service.start():
        async with open_log(place.url) as log, FeedClient(log, place.vectors) as feed:
            token = await feed.upsert(["a"], VECTORS[:1])
            async with SearchClient(log, place.search, place.replies) as client:
                await client.search(VECTORS[0], k=1, after=token)
                assert place.service.stop() == 0
                asking = asyncio.create_task(client.search(VECTORS[0], k=1, deadline_ms=60_000))
                await asyncio.to_thread(place.service.start)
                assert (await asking).hits[0].id == b"a"
            status = place.service.status()
    assert status is not None
    assert (status["searches"], status["expired"]) == (1, 0)
