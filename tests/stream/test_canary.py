"""The canary of a real service: live queries are sampled, recall is measured and told, and ef follows it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import open_log

from .running import Place, eventually, gaussian, read_all

DIM = 32
ROWS = 3000
VECTORS = gaussian(ROWS, DIM, 1)
QUERIES = gaussian(40, DIM, 2)


async def ask(place: Place, client: SearchClient, **options: Any) -> None:
    await asyncio.gather(*(client.search(query, k=10, deadline_ms=60_000, **options) for query in QUERIES))


async def fill(place: Place, feed: FeedClient, client: SearchClient) -> None:
    token = await feed.upsert(
        [f"v{row}" for row in range(ROWS)], VECTORS, [{"row": row} for row in range(ROWS)]
    )
    await client.search(VECTORS[0], after=token, deadline_ms=60_000)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(
        f"local:{tmp_path / 'log'}", "canary", tmp_path, index__dim=DIM, index__m=4, search__ef=10,
        search__ef_limit=20, search__recall_target=0.99, canary__sample=40, canary__every_seconds=0,
        canary__budget=1,
    )  # fmt: skip


async def test_recall_is_measured_and_ef_follows(place: Place) -> None:
    """From a width that finds too little to the limit, each step told in the log and on the drift topic; at
    the limit a warning, once. The status says what was measured last."""
    with place.service.start():
        status = place.service.status()
        assert status is not None
        assert (status["ef"], status["recall"]) == (10, None)
        async with (
            open_log(place.url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            await fill(place, feed, client)
            for number in range(1, 6):
                await ask(place, client)
                await eventually(lambda n=number: len(place.service.events("canary.window")) >= n, "a window")
            records = await read_all(log, place.drift)
        status = place.service.status()
        assert status is not None
        windows = place.service.events("canary.window")
        changed = place.service.events("ef.changed")
        told = [json.loads(record.value) for record in records if record.value]
        assert [(event["before"], event["ef"]) for event in changed] == [(10, 15), (15, 20)]
        assert [window["ef"] for window in windows] == [10, 15, 20, 20, 20]
        assert windows[0]["recall"] < windows[2]["recall"] < 0.99
        assert all(window["low"] < window["recall"] < window["high"] for window in windows)
        assert len(place.service.events("search.recall_low")) == 1
        assert {"canary.window", "ef.changed"} <= {event["event"] for event in told}
        assert status["ef"] == 20
        assert status["recall"]["recall"] == windows[-1]["recall"]


async def test_requests_with_a_filter_are_not_sampled(place: Place) -> None:
    """What they should find is another question; those with an ef of their own are, and are answered with
    it."""
    with place.service.start():
        async with (
            open_log(place.url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            await fill(place, feed, client)
            await ask(place, client, filter={"row": {"gte": 10}})
            await ask(place, client, filter={"row": {"gte": 10}})
            assert not place.service.events("canary.window")
            await ask(place, client, ef=ROWS)
            windows = await eventually(lambda: place.service.events("canary.window"), "a window")
            assert windows[0]["ef"] == 10
            await eventually(lambda: place.service.events("ef.changed"), "another width")
            exact = np.sort(((VECTORS - QUERIES[0]) ** 2).sum(axis=1))[:10]
            reply = await client.search(QUERIES[0], k=10, ef=ROWS, deadline_ms=60_000)
            assert [hit.distance for hit in reply.hits] == pytest.approx(exact, rel=1e-4)
