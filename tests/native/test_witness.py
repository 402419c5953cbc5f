"""The canary's witness: both answers against search and brute force, and that they speak of one moment."""

import threading

import numpy as np
import pytest
from driftline.errors import InvalidInput
from driftline.native import Core

from .tiles import core_of, distances, keys_of, tile_of


def built(metric: str, *, rotated: bool = True, raw: bool = True, rows: int = 1500, dim: int = 33) -> tuple:
    """A core of tile codes, its rows, and queries more than share a pass."""
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(rows, dim)).astype(np.float32) + 0.3
    core = core_of(x, metric, tile=tile_of(x, metric=metric, rotated=rotated))
    core.upsert(keys_of(range(rows)), [b""] * rows, x, np.arange(rows, dtype=np.uint64) if raw else None)
    return core, x, rng.normal(size=(37, dim)).astype(np.float32) + 0.3


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_best_by_code_are_the_best(metric: str, rotated: bool):
    """The pass over codes with 8k measured again, the pass over raw vectors and the core's exact search
    agree, and the other answer is that of a search; for each metric, over three passes."""
    core, x, q = built(metric, rotated=rotated)
    found, best, exact = core.witness(q, 10, 12, 20, raw=True)
    truth = core.exact(q, 10).distances
    assert np.array_equal(exact, truth)
    assert np.array_equal(best, truth)
    assert truth == pytest.approx(np.sort(distances(metric, x, q), axis=1)[:, :10], rel=1e-4, abs=1e-4)
    assert np.array_equal(found, core.search(q, 10, 12, 20).distances)
    assert (found > best).any(), "so few candidates must miss something, or the test shows nothing"


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_without_raw_vectors_codes_are_the_truth(metric: str):
    """Distances by all eight bits on both sides, so that a hit is never lost by rounding."""
    core, _, q = built(metric, raw=False)
    found, best, exact = core.witness(q, 10, 1500, 1500, raw=True)
    assert np.array_equal(best, core.exact(q, 10).distances)
    assert np.array_equal(exact, best)
    assert np.array_equal(found, best)


def test_a_search_that_is_not_rescored_is_measured_by_raw_vectors():
    """Which hits it found by code shows in the recall, at their true distances."""
    core, x, q = built("l2")
    found, best, _ = core.witness(q, 10, 1500, 0, raw=False)
    by_code = core.search(q, 10, 1500, 0)
    own = [
        sorted(distances("l2", x[[int(key[4:]) for key in keys]], q[i : i + 1])[0])
        for i, keys in enumerate(by_code.keys)
    ]
    assert found == pytest.approx(np.array(own), rel=1e-4)
    assert by_code.distances != pytest.approx(found, rel=1e-4)
    assert 0.9 < (found <= best[:, -1:]).mean() < 1


def test_floats_dead_and_vacant_slots():
    """Rows in floats beside rows in codes, deleted ones before and after their repair, places used again:
    the best are those of the exact search every time."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3000, 8)).astype(np.float32)
    rows = np.arange(3000, dtype=np.uint64)
    core = core_of(x, m=6, tile=None)
    core.upsert(keys_of(range(1100)), [b""] * 1100, x[:1100], rows[:1100])
    core.open_frame(1, tile_of(x))
    core.write_frame(1)
    core.upsert(keys_of(range(1100, 2200)), [b""] * 1100, x[1100:2200], rows[1100:2200])
    core.delete(keys_of(range(0, 2200, 3)))

    def agree() -> None:
        found, best, exact = core.witness(x[:20], 5, 3000, 3000, raw=True)
        assert np.array_equal(best, core.exact(x[:20], 5).distances)
        assert np.array_equal(exact, best)
        assert np.array_equal(found, best)

    assert core.slab(0).is_float
    agree()
    while core.upkeep(eager=True):
        pass
    agree()
    core.upsert(keys_of(range(2200, 2700)), [b""] * 500, x[2200:2700], rows[2200:2700])
    core.reencode(0, 1)
    agree()


def test_few_rows_and_none():
    """Beyond what is live there is infinity, in every answer."""
    core, x, _ = built("l2", rows=3)
    for answer in core.witness(x[:1], 5, 10, 10, raw=True):
        assert answer is not None
        assert np.isfinite(answer[0, :3]).all()
        assert np.isinf(answer[0, 3:]).all()
        assert answer[0, 0] == 0
    core.delete(keys_of(range(3)))
    for answer in core.witness(x[:2], 5, 10, 10, raw=True):
        assert answer is not None
        assert np.isinf(answer).all()


def test_both_answers_are_of_one_moment():
    """While rows come nearer and others go, a search that is as wide as the index finds the best of its
    moment, whatever that was; never better ones. (Beside upkeep a walk may, seldom, miss an edge.)"""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(8_000, 4)).astype(np.float32)
    x *= np.linspace(2, 0.1, len(x), dtype=np.float32)[:, None]  # towards the query
    core = core_of(x, m=8, tile=tile_of(x))
    rows = np.arange(len(x), dtype=np.uint64)
    core.upsert(keys_of(range(300)), [b""] * 300, x[:300], rows[:300])
    done = threading.Event()

    def write() -> None:
        for start in range(300, len(x), 5):
            span = slice(start, start + 5)
            core.upsert(keys_of(rows[span] % 400), [b""] * 5, x[span], rows[span])
            core.delete(keys_of([start % 397]))
            core.upkeep(eager=True)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    query, seen, agreed = np.zeros((16, 4), np.float32), set[float](), list[bool]()
    while not done.is_set():
        found, best, exact = core.witness(query, 10, 2000, 2000, raw=True)
        seen.add(float(best[0, 0]))
        assert (found >= best).all()
        assert np.array_equal(exact, best)
        agreed.append(np.array_equal(found, best))
    writer.join()
    assert np.mean(agreed) > 0.9
    assert len(seen) > 1, "the index must have changed meanwhile"


def test_what_is_refused():
    """As a search does: k and ef of 0, what is not finite, no direction under cosine."""
    core, x, _ = built("cosine", rows=20)
    for query, k, ef in ((x[:1], 0, 10), (x[:1], 10, 0), (x[:1] * np.nan, 10, 10), (x[:1] * 0, 10, 10)):
        with pytest.raises(InvalidInput):
            core.witness(query, k, ef, 0, raw=False)


def test_a_batch_of_none():
    """No query, no pass."""
    core: Core = built("l2", rows=20)[0]
    found, best, exact = core.witness(np.empty((0, 33), np.float32), 10, 10, 0, raw=False)
    assert found.shape == best.shape == (0, 10)
    assert exact is None
