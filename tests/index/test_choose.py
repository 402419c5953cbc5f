"""What `auto` chooses: lattices, rotations and laws on made-up streams, however they are cut into batches or
partitions."""

import math
from contextlib import suppress
from pathlib import Path

import msgpack
import numpy as np
import pytest
from driftline import CorruptIndex, InvalidInput, OnlineIndex
from driftline.index.choose import ROWS, Evidence, lattice_of
from driftline.index.encoder import TileEncoder
from driftline.index.tile import TileParameters
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"


def gaussian(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def whole(rows: int, dim: int, most: int) -> np.ndarray:
    """Skewed whole numbers from 0 to `most`, half of them 0."""
    values = np.maximum(gaussian(rows, dim) * (most / 4), 0)
    values[0, 0] = most
    return np.minimum(np.rint(values), most).astype(np.float32)


def fitted(x: np.ndarray, **arguments: object) -> TileEncoder:
    encoder = TileEncoder(x.shape[1], **arguments)  # pyright: ignore[reportArgumentType]
    encoder.update(x)
    encoder.fit()
    return encoder


def choice(encoder: TileEncoder) -> tuple[str, str]:
    assert encoder.chosen is not None
    return encoder.chosen.distribution, encoder.chosen.rotation


def skewed(rows: int, dim: int) -> np.ndarray:
    """Cubes, with far tails: no law fits until they are rotated."""
    return gaussian(rows, dim) ** 3


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (gaussian(3_000, 32), ("normal", "none")),  # a rotation would cost and win nothing
        (skewed(3_000, 32), ("normal", "random")),
        (np.exp(0.8 * gaussian(3_000, 2)), ("lognormal", "none")),
        (whole(3_000, 32, 255), ("lattice", "none")),
        (whole(3_000, 32, 255) / np.float32(255) - np.float32(0.5), ("lattice", "none")),
        (whole(3_000, 32, 256), ("normal", "random")),  # one step too many
        (np.ones((100, 4), np.float32), ("normal", "none")),
    ],
    ids=["normal", "skewed", "lognormal", "bytes", "scaled bytes", "257 steps", "constant"],
)
def test_what_is_chosen(rows: np.ndarray, expected: tuple[str, str]) -> None:
    """Each stream gets the code that suits it; the reason and all errors measured are told."""
    encoder = fitted(rows)
    assert choice(encoder) == expected
    chosen = encoder.chosen
    assert chosen is not None
    assert chosen.reason
    for code in chosen.measured:
        assert f"{code.distribution}, rotation {code.rotation}: {code.error:.3g}" in encoder.explain()
    best = next(code for code in chosen.measured if (code.distribution, code.rotation) == expected)
    assert best.error <= 1.1 * min(code.error for code in chosen.measured) + 1e-10
    error = np.square(rows - encoder.decode(encoder.encode(rows)), dtype=float).sum() / len(rows)
    variance = max(rows.var(axis=0, dtype=float).sum(), 1e-30)
    # a sample knows little of far tails
    assert best.error / 3 - 1e-9 <= error / variance <= best.error * 3 + 1e-9


@pytest.mark.parametrize("count", [1, 2, 7, 15, 100, 255])
def test_lattices_are_exact(count: int) -> None:
    """Codes of whole steps decode to the values; few steps are far apart, so that prefixes hold them too."""
    rows = np.random.default_rng(3).integers(0, count + 1, (2_000, 8)).astype(np.float32) * 0.25 - 7
    encoder = fitted(rows)
    assert choice(encoder) == ("lattice", "none")
    np.testing.assert_allclose(encoder.decode(encoder.encode(rows)), rows, atol=1e-5)
    if count in (1, 7, 15):
        np.testing.assert_allclose(encoder.decode(encoder.encode(rows), bits=4), rows, atol=1e-5)


def test_a_lattice_reaches_as_far_as_any_row() -> None:
    """A rare value that the sample misses counts for the range; later ones get the nearest step there is."""
    rows = whole(50_000, 4, 100)
    rows[31_234, 2] = 130
    encoder = fitted(rows, distribution="lattice")
    np.testing.assert_array_equal(encoder.decode(encoder.encode(rows)), rows)
    assert encoder.decode(encoder.encode(np.float32([[3.4, -9, 1e18, 0]]))).tolist() == [[3, 0, 255, 0]]


def test_batches_do_not_matter() -> None:
    """Sample and range are the same however a stream is cut; every row is as likely as any other."""
    rows = np.arange(20_000, dtype=np.float32)[:, None]
    cuts = [Evidence(1, 5) for _ in range(3)]
    for evidence, batch in zip(cuts, (1, 333, 20_000), strict=True):
        for start in range(0, 3_000 if batch == 1 else 20_000, batch):
            evidence.update(rows[start : start + batch])
    one, some, all_at_once = cuts
    np.testing.assert_array_equal(some.rows, all_at_once.rows)
    assert len(one.rows) == len(some.rows) == ROWS
    assert (some.least, some.most, one.most) == (0, 19_999, 2_999)
    assert np.abs(np.histogram(some.rows, 4, (0, 20_000))[0] - ROWS / 4).max() < 5 * np.sqrt(ROWS * 3 / 16)


def test_choices_that_arguments_leave() -> None:
    """What is asked for is done, whatever the data are like; explain says that it was asked for."""
    rows = whole(2_000, 16, 255)
    assert choice(fitted(rows, rotation="none")) == ("lattice", "none")
    assert choice(fitted(rows, distribution="normal")) == ("normal", "random")
    for arguments, text in [
        ({"rotation": "random"}, "normal law, rotation random: as asked; fitted to 2,000 rows"),
        ({"distribution": "normal", "rotation": "none"}, "normal law, rotation none: as asked"),
        ({"distribution": "lognormal"}, "lognormal law, rotation none: as asked"),
        ({"distribution": "lattice"}, "lattice law, rotation none: as asked"),
    ]:
        encoder = fitted(rows, **arguments)
        assert encoder.chosen is None
        assert text in encoder.explain()
    with pytest.raises(InvalidInput, match="no lattice"):
        fitted(gaussian(100, 3), distribution="lattice")


def test_a_poor_prefix_is_not_chosen() -> None:
    """Most numbers are small: the lattice holds them exactly, but four bits of it tell too little."""
    rows = np.minimum(np.rint(np.abs(gaussian(3_000, 64)) * 20), 255).astype(np.float32)
    rows[0, 0] = 255
    encoder = fitted(rows)
    assert choice(encoder) == ("normal", "random")
    assert "less error (lattice, rotation none) would cost the prefix" in encoder.explain()
    exact = fitted(rows, distribution="lattice")
    np.testing.assert_array_equal(exact.decode(exact.encode(rows)), rows)


def test_a_choice_may_change_with_the_data() -> None:
    """Every fit chooses anew: whole numbers at first, then others too."""
    encoder = fitted(np.random.default_rng(0).integers(0, 100, (2_000, 16)).astype(np.float32))
    assert choice(encoder) == ("lattice", "none")
    encoder.update(gaussian(2_000, 16) * 100)
    encoder.fit()
    assert choice(encoder)[0] == "normal"


def test_rotated_variances_from_a_sample() -> None:
    """The rotation that `auto` chooses codes as well as one that saw every row."""
    rows = skewed(20_000, 24) * np.linspace(0.01, 1, 24, dtype=np.float32) + 5
    auto, exact = fitted(rows, distribution="normal"), fitted(rows, rotation="random")
    assert choice(auto) == ("normal", "random")
    errors = [
        np.square(rows - encoder.decode(encoder.encode(rows))).mean(dtype=float) for encoder in (auto, exact)
    ]
    assert errors[0] <= 1.05 * errors[1]  # cubes: far tails, which 1,024 rows show few of
    parameters = auto.parameters
    assert isinstance(parameters, TileParameters)
    total = (parameters.scale.astype(float) ** 2).sum()
    assert total == pytest.approx(rows.var(axis=0, dtype=float).sum(), rel=1e-5)


def test_no_lattice() -> None:
    """Too few, too many, or not whole: there is none; nor where steps are too small for a float32."""
    for values in ([5.0], [0.0, 1.0, 1e6], [0.0, 1.0, 1.5, 200.0], [0.0, 1e-40]):
        evidence = Evidence(1, 0)
        evidence.update(np.array(values, np.float32)[:, None])
        assert lattice_of(evidence, 256) is None


ARGUMENTS = [
    {},
    {"distribution": "lattice"},
    {"distribution": "lognormal"},
    {"distribution": "normal", "rotation": "random", "levels": 16},
    {"distribution": "normal", "rotation": "none", "spread": 1.0},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_encoders_of_partitions_merge(arguments: dict[str, object]) -> None:
    """Encoders that saw parts of a set, one of them in another process, are merged into what would have seen
    it all; codes in use do not change before the next fit."""
    rows = whole(3_000, 5, 90)
    rows[:1_500] = np.maximum(rows[:1_500] - 20, 1)
    together = fitted(rows, **arguments)
    merged, other = (fitted(part, **arguments) for part in np.split(rows, [1_100]))
    before = merged.parameters.to_bytes()
    merged.merge(TileEncoder.from_bytes(other.to_bytes()))
    assert merged.parameters.to_bytes() == before
    found, wanted = merged.fit(), together.fit()
    assert type(found) is type(wanted)
    assert "3,000 rows" in merged.explain()
    np.testing.assert_allclose(merged.decode(merged.encode(rows)), together.decode(together.encode(rows)))
    assert merged.to_bytes() != other.to_bytes()


def test_merged_samples_are_of_all_rows() -> None:
    """Of two samples a third is drawn in which rows count by how many they stood for; it can be merged on."""
    few, many = Evidence(1, 1), Evidence(1, 2)
    few.update(np.zeros((2_000, 1), np.float32))
    many.update(np.ones((6_000, 1), np.float32))
    few.merge(many)
    assert (len(few.rows), few.least, few.most) == (ROWS, 0, 1)
    assert few.rows.mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / ROWS))
    few.merge(Evidence(1, 3))
    assert len(few.rows) == ROWS


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_stored_encoders_go_on(arguments: dict[str, object]) -> None:
    """An encoder read back takes further rows as the one that was stored, to the bit; also an empty one."""
    rows = whole(4_000, 3, 60)
    encoder, straight = (TileEncoder(3, **arguments) for _ in range(2))  # pyright: ignore[reportArgumentType]
    for part in (rows[:0], rows[:2_500], rows[2_500:]):
        encoder.update(part)
        straight.update(part)
        encoder = TileEncoder.from_bytes(encoder.to_bytes())
        assert encoder.to_bytes() == straight.to_bytes()
    assert encoder.fit().to_bytes() == straight.fit().to_bytes()


def test_merges_that_are_refused() -> None:
    """Encoders of other arguments, or of another dimension, are not merged, and nothing changes."""
    encoder = fitted(whole(100, 3, 60))
    before = encoder.to_bytes()
    for other in (
        TileEncoder(4),
        TileEncoder(3, seed=1),
        TileEncoder(3, levels=16),
        TileEncoder(3, "normal"),
    ):
        with pytest.raises(InvalidInput, match="cannot merge"):
            encoder.merge(other)
    assert encoder.to_bytes() == before


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_hostile_encoders(data: st.DataObject) -> None:
    """A field that is missing or of another kind, length or range is refused as corrupt; what is not can be
    used."""
    state = msgpack.unpackb(fitted(whole(50, 2, 9), **data.draw(st.sampled_from(ARGUMENTS))).to_bytes())
    inside = state
    name = data.draw(st.sampled_from(sorted(inside)))
    while isinstance(inside[name], dict):
        inside = inside[name]
        name = data.draw(st.sampled_from(sorted(inside)))
    inside[name] = data.draw(st.sampled_from([None, -1, "x", b"123", [1], {}, math.nan, 3, "normal"]))
    try:
        encoder = TileEncoder.from_bytes(msgpack.packb(state))
    except CorruptIndex:
        return
    encoder.update(whole(50, encoder.dim, 9))
    with suppress(InvalidInput):  # no lattice has so few levels
        encoder.fit()


@pytest.mark.parametrize("arguments", ARGUMENTS[:3])
def test_stored_form(arguments: dict[str, object]) -> None:
    """Version 1 of the stored form is read as it was written."""
    name = f"tile_encoder_{arguments.get('distribution', 'auto')}_version_1.msgpack"
    stored = (GOLDEN / name).read_bytes()
    encoder = TileEncoder.from_bytes(stored)
    assert encoder.to_bytes() == stored
    rows, parameters = whole(20, 2, 9), encoder.fit()
    np.testing.assert_allclose(parameters.decode(parameters.encode(rows)), rows, atol=0.3)


def test_an_index_explains() -> None:
    """Floats, then the code and what it is compared with, then that there are several frames."""
    index = OnlineIndex(8, compress_after=2_000)
    rows = skewed(4_000, 8)
    index.upsert(np.arange(1_000), rows[:1_000])
    assert index.explain() == "1,000 rows are held as floats, until enough are known to fit a code"
    index.upsert(np.arange(1_000, 4_000), rows[1_000:])
    index.maintain(10.0)
    first, why, *others = index.explain().split("\n")
    assert first.startswith("frame 1 codes new vectors")
    assert why.startswith("normal law, rotation random: a few bits of each code must route a search")
    assert [line.split(":")[0].strip() for line in others[2:]] == [
        "normal, rotation random",
        "normal, rotation none",
    ]
