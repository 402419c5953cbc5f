"""The online index: keys, metrics, cold start, drift and re-encoding beside searches, cuts and restoring."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from driftline import CorruptIndex, DriftSettings, InvalidInput, OnlineIndex
from driftline.index import online
from driftline.index.cut import Chunk, Cut
from driftline.index.events import (
    DriftDetected,
    DriftWindow,
    EncoderChosen,
    Event,
    FrameOpened,
    FrameRetired,
    ReencodeDeclined,
    ReencodeFinished,
    ReencodeStarted,
)
from driftline.index.raw import MemoryRawVectors
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 24


def settle(index: OnlineIndex) -> None:
    while index.maintain(1.0):
        pass


def gaussian(rows: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Correlated normal rows: eight directions and some noise."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(8, dim))
    return (rng.normal(size=(rows, 8)) @ directions + 0.3 * rng.normal(size=(rows, dim))).astype(np.float32)


def recall(index: OnlineIndex, queries: np.ndarray, k: int = 10, **how: bool) -> float:
    found, true = index.search(queries, k, **how), index.exact(queries, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found.keys, true.keys, strict=True)]))


def of_kind(events: list[Event], *kinds: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kinds)]


def test_the_public_face():
    """The README's calls: upsert, search, delete, with the shapes and types that they promise."""
    x = gaussian(200)
    index = OnlineIndex(DIM)
    assert (
        index.upsert(
            [f"key-{i}" for i in range(200)], x, [b"even" if i % 2 == 0 else None for i in range(200)]
        )
        == 200
    )
    hits = index.search(x[:3], k=5)
    assert [keys[0] for keys in hits.keys] == ["key-0", "key-1", "key-2"]
    assert hits.distances.shape == hits.frames.shape == (3, 5)
    assert hits.distances.dtype == np.float32
    assert [found[0] for found in hits.attributes] == [b"even", None, b"even"]
    assert index.delete(["key-0", "no such key"]) == 1
    assert "key-0" not in index
    assert "key-1" in index
    assert len(index) == 199 == len(index.keys()) == index.stats().live
    assert index.search(x[:1], k=300).distances[0, 199:] == pytest.approx([np.inf] * 101)
    index.check()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_distances_are_as_documented(metric: str):
    """Squared Euclidean, -<q, x> and 1 - cos, ascending, from search and exact alike."""
    x, q = gaussian(50), gaussian(4, 1)
    index = OnlineIndex(DIM, metric)
    index.upsert(np.arange(50), x)
    hits = index.search(q, 50, ef=200)
    for row, (keys, distances) in enumerate(zip(hits.keys, hits.distances, strict=True)):
        near = x[keys].astype(np.float64)
        expected = {
            "l2": ((near - q[row]) ** 2).sum(axis=1),
            "ip": -(near @ q[row]),
            "cosine": 1 - near @ q[row] / np.linalg.norm(near, axis=1) / np.linalg.norm(q[row]),
        }[metric]
        assert distances == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert (np.diff(hits.distances) >= 0).all()
    assert index.exact(q, 50).keys == hits.keys


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [([b"a", b"b"], ["a"]), (["ä", "b"], [1]), ([1, -(2**63)], [b"a"]), (np.array([3, 4], np.uint32), ["a"])],
)
def test_keys_keep_their_kind(keys: list[object], wrong: list[object]):
    """bytes, str and integers come back as they went in; another kind is refused."""
    index = OnlineIndex(2)
    index.upsert(keys, np.eye(2, dtype=np.float32))
    assert sorted(index.keys()) == sorted(keys)
    row = index.get(keys)[1]
    assert row is not None
    assert row.key == keys[1]
    assert row.vector.tolist() == [0, 1]
    with pytest.raises(InvalidInput, match="keys, got"):
        index.delete(wrong)


@pytest.mark.parametrize(
    ("keys", "vectors", "reason"),
    [
        ([b""], [[1, 2]], "1 to 511 bytes"),
        ([b"k" * 512], [[1, 2]], "1 to 511 bytes"),
        ([b"k", "k"], [[1, 2], [1, 2]], "all bytes, all str or all integers"),
        ([2**63], [[1, 2]], "64 bits"),
        (["k"], [[1, 2, 3]], r"shape \[n, 2\]"),
        (["k", "l"], [[1, 2]], "2 keys, 1 vectors"),
        (["k"], [[1, np.nan]], "not finite"),
        (["k"], [[1, np.inf]], "not finite"),
        (["k"], [[1, 1e30]], "beyond 1e"),
        (["k", "l"], [[1, 2], [0, 0]], "vector 1 has no direction"),
        ("k", [[1, 2]], "a sequence of keys"),
        ([True], [[1, 2]], "got bool"),
    ],
)
def test_bad_input_changes_nothing(keys: list[object], vectors: list[list[float]], reason: str):
    """Every refusal says which row and why, and the index is as it was."""
    index = OnlineIndex(2, "cosine")
    with pytest.raises(InvalidInput, match=reason):
        index.upsert(keys, np.array(vectors))
    assert len(index) == 0
    assert index.upsert([b"a"], [[1, 2]]) == 1


@pytest.mark.parametrize("filter", [None, {"kind": "a"}])
@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ([[0, 0]], "query 0 has no direction"),
        ([[1, 2], [np.nan, 1]], "query 1 holds a component that is not finite"),
        ([[1, 2, 3]], "expected a query array of shape"),
    ],
)
def test_bad_queries_are_refused(query: list[list[float]], reason: str, filter: dict[str, str] | None):
    """With a filter or without; the refusal says which row and why."""
    index = OnlineIndex(2, "cosine")
    index.upsert([b"a"], [[1, 2]], [{"kind": "a"}])
    with pytest.raises(InvalidInput, match=reason):
        index.search(np.array(query), filter=filter)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 0},
        {"dim": 4097},
        {"dim": 3, "m": 1},
        {"dim": 3, "ef_construction": 0},
        {"dim": 3, "metric": "l1"},
    ],
)
def test_shapes_out_of_range_are_refused(arguments: dict[str, object]):
    """The constructor names the argument and its range."""
    with pytest.raises(InvalidInput, match="must be"):
        OnlineIndex(**arguments)
    with pytest.raises(InvalidInput, match="k and ef must be"):
        OnlineIndex(2).search(np.ones((1, 2)), k=0)
    with pytest.raises(InvalidInput, match="k and ef must be"):
        OnlineIndex(2).search(np.ones((1, 2)), ef=0)


def test_the_last_of_equal_keys_counts_and_identical_rows_are_no_change():
    """A key twice in a batch: the last wins. The same bytes again: nothing happens, unless attributes
    differ."""
    index = OnlineIndex(2)
    assert index.upsert(["a", "b", "a"], [[1, 1], [2, 2], [3, 3]]) == 2
    assert index.upsert(["a", "b"], [[3, 3], [2, 2]]) == 0
    assert index.upsert(["a", "b"], [[3, 3], [2, 2]], [None, b"x"]) == 1
    assert index.stats().slots == 3
    assert index.search(np.ones((1, 2)), 5).keys == [["b", "a"]]


def test_rows_are_floats_until_a_code_can_be_fitted():
    """Frame 0 holds floats; from 1,000 rows on they become codes, searches going on; nothing is lost on the
    way."""
    x = gaussian(3000)
    index = OnlineIndex(DIM)
    index.upsert(np.arange(900), x[:900])
    settle(index)
    assert [frame.kind for frame in index.stats().frames] == ["float"]
    index.upsert(np.arange(900, 3000), x[900:])
    settle(index)
    assert [(frame.kind, frame.rows) for frame in index.stats().frames] == [("tile", 3000)]
    index.check()
    events = index.take_events()
    assert [
        event.name for event in of_kind(events, FrameOpened, ReencodeStarted, ReencodeFinished, FrameRetired)
    ] == [
        "frame.opened",
        "reencode.started",
        "reencode.finished",
        "frame.retired",
    ]
    (chosen,) = of_kind(events, EncoderChosen)
    assert (chosen.distribution, chosen.rotation) == ("normal", "random")
    assert [(code.distribution, code.rotation) for code in chosen.measured] == [
        ("normal", "random"),
        ("normal", "none"),
    ]
    assert recall(index, gaussian(50, 1)) > 0.97
    assert recall(index, gaussian(50, 1), rescore=False) > 0.9


def test_events_that_nobody_takes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "EVENTS", 5)
    index = OnlineIndex(DIM, drift=DriftSettings(window_rows=64))
    index.upsert(np.arange(3000), gaussian(3000))
    settle(index)
    index.upsert(np.arange(3000), gaussian(3000, seed=2))
    windows = [event.rows_seen for event in index.take_events() if isinstance(event, DriftWindow)]
    assert windows == [5952 - 64 * ago for ago in range(4, -1, -1)]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_rows_and_drift_sees_each_once(threads: int) -> None:
    x = gaussian(5120)
    index = OnlineIndex(DIM, compress_after=1000, drift=DriftSettings(window_rows=256))
    assert index.upsert(np.arange(5120), x, threads=threads) == 5120
    index.check()
    assert np.array_equal(np.stack([row.vector for row in index.get(np.arange(5120)) if row]), x)
    settle(index)
    assert index.upsert(np.arange(5120), gaussian(5120, seed=1), threads=threads) == 5120
    told = [event.rows_seen for event in index.take_events() if isinstance(event, DriftWindow)]
    assert told[-1] == 10240
    assert np.all(np.diff(told) == 256)


def test_compress_after_is_obeyed():
    """The stated number of rows, neither fewer nor more."""
    index = OnlineIndex(DIM, compress_after=100)
    index.upsert(np.arange(99), gaussian(99))
    settle(index)
    assert index.stats().frames[0].kind == "float"
    index.upsert([99], gaussian(1, 5))
    settle(index)
    assert index.stats().frames[0].kind == "tile"


@pytest.mark.parametrize("raw", ["memory", None])
def test_without_raw_vectors(raw: str | None):
    """An index that keeps none compresses once, gives decoded vectors back, and forgets its floats."""
    x = gaussian(1500)
    index = OnlineIndex(DIM, raw=raw, compress_after=1000)
    index.upsert(np.arange(1500), x)
    settle(index)
    index.check()
    row = index.get([7])[0]
    assert row is not None
    assert ((row.vector - x[7]) ** 2).sum() < (0.002 if raw is None else 1e-12) * (x[7] ** 2).sum()
    assert recall(index, gaussian(50, 1)) > 0.9


def drifting(index: OnlineIndex, x: np.ndarray) -> list[Event]:
    for start in range(0, len(x), 250):
        index.upsert(np.arange(start, start + 250), x[start : start + 250])
        index.maintain(0.05)
    settle(index)
    return index.take_events()


@pytest.fixture(scope="module")
def two_worlds() -> np.ndarray:
    """6,000 rows of one distribution, then 6,000 that are three times as wide and moved."""
    x = gaussian(12_000)
    x[6000:] = 3 * x[6000:] + 4
    return x


def test_drift_opens_a_frame_and_encodes_what_gains(two_worlds: np.ndarray):
    """An abrupt change is reported within three windows; only rows of the new world move, as much better as
    predicted."""
    index = OnlineIndex(DIM)
    events = drifting(index, two_worlds)
    index.check()
    detected = of_kind(events, DriftDetected)
    assert len(detected) == 1
    assert isinstance(detected[0], DriftDetected)
    assert 6000 <= detected[0].rows_seen <= 9000
    finished = [event for event in events if isinstance(event, ReencodeFinished) and event.predicted_gain]
    assert finished
    for event in finished:
        # a slab may take more rows of the new world between its survey and its move
        assert event.measured_gain == pytest.approx(event.predicted_gain, rel=0.4)
        assert event.measured_gain is not None
        assert event.measured_gain > 1.5
    rows = index.get(np.arange(12_000))
    frames = np.array([row.frame for row in rows if row is not None])
    assert set(frames[:5000]) == {1}
    assert set(frames[7000:]) == {2}


def test_a_world_that_returns_uses_its_frame_again(two_worlds: np.ndarray):
    """Back in the old world the frame that is still alive is taken, and no third one opens."""
    index = OnlineIndex(DIM)
    drifting(index, two_worlds)
    back = gaussian(5000, 8)
    for start in range(0, 5000, 250):
        index.upsert(np.arange(20_000 + start, 20_250 + start), back[start : start + 250])
        index.maintain(0.05)
    settle(index)
    assert [event.frame for event in index.take_events() if isinstance(event, FrameOpened)] == [1]
    index.check()


def test_more_worlds_than_frames():
    """Six worlds in a row: never more than four frames, one goes for each new one, and every row is found."""
    index = OnlineIndex(DIM, drift=DriftSettings(window_rows=256))
    worlds = [gaussian(3000, 20 + w) * 4.0**w + w for w in range(6)]
    most = 0
    for w, x in enumerate(worlds):
        for start in range(0, 3000, 250):
            index.upsert(np.arange(3000 * w + start, 3000 * w + start + 250), x[start : start + 250])
            index.maintain(0.05)
            most = max(most, len(index.stats().frames))
    settle(index)
    index.check()
    assert most <= 4
    assert len(of_kind(index.take_events(), FrameOpened)) >= 5
    hits = index.search(np.concatenate([x[::500] for x in worlds]), 1, ef=100)
    assert [keys[0] for keys in hits.keys] == [3000 * w + i for w in range(6) for i in range(0, 3000, 500)]


def test_a_change_that_costs_nothing_is_declined():
    """A shift that the code covers is drift, and is reported; encoding anew would not pay, and that is
    said."""
    x = gaussian(9000)
    x[5000:] += 0.35 * x.std(axis=0)
    index = OnlineIndex(DIM, drift=DriftSettings(min_gain=1.5))
    events = drifting(index, x)
    assert of_kind(events, DriftDetected)
    declined = [event for event in events if isinstance(event, ReencodeDeclined)]
    assert declined
    assert declined[0].expected_gain is not None
    assert 1.0 <= declined[0].expected_gain < declined[0].threshold == 1.5
    assert [frame.frame for frame in index.stats().frames] == [1]


@pytest.fixture
def asked(two_worlds: np.ndarray) -> Iterator[tuple[OnlineIndex, list[str]]]:
    """An index that is searched without pause; what went wrong."""
    index = OnlineIndex(DIM)
    index.upsert(np.arange(100_000, 100_050), gaussian(50, 3))
    stop, wrong = threading.Event(), list[str]()

    def ask() -> None:
        while not stop.is_set():
            hits = index.search(two_worlds[:2], 10)
            if any(len(set(keys)) != 10 for keys in hits.keys):
                wrong.append(f"{hits.keys}")

    thread = threading.Thread(target=ask)
    thread.start()
    yield index, wrong
    stop.set()
    thread.join()


def test_searches_go_on_through_drift(asked: tuple[OnlineIndex, list[str]], two_worlds: np.ndarray):
    """Beside compression, a new frame and a re-encode, every search gives ten distinct keys."""
    index, wrong = asked
    events = drifting(index, two_worlds)
    assert len(of_kind(events, ReencodeFinished)) >= 2
    assert not wrong, wrong[0]


def test_windows_end_with_the_times_that_writers_tell():
    """Rows of one minute make a window, though a thousand would fill one; the clock is the writer's."""
    index = OnlineIndex(DIM, compress_after=100, drift=DriftSettings(window_seconds=60))
    for minute in range(5):
        keys = np.arange(200 * minute, 200 * minute + 200)
        index.upsert(keys, gaussian(200, minute), now_ms=60_000 * minute)
        settle(index)
    told = [event for event in index.take_events() if isinstance(event, DriftWindow)]
    assert [(event.rows, event.seconds) for event in told] == [(200, 60.0)] * len(told)
    assert len(told) == 3  # the first is what the ruler is made of; the fifth is open


# ---- cuts


def whole(cut: Cut, before: dict[str, Chunk] | None = None) -> Cut:
    """With the bytes that `before` holds where the cut says that they are unchanged."""
    chunks = {
        name: chunk if chunk.data is not None else (before or {})[name] for name, chunk in cut.chunks.items()
    }
    return Cut(chunks, cut.state, cut.segments, cut.live)


def test_a_restored_index_goes_on_as_if_nothing_had_happened(two_worlds: np.ndarray):
    """Cut in the middle of the stream: the restored one answers the same and sees the drift at the same
    row."""
    raw = MemoryRawVectors(DIM)
    index = OnlineIndex(DIM, raw=raw)
    drifting(index, two_worlds[:6500])
    cut = whole(index.cut())
    other = OnlineIndex.restore(cut, raw)
    other.check()
    assert sorted(other.keys()) == sorted(index.keys())
    assert other.search(two_worlds[:20]).keys == index.search(two_worlds[:20]).keys
    seen: list[list[int]] = []
    for one in (index, other):
        for start in range(6500, 10_000, 250):
            one.upsert(np.arange(start, start + 250), two_worlds[start : start + 250])
        seen.append([event.rows_seen for event in one.take_events() if isinstance(event, DriftDetected)])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1


def test_a_cut_shares_what_is_unchanged():
    """Chunks whose version is known come without bytes; together with the old ones they restore."""
    index = OnlineIndex(DIM, compress_after=100)
    x = gaussian(5000)
    index.upsert(np.arange(5000), x)
    settle(index)
    first = whole(index.cut())
    versions = {name: chunk.version for name, chunk in first.chunks.items()}
    second = index.cut(versions)
    assert all(chunk.data is None for chunk in second.chunks.values())
    index.delete([17])
    third = whole(index.cut(versions), dict(first.chunks))
    (delta,) = third.chunks.keys() - versions.keys()
    assert len(third.chunks[delta].data or b"") < 500
    raw = index._raw
    assert raw is not None
    restored = OnlineIndex.restore(third, raw)
    restored.check()
    assert len(restored) == 4999


def test_cuts_while_rows_move_and_slabs_go():
    """After every step of the upkeep that empties sparse slabs, a cut that shares with the one before it what
    is unchanged restores to the same rows; so do cuts of slabs that have come again."""
    raw = MemoryRawVectors(DIM)
    index = OnlineIndex(DIM, raw=raw, compress_after=100)
    x = gaussian(4500)
    index.upsert(np.arange(4500), x)
    settle(index)
    chunks: dict[str, Chunk] = {}

    def expect_restored(keys: list[int]) -> None:
        nonlocal chunks
        cut = whole(index.cut({name: chunk.version for name, chunk in chunks.items()}), chunks)
        chunks = dict(cut.chunks)
        other = OnlineIndex.restore(cut, raw)
        other.check()
        assert sorted(map(int, other.keys())) == keys == sorted(map(int, index.keys()))
        found = {hit for hits in other.search(x[:4], 500, ef=500).keys for hit in hits}
        assert found <= set(keys)

    expect_restored(list(range(4500)))
    kept = list(range(0, 4500, 15))
    index.delete(np.setdiff1d(np.arange(4500), kept))
    slabs = index._core.slabs
    more = True
    while more:
        more = index.maintain(0.0)
        expect_restored(kept)
    assert index._core.slabs == 1 < slabs
    index.upsert(np.arange(4500), x)
    assert index._core.slabs == slabs
    expect_restored(list(range(4500)))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damaged_states_are_refused(data: st.DataObject):
    """A state with a byte changed or cut short restores to a sound index or raises CorruptIndex, nothing
    else."""
    raw = MemoryRawVectors(4)
    index = OnlineIndex(4, raw=raw, compress_after=64)
    index.upsert(np.arange(80), gaussian(80, dim=4))
    settle(index)
    cut = whole(index.cut())
    state = bytearray(cut.state)
    at = data.draw(st.integers(0, len(state) - 1))
    if data.draw(st.booleans()):
        state[at] ^= data.draw(st.integers(1, 255))
    else:
        del state[at:]
    try:
        other = OnlineIndex.restore(Cut(cut.chunks, bytes(state), cut.segments, cut.live), raw)
    except (CorruptIndex, InvalidInput):
        return
    other.search(gaussian(2, dim=4))


def test_raw_segments_are_given_back():
    """Rows replaced many times over: segments that no slot refers to are released."""
    raw = MemoryRawVectors(DIM)
    index = OnlineIndex(DIM, raw=raw, compress_after=100)
    rows = gaussian(50_000)
    for start in range(0, 200_000, 1000):
        index.upsert(np.arange(1000), rows[start % 50_000 :][:1000] + start)
        settle(index)
    index.check()
    assert len(raw.segments()) <= 3


def test_views_outlast_what_is_forgotten():
    """Rows in memory, looked at without copying: read-only, the same after their segment was released."""
    raw = MemoryRawVectors(DIM)
    rows = gaussian(3 * (4_194_304 // (4 * DIM)))
    ids = raw.append(rows)
    views = raw.views(ids)
    assert raw.forget(frozenset()) == {0, 1}
    assert len(views) == 3
    np.testing.assert_array_equal(np.concatenate(views), rows)
    assert not any(view.flags.writeable for view in views)


def test_without_raw_vectors_a_fifth_world_is_declined():
    """Where no frame can be emptied, upkeep says so and ends; it does not try for ever."""
    index = OnlineIndex(DIM, raw=None, drift=DriftSettings(window_rows=256))
    for w in range(6):
        x = gaussian(3000, 20 + w) * 4.0**w + w
        for start in range(0, 3000, 250):
            index.upsert(np.arange(3000 * w + start, 3000 * w + start + 250), x[start : start + 250])
            index.maintain(0.05)
    settle(index)
    index.check()
    declined = [event for event in index.take_events() if isinstance(event, ReencodeDeclined)]
    assert any("no frame can make room" in event.reason for event in declined)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_within_a_radius_is_what_brute_force_finds(metric: str):
    """Radii that hold none, a few and hundreds of the rows: all come, nearest first, up to the limit."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3000, 12)).astype(np.float32)
    index = OnlineIndex(12, metric, compress_after=1000)
    index.upsert(range(3000), x)
    while index.maintain(1):
        pass
    true = index.exact(x[:20], 3000)
    for rank in (1, 10, 400):
        radius = float(np.median(true.distances[:, rank]))
        found = index.within(x[:20], radius, limit=3000)
        wanted = (true.distances <= radius).sum(axis=1)
        got = np.array([len(keys) for keys in found.keys])
        assert got.sum() >= 0.99 * wanted.sum()
        assert (got <= wanted).all()
        assert (found.distances[np.isfinite(found.distances)] <= radius).all()
        assert (np.diff(found.distances[:, : int(got.min())], axis=1) >= 0).all()
    assert [len(keys) for keys in index.within(x[:2], -1e9).keys] == [0, 0]
    assert [len(keys) for keys in index.within(x[:2], 1e9, limit=7).keys] == [7, 7]
    with pytest.raises(InvalidInput, match="radius must be"):
        index.within(x[:2], float("nan"))
