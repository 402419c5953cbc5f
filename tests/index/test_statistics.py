"""Moments: equal to numpy's over any batches and merges, the same bits over any batches, no cancellation,
forgetting, stored form.
Divergences: scipy's."""

import copy
from pathlib import Path

import msgpack
import numpy as np
import pytest
from driftline import CorruptIndex, InvalidInput
from driftline.index.divergence import jensen_shannon, psi, wasserstein
from driftline.index.statistics import Moments
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

GOLDEN = Path(__file__).parent / "golden" / "moments_version_1.msgpack"

batches = st.lists(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 7), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)),
    min_size=1,
    max_size=6,
)


def of(*rows: np.ndarray, forget: float | None = None) -> Moments:
    moments = Moments(rows[0].shape[1], forget)
    for batch in rows:
        moments.update(batch)
    return moments


@settings(deadline=None)
@given(batches)
def test_moments_are_those_of_all_rows(parts: list[np.ndarray]) -> None:
    """However rows are cut into batches or merged, mean and variance are numpy's over all of them."""
    rows = np.concatenate(parts).astype(np.float64)
    merged = Moments(3)
    for part in parts:
        merged.merge(of(part))
    for moments in (of(*parts), merged):
        assert moments.n == len(rows)
        if len(rows):
            mean, variance = moments.value()
            np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12, atol=1e-9)
            np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-9, atol=1e-12 * (rows**2).max())


def one_by_one(rows: np.ndarray, decay: float) -> tuple[float, np.ndarray, np.ndarray]:
    """What Moments are defined as: weight, mean and sum of squares, a product or a sum at a time."""
    weight, mean, squares = 0.0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for row in rows.astype(np.float64):
        before = weight * decay
        weight = before + 1
        apart = row - mean
        mean = mean + apart * (1 / weight)
        squares = squares * decay + apart * apart * (before / weight)
    return weight, mean, squares


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(0, 150), max_size=5), st.sampled_from([None, 0.5, 60, 1e9]))
def test_batches_do_not_matter(dim: int, cuts: list[int], forget: float | None) -> None:
    """However rows are cut into batches, moments have the bits of their definition, forgetting or not."""
    rng = np.random.default_rng(dim)
    rows = (rng.normal(5, 3, (150, dim)) * 10.0 ** rng.integers(-20, 18, dim)).astype(np.float32)
    moments = of(*np.split(rows, sorted(cuts)), forget=forget)
    weight, mean, squares = one_by_one(rows, 1 if forget is None else 0.5 ** (1 / forget))
    assert moments.n == weight
    np.testing.assert_array_equal(moments.value()[0], mean)
    np.testing.assert_array_equal(moments.value()[1], squares / weight)


def test_no_cancellation() -> None:
    """A spread of 1 around 10 million keeps nine digits; sums of squares in float64 would keep two."""
    rows = np.random.default_rng(0).normal(1e7, 1, (50_000, 2)).astype(np.float32)
    _, variance = of(*np.split(rows, 50)).value()
    np.testing.assert_allclose(variance, rows.astype(np.float64).var(axis=0), rtol=1e-9)


def test_forgetting() -> None:
    """A row counts half after `forget` further rows; a merged batch ages what came before it by its rows."""
    old, new = np.float32([[0.0], [0.0]]), np.float32([[1.0]] * 4)
    moments = of(old, forget=4)
    older = moments.n
    moments.update(new)
    newer = sum(0.5 ** (age / 4) for age in range(4))
    assert moments.n == pytest.approx(older / 2 + newer)
    assert moments.value()[0] == pytest.approx(newer / moments.n)
    assert moments.value()[1] == pytest.approx(newer / moments.n * (1 - newer / moments.n))
    moments = of(old, forget=4)
    moments.merge(of(new))
    assert moments.n == older / 2 + 4


def test_partitions_side_by_side() -> None:
    """Moments that forget merge as one stream whose rows are as old as each partition says: neither ages the
    other, and either order gives the same."""
    one, two = np.random.default_rng(0).normal(2, 3, (2, 300, 5)).astype(np.float32)
    merged = [of(one, forget=50), of(two, forget=50)]
    merged[0].merge(of(two, forget=50))
    merged[1].merge(of(one, forget=50))
    weights = np.tile(0.5 ** (np.arange(299, -1, -1) / 50), 2)
    rows = np.concatenate([one, two]).astype(np.float64)
    mean = np.average(rows, axis=0, weights=weights)
    variance = np.average((rows - mean) ** 2, axis=0, weights=weights)
    for moments in merged:
        assert moments.n == pytest.approx(weights.sum())
        np.testing.assert_allclose(moments.value()[0], mean)
        np.testing.assert_allclose(moments.value()[1], variance)


def test_a_copy_keeps_its_own() -> None:
    """A shallow copy that goes on leaves what it was copied from as it was."""
    rows = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)
    moments = of(rows[:10])
    before = moments.state()
    other = copy.copy(moments)
    other.update(rows[10:])
    assert moments.state() == before
    assert other.state() == of(rows).state()


def test_doubles() -> None:
    """Rows of float64 are taken as exactly as those of float32."""
    rows = np.random.default_rng(3).normal(size=(20, 3)).astype(np.float32)
    for forget in (None, 5.0):
        narrow, wide = of(rows, forget=forget), of(rows.astype(np.float64), forget=forget)
        assert wide.n == narrow.n
        for one, other in zip(wide.value(), narrow.value(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_what_is_refused() -> None:
    """No value before the first row; no merge of other dimensions; no forgetting of nothing."""
    with pytest.raises(InvalidInput, match="no row"):
        Moments(2).value()
    with pytest.raises(InvalidInput, match="dimensions"):
        Moments(2).merge(Moments(3))
    with pytest.raises(InvalidInput, match="forget"):
        Moments(2, forget=0)


def test_stored_moments() -> None:
    """A state packs, comes back and goes on as the original does; what cannot be a state is refused."""
    rows = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    moments = of(rows[:20], forget=7)
    state = msgpack.unpackb(msgpack.packb(moments.state()))
    restored = Moments.from_state(4, state)
    for each in (moments, restored):
        each.update(rows[20:])
    assert restored.state() == moments.state()
    assert Moments.from_bytes(moments.to_bytes()).state() == moments.state()
    with pytest.raises(CorruptIndex, match="expected moments"):
        Moments.from_bytes(msgpack.packb({"kind": "tile", **moments.state()}))
    nan = np.full(4, np.nan).tobytes()
    negative = np.full(4, -1.0).tobytes()
    for wrong in (
        None,
        {},
        state | {"version": 2},
        state | {"n": -1.0},
        state | {"n": float("nan")},
        state | {"mean": b"123"},
        state | {"mean": nan},
        state | {"squares": negative},
        state | {"forget": "often"},
    ):
        with pytest.raises(CorruptIndex):
            Moments.from_state(4, wrong)
    with pytest.raises(CorruptIndex):
        Moments.from_state(5, state)


def test_golden() -> None:
    """Stored moments stay readable, and are written as they were."""
    moments = of(np.float32([[0, 1, 5], [2, 1, 6], [1, 1, 10]]), forget=1)
    assert moments.to_bytes() == GOLDEN.read_bytes()
    restored = Moments.from_bytes(GOLDEN.read_bytes())
    assert restored.n == 1.75
    np.testing.assert_allclose(restored.value()[0], [8 / 7, 1, 57 / 7])


histograms = hnp.arrays(np.int64, (2, 16), elements=st.integers(0, 500)).filter(
    lambda counts: bool(counts.sum(axis=1).all())
)


@settings(deadline=None)
@given(histograms, histograms)
def test_divergences(one: np.ndarray, other: np.ndarray) -> None:
    """Jensen-Shannon and Wasserstein are scipy's on the same bins; PSI is its formula; all are 0 for the
    same."""
    places = np.linspace(-3, 3, 16) ** 3
    for d in range(2):
        p, q = one[d] / one[d].sum(), other[d] / other[d].sum()
        assert jensen_shannon(one, other)[d] == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-9)
        assert wasserstein(one, other, places)[d] == pytest.approx(
            wasserstein_distance(places, places, one[d], other[d]), abs=1e-9
        )
        p, q = (one[d] + 0.5) / (one[d].sum() + 8), (other[d] + 0.5) / (other[d].sum() + 8)
        assert psi(one, other)[d] == pytest.approx(sum((q - p) * np.log(q / p)), abs=1e-12)
    for same in (psi(one, one), jensen_shannon(one, one), wasserstein(one, one, places)):
        np.testing.assert_array_equal(same, 0)
