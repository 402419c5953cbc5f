"""Sources: the order among them, deletes that are remembered, and what the core keeps of them."""

import numpy as np
import pytest
from driftline.errors import CorruptIndex, InvalidInput
from driftline.index.batch import turns
from driftline.index.online import OnlineIndex
from driftline.index.origins import Tombstones
from driftline.index.raw import MemoryRawVectors
from driftline.index.sources import another_partition, contest, pack_sources
from hypothesis import given
from hypothesis import strategies as st

DIM = 3
source = st.tuples(st.integers(0, 2**31), st.integers(0, 2**48 - 2), st.integers(-1, 2**48 - 1))


def packed(*sources: tuple[int, int, int]) -> np.ndarray:
    """Of (partition, offset, timestamp)."""
    return pack_sources(*zip(*sources, strict=True))


@given(held=source, new=source)
def test_sources_are_ordered_as_the_rule_says(held: tuple[int, int, int], new: tuple[int, int, int]):
    """Among partitions by (timestamp, partition, offset), in one by offset, whatever the timestamps; the
    timestamp of what holds never falls."""
    (p, o, t), (q, r, u) = held, new
    holds, raised = contest(packed(held), packed(new))
    if p == q:
        assert holds[0] == (r >= o)
        assert raised.tolist() == packed((q, r, max(t, u))).tolist()
    else:
        assert holds[0] == ((max(u, 0), q, r) > (max(t, 0), p, o))
        assert raised.tolist() == packed(new).tolist()
    assert another_partition(packed(held), packed(new))[0] == (p != q)


def test_against_nothing_every_record_holds():
    """The first record of partition 0 without a timestamp, too."""
    first = packed((0, 0, -1))
    nothing = np.zeros((1, 2), np.uint64)
    assert contest(nothing, first)[0].tolist() == [True]
    assert another_partition(nothing, first).tolist() == [False]


@given(st.lists(st.sampled_from([b"a", b"b", b"c"])))
def test_turns_keep_the_order_of_each_key(keys: list[bytes]):
    """Every place once, no key twice a turn, a key's places in order."""
    parts = [part.tolist() for part in turns(keys)]
    assert sorted(place for part in parts for place in part) == list(range(len(keys)))
    for part in parts:
        assert len({keys[place] for place in part}) == len(part)
    for key in set(keys):
        places = [place for part in parts for place in part if keys[place] == key]
        assert places == sorted(places)


def test_tombstones_are_bounded_and_forgotten_by_time():
    """Beyond the bound the oldest go, and are counted; forgetting ends at the first that is young."""
    kept = Tombstones(most=3)
    kept.remember([b"a", b"b"], packed((0, 1, 100), (0, 2, 200)))
    kept.remember([b"a", b"c"], packed((0, 3, 300), (0, 4, 50)))
    assert len(kept) == 3
    other = Tombstones()
    other.restore(kept.state())
    kept.remember([b"d"], packed((0, 5, 400)))
    assert kept.dropped == 1
    held = np.zeros((4, 2), np.uint64)
    kept.fill([b"a", b"b", b"c", b"d"], held)
    assert held.tolist() == [*packed((0, 3, 300)).tolist(), [0, 0], *packed((0, 4, 50), (0, 5, 400)).tolist()]
    kept.forget(300)
    assert len(kept) == 3
    kept.forget(301)
    assert [key for key, *_ in kept.state()] == [b"d"]
    assert [key for key, *_ in other.state()] == [b"b", b"a", b"c"]
    other.discard([b"b"])
    assert len(other) == 2


def index_of() -> OnlineIndex:
    return OnlineIndex(DIM, m=4, ef_construction=20, sources=True)


def row(value: float) -> np.ndarray:
    return np.full((1, DIM), value, np.float32)


def test_an_identical_row_refreshes_its_source():
    """Nothing is written, and yet an older row of another partition no longer replaces it; in a cut the slab
    counts as changed only where its source did."""
    index = index_of()
    assert index.upsert([b"a"], row(1), sources=packed((0, 0, 10))) == 1
    versions = {name: chunk.version for name, chunk in index.cut().chunks.items()}
    assert index.upsert([b"a"], row(1), sources=packed((0, 0, 10))) == 0
    assert {name: chunk.version for name, chunk in index.cut().chunks.items()} == versions
    assert index.upsert([b"a"], row(1), sources=packed((0, 5, 30))) == 0
    assert {name: chunk.version for name, chunk in index.cut().chunks.items()} != versions
    assert index.upsert([b"a"], row(2), sources=packed((1, 0, 20))) == 0
    assert index.contested == 1
    assert index.upsert([b"a"], row(2), sources=packed((1, 0, 31))) == 1
    assert index.delete([b"a"], packed((0, 6, 30))) == 0
    assert index.delete([b"a"], packed((1, 1, 0))) == 1


def test_sources_outlive_moves_and_restarts():
    """After rows moved to other slots, and after a restart in the middle of a contest, the same rows hold;
    deletes are remembered over the restart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, DIM)).astype(np.float32)
    keys = [b"%d" % number for number in range(3000)]
    raw = MemoryRawVectors(DIM)
    index = OnlineIndex(DIM, m=4, ef_construction=20, sources=True, raw=raw)
    places = [(number % 5, number, 1000 + number) for number in range(3000)]
    index.upsert(keys, x, sources=packed(*places))
    index.delete(keys[:2500], packed(*((number % 5, 3000, 1) for number in range(2500))))
    while index.maintain(1.0):
        pass
    assert index.stats().slots < 3000
    index.delete([b"gone"], packed((1, 9000, 5000)), remember=True)
    for state in (index, OnlineIndex.restore(index.cut(), raw)):
        before = state.digest
        older = packed(*((9, number, 999 + number) for number in range(2500, 3000)))
        assert state.upsert(keys[2500:], x[:500], sources=older) == 0
        assert state.upsert([b"gone"], row(1), sources=packed((0, 0, 4999))) == 0
        assert state.digest == before
    assert index.upsert([b"gone"], row(1), sources=packed((0, 1, 5001))) == 1


def test_only_where_they_are_kept():
    """Sources for an index that keeps none, none for one that does, and too few are refused; saved slabs of
    the one kind are not loaded as the other."""
    plain, kept = OnlineIndex(DIM), index_of()
    with pytest.raises(InvalidInput, match="keeps no sources"):
        plain.upsert([b"a"], row(1), sources=packed((0, 0, 0)))
    with pytest.raises(InvalidInput, match=r"of shape \[1, 2\]"):
        kept.upsert([b"a"], row(1))
    with pytest.raises(InvalidInput, match=r"of shape \[2, 2\]"):
        kept.delete([b"a", b"b"], packed((0, 0, 0)))
    with pytest.raises(InvalidInput):
        plain._core.sources([b"a"])
    with pytest.raises(InvalidInput):
        plain._core.set_sources([b"a"], packed((0, 0, 0)))
    kept.upsert([b"a"], row(1), sources=packed((0, 0, 0)))
    slab = kept._core.cut({}).save(0)
    with pytest.raises(CorruptIndex):
        plain._core.load_slab(0, 1, slab)
