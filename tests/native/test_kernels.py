"""Kernels against the scalar ones, and the pure functions against their definitions."""

from pathlib import Path

import numpy as np
import pytest
from driftline import native
from driftline.native import functions
from driftline.native._core import ffi, lib
from driftline.native.arrays import pointer

LENGTHS = range(1, 131)
VECTOR_ISAS = [name for name in ("avx2", "avx512") if lib.dl_force_isa(name.encode()) == 0]
lib.dl_force_isa(b"scalar")


@pytest.fixture(autouse=True)
def best_kernels():
    """Each test starts and ends with the kernels that this machine would choose."""
    native.force_isa(VECTOR_ISAS[-1] if VECTOR_ISAS else "scalar")
    yield
    native.force_isa(VECTOR_ISAS[-1] if VECTOR_ISAS else "scalar")


def misaligned(array: np.ndarray, shift: int) -> np.ndarray:
    """The same values at an address that is `shift` bytes past an allocation's."""
    room = np.empty(array.nbytes + 64, np.uint8)
    view = room[shift : shift + array.nbytes].view(array.dtype)
    view[:] = array
    return view


def test_vector_kernels_loaded():
    """A machine with AVX2 or better must not fall back to scalar kernels."""
    flags = Path("/proc/cpuinfo").read_text() if native.isa() == "scalar" else ""
    assert "avx2" not in flags


def test_unknown_isa_is_refused():
    """force_isa names what the machine lacks."""
    with pytest.raises(ValueError, match="no sse9 kernels"):
        native.force_isa("sse9")


@pytest.mark.parametrize("isa", VECTOR_ISAS)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_integer_kernels_equal_scalar(isa: str, shift: int):
    """dot4 and dot8 give the scalar kernel's integer, extremes included, at every padded length up to 130 and
    at 4096."""
    rng = np.random.default_rng(shift)
    for n in sorted({-(-length // 32) * 32 for length in LENGTHS} | {4096}):
        for extreme in (False, True):
            high = misaligned(rng.integers(0, 256, n // 2, np.uint8), shift)
            low = misaligned(rng.integers(0, 256, n // 2, np.uint8), shift)
            w4 = np.full(n, -127, np.int8) if extreme else rng.integers(-127, 128, n, np.int8)
            bound = min(32767, ((1 << 19) - 1) // n)
            w8 = np.full(n, bound, np.int16) if extreme else rng.integers(-bound, bound + 1, n, np.int16)
            t4 = np.full(16, 127, np.uint8) if extreme else rng.integers(0, 128, 16, np.uint8)
            t8 = np.full(257, -4096, np.int16) if extreme else rng.integers(-4096, 4097, 257, np.int16)
            arguments4 = (
                pointer("uint8_t *", high), pointer("int8_t *", w4), pointer("uint8_t *", t4), n,
            )  # fmt: skip
            arguments8 = (
                pointer("uint8_t *", high), pointer("uint8_t *", low), pointer("int16_t *", w8),
                pointer("int16_t *", t8), n,
            )  # fmt: skip
            native.force_isa("scalar")
            expected = lib.dl_dot4(*arguments4), lib.dl_dot8(*arguments8)
            native.force_isa(isa)
            assert (lib.dl_dot4(*arguments4), lib.dl_dot8(*arguments8)) == expected, n


@pytest.mark.parametrize("isa", VECTOR_ISAS)
@pytest.mark.parametrize("shift", [0, 4, 12])
def test_float_kernels_agree_with_float64(isa: str, shift: int):
    """l2 and ip are within float32 rounding of float64 at every length 1 to 130."""
    rng = np.random.default_rng(shift)
    for n in LENGTHS:
        a = misaligned(rng.normal(size=n).astype(np.float32), shift)
        b = misaligned(rng.normal(size=n).astype(np.float32), shift)
        native.force_isa(isa)
        arguments = pointer("float *", a), pointer("float *", b), n
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


def test_tile_encode_counts_edges():
    """A code is the number of edges at or below the standardised value, at the edges themselves too."""
    rng = np.random.default_rng(0)
    edges = np.sort(rng.normal(size=255)).astype(np.float32)
    x = np.concatenate([edges, rng.normal(size=265).astype(np.float32) * 4, [-1e30, 1e30]])
    x = x.reshape(-1, 2).astype(np.float32)
    mean, inverse = np.float32([0.5, -1]), np.float32([2, 0.25])
    z = (x - mean) * inverse
    expected = (edges <= z[:, :, None]).sum(axis=2)
    assert np.array_equal(native.tile_encode(x, mean, inverse, edges), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tile_decode_looks_up_prefixes(bits: int):
    """The top bits of a code choose the table's value."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 256, (5, 9), np.uint8)
    table = rng.normal(size=2**bits).astype(np.float32)
    mean, scale = rng.normal(size=(2, 9)).astype(np.float32)
    expected = mean + scale * table[codes >> (8 - bits)]
    assert native.tile_decode(codes, mean, scale, table, bits) == pytest.approx(expected, rel=1e-6)


def test_bin_counts_is_a_histogram():
    """Counts of the top four bits, per dimension."""
    codes = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    expected = [np.bincount(codes[:, d] >> 4, minlength=16) for d in range(3)]
    assert np.array_equal(native.bin_counts(codes), expected)


def test_shapes_are_checked():
    """A parameter of the wrong length is refused before C sees it."""
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="expected 3 values"):
        native.tile_encode(x, np.zeros(2, np.float32), np.ones(3, np.float32), np.zeros(255, np.float32))
    with pytest.raises(ValueError, match=r"\[n, dim\]"):
        native.rotate(np.zeros(3, np.float32), 0)
    assert functions.isa() == native.isa()
    assert ffi.sizeof("float") == 4
