"""Shards and a gateway as real processes: the answers of one index, one reply each, flagged when partial."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline.errors import SearchFailed
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import Draft, Log, open_log
from driftline.stream.messages import Form, ReplyRoute, route_headers
from driftline.stream.partitioner import partition_of

from .fleet import PARTITIONS, SHARDS, Fleet
from .running import DEADLINE_S, Place, Vectors, eventually, gaussian, read_all

DIM = 8
ROWS = 600
VECTORS = gaussian(ROWS, DIM, 1)
QUERIES = gaussian(20, DIM, 2)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three shards with 600 vectors in 6 partitions, the gateway inside the first."""
    directory = tmp_path_factory.mktemp("fleet")
    with Fleet(f"local:{directory / 'log'}", "fleet", directory, inside=True, index__dim=DIM) as fleet:
        asyncio.run(fill(fleet))
        yield fleet


async def fill(fleet: Fleet) -> None:
    async with open_log(fleet.url) as log, FeedClient(log, fleet.vectors) as feed:
        attributes = [{"row": row} for row in range(ROWS)]
        await feed.upsert([f"v{row}" for row in range(ROWS)], VECTORS, attributes)
    await eventually(fleet.caught_up, "everything applied")


@pytest.fixture
async def log(fleet: Fleet) -> AsyncIterator[Log]:
    async with open_log(fleet.url) as log:
        yield log


@pytest.fixture
async def client(fleet: Fleet, log: Log) -> AsyncIterator[SearchClient]:
    async with SearchClient(log, fleet.search, fleet.replies) as client:
        yield client


def nearest(query: Vectors, rows: Vectors) -> list[bytes]:
    return [b"v%d" % rows[place] for place in np.argsort(((VECTORS[rows] - query) ** 2).sum(1))[:5]]


def in_shards(*numbers: int) -> Vectors:
    """Rows whose keys are in these shards."""
    held = [partition for number in numbers for partition in SHARDS[number]]
    return np.array([row for row in range(ROWS) if partition_of(b"v%d" % row, PARTITIONS) in held])


@pytest.mark.parametrize("form", [Form.MSGPACK, Form.JSON])
async def test_the_answers_are_those_of_one_index(fleet: Fleet, log: Log, form: Form) -> None:
    """In both forms, against numpy: ids, distances, attributes, vectors; offsets of all partitions; whole."""
    rows = np.arange(ROWS)
    async with SearchClient(log, fleet.search, fleet.replies, form=form) as client:
        for query in QUERIES:
            reply = await client.search(query, k=5, ef=ROWS, include=["attributes", "vector", "query"])
            wanted = nearest(query, rows)
            assert [hit.id for hit in reply.hits] == wanted
            for hit in reply.hits:
                row = int(hit.id[1:])
                assert hit.attributes == {"row": row}
                assert hit.vector is not None
                assert np.array_equal(hit.vector, VECTORS[row])
                assert np.isclose(hit.distance, ((VECTORS[row] - query) ** 2).sum(), rtol=1e-5)
            assert reply.query is not None
            assert np.array_equal(reply.query, query)
            assert reply.applied[fleet.vectors].keys() == set(range(PARTITIONS))
            assert not reply.partial


async def test_asking_with_a_key(client: SearchClient) -> None:
    """Whichever shard has it: the neighbours are of all; an id that nobody has is said so."""
    for row in range(12):
        reply = await client.search(key=f"v{row}", k=5, ef=ROWS, include=["query"])
        assert [hit.id for hit in reply.hits] == nearest(VECTORS[row], np.arange(ROWS))
        assert reply.query is not None
        assert np.array_equal(reply.query, VECTORS[row])
        assert not reply.partial
    with pytest.raises(SearchFailed, match="unknown_key"):
        await client.search(key="never there")


async def test_fields_that_one_shard_does_not_know(fleet: Fleet, log: Log, client: SearchClient) -> None:
    """A filter means the same wherever a field is: known to one shard, it is no error, and `not` of it
    chooses the vectors of the others; known to none, it is one."""
    key = next(f"rare{n}" for n in range(100) if partition_of(b"rare%d" % n, PARTITIONS) in SHARDS[1])
    async with FeedClient(log, fleet.vectors) as feed:
        token = await feed.upsert([key], VECTORS[:1] + 100, [{"rare": 1}])
        reply = await client.search(QUERIES[0], k=5, after=token, filter={"rare": 1}, deadline_ms=60_000)
        assert [hit.id.decode() for hit in reply.hits] == [key]
        for chosen in ({"not": {"rare": 1}}, {"or": [{"rare": 2}, {"row": {"gte": 0}}]}):
            reply = await client.search(QUERIES[0], k=5, ef=ROWS, filter=chosen)
            assert [hit.id for hit in reply.hits] == nearest(QUERIES[0], np.arange(ROWS))
        with pytest.raises(SearchFailed, match="unknown field 'raw'") as failed:
            await client.search(QUERIES[0], filter={"or": [{"row": 1}, {"raw": 1}]})
        assert failed.value.code == "bad_filter"
        await feed.delete([key])


async def test_reading_ones_writes(fleet: Fleet, log: Log, client: SearchClient) -> None:
    """A token of several partitions is waited for by the shard of each; what nobody wrote is said."""
    async with FeedClient(log, fleet.vectors) as feed:
        keys = [f"w{n}" for n in range(30)]
        for turn in range(3):
            far = gaussian(30, DIM, 3 + turn) + 50
            token = await feed.upsert(keys, far)
            assert len(token[fleet.vectors]) > 3
            reply = await client.search(far[0], k=30, ef=ROWS, after=token, include=["vector"])
            assert {hit.id.decode() for hit in reply.hits} == set(keys)
            for hit in reply.hits:
                assert np.array_equal(np.asarray(hit.vector), far[int(hit.id[1:])])
        await feed.delete(keys)
    ends = await log.end_offsets(fleet.vectors)
    beyond = {fleet.vectors: {0: ends[0], 3: ends[3] + 1}}
    with pytest.raises(SearchFailed, match=rf"offset_unknown.*partition 3, which ends at {ends[3]}"):
        await client.search(QUERIES[0], after=beyond, deadline_ms=3000)
    with pytest.raises(SearchFailed, match="unknown_offsets"):
        await client.search(QUERIES[0], after={fleet.vectors: {6: 1}})


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "wrong dimension": ("wrong_dimension", {"vector": [1.0] * (DIM + 1)}),
    "NaN": ("not_finite", {"vector": np.full(DIM, np.nan, "<f4").tobytes()}),
    "no query": ("no_query", {"k": 3}),
    "k too large": ("k_out_of_range", {"key": "v1", "k": 1001}),
    "misspelt field": ("unknown_field", {"key": "v1", "kk": 3}),
    "malformed filter": ("bad_filter", {"key": "v1", "filter": {"row": {"above": 1}}}),
}


async def test_one_reply_each(fleet: Fleet, log: Log) -> None:
    """Requests good and bad, many at once: each has exactly one reply, with its correlation id and trace, the
    bad ones with their reason."""
    trace = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    asked: dict[bytes, str] = {}
    drafts: list[Draft] = []
    good: tuple[str, dict[str, Any]] = ("", {"vector": QUERIES[0].tolist(), "k": 2})
    for code, document in [*WRONG.values(), *[good] * 30]:
        correlation = uuid.uuid4().bytes
        headers = (*route_headers(ReplyRoute(fleet.replies, 0, correlation)), trace)
        drafts.append(Draft(fleet.search, None, msgpack.packb(document), headers))
        asked[correlation] = code
    await log.append(drafts)
    found: dict[bytes, list[bytes]] = {}
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < len(asked):
            found = {}
            for record in await read_all(log, fleet.replies):
                headers = dict(record.headers)
                if headers.get("kafka_correlationId") in asked:
                    assert headers["traceparent"] == trace[1]
                    found.setdefault(headers["kafka_correlationId"], []).append(record.value or b"")
    assert [len(values) for values in found.values()] == [1] * len(asked)
    for correlation, (value,) in found.items():
        document = msgpack.unpackb(value)
        code = document["error"]["code"] if "error" in document else ""
        assert code == asked[correlation]


async def test_a_killed_shard(fleet: Fleet, client: SearchClient) -> None:
    """One of three is killed: answers come from the others, flagged with its partitions, at the deadline
    once and without delay then; what only it can know is `unavailable`. After its restart they are whole."""
    query = QUERIES[0]
    service = fleet.shards[2].service
    service.kill()
    reply = await client.search(query, k=5, ef=ROWS, deadline_ms=3000)
    assert [hit.id for hit in reply.hits] == nearest(query, in_shards(0, 1))
    assert tuple(reply.partial) == SHARDS[2]
    assert reply.applied[fleet.vectors].keys() == {*SHARDS[0], *SHARDS[1]}
    began = time.monotonic()
    reply = await client.search(query, k=5, ef=ROWS, deadline_ms=60_000)
    assert time.monotonic() - began < 30
    assert tuple(reply.partial) == SHARDS[2]
    here, gone = (int(in_shards(number)[0]) for number in (0, 2))
    assert (await client.search(key=f"v{here}", k=1, ef=ROWS)).hits[0].id == b"v%d" % here
    with pytest.raises(SearchFailed, match=r"unavailable.*4, 5 did not"):
        await client.search(key=f"v{gone}", k=1)
    with pytest.raises(SearchFailed, match="unavailable"):
        await client.search(key="never there", k=1)
    status = fleet.shards[0].service.status()
    assert status is not None
    assert status["gateway"]["absent"] == list(SHARDS[2])
    assert status["gateway"]["partial"] >= 3
    await asyncio.to_thread(service.start)
    async with asyncio.timeout(DEADLINE_S):
        while (reply := await client.search(query, k=5, ef=ROWS)).partial:
            pass
    assert [hit.id for hit in reply.hits] == nearest(query, np.arange(ROWS))
    assert (await client.search(key=f"v{gone}", k=1, ef=ROWS)).hits[0].id == b"v%d" % gone


def test_a_request_that_waits_for_an_absent_shard(fleet: Fleet) -> None:
    """Who wrote to its partition waits for it as long as the deadline allows, absent or not."""

    async def ask() -> None:
        async with (
            open_log(fleet.url) as log,
            FeedClient(log, fleet.vectors) as feed,
            SearchClient(log, fleet.search, fleet.replies) as client,
        ):
            service = fleet.shards[1].service
            service.kill()
            assert (await client.search(QUERIES[0], k=1, deadline_ms=3000)).partial
            key = next(f"x{n}" for n in range(100) if partition_of(b"x%d" % n, PARTITIONS) in SHARDS[1])
            far = VECTORS[:1] - 100
            token = await feed.upsert([key], far)
            asking = asyncio.create_task(client.search(far[0], k=1, after=token, deadline_ms=60_000))
            await asyncio.to_thread(service.start)
            reply = await asking
            assert (reply.hits[0].id.decode(), tuple(reply.partial)) == (key, ())
            await feed.delete([key])

    asyncio.run(ask())


async def test_a_gateway_without_shards(tmp_path: Path) -> None:
    """Nobody answers: said at the deadline, as an error. It stops in order."""
    name = "alone"
    place = Place(f"local:{tmp_path / 'log'}", name, tmp_path, topics__partitions=2)
    with place.service as gateway:
        gateway.start(program="gateway", ready=False)
        await eventually(lambda: gateway.events("gateway.serving"), "the gateway serves")
        async with open_log(place.url) as log, SearchClient(log, place.search, place.replies) as client:
            with pytest.raises(SearchFailed, match="unavailable: no shard"):
                await client.search([1.0, 2.0], deadline_ms=3000)
        assert gateway.stop() == 0
        names = [event["event"] for event in gateway.events()]
        assert names[-2:] == ["search.refused", "gateway.stopped"]
