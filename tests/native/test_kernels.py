"""Kernels against the scalar ones, and the scalar ones and the pure functions against their definitions."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline import native
from driftline.native import functions
from driftline.native._core import ffi, lib
from driftline.native.arrays import pointer

LENGTHS = range(1, 131)
PADDED = (*range(32, 161, 32), 4096)  # of codes: what lengths up to 130 are padded to, and the longest
VECTOR_ISAS = [name for name in ("avx2", "avx512", "neon") if lib.dl_force_isa(name.encode()) == 0]
ISAS = ["scalar", *VECTOR_ISAS]
lib.dl_force_isa(b"scalar")


@pytest.fixture(autouse=True)
def best_kernels():
    """Each test starts and ends with the kernels that this machine would choose."""
    native.force_isa(ISAS[-1])
    yield
    native.force_isa(ISAS[-1])


def misaligned(array: np.ndarray, shift: int) -> np.ndarray:
    """The same values at an address that is `shift` bytes past an allocation's."""
    room = np.empty(array.nbytes + 64, np.uint8)
    view = room[shift : shift + array.nbytes].view(array.dtype)
    view[:] = array
    return view


def test_vector_kernels_loaded():
    """A machine with AVX2 or better, or an arm64 one, must not fall back to scalar kernels."""
    assert platform.machine() not in ("aarch64", "arm64") or native.isa() == "neon"
    flags = Path("/proc/cpuinfo").read_text() if native.isa() == "scalar" else ""
    assert "avx2" not in flags


def test_unknown_isa_is_refused():
    """force_isa names what the machine lacks."""
    with pytest.raises(ValueError, match="no sse9 kernels"):
        native.force_isa("sse9")


Planes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def pairs_of(codes: np.ndarray, bit: int) -> np.ndarray:
    """Bits `bit` and `bit` + 1, four positions a byte, one of each quarter of 64 or, at the end, of 32."""
    rows = []
    for start in range(0, len(codes), 64):
        quarters = (codes[start : start + 64] >> bit & 3).reshape(4, -1)
        rows.append((quarters << np.uint8([[0], [2], [4], [6]])).sum(axis=0, dtype=np.uint8))
    return np.concatenate(rows)


def planes_of(codes: np.ndarray) -> Planes:
    """Signs, upper, lower and lows as kernels.h lays them out."""
    bits = [np.packbits(codes >> bit & 1, bitorder="little") for bit in (7, 2, 1, 0)]
    return bits[0], pairs_of(codes, 5), pairs_of(codes, 3), np.concatenate(bits[1:])


def split(codes: np.ndarray, shift: int = 0) -> Planes:
    n = len(codes)
    signs, upper, lower, lows = (
        misaligned(np.full(size, 0xAA, np.uint8), shift) for size in (n // 8, n // 4, n // 4, 3 * n // 8)
    )
    lib.dl_split(*(pointer("uint8_t[]", each) for each in (codes, signs, upper, lower, lows)), n)
    return signs, upper, lower, lows


def join(planes: Planes, shift: int) -> np.ndarray:
    codes = misaligned(np.full(8 * len(planes[0]), 0xAA, np.uint8), shift)
    lib.dl_join(*(pointer("uint8_t[]", each) for each in (*planes, codes)), len(codes))
    return codes


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_split_and_join_follow_the_layout(isa: str, shift: int):
    """Four planes hold every bit once, where kernels.h says, and join brings the codes back."""
    native.force_isa(isa)
    rng = np.random.default_rng(shift)
    for n in PADDED:
        codes = misaligned(rng.integers(0, 256, n, np.uint8), shift)
        planes = split(codes, shift)
        for found, expected in zip(planes, planes_of(codes), strict=True):
            assert np.array_equal(found, expected), n
        assert np.array_equal(join(planes, shift), codes), n


def random_row(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """Codes, weights of 8 and 16 bits, tables of 8, 32 and 256."""
    bound = min(32767, ((1 << 19) - 1) // n)
    return (
        rng.integers(0, 256, n, np.uint8), rng.integers(-127, 128, n, np.int8),
        rng.integers(-bound, bound + 1, n, np.int16), rng.integers(0, 128, 8, np.uint8),
        rng.integers(0, 128, 32, np.uint8), rng.integers(-4096, 4097, 256, np.int16),
    )  # fmt: skip


def extreme_row(sign: int, n: int) -> tuple[np.ndarray, ...]:
    """The same, all as large as they may be: no sum along the way may overflow."""
    bound = min(32767, ((1 << 19) - 1) // n)
    return (
        np.full(n, 255, np.uint8), np.full(n, sign * 127, np.int8), np.full(n, sign * bound, np.int16),
        np.full(8, 127, np.uint8), np.full(32, 127, np.uint8), np.full(256, 4096, np.int16),
    )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_integer_kernels_are_exact(isa: str, shift: int):
    """dot1, dot3, dot5 and dot8 give numpy's integer, and so each other's, at padded lengths up to 160 and at
    4096, extremes included."""
    native.force_isa(isa)
    rng = np.random.default_rng(shift)
    for n in PADDED:
        for row in (*(random_row(rng, n) for _ in range(4)), extreme_row(1, n), extreme_row(-1, n)):
            codes, w8, w16, three, five, eight = (misaligned(each, shift) for each in row)
            planes = [misaligned(each, shift) for each in planes_of(codes)]
            sign, upper, lower, low = (pointer("uint8_t[]", each) for each in planes)
            narrow, wide = pointer("int8_t[]", w8), pointer("int16_t[]", w16)
            assert lib.dl_dot1(sign, narrow, n) == w8[codes >= 128].sum(dtype=int), n
            found = lib.dl_dot3(sign, upper, narrow, pointer("uint8_t[]", three), n)
            assert found == w8.astype(int) @ three[codes >> 5].astype(int), n
            found = lib.dl_dot5(sign, upper, lower, narrow, pointer("uint8_t[]", five), n)
            assert found == w8.astype(int) @ five[codes >> 3].astype(int), n
            found = lib.dl_dot8(sign, upper, lower, low, wide, pointer("int16_t[]", eight), n)
            assert found == w16.astype(int) @ eight[codes].astype(int), n


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [0, 4, 12])
def test_float_kernels_agree_with_float64(isa: str, shift: int):
    """l2 and ip are within float32 rounding of float64 at every length 1 to 130."""
    rng = np.random.default_rng(shift)
    for n in LENGTHS:
        a = misaligned(rng.normal(size=n).astype(np.float32), shift)
        b = misaligned(rng.normal(size=n).astype(np.float32), shift)
        native.force_isa(isa)
        arguments = pointer("float[]", a), pointer("float[]", b), n
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        assert lib.dl_l2(*arguments) == pytest.approx(((wide_a - wide_b) ** 2).sum(), rel=1e-5)
        assert lib.dl_ip(*arguments) == pytest.approx(wide_a @ wide_b, abs=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 37, 100, 384, 784, 4096])
def test_rotation_is_orthogonal(dim: int):
    """Norms and inner products are kept, the inverse undoes it, and the seed decides it."""
    x = np.random.default_rng(dim).normal(size=(4, dim)).astype(np.float32)
    y = native.rotate(x, 7)
    assert y @ y.T == pytest.approx(x @ x.T, rel=1e-4, abs=1e-3)
    assert native.unrotate(y, 7) == pytest.approx(x, abs=1e-4)
    assert np.array_equal(y, native.rotate(x, 7))
    if dim > 8:
        assert not np.allclose(y, native.rotate(x, 8))


@pytest.mark.parametrize("dim", [37, 100, 784])
def test_rotation_mixes_all_dimensions(dim: int):
    """A unit vector spreads: no coordinate keeps most of it, whatever the dimension."""
    y = native.rotate(np.eye(dim, dtype=np.float32), 1)
    assert np.abs(y).max() < 0.9
    assert (np.abs(y) > 1e-6).mean() > 0.9


@pytest.mark.parametrize("dim", [1, 3, 4, 7, 8, 16, 37, 100, 384, 784, 4096])
def test_rotation_is_the_same_on_every_machine(dim: int):
    """Every isa adds in the same order: the same vector, to the last bit."""
    x = np.random.default_rng(dim).normal(size=(3, dim)).astype(np.float32)
    native.force_isa("scalar")
    turned, back = native.rotate(x, 7), native.unrotate(x, 7)
    for isa in VECTOR_ISAS:
        native.force_isa(isa)
        assert np.array_equal(native.rotate(x, 7), turned)
        assert np.array_equal(native.unrotate(x, 7), back)


def test_rotation_is_the_one_of_stored_frames():
    """Frames store the seed alone: what it stands for may never change, not in one rounding."""
    x = (np.arange(800) * 7919 % 2001 - 1000).reshape(8, 100).astype(np.float32)
    assert hashlib.sha256(native.rotate(x, 9).astype("<f4").tobytes()).hexdigest()[:16] == "1ca37c3e56974f28"
    assert (
        hashlib.sha256(native.unrotate(x, 9).astype("<f4").tobytes()).hexdigest()[:16] == "5423d2f083bc5a48"
    )


def edges_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    edges = {
        "normal": np.sort(rng.normal(size=255)),
        "even": np.linspace(-3, 3, 255),
        "crowded": np.concatenate([1 + 1e-6 * np.arange(250), [1e3, 1e4, 1e5, 1e6, 1e30]]),
        "repeated": np.arange(255) // 50,
        "one": np.full(255, 0.1),
        "least": np.arange(-127, 128) * 1e-45,
        "largest": np.arange(-127, 128) * 2.6e36,
    }[kind]
    return edges.astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["normal", "even", "crowded", "repeated", "one", "least", "largest"])
def test_tile_encode_counts_edges(isa: str, kind: str):
    """A code is the number of edges at or below the standardised value: at the edges themselves, right beside
    them, far from them, and however unevenly they lie."""
    native.force_isa(isa)
    edges = edges_of(kind)
    far = np.float32([0, 1e-45, -1e-45, 1e18, -1e18, 3.4e38, -3.4e38])
    spread = np.random.default_rng(1).normal(size=500).astype(np.float32) * 4
    beside = [np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([edges, *beside, far, spread])
    x = x[: len(x) // 2 * 2].reshape(-1, 2)
    expected = np.searchsorted(edges, x, side="right")
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert np.array_equal(native.tile_encode(x, zero, one, edges), expected)
    row = x.reshape(1, -1)  # the same as one long row: in vectors, where the pairs were a remainder
    zero, one = np.zeros(row.size, np.float32), np.ones(row.size, np.float32)
    assert np.array_equal(native.tile_encode(row, zero, one, edges), expected.reshape(1, -1))


@pytest.mark.parametrize("isa", ISAS)
def test_tile_encode_standardises(isa: str):
    """Mean and scale are each dimension's own, at every dimension up to 130."""
    native.force_isa(isa)
    rng = np.random.default_rng(0)
    edges = edges_of("normal")
    for dim in LENGTHS:
        x, mean = rng.normal(size=(4, dim)).astype(np.float32), rng.normal(size=dim).astype(np.float32)
        inverse = rng.uniform(0.1, 3, dim).astype(np.float32)
        expected = np.searchsorted(edges, (x - mean) * inverse, side="right")
        assert np.array_equal(native.tile_encode(x, mean, inverse, edges), expected), dim


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tile_decode_looks_up_prefixes(isa: str, bits: int):
    """The top bits of a code choose the table's value."""
    native.force_isa(isa)
    rng = np.random.default_rng(bits)
    table = rng.normal(size=2**bits).astype(np.float32)
    for dim in (1, 9, 16, 37, 128):
        codes = rng.integers(0, 256, (5, dim), np.uint8)
        mean, scale = rng.normal(size=(2, dim)).astype(np.float32)
        expected = mean + scale * table[codes >> (8 - bits)]
        assert native.tile_decode(codes, mean, scale, table, bits) == pytest.approx(
            expected, rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_row_errors_are_those_of_decoded_codes(isa: str, bits: int):
    """Squared distances from rows to what their codes decode to, in float64, at every dimension up to 130 and
    beyond the span that is coded at once."""
    native.force_isa(isa)
    rng = np.random.default_rng(bits)
    edges, table = edges_of("normal"), np.sort(rng.normal(size=2**bits)).astype(np.float32)
    for dim in (*LENGTHS, 255, 256, 257, 784):
        x, mean = rng.normal(size=(3, dim)).astype(np.float32), rng.normal(size=dim).astype(np.float32)
        scale = rng.uniform(0.1, 3, dim).astype(np.float32)
        decoded = native.tile_decode(native.tile_encode(x, mean, 1 / scale, edges), mean, scale, table, bits)
        expected = ((x - decoded).astype(np.float64) ** 2).sum(axis=1)
        found = native.row_errors(x, mean, scale, edges, table, bits)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert not len(native.row_errors(np.empty((0, 4), np.float32), mean[:4], scale[:4], edges, table, bits))
    with pytest.raises(ValueError, match="values"):
        native.row_errors(x, mean, scale, edges, table[1:], bits)


def test_bin_counts_is_a_histogram():
    """Counts of the top four bits, per dimension."""
    codes = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    expected = [np.bincount(codes[:, d] >> 4, minlength=16) for d in range(3)]
    assert np.array_equal(native.bin_counts(codes), expected)


def test_every_kernel_against_its_scalar_twin(tmp_path: Path):
    """The C program that also runs on an emulated arm64: kernels that have no doorway of their own, and reads
    beyond an end."""
    here = Path(__file__).parent
    program = tmp_path / "kernels_check"
    sources = [*sorted((here.parents[1] / "native").glob("kernels*.c")), here / "kernels_check.c"]
    compiler: list[Any] = [os.environ.get("CC", "cc"), "-std=c11", "-D_DEFAULT_SOURCE", "-O2"]
    subprocess.run([*compiler, f"-I{here.parents[1] / 'native'}", *sources, "-o", program, "-lm"], check=True)
    answer = subprocess.run([program], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.count(": checked") == len(ISAS)


def test_shapes_are_checked():
    """A parameter of the wrong length is refused before C sees it."""
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="expected 3 values"):
        native.tile_encode(x, np.zeros(2, np.float32), np.ones(3, np.float32), np.zeros(255, np.float32))
    with pytest.raises(ValueError, match=r"\[n, dim\]"):
        native.rotate(np.zeros(3, np.float32), 0)
    for dim in (0, 4097):
        with pytest.raises(ValueError, match="1 to 4096"):
            native.rotate(np.zeros((1, dim), np.float32), 0)
    assert functions.isa() == native.isa()
    assert ffi.sizeof("float") == 4
