"""Cuts of the core: of the moment when they begin, whatever changes while they are saved."""

from collections.abc import Callable

import numpy as np
import pytest
from driftline.errors import CorruptIndex, InvalidInput
from driftline.native import Core
from driftline.native._core import lib
from hypothesis import given, settings
from hypothesis import strategies as st

from .tiles import Stored, core_of, keys_of, saved, saved_since, tile_of

ROWS = 4000


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)


def filled(x: np.ndarray) -> Core:
    """Three slabs in the middle of their lives: with free slots, dead ones, and a round under way."""
    core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    rows = np.arange(3000, dtype=np.uint64)
    core.upsert(keys_of(range(3000)), [b"p" * (n % 3) for n in range(3000)], x[:3000], rows)
    core.delete(keys_of(range(0, 300, 3)))
    while core.upkeep(eager=True):
        pass
    core.delete(keys_of(range(1, 300, 3)))
    core.upkeep(eager=True)
    core.upkeep(eager=True)
    return core


def loaded(x: np.ndarray, head: bytes, stored: Stored) -> Core:
    core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    core.open_frame(2, tile_of(3 * x))
    core.attach(1, x.ctypes.data, ROWS)
    for number, (version, parts) in stored.items():
        core.load_slab(number, version, *parts)
    core.load_head(head)
    return core


def whole(core: Core) -> tuple[bytes, list[bytes]]:
    head, slabs = saved(core)
    return head, [data for _, data in slabs.values()]


def insert(core: Core, x: np.ndarray) -> None:
    rows = np.arange(3000, 3400, dtype=np.uint64)
    core.upsert(keys_of(rows), [b"new"] * 400, x[3000:3400], rows)


def replace(core: Core, x: np.ndarray) -> None:
    rows = np.arange(3400, 3800, dtype=np.uint64)
    core.upsert(keys_of(rows - 2000), [b"other"] * 400, x[3400:3800], rows)


def remove(core: Core, x: np.ndarray) -> None:
    core.delete(keys_of(range(2000, 2900)))
    while core.upkeep(eager=True):
        pass


def reencode(core: Core, x: np.ndarray) -> None:
    core.open_frame(2, tile_of(3 * x))
    core.write_frame(2)
    for slab in range(core.slabs):
        assert core.reencode(slab, 2)


def shrink(core: Core, x: np.ndarray) -> None:
    slabs = core.slabs
    core.delete(keys_of(range(100, 3000)))
    while core.upkeep(eager=True):
        pass
    assert core.slabs < slabs


def rebase(core: Core, x: np.ndarray) -> None:
    slots, rows, _ = core.segment_slots(0, 0, 4096)
    assert len(slots) > 2500
    core.attach(1, x.ctypes.data, ROWS)
    core.rebase(slots, rows, rows | np.uint64(1 << 32))
    assert core.referring([0, 1]) == {0: core.usage().dead, 1: len(slots)}
    core.check(codes=True)


CHANGES: dict[str, Callable[[Core, np.ndarray], None]] = {
    change.__name__: change for change in (insert, replace, remove, reencode, shrink, rebase)
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cut_is_of_the_moment_it_began(x: np.ndarray, name: str, after: int):
    """What is saved after a change is what a cut of a twin says that stood still; `after` slabs are saved
    before it."""
    core, twin = filled(x), filled(x)
    cut = core.cut({})
    parts = [cut.save(number) for number in range(after)]
    CHANGES[name](core, x)
    parts += [cut.save(number) for number in range(after, len(cut))]
    assert (cut.head, parts) == whole(twin)
    cut.close()
    core.check(codes=True)


def test_rows_on_their_way_to_another_slot(x: np.ndarray):
    """Where a row has moved and its old slot is still linked, both name one record, with the lists of upper
    levels in it: a cut must not show those as they become while it is saved."""
    core = filled(x)
    core.delete(keys_of(range(100, 2400)))
    moved = 0
    for step in range(80):
        core.upkeep(eager=True)
        moved += core.usage().dead
        cut = core.cut({})
        rows = np.arange(10 * step, 10 * step + 10, dtype=np.uint64)
        core.upsert(keys_of(rows + 5000), [b""] * 10, x[10 * step : 10 * step + 10], rows)
        stored = {number: (int(version), [cut.save(number)]) for number, version in enumerate(cut.versions)}
        loaded(x, cut.head, stored).check(codes=False)
        cut.close()
    assert moved


@pytest.mark.parametrize("name", CHANGES)
def test_deltas_say_all_that_changed(x: np.ndarray, name: str):
    """Slabs as they once were and their deltas load to an index that saves the same bytes as the one that
    changed, and that knows itself unchanged; and a delta is small where little changed."""
    core = filled(x)
    stored: Stored = {}
    for step in range(6):
        if step == 3:
            CHANGES[name](core, x)
        else:
            core.delete(keys_of([step]))
            core.upsert(keys_of([9000 + step]), [b""], x[step : step + 1], np.array([step], np.uint64))
        head, stored = saved_since(core, stored)
        other = loaded(x, head, stored)
        other.check(codes=True)
        assert whole(other) == whole(core)
        again = other.cut({number: version for number, (version, _) in stored.items()})
        assert all(again.is_same(number) for number in range(len(again)))
        if step == 1:
            first = [parts for _, parts in stored.values() if len(parts) == 2]
            assert first
            assert all(len(delta) < len(slab) / 20 for slab, delta in first)
    assert any(len(parts) > 1 for _, parts in stored.values())


def update(core: Core, x: np.ndarray, step: int) -> None:
    rows = np.arange(step * 20, step * 20 + 20, dtype=np.uint64)
    core.upsert(keys_of(rows), [b"z" * step] * 20, x[rows], rows)


def test_slabs_are_saved_whole_again_once_their_deltas_have_grown(x: np.ndarray):
    """And not all in the same cut."""
    core = filled(x)
    _, stored = saved_since(core, {})
    again: list[int] = []
    for step in range(30):
        update(core, x, step)
        lengths = {number: len(parts) for number, (_, parts) in stored.items()}
        _, stored = saved_since(core, stored)
        again.append(sum(len(parts) == 1 < lengths.get(number, 0) for number, (_, parts) in stored.items()))
    assert sum(again) >= 3
    assert max(again) < 3


def test_what_a_cut_that_was_lost_held_is_in_the_next(x: np.ndarray):
    """The caller has not what it took with it, so slabs that had changed by then are saved whole."""
    core = filled(x)
    _, stored = saved_since(core, {})
    known = {number: version for number, (version, _) in stored.items()}
    update(core, x, 1)
    core.cut(known).close()
    update(core, x, 2)
    head, stored = saved_since(core, stored)
    assert {len(parts) for _, parts in stored.values()} == {1}
    assert whole(loaded(x, head, stored)) == whole(core)


def test_what_a_cut_is_asked(x: np.ndarray):
    """One at a time; each slab once; nothing after its end."""
    core = filled(x)
    cut = core.cut({})
    with pytest.raises(InvalidInput, match="in use"):
        core.cut({})
    cut.save(0)
    for slab in (0, len(cut)):
        with pytest.raises(InvalidInput):
            cut.save(slab)
    cut.close()
    with pytest.raises(InvalidInput, match="closed"):
        cut.save(1)
    cut.close()
    assert core.cut({0: 1}).save(0) == saved(filled(x))[1][0][1]


def test_where_memory_is_short_the_cut_fails_and_nothing_else(x: np.ndarray):
    """Whichever allocation for what is put aside fails: writing goes on, and the cut says so."""
    failures = 0
    for nth in range(40):
        core = filled(x)
        cut = core.cut({})
        lib.dl_fail_after(nth)
        try:
            core.delete(keys_of(range(2500, 2600)))
            written = True
        except MemoryError:  # the queue of the dead
            written = False
        finally:
            lib.dl_fail_after(-1)
        core.check(codes=True)
        try:
            parts = [cut.save(number) for number in range(len(cut))]
        except MemoryError:
            failures += 1
            assert written
            with pytest.raises(MemoryError):
                cut.save(len(cut) - 1)
        else:
            assert (cut.head, parts) == whole(filled(x))
            break
        cut.close()
        core.cut({}).save(0)
    assert failures > 3


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_deltas_are_refused(data: st.DataObject):
    """A delta with one byte changed, or cut short: loaded only if every structural invariant still holds."""
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    core = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    core.upsert(keys_of(range(60)), [b"payload"] * 60, x[:60], np.arange(60, dtype=np.uint64))
    _, stored = saved_since(core, {})
    core.delete(keys_of(range(5)))
    core.upsert(keys_of(range(50, 55)), [b"other"] * 5, x[60:65], np.arange(60, 65, dtype=np.uint64))
    head, stored = saved_since(core, stored)
    version, (slab, delta) = stored[0]
    damaged = bytearray(delta)
    at = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[at] = data.draw(st.integers(0, 255))
    else:
        del damaged[at:]
    other = core_of(x, m=4, ef_construction=20, tile=tile_of(x))
    try:
        other.load_slab(0, version, slab, bytes(damaged))
        other.load_head(head)
    except CorruptIndex:
        return
    other.check(codes=False)
    other.search(x[:3], 5, 20, 5)
