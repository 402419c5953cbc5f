"""The tile encoder: its error and the published one's, both tails, any number of levels, dead and huge
dimensions, prefixes, stored form."""

import re
from pathlib import Path

import numpy as np
import pytest
from driftline import CorruptIndex, InvalidInput
from driftline.index.encoder import TileEncoder
from driftline.index.laws import SPREAD, lattice_table, normal_edges, normal_table
from driftline.index.lognormal import LogMoments, LognormalParameters
from driftline.index.tile import BITS, TileParameters
from driftline.native import rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import quad
from scipy.stats import lognorm, norm

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
    """Each argument out of range is named."""
    for arguments, named in [
        ({"dim": 0}, "dim"),
        ({"distribution": "cauchy"}, "distribution"),
        ({"distribution": "lognormal", "rotation": "random"}, "rotation"),
        ({"distribution": "lattice", "rotation": "random"}, "rotation"),
        ({"levels": 1}, "levels"),
        ({"levels": 257}, "levels"),
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
    again = type(parameters).from_bytes(parameters.to_bytes())
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
    lattice = TileParameters.lattice(2, -1.0, 0.5, np.arange(16))
    good = data.draw(st.sampled_from([GOLDEN.read_bytes(), lattice.to_bytes()]))
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


@pytest.mark.parametrize("levels", [2, 3, 16, 37, 64, 255])
@pytest.mark.parametrize("spread", [SPREAD, 1.0])
def test_any_number_of_levels(levels: int, spread: float) -> None:
    """Codes are the definition's, and stay below `levels` however far a value is; tables hold what scipy says
    the tiles stand for."""
    parameters = TileParameters.fit(np.zeros(3), np.ones(3), spread=spread, levels=levels)
    edges = spread * norm.ppf(np.arange(1, levels) / levels)
    np.testing.assert_allclose(normal_edges(spread, levels)[: levels - 1], edges, rtol=2e-7, atol=1e-9)
    x = np.concatenate([np.linspace(-9, 9, 1_001), [-1e18, 1e18]]).astype(np.float32)
    codes = parameters.encode(np.stack([x] * 3, axis=1))
    np.testing.assert_array_equal(
        codes[:, 1], np.searchsorted(normal_edges(spread, levels)[: levels - 1], x, side="right")
    )
    bounds = np.concatenate([[-np.inf], edges, [np.inf]])
    means = (norm.pdf(bounds[:-1]) - norm.pdf(bounds[1:])) / np.diff(norm.cdf(bounds))
    places = means if spread > 1 else norm.ppf((np.arange(levels) + 0.5) / levels)
    np.testing.assert_allclose(normal_table(spread, levels), places, rtol=2e-6, atol=1e-8)
    np.testing.assert_array_equal(parameters.decode(codes), normal_table(spread, levels)[codes])
    again = TileParameters.from_bytes(parameters.to_bytes())
    np.testing.assert_array_equal(again.encode(np.stack([x] * 3, axis=1)), codes)


def test_prefixes_of_fewer_levels() -> None:
    """Codes of 16 levels have prefixes of 1 to 4 bits, as good as those of 256; codes of 15 have none."""
    rows = gaussian(4_000, 4)
    sixteen = TileParameters.fit(np.zeros(4), np.ones(4), levels=16)
    for bits in (1, 2, 3, 4):
        assert sixteen.error(rows, bits) == pytest.approx(unit(4).error(rows, bits), rel=1e-6)
    assert sixteen.error(rows) == sixteen.error(rows, 4)
    with pytest.raises(InvalidInput, match="16 levels have no prefix of 5"):
        sixteen.table(5)
    with pytest.raises(InvalidInput, match="15 levels have no prefix of 2"):
        TileParameters.fit(np.zeros(4), np.ones(4), levels=15).table(2)


def lognormal_rows(rows: int, log_sigmas: list[float], seed: int = 0) -> np.ndarray:
    return np.exp(gaussian(rows, len(log_sigmas), seed) * np.float32(log_sigmas))


@pytest.mark.parametrize("log_sigma", [0.2, 0.8, 1.5])
def test_error_on_the_lognormal_law(log_sigma: float) -> None:
    """At most 1.1 times the best companding error, (integral of p^(1/3))^3 / (12 * 256^2); by quadrature."""
    parameters = LognormalParameters.fit(np.zeros(1), np.array([log_sigma**2]), spread=SPREAD, levels=256)
    law = lognorm(log_sigma)
    root = quad(lambda z: law.pdf(np.exp(z)) ** (1 / 3) * np.exp(z), -12 * log_sigma, 18 * log_sigma)[0]
    bounds = [0.0, *parameters.edges[0].astype(float), np.inf]
    places = parameters.table()[0].astype(float)
    error = sum(
        quad(lambda x, place=place: (x - place) ** 2 * law.pdf(x), low, high)[0]
        for low, high, place in zip(bounds[:-1], bounds[1:], places, strict=True)
    )
    assert error <= 1.1 * root**3 / (12 * 256**2)


@pytest.mark.parametrize("bits", BITS)
def test_lognormal_tables(bits: int) -> None:
    """A tile decodes to the law's mean inside it (by quadrature, both tails); with spread = 1, the published
    encoder, edges and places are scipy's quantiles."""
    mean, sigma = np.array([-1.0, 0.5]), np.array([0.8, 0.3])
    ours = LognormalParameters.fit(mean, sigma**2, spread=SPREAD, levels=256)
    published = LognormalParameters.fit(mean, sigma**2, spread=1.0, levels=256)
    tiles = 2**bits
    for d in range(2):
        law = lognorm(sigma[d], scale=np.exp(mean[d]))
        np.testing.assert_allclose(published.edges[d], law.ppf(np.arange(1, 256) / 256), rtol=3e-7)
        middles = law.ppf((np.arange(tiles) + 0.5) / tiles)
        np.testing.assert_allclose(published.table(bits)[d], middles, rtol=3e-7)
        inner = ours.edges[d].astype(float)[2 ** (8 - bits) - 1 :: 2 ** (8 - bits)]
        bounds = [0.0, *inner, np.inf]
        for k in {0, 1, tiles // 3, tiles - 2, tiles - 1}:
            inside = law.expect(lb=bounds[k], ub=bounds[k + 1], conditional=True)
            assert ours.table(bits)[d, k] == pytest.approx(inside, rel=1e-4), (d, k)


def test_lognormal_encoder() -> None:
    """Learned from samples, in batches of any size: the error of the law; prefixes are ordered."""
    encoder = TileEncoder(3, distribution="lognormal")
    rows = lognormal_rows(20_000, [0.8, 0.1, 0.4])
    for batch in np.array_split(rows, [1, 3, 5_000]):
        encoder.update(batch)
    fitted = encoder.fit()
    np.testing.assert_allclose(fitted.mean, np.log(rows.astype(float)).mean(axis=0), atol=1e-12)
    codes = encoder.encode(rows)
    errors = [((rows - encoder.decode(codes, bits)) ** 2).mean(axis=0) for bits in BITS]
    assert (np.diff(errors, axis=0) < 0).all()
    best = np.sqrt(3) * np.pi / 2 * fitted.sigma**2 * np.exp(2 * fitted.mean + 2 * fitted.sigma**2) / 256**2
    assert (errors[-1] < 1.3 * best).all()  # of samples: the far tail, seldom met, has much of it


def test_lognormal_values_that_have_no_logarithm() -> None:
    """0, negative and denormal values get the lowest tile, which decodes next to 0, and do not move the law.

    A dimension that never was positive, or is constant, or spreads beyond float32, stays finite.
    """
    rows = lognormal_rows(3_000, [0.5] * 6)
    clean = LogMoments(6)
    clean.update(rows)
    rows[:, 3] = -1.0
    rows[:, 4] = 7.25
    rows[:, 5] = np.where(np.arange(3_000) % 2, np.float32(1e-37), np.float32(1e18))
    odd = np.zeros((3, 6), np.float32)
    odd[:, :3] = np.array([[0.0, -3.0, 1e-42]]).T
    encoder = TileEncoder(6, distribution="lognormal")
    encoder.update(np.concatenate([rows, odd]))
    parameters = encoder.fit()
    np.testing.assert_allclose(parameters.mean[:3], clean.value()[0][:3], atol=1e-12)
    assert (encoder.encode(odd)[:, :3] == 0).all()
    decoded = encoder.decode(encoder.encode(np.concatenate([rows, odd])))
    assert np.isfinite(decoded).all()
    assert decoded[0, 3] < 1e-30
    np.testing.assert_allclose(decoded[:-3, 4], 7.25, rtol=1e-6)
    assert encoder.encode(np.full((1, 6), 1e18, np.float32))[0, 0] == 255
    again = LognormalParameters.from_bytes(parameters.to_bytes())
    np.testing.assert_array_equal(again.encode(rows), parameters.encode(rows))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_hostile_lognormal_bytes(data: st.DataObject) -> None:
    """Changed bytes are refused as corrupt, or are parameters that can be used."""
    parameters = LognormalParameters.fit(np.zeros(2), np.ones(2), spread=SPREAD, levels=16)
    good = parameters.to_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    try:
        found = LognormalParameters.from_bytes(bad)
    except CorruptIndex:
        return
    assert np.isfinite(found.decode(found.encode(np.ones((2, found.dim), np.float32)))).all()


def test_lattice() -> None:
    """Whole steps are decoded as they were; a prefix decodes to the mean of what was counted in it."""
    counts = np.bincount(np.arange(256) // 2, minlength=256)  # 0 to 127, twice each
    parameters = TileParameters.lattice(5, -3.0, 0.1, counts)
    rows = (-3 + 0.1 * np.random.default_rng(0).integers(0, 128, (300, 5))).astype(np.float32)
    np.testing.assert_allclose(parameters.decode(parameters.encode(rows)), rows, atol=1e-5)
    assert lattice_table(counts, 2).tolist() == [63.5, 191.5]  # nothing in the upper half: its middle
    assert lattice_table(counts, 8)[3] == pytest.approx(np.arange(96, 128).mean())
    again = TileParameters.from_bytes(parameters.to_bytes())
    np.testing.assert_array_equal(again.table(4), parameters.table(4))
    np.testing.assert_array_equal(again.encode(rows), parameters.encode(rows))


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
