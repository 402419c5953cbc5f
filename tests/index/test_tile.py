"""The tile encoder: its error and the published one's, both tails, dead and huge dimensions, prefixes, stored
form."""

import re
from pathlib import Path

import numpy as np
import pytest
from driftline import CorruptIndex, InvalidInput
from driftline.index.tile import BITS, SPREAD, TileEncoder, TileParameters
from driftline.native import rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import quad
from scipy.stats import norm

GOLDEN = Path(__file__).parent / "golden" / "tile_version_1.msgpack"


def unit(dim: int = 1, spread: float = SPREAD) -> TileParameters:
    return TileParameters.fit(np.zeros(dim), np.ones(dim), spread=spread)


def gaussian(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def expected_error(parameters: TileParameters, bits: int) -> float:
    """Mean squared error on the unit normal law, by quadrature tile by tile."""
    inner = parameters.edges.astype(float)[2 ** (8 - bits) - 1 :: 2 ** (8 - bits)]
    bounds = [-12.0, *inner, 12.0]
    return sum(
        quad(lambda x, place=float(place): (x - place) ** 2 * norm.pdf(x), low, high)[0]
        for low, high, place in zip(bounds[:-1], bounds[1:], parameters.table(bits), strict=True)
    )


@pytest.mark.parametrize(
    ("spread", "bits", "error"),
    [
        (SPREAD, 1, 0.3634),
        (SPREAD, 2, 0.1244),
        (SPREAD, 4, 0.00981),
        (SPREAD, 8, 0.0000413),
        (1.0, 1, 0.3786),
        (1.0, 2, 0.1468),
        (1.0, 4, 0.02361),
        (1.0, 8, 0.000798),
    ],
)
def test_error_on_the_normal_law(spread: float, bits: int, error: float) -> None:
    """Every prefix of the code has the error that docs/tile.md states, ours and the published encoder's."""
    assert expected_error(unit(spread=spread), bits) == pytest.approx(error, rel=0.002)


def test_error_of_samples_is_the_expected_one() -> None:
    """`error` on samples, rotated and in many dimensions, agrees with the integral."""
    encoder = TileEncoder(64, seed=5)
    rows = gaussian(20_000, 64)
    encoder.update(rows)
    parameters = encoder.fit()
    for bits in BITS:
        assert parameters.error(rows, bits) / 64 == pytest.approx(expected_error(unit(), bits), rel=0.02)
        difference = rows - parameters.decode(parameters.encode(rows), bits)
        assert parameters.error(rows, bits) == pytest.approx(np.mean(np.sum(difference**2, axis=1)), rel=1e-4)


def test_published_encoder() -> None:
    """spread = 1 is the published encoder: equal probabilities and middle quantiles, as scipy has them, at
    both tails."""
    published = unit(spread=1.0)
    np.testing.assert_allclose(published.edges, norm.ppf(np.arange(1, 256) / 256), rtol=2e-7, atol=1e-9)
    for bits in BITS:
        tiles = 2**bits
        np.testing.assert_allclose(
            published.table(bits), norm.ppf((np.arange(tiles) + 0.5) / tiles), rtol=2e-7
        )
    x = np.concatenate([np.linspace(-9, 9, 20_001), [-1e18, 1e18]]).astype(np.float32)
    codes = np.clip(np.floor(256 * norm.cdf(x.astype(float))), 0, 255)
    found = published.encode(x[:, None])[:, 0]
    near_an_edge = np.abs(256 * norm.cdf(x.astype(float)) % 1 - 0.5) > 0.4999
    assert (found == codes)[~near_an_edge].all()
    assert (np.abs(found - codes) <= 1).all()
    assert found[-2:].tolist() == [0, 255]  # floor(256 * F) would be 256 where F rounds to 1


@pytest.mark.parametrize("spread", [SPREAD, 1.5, 4.0])
@pytest.mark.parametrize("bits", BITS)
def test_conditional_means(spread: float, bits: int) -> None:
    """Tables hold the mean of the normal law inside each tile, to float32's precision at both tails."""
    bounds = np.concatenate([[-np.inf], spread * norm.ppf(np.arange(1, 2**bits) / 2**bits), [np.inf]])
    low = bounds[:-1][: 2 ** (bits - 1)]
    high = bounds[1:][: 2 ** (bits - 1)]
    means = (norm.pdf(low) - norm.pdf(high)) / (norm.cdf(high) - norm.cdf(low))
    table = unit(spread=spread).table(bits)
    np.testing.assert_allclose(table[: 2 ** (bits - 1)], means, rtol=2e-6)
    np.testing.assert_array_equal(table, -table[::-1])
    assert (np.diff(table) > 0).all()


def test_top_bits_are_codes_of_fewer_tiles() -> None:
    """Decoding a prefix uses nothing but the prefix, and more bits are never worse."""
    parameters = unit(16)
    codes = parameters.encode(gaussian(2_000, 16))
    errors = [parameters.error(gaussian(2_000, 16), bits) for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    for bits in BITS:
        low_bits_gone = (codes >> (8 - bits) << (8 - bits)).astype(np.uint8)
        np.testing.assert_array_equal(parameters.decode(codes, bits), parameters.decode(low_bits_gone, bits))


@pytest.mark.parametrize("rotation", ["none", "random"])
def test_dead_dimensions(rotation: str) -> None:
    """Dimensions with sigma 0, 0 and 6e-9 (as three of all-MiniLM-L6-v2) give no NaN and cost no accuracy."""
    rows = gaussian(2_000, 32) * np.float32(0.05)
    rows[:, [3, 7]] = np.float32([0.25, 0.0])
    rows[:, 9] = np.float32(0.01) + gaussian(2_000, 1)[:, 0] * np.float32(6e-9)
    encoder = TileEncoder(32, rotation=rotation)  # pyright: ignore[reportArgumentType]
    encoder.update(rows)
    parameters = encoder.fit()
    assert np.isfinite(1 / parameters.scale).all()
    decoded = encoder.decode(encoder.encode(rows))
    assert np.isfinite(decoded).all()
    if rotation == "none":
        assert np.abs(decoded - rows)[:, [3, 7, 9]].max() < 1e-6
        assert set(parameters.encode(rows)[:, 3]) <= {127, 128}
    assert parameters.error(rows) < 1e-4 * 29 * 0.05**2


@pytest.mark.parametrize("value", [0.0, 1.0, -1e18, 1e-40, 1e6])
def test_identical_rows(value: float) -> None:
    """One vector over and over: encoded, decoded to itself, every reciprocal finite."""
    rows = np.full((50, 5), value, np.float32)
    encoder = TileEncoder(5, rotation="none")
    encoder.update(rows)
    with np.errstate(all="raise", under="ignore"):
        parameters = encoder.fit()
        inverse = 1 / parameters.scale
    assert (np.isfinite(inverse) & (inverse > np.finfo(np.float32).tiny)).all()
    np.testing.assert_allclose(encoder.decode(encoder.encode(rows)), rows, rtol=1e-6, atol=1e-29)


def test_huge_values() -> None:
    """Values far outside what was learned get the outermost tiles; a stream of huge values is coded like any
    other."""
    encoder = TileEncoder(4, rotation="none")
    encoder.update(gaussian(1_000, 4))
    encoder.fit()
    assert encoder.encode(np.float32([[1e18, -1e18, 40, -40]])).tolist() == [[255, 0, 255, 0]]
    huge = TileEncoder(8, seed=3)
    rows = gaussian(1_000, 8) * np.float32(1e17)
    huge.update(rows)
    assert huge.fit().error(rows) / 8 == pytest.approx(4.13e-5 * 1e34, rel=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e18])
def test_values_that_are_refused(bad: float) -> None:
    """NaN, infinities and what would overflow are refused by name, and the statistics stay as they were."""
    encoder = TileEncoder(3)
    encoder.update(gaussian(100, 3))
    before = encoder.fit().to_bytes()
    rows = gaussian(4, 3)
    rows[2, 1] = bad
    with pytest.raises(InvalidInput, match=r"vector 2 .* dimension 1"):
        encoder.update(rows)
    with pytest.raises(InvalidInput, match=r"vector 2 .* dimension 1"):
        encoder.encode(rows)
    assert encoder.fit().to_bytes() == before


def test_arguments_that_are_refused() -> None:
    """Each argument out of range is named; lognormal is not there yet."""
    for arguments, named in [
        ({"dim": 0}, "dim"),
        ({"distribution": "lognormal"}, "distribution"),
        ({"spread": 0.5}, "spread"),
        ({"spread": float("nan")}, "spread"),
        ({"rotation": "pca"}, "rotation"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(InvalidInput, match=named):
            TileEncoder(**({"dim": 3} | arguments))
    encoder = TileEncoder(3)
    with pytest.raises(InvalidInput, match="statistics"):
        encoder.fit()
    with pytest.raises(InvalidInput, match="fit it first"):
        encoder.encode(gaussian(1, 3))
    with pytest.raises(InvalidInput, match=re.escape("[n, 3]")):
        encoder.update(gaussian(1, 4))
    encoder.update(gaussian(10, 3))
    encoder.fit()
    with pytest.raises(InvalidInput, match="bits"):
        encoder.decode(encoder.encode(gaussian(1, 3)), bits=6)
    with pytest.raises(InvalidInput, match="uint8"):
        encoder.decode(np.zeros((1, 3)))


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.floats(-(2.0**59), 2.0**59, width=32),
    ),
    st.sampled_from(["none", "random"]),
)
def test_any_rows(rows: np.ndarray, rotation: str) -> None:
    """Whatever is learned can be coded: finite, deterministic, and stored without loss."""
    encoder = TileEncoder(rows.shape[1], rotation=rotation)  # pyright: ignore[reportArgumentType]
    encoder.update(rows)
    parameters = encoder.fit()
    codes = encoder.encode(rows)
    assert np.isfinite(encoder.decode(codes)).all()
    again = TileParameters.from_bytes(parameters.to_bytes())
    np.testing.assert_array_equal(again.encode(rows), codes)
    assert again.to_bytes() == parameters.to_bytes()


def test_histogram_recorded_at_fit() -> None:
    """The histogram counts the sample's codes, four bits each; without a sample there is none."""
    sample = rotate(gaussian(500, 6), 11)
    parameters = TileParameters.fit(np.zeros(6), np.ones(6), rotation_seed=11, sample=sample)
    codes = parameters.encode(gaussian(500, 6)) >> 4
    counted = np.stack([np.bincount(codes[:, d], minlength=16) for d in range(6)])
    np.testing.assert_array_equal(parameters.counts, counted)
    assert parameters.rows == 500
    assert unit(6).rows == unit(6).counts.sum() == 0


def test_stored_form() -> None:
    """Version 1 is read as it was written, byte for byte."""
    sample = np.float32([[0.0, 1.0], [2.0, -1.0], [0.5, 0.25]])
    parameters = TileParameters.fit(
        np.array([0.5, -0.25]), np.array([4.0, 0.0]), rotation_seed=2**63, sample=sample
    )
    assert parameters.to_bytes() == GOLDEN.read_bytes()
    stored = TileParameters.from_bytes(GOLDEN.read_bytes())
    assert (stored.rotation_seed, stored.rows, stored.spread) == (2**63, 3, SPREAD)
    np.testing.assert_array_equal(stored.counts, parameters.counts)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_hostile_bytes(data: st.DataObject) -> None:
    """Bytes cut, changed or invented are refused as corrupt, or are parameters that can be used."""
    good = GOLDEN.read_bytes()
    how = data.draw(st.sampled_from(["cut", "change", "invent"]))
    if how == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif how == "change":
        at = data.draw(st.integers(0, len(good) - 1))
        bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    else:
        bad = data.draw(st.binary(max_size=64))
    try:
        parameters = TileParameters.from_bytes(bad)
    except CorruptIndex:
        return
    assert np.isfinite(parameters.decode(parameters.encode(np.zeros((2, parameters.dim), np.float32)))).all()


@pytest.mark.parametrize(("rows", "four", "eight"), [(250, 0.008, 0.03), (1000, 0.002, 0.015)])
def test_rows_that_a_fit_needs(rows: int, four: float, eight: float) -> None:
    """A code fitted to few independent rows has little more error than the best, as docs/tile.md says."""
    sample = gaussian(rows, 384, seed=1).astype(np.float64)
    fitted = TileParameters.fit(sample.mean(axis=0), sample.var(axis=0))
    others = gaussian(4_000, 384, seed=2)
    assert fitted.error(others, 4) / unit(384).error(others, 4) == pytest.approx(1 + four, abs=0.002)
    assert fitted.error(others, 8) / unit(384).error(others, 8) < 1 + eight  # of a few far values: noisy


def test_many_rows_are_worked_on_in_parts() -> None:
    """Codes, errors and statistics of more rows than are rotated at once are those of each row by itself."""
    rows = gaussian(50, 4096)  # 16 are
    encoder, row_by_row = TileEncoder(4096), TileEncoder(4096)
    encoder.update(rows)
    for row in rows:
        row_by_row.update(row[None])
    fitted = encoder.fit()
    assert fitted.to_bytes() == row_by_row.fit().to_bytes()
    codes = encoder.encode(rows)
    assert np.array_equal(codes, np.concatenate([encoder.encode(row[None]) for row in rows]))
    decoded = np.concatenate([encoder.decode(code[None], 4) for code in codes])
    assert np.array_equal(encoder.decode(codes, 4), decoded)
    assert fitted.error(rows) == pytest.approx(np.mean([fitted.error(row[None]) for row in rows]))
