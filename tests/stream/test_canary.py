"""The canary of a real service: live queries are sampled, recall is measured and told, and ef follows it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.index.events import CanaryWindow, EfChanged, Event
from driftline.index.hits import Witnessed
from driftline.index.online import OnlineIndex
from driftline.stream import canary
from driftline.stream.canary import LiveCanary
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.config import Settings
from driftline.stream.log import open_log

from .running import DEADLINE_S, Place, eventually, gaussian, read_all

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


# ---- what follows from a window, without a service


class Around:
    """An index in which nothing is ever found, its shard and its log."""

    def __init__(self, *, drifted: bool = False) -> None:
        self.index, self.drifted = self, drifted
        self.heard: list[bool | None] = []
        self.events: list[Event] = []
        self.told = asyncio.Event()

    def witness(self, queries: np.ndarray, k: int, ef: int, *, rescore: bool, raw: bool) -> Witnessed:
        best = np.zeros((len(queries), k), np.float32)
        return Witnessed(best + 1, best, best if raw else None)

    def heed(self, lost: bool | None) -> None:
        self.heard.append(lost)
        self.told.set()

    async def beside(self, work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    async def emit(self, events: list[Event]) -> None:
        self.events += events

    def warning(self, *_: object, **__: object) -> None:
        raise AssertionError("the limit is far")


async def first_heard(around: Around, *, queries: int, **search: Any) -> LiveCanary:
    """A canary that has run until its index heard of it."""
    settings = Settings.model_validate({"canary": {"sample": 30, "budget": 1}, "search": search})
    live = LiveCanary(settings, around, around, around)  # pyright: ignore[reportArgumentType]
    for _ in range(queries):
        live.offer(np.zeros(4, np.float32))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(live.run())
        async with asyncio.timeout(DEADLINE_S):
            await around.told.wait()
        await asyncio.sleep(0)  # what was heard is told, too
        running.cancel()
    return live


async def test_recall_lost_without_drift_widens() -> None:
    """The index hears of it, and searches go wider."""
    around = Around()
    live = await first_heard(around, queries=30)
    assert around.heard == [True]
    assert live.ef == 96
    assert [type(event) for event in around.events] == [CanaryWindow, EfChanged]


async def test_recall_lost_under_drift_leaves_ef_alone() -> None:
    """Encoding anew comes first."""
    around = Around(drifted=True)
    live = await first_heard(around, queries=30)
    assert around.heard == [True]
    assert live.ef == 64
    assert [type(event) for event in around.events] == [CanaryWindow]


async def test_without_a_target_it_only_measures() -> None:
    """The index decides by drift alone, and ef stays."""
    around = Around()
    live = await first_heard(around, queries=30, recall_target=0)
    assert around.heard == [None]
    assert live.ef == 64
    assert live.status is not None
    assert live.status.recall == 0


async def test_when_queries_end_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour without a batch (here: at once) the index hears that."""
    monkeypatch.setattr(canary, "STALE_S", 0.0)
    around = Around()
    await first_heard(around, queries=29)
    assert set(around.heard) == {None}
    assert not around.events


# ---- a set that drifts


class Drifting:
    """A shard with a real index, whose rows all change to another world; queries are of the newest one."""

    def __init__(self) -> None:
        self.index = OnlineIndex(DIM, m=8, compress_after=1000)
        self.windows: list[CanaryWindow] = []
        self._random = np.random.default_rng(1)
        self._plane = self._random.standard_normal((4, DIM), np.float32)
        self._full = False

    def rows(self, count: int) -> np.ndarray:
        """Hard to search in all directions, easy in four."""
        if self._full:
            return self._random.standard_normal((count, DIM), np.float32)
        return self._random.standard_normal((count, 4), np.float32) @ self._plane

    def drift(self, *, full: bool) -> None:
        self._full = full
        self.index.upsert(np.arange(ROWS), self.rows(ROWS))

    async def beside(self, work: Any, *arguments: Any) -> Any:
        """Upkeep first: what was decided before a batch is done by then."""
        while self.index.maintain(1.0):
            pass
        return work(*arguments)

    async def emit(self, events: list[Event]) -> None:
        self.windows += [event for event in events if isinstance(event, CanaryWindow)]

    def warning(self, *_: object, **__: object) -> None:
        raise AssertionError("the limit is far")


async def checked(live: LiveCanary, around: Drifting, windows: int) -> list[tuple[int, float]]:
    """Ef and recall of the next windows, of new queries each."""
    seen = len(around.windows)
    for number in range(seen + 1, seen + windows + 1):
        for query in around.rows(200):
            live.offer(query)
        await eventually(lambda n=number: len(around.windows) >= n, "a window")
    return [(window.ef, window.recall) for window in around.windows[seen:]]


async def test_ef_rises_and_falls_with_recall_on_a_drifting_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows drift from an easy world to a hard one and back. Recall is lost at the width that sufficed: rows
    get new codes first; then the width rises until recall holds again, and no further. Once the easy world is
    back it comes down to where it was, and recall holds all the while."""
    monkeypatch.setattr(canary, "POLL_S", 0.001)
    around = Drifting()
    settings = Settings.model_validate(
        {
            "canary": {"sample": 200, "budget": 1, "every_seconds": 0},
            "search": {"ef": 16, "recall_target": 0.96},
        }
    )
    live = LiveCanary(settings, around, around, around)  # pyright: ignore[reportArgumentType]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(live.run())
        around.drift(full=False)
        easy = await checked(live, around, 2)
        around.drift(full=True)
        hard = await checked(live, around, 5)
        around.drift(full=False)
        again = await checked(live, around, 26)  # after 12 calm ones it comes down
        running.cancel()
    assert [ef for ef, _ in easy] == [16, 16]
    assert min(recall for _, recall in easy) > 0.96
    assert [ef for ef, _ in hard] == [16, 16, 24, 36, 36]
    assert max(recall for _, recall in hard[:3]) < 0.96 < min(recall for _, recall in hard[3:])
    widths = [ef for ef, _ in again]
    assert widths == sorted(widths, reverse=True)
    assert (widths[0], widths[-1]) == (36, 16)
    assert min(recall for _, recall in again) > 0.96
