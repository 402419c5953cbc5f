"""Evacuation: rows of sparse slabs move down and empty slabs go, and nobody who reads, writes or saves
meanwhile can tell."""

import threading

import numpy as np
import pytest
from driftline.native import Core
from driftline.native._core import lib
from hypothesis import given, settings
from hypothesis import strategies as st

from ..threads import forever
from .tiles import core_of, keys_of, saved, tile_of

ROWS = 5000
DIM = 8


def vectors(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def filled(x: np.ndarray, *, tile: bool = True, metric: str = "l2") -> Core:
    """All of x, row n under key n, with a payload of n % 3 bytes."""
    core = core_of(x, metric, m=4, ef_construction=24, tile=tile_of(x) if tile else None)
    rows = np.arange(len(x), dtype=np.uint64)
    core.upsert(keys_of(rows), [b"p" * (n % 3) for n in range(len(x))], x, rows)
    return core


def thinned(x: np.ndarray, left: int = 300, **how: bool) -> tuple[Core, list[int]]:
    """The index with all but some rows deleted, and those rows."""
    core = filled(x, **how)
    kept = np.sort(np.random.default_rng(1).permutation(len(x))[:left])
    core.delete(keys_of(np.setdiff1d(np.arange(len(x)), kept)))
    return core, kept.tolist()


def settle(core: Core, *, checked: bool = False) -> None:
    """Upkeep as a service asks for it, until nothing is left to do."""
    while core.upkeep(eager=False):
        if checked:
            core.check(codes=True)


def to_the_first_plan(core: Core) -> np.ndarray:
    while not len(core.moving()):
        assert core.upkeep(eager=False)
    return core.moving()


def expect_rows(core: Core, x: np.ndarray, rows: list[int]) -> None:
    """Those rows and nothing else, by key, by brute force and by a search that walks through all."""
    core.check(codes=True)
    assert len(core) == len(rows)
    keys = set(keys_of(np.array(rows, np.int64)))
    answers, found = core.get(keys_of(np.array(rows, np.int64)))
    assert np.array_equal(found, x[rows])
    assert [payload[0] or b"" for payload in answers.payloads] == [b"p" * (row % 3) for row in rows]
    for hits in (core.exact(x[:3], len(rows) + 10), core.search(x[:3], len(rows) + 10, 2000, 2000)):
        for found_keys in hits.keys:
            assert len(found_keys) == len(keys)
            assert set(found_keys) == keys
    assert {key for slab in range(core.slabs) for key in core.scan(slab)} == keys


def reloaded(core: Core, x: np.ndarray) -> Core:
    head, slabs = saved(core)
    other = core_of(x, m=4, ef_construction=24, tile=tile_of(x))
    for number, (version, data) in slabs.items():
        other.load_slab(number, version, data)
    other.load_head(head)
    return other


@pytest.mark.parametrize("tile", [True, False])
def test_sparse_slabs_are_emptied_and_given_back(tile: bool):
    """After most rows went, upkeep leaves no slab that is not needed, and gives up their memory and that of
    the key map and the queues; the oracle holds after every step."""
    x = vectors()
    core, kept = thinned(x, tile=tile)
    before = core.usage()
    settle(core, checked=True)
    expect_rows(core, x, kept)
    after = core.usage()
    assert after.slabs == core.slabs == 1
    assert after.dead == 0
    for part in ("codes", "links", "meta"):
        assert getattr(after, part) * 4 < getattr(before, part), part
    assert after.keys * 2 < before.keys


def test_an_index_that_breathes_is_left_alone():
    """With a quarter of the slots free nothing moves, whatever upkeep is asked; with half, it does."""
    x = vectors()
    core = filled(x)
    core.delete(keys_of(range(0, ROWS, 4)))
    while core.upkeep(eager=True):
        assert not len(core.moving())
    assert core.usage().slabs == 5
    core.delete(keys_of(range(1, ROWS, 4)))
    settle(core)
    assert core.usage().slabs == 3
    expect_rows(core, x, [n for n in range(ROWS) if n % 4 > 1])


def test_everything_may_go():
    """Without a live row there is no slab left, and the index can be filled again."""
    x = vectors()
    core = filled(x)
    core.delete(keys_of(range(ROWS)))
    while core.upkeep(eager=True):
        core.check(codes=True)
    assert core.slabs == 0
    assert core.search(x[:1], 3, 10, 0).keys == [[]]
    rows = np.arange(1500, dtype=np.uint64)
    core.upsert(keys_of(rows), [b"p" * (n % 3) for n in range(1500)], x[:1500], rows)
    expect_rows(core, x, list(range(1500)))


def test_moves_are_announced_one_step_before_they_show():
    """`moving` names the pairs while every row is still where it was; after the next step each is at the
    place that was said, and lower than it was."""
    x = vectors()
    core, kept = thinned(x)
    pairs = to_the_first_plan(core)

    def slots() -> dict[bytes, int]:
        return {
            key: slot
            for slab in range(core.slabs)
            for key, slot in zip(core.scan(slab), core.payloads(slab)[0].tolist(), strict=True)
        }

    before = slots()
    assert (pairs[:, 1] < pairs[:, 0]).all()
    assert set(pairs[:, 0].tolist()) <= set(before.values())
    assert not set(pairs[:, 1].tolist()) & set(before.values())
    core.upkeep(eager=False)
    assert not len(core.moving())
    to = dict(pairs.tolist())
    assert slots() == {key: to.get(slot, slot) for key, slot in before.items()}
    expect_rows(core, x, kept)


def test_the_graph_stays_what_it_was():
    """Edges follow the rows: a narrow search takes the same way, and finds the same, before and after."""
    x, queries = vectors(), vectors(100, seed=2)
    core, _ = thinned(x, 1500)
    while not len(core.moving()):
        assert core.upkeep(eager=True)
    before = core.search(queries, 10, 10, 0).keys
    settle(core)
    assert core.slabs == 2
    assert core.search(queries, 10, 10, 0).keys == before


def test_rows_that_die_or_are_replaced_before_they_move():
    """Between the plan and the move some sources are deleted, some written anew: they do not come back, and
    the slots kept for them are free again."""
    x = vectors()
    core, kept = thinned(x)
    to_the_first_plan(core)
    gone, anew = kept[200:240], kept[240:]
    core.delete(keys_of(np.array(gone)))
    core.upsert(
        keys_of(np.array(anew)), [b"p" * (n % 3) for n in anew], x[anew], np.array(anew, dtype=np.uint64)
    )
    settle(core, checked=True)
    expect_rows(core, x, [n for n in kept if n not in gone])
    assert core.slabs == 1


def test_rows_that_die_right_after_they_moved():
    """The new slot dies while the old one is still linked: both go, the record once."""
    x = vectors()
    core, kept = thinned(x)
    to_the_first_plan(core)
    core.upkeep(eager=False)
    core.delete(keys_of(np.array(kept[::2])))
    settle(core, checked=True)
    expect_rows(core, x, kept[1::2])
    core.delete(keys_of(np.array(kept)))
    while core.upkeep(eager=True):
        core.check(codes=True)
    assert core.slabs == 0


def test_a_slab_that_comes_again_has_another_version():
    """A cut never takes the bytes of a slab that went for those of the one that has its number now."""
    x = vectors()
    core, kept = thinned(x)
    first = {number: version for number, (version, _) in saved(core)[1].items()}
    settle(core)
    left = core.slabs
    assert left < len(first)
    rows = np.setdiff1d(np.arange(ROWS), kept)
    core.upsert(keys_of(rows), [b"p" * (n % 3) for n in rows.tolist()], x[rows], rows.astype(np.uint64))
    cut = core.cut(first)
    assert len(cut) == len(first)
    assert all(cut.versions[number] > first[number] for number in range(len(cut)))
    assert not any(cut.is_same(number) for number in range(len(cut)))
    new = [number for number in range(len(cut)) if number >= left]
    assert not any(cut.is_delta(number) for number in new)


def test_saved_in_the_middle():
    """What is saved before, between and after any of the steps loads, holds the same rows, and can be
    evacuated further."""
    x = vectors(3000)
    core, kept = thinned(x, 250)
    more, steps = True, 0
    while more:
        more = core.upkeep(eager=False)
        steps += 1
        if steps % 3 and not len(core.moving()):  # not every step of the long rounds
            continue
        other = reloaded(core, x)
        expect_rows(other, x, kept)
        settle(other)
        while other.upkeep(eager=True):
            pass
        expect_rows(other, x, kept)
        assert other.slabs == 1
    assert core.slabs == 1


def test_beside_readers_writers_and_reencodes():
    """A reader finds each key that is never touched exactly once, in every answer, while nearly everything is
    deleted and written again, and rows move and slabs go and come, under another thread's upkeep."""
    x = vectors(6000)
    core = core_of(x, m=6, ef_construction=30, tile=tile_of(x))
    core.open_frame(2, tile_of(2 * x))
    still = [b"still-%d" % n for n in range(60)]
    rows = np.arange(6000, dtype=np.uint64)
    spread = np.arange(0, 6000, 100)
    for start in range(0, 6000, 100):  # one in every hundred rows stays: most of them in high slabs
        names = keys_of(range(start, start + 100))
        names[0] = still[start // 100]
        core.upsert(names, [b""] * 100, x[start : start + 100], rows[start : start + 100])
    stop = threading.Event()
    slabs: set[int] = set()

    def read(turn: int) -> None:
        at = int(spread[turn % 60])

        def untouched(keys: list[bytes]) -> list[bytes]:
            assert len(set(keys)) == len(keys)
            return sorted(key for key in keys if key.startswith(b"still"))

        def searched() -> list[bytes]:
            return untouched(core.search(x[at : at + 1], 8000, 8000, 20).keys[0])

        assert untouched(core.exact(x[at : at + 1], 8000).keys[0]) == sorted(still)
        assert searched() == sorted(still)
        assert core.search(x[at : at + 1], 1, 8000, 20).keys[0] == [still[turn % 60]]
        assert all(key[0] for key in core.get(still)[0].keys)

    def keep_up(turn: int) -> None:
        core.upkeep(eager=turn % 5 == 0)
        slabs.add(core.slabs)
        if turn % 40 == 0 and core.slabs:
            core.reencode(turn // 40 % core.slabs, 1 + turn // 40 % 2)
        if turn % 50 == 0:
            core.check(codes=True)

    others = [n for n in range(6000) if n % 100]
    with forever(stop, read, keep_up):
        for _ in range(2):
            for start in range(0, len(others), 200):
                core.delete(keys_of(np.array(others[start : start + 200])))
            for _ in range(3000):
                if core.slabs <= 1 or stop.wait(0.01):
                    break
            for start in range(0, len(others), 500):
                some = others[start : start + 500]
                core.upsert(keys_of(np.array(some)), [b""] * len(some), x[some], rows[some])
    assert min(slabs) <= 2
    assert max(slabs) >= 5
    core.check(codes=True)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), tile_at=st.integers(0, 30), metric=st.sampled_from(["l2", "ip", "cosine"]))
def test_any_sequence_of_operations(seed: int, tile_at: int, metric: str):
    """Bulk inserts and deletes of several slabs, upkeep by a step or by many, re-encodes, reloads: the oracle
    holds, and the live set is the model's."""
    rng = np.random.default_rng(seed)
    x = vectors(4096, seed)
    tile = tile_of(x)
    core = core_of(x, metric, m=3, ef_construction=8, tile=None)
    core.open_frame(1, tile)
    model: set[int] = set()
    for step in range(40):
        if step == tile_at:
            core.write_frame(1)
        match int(rng.integers(8)):
            case 0 | 1:
                rows = np.arange(4096)[int(rng.integers(3500)) :][: int(rng.integers(200, 1500))]
                core.upsert(
                    keys_of(rows), [b"p" * (n % 3) for n in rows.tolist()], x[rows], rows.astype(np.uint64)
                )
                model.update(rows.tolist())
            case 2 | 3:
                rows = rng.permutation(4096)[: int(rng.integers(2000, 4000))]
                core.delete(keys_of(rows))
                model.difference_update(rows.tolist())
            case 4 | 5:
                for _ in range(int(rng.integers(1, 80))):
                    core.upkeep(eager=bool(rng.integers(2)))
            case 6:
                settle(core)
            case _:
                if step > tile_at and core.slabs:
                    core.reencode(int(rng.integers(core.slabs)), 1)
        core.check(codes=True)
    settle(core)
    while core.upkeep(eager=True):
        pass
    core.check(codes=True)
    assert sorted(key for slab in range(core.slabs) for key in core.scan(slab)) == sorted(
        keys_of(np.array(sorted(model), np.int64))
    )


def test_every_allocation_of_it_may_fail():
    """Whichever allocation of a step fails, the step says so, nothing has changed for searches, and the
    next one goes on."""
    x = vectors(3000)
    for skipped in range(6):
        core, kept = thinned(x, 250)
        more, failed = True, 0
        while more:
            lib.dl_fail_after(skipped)
            try:
                more = core.upkeep(eager=False)
            except MemoryError:
                failed += 1
                lib.dl_fail_after(-1)
                core.check(codes=True)
                more = core.upkeep(eager=False)
            finally:
                lib.dl_fail_after(-1)
        expect_rows(core, x, kept)
        assert core.slabs == 1
        assert failed or skipped > 2
