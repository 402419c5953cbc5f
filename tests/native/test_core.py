"""The core's graph: answers against brute force, deletes, reuse, frames, saving; its own oracle after
each."""

import threading

import numpy as np
import pytest
from driftline.errors import CorruptIndex
from driftline.native import Core
from driftline.native._core import lib
from hypothesis import given, settings
from hypothesis import strategies as st

from .tiles import ROTATION_SEED, core_of, distances, keys_of, tile_of


def recall(core: Core, queries: np.ndarray, k: int, ef: int, rescore: int) -> float:
    """The share of the k nearest that were found: a hit counts if its true distance is at most the true
    k-th."""
    found, true = core.search(queries, k, ef, rescore), core.exact(queries, len(core))
    good = wanted = 0
    for hits, keys, distances_ in zip(found.keys, true.keys, true.distances, strict=True):
        truth = dict(zip(keys, distances_.tolist(), strict=True))
        last = min(k, len(keys))
        good += sum(truth[key] <= distances_[last - 1] for key in hits)
        wanted += last
    return good / wanted


def settle(core: Core) -> None:
    while core.upkeep(eager=True):
        pass
    core.upkeep(eager=True)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 33, 96])
def test_search_finds_what_brute_force_finds(metric: str, rotated: bool, dim: int):
    """recall@10 against the core's exact search, and exact search against numpy, for each metric and odd
    dimensions."""
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(1500, dim)).astype(np.float32) + 0.3
    q = rng.normal(size=(30, dim)).astype(np.float32) + 0.3
    core = core_of(x, metric, tile=tile_of(x, rotated=rotated))
    core.upsert(keys_of(range(1500)), [b""] * 1500, x, np.arange(1500, dtype=np.uint64))
    core.check(codes=True)
    truth = np.sort(distances(metric, x, q), axis=1)[:, :10]
    assert core.exact(q, 10).distances == pytest.approx(truth, rel=1e-4, abs=1e-4)
    found = core.search(q, 10, 400, 100).distances
    assert (found <= truth[:, -1:] * (1 + 1e-4 * np.sign(truth[:, -1:])) + 1e-4).mean() > 0.9
    assert (np.diff(found, axis=1) >= 0).all()


def test_codes_alone_rank_well():
    """Without raw vectors, eight bits keep recall@10 above 0.97 on Gaussian data; the distances are near the
    true ones."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3000, 8)) @ rng.normal(size=(8, 64))).astype(np.float32)
    q = x[:100] + rng.normal(size=(100, 64)).astype(np.float32) * 0.1
    core = core_of(x, tile=tile_of(x))
    core.upsert(keys_of(range(3000)), [b""] * 3000, x, np.arange(3000, dtype=np.uint64))
    assert recall(core, q, 10, 128, 0) > 0.97
    assert core.search(q, 10, 128, 0).distances == pytest.approx(
        core.exact(q, 10).distances, rel=0.05, abs=1.0
    )


def test_without_raw_rows_codes_answer():
    """An index that keeps no raw vectors searches, gives decoded vectors back, and leaves codes as they
    are."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 20)).astype(np.float32)
    core = Core(20, "l2", 8, 64, 0, ROTATION_SEED)
    core.open_frame(0, None)
    core.upsert(keys_of(range(200)), [b""] * 200, x[:200], None)
    core.open_frame(1, tile_of(x))
    core.write_frame(1)
    core.reencode(0, 1)
    core.upsert(keys_of(range(200, 400)), [b""] * 200, x[200:], None)
    core.check(codes=True)
    assert not core.slab(0).is_float
    answers, vectors = core.get(keys_of(range(400)))
    assert all(answers.keys)
    assert ((vectors - x) ** 2).sum() / (x**2).sum() < 0.001
    assert recall(core, x[:50], 5, 64, 0) > 0.95


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(["l2", "ip", "cosine"]),
    dim=st.sampled_from([1, 2, 8, 40]),
    keys=st.sampled_from([5, 40, 400]),
    duplicates=st.booleans(),
    tile_at=st.integers(0, 120),
)
def test_any_sequence_of_operations(
    seed: int, metric: str, dim: int, keys: int, duplicates: bool, tile_at: int
):
    """Upserts, deletes, upkeep, re-encodes and save/load in any order: the oracle holds, and the live set is
    the model's."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3000, dim)).astype(np.float32)
    if duplicates:
        x = np.round(x / 2)
        x[~x.any(axis=1)] = 1
    tile = tile_of(x)
    core = core_of(x, metric, m=4, ef_construction=24, tile=None)
    core.open_frame(1, tile)
    model: dict[bytes, int] = {}
    used = 0
    for step in range(120):
        if step == tile_at:
            core.write_frame(1)
        match int(rng.integers(10)):
            case 0 | 1 | 2 | 3 | 4:
                chosen = keys_of(np.unique(rng.integers(0, keys, rng.integers(1, 25))))
                rows = np.arange(used, used + len(chosen), dtype=np.uint64)
                core.upsert(chosen, [b"p" * (row % 3) for row in rows.tolist()], x[rows.astype(int)], rows)
                model.update(zip(chosen, rows.tolist(), strict=True))
                used += len(chosen)
            case 5 | 6:
                chosen = keys_of(np.unique(rng.integers(0, keys, rng.integers(1, 40))))
                assert core.delete(chosen) == sum(model.pop(key, None) is not None for key in chosen)
            case 7 | 8:
                for _ in range(int(rng.integers(1, 6))):
                    core.upkeep(eager=bool(rng.integers(2)))
            case _:
                if step > tile_at and core.slabs:
                    core.reencode(int(rng.integers(core.slabs)), 1)
        if step % 8 == 0:
            core.check(codes=True)
    settle(core)
    core.check(codes=True)
    assert len(core) == len(model)
    assert core.usage().dead == 0
    assert sorted(key for slab in range(core.slabs) for key in core.scan(slab)) == sorted(model)
    answers, vectors = core.get(list(model))
    assert np.array_equal(vectors, x[list(model.values())])
    assert [p[0] or b"" for p in answers.payloads] == [b"p" * (row % 3) for row in model.values()]
    if model:
        assert recall(core, x[:20], 3, 2000, 2000) == 1  # everything is walked: the tree reaches every node

    head, slabs = core.save({})
    other = core_of(x, metric, m=4, ef_construction=24, tile=None)
    other.open_frame(1, tile)
    for number, (version, data) in slabs.items():
        assert data is not None
        other.load_slab(number, version, data)
    other.load_head(head)
    other.check(codes=True)
    assert other.search(x[:5], 3, 20, 10).keys == core.search(x[:5], 3, 20, 10).keys
    assert other.save({number: version for number, (version, _) in slabs.items()})[1] == {
        number: (version, None) for number, (version, _) in slabs.items()
    }


def test_identical_vectors_stay_reachable():
    """A thousand equal vectors, half of them deleted and put back: the spanning tree holds them all."""
    x = np.ones((2000, 16), np.float32)
    core = core_of(x, m=4, ef_construction=20, tile=None)
    core.upsert(keys_of(range(1000)), [b""] * 1000, x[:1000], np.arange(1000, dtype=np.uint64))
    core.check(codes=True)
    core.delete(keys_of(range(0, 1000, 2)))
    settle(core)
    core.check(codes=True)
    core.upsert(keys_of(range(0, 1000, 2)), [b""] * 500, x[1000:1500], np.arange(1000, 1500, dtype=np.uint64))
    core.check(codes=True)
    assert len(core) == 1000


def test_deleting_everything_and_starting_again():
    """The entry point and every node go; slots are used again."""
    x = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    for round_ in range(3):
        rows = np.arange(round_ * 1000, round_ * 1000 + 1000, dtype=np.uint64)
        core.upsert(keys_of(range(1000)), [b""] * 1000, x[rows.astype(int)], rows)
        core.check(codes=True)
        assert core.delete(keys_of(range(1000))) == 1000
        assert core.search(x[:1], 5, 20, 0).keys == [[]]
        settle(core)
        core.check(codes=True)
    assert core.usage().slots == 1000


def test_recall_after_churn_is_that_of_a_fresh_build():
    """Every vector replaced three times over: recall@10 within 0.02 of an index built from the last ones."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8000, 24)).astype(np.float32)
    q = rng.normal(size=(200, 24)).astype(np.float32)
    tile = tile_of(x)
    old, fresh = (core_of(x, m=8, ef_construction=60, tile=tile) for _ in range(2))
    for start in range(0, 8000, 100):
        rows = np.arange(start, start + 100, dtype=np.uint64)
        old.upsert(keys_of(rows % 2000), [b""] * 100, x[start : start + 100], rows)
        while old.upkeep(eager=False):
            pass
    settle(old)
    old.check(codes=True)
    rows = np.arange(6000, 8000, dtype=np.uint64)
    fresh.upsert(keys_of(rows % 2000), [b""] * 2000, x[6000:], rows)
    assert old.usage().slots < 2600
    assert recall(old, q, 10, 40, 30) > recall(fresh, q, 10, 40, 30) - 0.02


def test_searches_see_each_key_once_while_it_is_replaced():
    """Beside a writer that replaces, re-encodes and repairs, each search finds every live key exactly
    once."""
    rng = np.random.default_rng(9)
    keys, rounds = 40, 150
    x = rng.normal(size=(keys * (rounds + 1), 8)).astype(np.float32)
    core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    rows = np.arange(keys, dtype=np.uint64)
    core.upsert(keys_of(range(keys)), [b""] * keys, x[:keys], rows)
    stop = threading.Event()
    wrong: list[list[bytes]] = []
    searches = [0, 0]

    def ask(reader: int) -> None:
        while not stop.is_set():
            found = core.search(x[:2], keys, 4 * keys, 0).keys
            wrong.extend(hits for hits in found if sorted(hits) != sorted(keys_of(range(keys))))
            searches[reader] += 1

    readers = [threading.Thread(target=ask, args=(reader,)) for reader in range(2)]
    for thread in readers:
        thread.start()
    for round_ in range(1, rounds + 1):
        rows = np.arange(round_ * keys, (round_ + 1) * keys, dtype=np.uint64)
        core.upsert(keys_of(range(keys)), [b""] * keys, x[rows.astype(int)], rows)
        core.upkeep(eager=True)
        core.reencode(round_ % core.slabs, 1)
    stop.set()
    for thread in readers:
        thread.join()
    assert min(searches) > 0
    assert not wrong, wrong[0]
    settle(core)
    core.check(codes=True)


def test_frames_open_and_close():
    """Four frames at most; one in use, or written in, does not close; slots of several frames live in one
    slab."""
    x = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float32)
    core = core_of(x, tile=tile_of(x))
    core.upsert(keys_of(range(300)), [b""] * 300, x[:300], np.arange(300, dtype=np.uint64))
    core.open_frame(2, tile_of(x * 3 + 1))
    core.open_frame(3, None)
    with pytest.raises(ValueError, match="out of its range"):
        core.open_frame(4, None)
    with pytest.raises(ValueError, match="still in use"):
        core.open_frame(2, None)
    core.write_frame(2)
    with pytest.raises(ValueError, match="out of its range"):
        core.write_frame(3)
    core.upsert(keys_of(range(300, 600)), [b""] * 300, x[300:], np.arange(300, 600, dtype=np.uint64))
    core.check(codes=True)
    assert core.slab(0).rows == (0, 300, 300, 0)
    assert not core.close_frame(1)
    assert not core.close_frame(2)
    core.reencode(0, 2)
    core.check(codes=True)
    assert core.close_frame(1)
    assert core.frame_counts(2)[0].sum() == 600 * 12


def test_equal_seeds_give_equal_bytes():
    """One thread, the same seed and order: the same graph, byte for byte."""
    x = np.random.default_rng(0).normal(size=(1500, 10)).astype(np.float32)
    saved = []
    for _ in range(2):
        core = core_of(x, tile=tile_of(x))
        core.upsert(keys_of(range(1500)), [b""] * 1500, x, np.arange(1500, dtype=np.uint64))
        core.delete(keys_of(range(0, 1500, 3)))
        settle(core)
        saved.append(core.save({}))
    assert saved[0] == saved[1]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject):
    """Saved bytes with one byte changed, or cut short: loaded only if every structural invariant still
    holds."""
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    core.upsert(keys_of(range(60)), [b"payload"] * 60, x, np.arange(60, dtype=np.uint64))
    core.delete(keys_of(range(5)))
    head, slabs = core.save({})
    slab = slabs[0][1]
    assert slab is not None
    which = data.draw(st.sampled_from(["slab", "head"]))
    bytes_ = bytearray(slab if which == "slab" else head)
    at = data.draw(st.integers(0, len(bytes_) - 1))
    if data.draw(st.booleans()):
        bytes_[at] = data.draw(st.integers(0, 255))
    else:
        del bytes_[at:]
    other = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    try:
        other.load_slab(0, 1, bytes(bytes_) if which == "slab" else slab)
        other.load_head(bytes(bytes_) if which == "head" else head)
    except CorruptIndex:
        return
    other.check(codes=False)
    other.search(x[:3], 5, 20, 5)
    settle(other)


def test_every_allocation_may_fail():
    """Whichever allocation fails, the call says so, the index is whole, and the next try succeeds."""
    x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    rows = np.arange(400, dtype=np.uint64)
    failures = 0
    for nth in range(90):
        core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
        core.upsert(keys_of(range(100)), [b"p"] * 100, x[:100], rows[:100])
        core.delete(keys_of(range(50)))
        steps = [
            lambda core=core: core.upsert(keys_of(range(60, 400)), [b"p"] * 340, x[60:], rows[60:]),
            lambda core=core: core.search(x[:3], 10, 300, 10),
            lambda core=core: core.exact(x[:3], 10),
            lambda core=core: core.upkeep(eager=True),
            lambda core=core: core.reencode(0, 1),
            lambda core=core: core.save({}),
        ]
        for step in steps:
            lib.dl_fail_after(nth)
            try:
                step()
            except MemoryError:
                failures += 1
            finally:
                lib.dl_fail_after(-1)
            core.check(codes=True)
            step()
        settle(core)
        core.check(codes=True)
        assert len(core) == 350
    assert failures > 100


def test_arguments_are_checked():
    """k, ef, keys, NaN, rows that are not attached: refused with nothing changed."""
    x = np.ones((4, 3), np.float32)
    core = core_of(x, tile=None)
    one = np.zeros(1, np.uint64)
    for bad in (
        lambda: core.search(x, 0, 10, 0),
        lambda: core.search(x, 1, 0, 0),
        lambda: core.search(x[:, :2], 1, 10, 0),
        lambda: core.upsert([b""], [b""], x[:1], one),
        lambda: core.upsert([b"k" * 512], [b""], x[:1], one),
        lambda: core.upsert([b"k"], [b""], x[:1] * np.nan, one),
        lambda: core.upsert([b"k"], [b""], x[:1], one + np.uint64(4)),
        lambda: core.upsert([b"k"], [b""], x[:1], one + np.uint64(1 << 32)),
        lambda: core.reencode(0, 0),
    ):
        with pytest.raises(ValueError, match=r"range|shape"):
            bad()
    assert len(core) == 0
    core.check(codes=True)
