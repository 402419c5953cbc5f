"""Filtered searches of an index: the right rows at every selectivity, and while rows change, go and move."""

import random
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline import InvalidInput, OnlineIndex
from driftline.index.filters import parse_filter
from driftline.index.payloads import items_of, payload_of
from driftline.index.raw import MemoryRawVectors

from ..threads import forever

DIM = 12
LONG_S = 60.0  # no wait in these tests is longer unless something is broken


def gaussian(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(6, DIM))
    return (rng.normal(size=(rows, 6)) @ directions + 0.3 * rng.normal(size=(rows, DIM))).astype(np.float32)


def settle(index: OnlineIndex) -> None:
    while index.maintain(1.0):
        pass


class Model:
    """The rows of an index as plain dicts, and what a filtered search over them must answer."""

    def __init__(self, index: OnlineIndex) -> None:
        self.index = index
        self.vectors: dict[int, np.ndarray] = {}
        self.attributes: dict[int, dict[str, Any]] = {}

    def upsert(self, keys: list[int], vectors: np.ndarray, attributes: list[dict[str, Any]]) -> None:
        self.index.upsert(keys, vectors, attributes)
        self.vectors.update(zip(keys, vectors, strict=True))
        self.attributes.update(zip(keys, attributes, strict=True))

    def delete(self, keys: list[int]) -> None:
        assert self.index.delete(keys) == len(keys)
        for key in keys:
            del self.vectors[key], self.attributes[key]

    def chosen(self, document: dict[str, Any]) -> list[int]:
        asked = parse_filter(document)
        return [key for key, row in self.attributes.items() if asked.matches(items_of(payload_of(row)))]

    def nearest(self, queries: np.ndarray, k: int, document: dict[str, Any]) -> tuple[Any, np.ndarray]:
        keys = np.array(self.chosen(document), np.int64)
        x = np.array([self.vectors[key] for key in keys.tolist()], np.float64).reshape(-1, DIM)
        distances = np.square(x[None] - queries[:, None].astype(np.float64)).sum(axis=2)
        order = np.argsort(distances, axis=1)[:, :k]
        padded = np.full((len(queries), k), np.inf)
        padded[:, : order.shape[1]] = np.take_along_axis(distances, order, axis=1)
        return keys[order].tolist(), padded

    def compare(self, document: dict[str, Any], k: int = 10, least: float = 0.95) -> None:
        """`exact` is the brute force; `search` finds nearly all of it, and nothing that is not chosen."""
        queries = gaussian(20, seed=1)
        wanted, distances = self.nearest(queries, k, document)
        exact = self.index.exact(queries, k, filter=document)
        np.testing.assert_allclose(exact.distances, distances, rtol=1e-3, atol=1e-3)  # keys may be as near
        hits = self.index.search(queries, k, filter=document)
        allowed = set(self.chosen(document))
        assert all(allowed.issuperset(keys) for keys in exact.keys)
        assert all(allowed.issuperset(keys) for keys in hits.keys)
        assert all(len(keys) == len(set(keys)) == min(k, len(allowed)) for keys in hits.keys)
        assert hits.distances.shape == (20, k)
        if allowed:
            shares = [len(set(a) & set(b)) / len(b) for a, b in zip(hits.keys, wanted, strict=True)]
            assert np.mean(shares) >= least, (document, np.mean(shares))


@pytest.fixture
def model() -> Model:
    """2,500 rows: `half`, `tenth`, `rank` (each its own), tags; a few without anything."""
    model = Model(OnlineIndex(DIM))
    tags = (["even"], ["odd", 1], ["odd", 2])
    rows: list[dict[str, Any]] = [
        {"half": n % 2, "tenth": n % 10, "rank": n, "tags": tags[n % 2 and 1 + n // 2 % 2]}
        for n in range(2480)
    ]
    model.upsert(list(range(2500)), gaussian(2500), rows + [{}] * 20)
    return model


@pytest.mark.parametrize(
    "document",
    [
        {}, {"half": 0}, {"not": {"half": 0}}, {"tenth": {"in": [3, 7]}}, {"tenth": 3, "tags": 1},
        {"rank": {"gte": 100, "lt": 125}}, {"rank": {"lt": 3}}, {"rank": 17}, {"rank": -1},
        {"rank": {"in": []}},
        {"not": {"rank": {"exists": True}}}, {"not": {"rank": 17}}, {"tags": "even", "half": 1},
        {"or": [{"rank": {"gt": 2470}}, {"not": {"or": [{"half": 0}, {"tenth": {"gte": 3}}]}}]},
    ],
)  # fmt: skip
def test_every_selectivity(model: Model, document: dict[str, Any]):
    """From all rows to one to none, search and exact against brute force over dicts."""
    model.compare(document)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_other_metrics(metric: str):
    """Filters take part in each metric's order: exact among the chosen is exact without the others."""
    x, queries = gaussian(600), gaussian(5, 3)
    index, others = OnlineIndex(DIM, metric), OnlineIndex(DIM, metric)
    index.upsert(np.arange(600), x, [{"third": n % 3} for n in range(600)])
    others.upsert(np.arange(1, 600, 3), x[1::3])
    found, wanted = index.exact(queries, 20, filter={"third": 1}), others.exact(queries, 20)
    assert [set(keys) for keys in found.keys] == [set(keys) for keys in wanted.keys]
    np.testing.assert_allclose(found.distances, wanted.distances, rtol=1e-5)


def test_rows_change_and_go(model: Model):
    """Attributes changed with and without the vector, deletes, slots used again by others, new fields."""
    model.compare({"half": 0})  # from here on the bitmaps are kept up to date
    x = gaussian(2500, 5)
    model.upsert(list(range(400)), x[:400], [{"half": 0, "tenth": "x"}] * 400)
    same = np.array([model.vectors[key] for key in range(400, 800)])
    model.upsert(list(range(400, 800)), same, [{"half": True, "new": [n, "n"]} for n in range(400)])
    documents = [{"half": 0}, {"half": 1}, {"half": True}, {"tenth": "x"}, {"new": "n"}, {"new": {"lt": 9}}]
    for document in documents:
        model.compare(document)
    model.delete(list(range(300, 1800)))
    for document in documents:
        model.compare(document)
    settle(model.index)
    for document in documents:
        model.compare(document)
    model.upsert(list(range(3000, 4500)), x[:1500], [{"half": 1, "third": n % 3} for n in range(1500)])
    for document in [*documents, {"third": 0}, {"not": {"third": {"exists": True}}}]:
        model.compare(document)
    model.upsert(list(range(3000, 3100)), x[:100], [{}] * 100)
    model.compare({"third": 0})
    model.index.check()


def test_life_at_random():
    """Seeded steps of everything that changes rows, with a search after each."""
    draw = random.Random(11)
    model = Model(OnlineIndex(DIM))
    x = gaussian(4000, 6)
    for step in range(40):
        keys = draw.sample(range(1500), 150)
        rows = [
            {"a": draw.randrange(4), "b": draw.randrange(200)} if draw.random() < 0.9 else {} for _ in keys
        ]
        model.upsert(keys, x[draw.sample(range(4000), 150)], rows)
        live = list(model.vectors)
        model.delete(draw.sample(live, len(live) // draw.choice([3, 8, 20])))
        if step % 3 == 0:
            model.index.maintain(0.01)
        low = draw.randrange(200)
        model.compare({"a": draw.randrange(4), "b": {"gte": low, "lt": low + draw.choice([5, 100])}})
    settle(model.index)
    model.compare({"not": {"a": 2}})
    model.index.check()


def test_bytes_and_mappings():
    """Msgpack maps are filterable, opaque bytes are not, and both come back as they are."""
    index = OnlineIndex(2)
    packed = msgpack.packb({"z": 1, "a": "x"})
    index.upsert([1, 2, 3, 4], np.eye(4, 2, dtype=np.float32), [packed, b"opaque", {"z": 1, "a": "x"}, None])
    assert sorted(index.exact(np.ones((1, 2)), 9, filter={"z": 1}).keys[0]) == [1, 3]
    hits = index.exact(np.ones((1, 2)), 9, filter={"not": {"z": 2}})
    assert dict(zip(hits.keys[0], hits.attributes[0], strict=True)) == {
        1: packed, 2: b"opaque", 3: msgpack.packb({"a": "x", "z": 1}), 4: None,
    }  # fmt: skip
    assert index.upsert([3], np.eye(3, 2, dtype=np.float32)[2:], [{"a": "x", "z": 1}]) == 0


def test_what_is_refused():
    """Unknown fields by name, bad filters by place, bad attributes by row; nothing is changed by them."""
    index = OnlineIndex(2)
    query = np.ones((1, 2), np.float32)
    with pytest.raises(InvalidInput, match="no row has an attribute"):
        index.search(query, filter={"year": 1})
    assert index.search(query, filter={}).keys == [[]]
    index.upsert(["a"], query, [{"year": 1}])
    for ask in (index.search, index.exact):
        with pytest.raises(InvalidInput, match="unknown field 'yaer'; known are 'year'"):
            ask(query, filter={"yaer": 1})
        with pytest.raises(InvalidInput, match=r"filter\.year\.in is"):
            ask(query, filter={"year": {"in": 1}})
        assert ask(query, filter=parse_filter({"year": 1})).keys == [["a"]]
    with pytest.raises(InvalidInput, match="attributes of row 1: 'a' is of type dict"):
        index.upsert(["b", "c"], np.ones((2, 2)), [None, {"a": {}}])
    assert len(index) == 1


@pytest.mark.parametrize("filtered", [True, False])
def test_restoring(model: Model, filtered: bool):
    """A restored index answers as the one that was cut, whether that had its bitmaps, and then it has them
    again at once, or not."""
    if filtered:
        model.compare({"half": 1})
    model.delete(list(range(0, 1500, 7)))
    model.index.maintain(0.01)
    raw = model.index._raw
    assert isinstance(raw, MemoryRawVectors)
    model.index = OnlineIndex.restore(model.index.cut(), raw)
    assert model.index._filtering.built is filtered
    for document in ({"half": 0}, {"rank": {"lt": 9}}, {"not": {"tenth": 3}}, {"tags": 2}):
        model.compare(document)
    model.upsert([1, 9000], gaussian(2, 8), [{"half": 7}, {"half": 7}])
    model.compare({"half": 7})
    model.compare({"rank": {"lt": 9}})


def within(core: Any, name: str, then: Callable[[], None], before: bool = False) -> Callable[..., Any]:
    """A method of the core that also does something in the same call."""
    method = getattr(core, name)

    def both(*arguments: Any, **named: Any) -> Any:
        if before:
            then()
        out = method(*arguments, **named)
        if not before:
            then()
        return out

    return both


def test_between_the_core_and_the_bitmaps(model: Model, monkeypatch: pytest.MonkeyPatch):
    """A search that falls exactly between the core's writing of rows and their bits: keys whose vectors are
    new and whose attributes match as before are all found, once; keys that went over to it or from it are
    right either way; a slot that changed hands gives no wrong hit, and costs none."""
    index, core = model.index, model.index._core
    model.compare({"half": 0})
    model.delete(list(range(1000, 2000)))
    settle(index)
    seen: list[tuple[list[Any], list[Any]]] = []

    def search() -> None:
        for ask in (index.exact, index.search):
            hits = ask(gaussian(1, 4), 2500, filter={"half": 0})
            seen.append((hits.keys[0], hits.attributes[0]))
            assert len(ask(gaussian(3, 4), 7, filter={"half": 0}).keys[0]) == 7

    stay = set(model.chosen({"half": 0})) - set(range(50))
    monkeypatch.setattr(core, "upsert", within(core, "upsert", search))
    model.upsert(list(range(100, 400)), gaussian(300, 9), [model.attributes[n] for n in range(100, 400)])
    model.upsert(list(range(50)), gaussian(50, 10), [{"half": 1}] * 50)
    model.upsert(list(range(5000, 5600)), gaussian(600, 12), [{"half": 1}] * 600)  # into slots of both halves
    assert len(seen) == 12
    for keys, payloads in seen:
        assert stay <= set(keys)
        assert len(keys) == len(set(keys))
        assert all(msgpack.unpackb(payload)["half"] == 0 for payload in payloads)
        assert set(keys) <= stay | set(range(50))
    model.compare({"half": 0})


def test_moves_wait_for_older_searches(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Upkeep as it goes on between the making of a search's bitset and the core's search: no row is missed
    because it moved."""
    index, core = model.index, model.index._core
    model.compare({"half": 0})
    model.delete(random.Random(3).sample(range(2500), 1900))  # sparse slabs: rows are moved together
    wanted = sorted(model.chosen({"half": 0}))
    waiting: list[bool] = []
    steps = 3  # one prepares moves, the next would show them
    upkeep = within(
        core, "exact", lambda: waiting.extend(index.maintain(0.0) for _ in range(steps)), before=True
    )
    for _ in range(60):
        with monkeypatch.context() as patch:
            patch.setattr(core, "exact", upkeep)
            assert sorted(index.exact(gaussian(1), 2500, filter={"half": 0}).keys[0]) == wanted
        index.maintain(0.0)
    assert waiting
    settle(index)
    assert core.slabs == 1  # of three
    model.compare({"half": 0})


def test_a_write_that_fails_loses_nothing(model: Model, monkeypatch: pytest.MonkeyPatch):
    """The core writes some rows and then raises: no slots are told, and the bitmaps are made anew."""
    model.compare({"half": 0})
    rows, core = [{"half": 5}] * 10, model.index._core

    def fail() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(core, "upsert", within(core, "upsert", fail))
        with pytest.raises(MemoryError):
            model.upsert(list(range(10)), gaussian(10, 2), rows)
    model.vectors.update(zip(range(10), gaussian(10, 2), strict=True))
    model.attributes.update(zip(range(10), rows, strict=True))
    model.compare({"half": 5})
    model.compare({"half": 0})


def test_beside_writers_and_upkeep():
    """Threads that write, delete and maintain beside searches, from before the bitmaps are made: hits always
    match, and keys that are live throughout with equal attributes are always there, though their vectors
    change all the time."""
    index = OnlineIndex(DIM)
    x = gaussian(6000)
    stable = [f"stable-{n}" for n in range(150)]
    kept = [{"group": "stable", "n": n} for n in range(150)]
    index.upsert(stable, x[:150], kept)
    index.upsert([f"other-{n}" for n in range(1500)], x[:1500], [{"group": n % 3} for n in range(1500)])
    stop = threading.Event()

    def write(turn: int) -> None:
        draw = random.Random(turn)
        rows = x[draw.sample(range(6000), 150)]
        index.upsert(stable, rows, kept)
        others = draw.sample(range(1500), 100)
        index.upsert(
            [f"other-{n}" for n in others], rows[:100], [{"group": draw.randrange(3)} for _ in others]
        )
        index.delete([f"other-{n}" for n in draw.sample(range(1500), 80)])

    checked = [0, 0]

    def search(turn: int) -> None:
        hits = index.exact(x[turn % 6000][None], 200, filter={"group": "stable"})
        assert sorted(hits.keys[0]) == sorted(stable)
        assert (np.diff(hits.distances[0, :150]) >= 0).all()
        group = turn % 3
        hits = index.search(x[turn % 6000][None], 10, filter={"group": group})
        assert len(hits.keys[0]) == len(set(hits.keys[0])) == 10
        assert all(msgpack.unpackb(payload) == {"group": group} for payload in hits.attributes[0])
        checked[0] += 1
        if checked[0] >= 150:
            stop.set()

    with forever(stop, write, lambda _: index.maintain(0.02), search, search):
        stop.wait(LONG_S)
    assert checked[0] >= 150
    index.check()
