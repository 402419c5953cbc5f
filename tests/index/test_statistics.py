"""Moments: equal to numpy's over any batches and merges, no cancellation, forgetting, stored form.
Divergences: scipy's."""

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


def test_no_cancellation() -> None:
    """A spread of 1 around 10 million keeps ten digits; sums of squares in float64 would keep two."""
    rows = np.random.default_rng(0).normal(1e7, 1, (50_000, 2)).astype(np.float32)
    _, variance = of(*np.split(rows, 50)).value()
    np.testing.assert_allclose(variance, rows.astype(np.float64).var(axis=0), rtol=1e-10)


def test_forgetting() -> None:
    """A row counts half after `forget` further rows; batches and merges age what came before them alike."""
    old, new = np.float32([[0.0], [0.0]]), np.float32([[1.0]] * 4)
    moments = of(old, new, forget=4)
    assert moments.n == 2 * 0.5 + 4
    assert moments.value()[0] == pytest.approx(4 / 5)
    assert moments.value()[1] == pytest.approx(4 / 5 * 1 / 5)
    merged = of(old, forget=4)
    merged.merge(of(new))
    assert msgpack.packb(merged.state()) == msgpack.packb(moments.state())


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
