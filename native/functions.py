"""The core's pure functions: rotation, tile codes, kernels."""

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ._core import ffi, lib
from .arrays import floats, pointer

__all__ = [
    "MAX_DIM",
    "bin_counts",
    "force_isa",
    "isa",
    "moments",
    "rotate",
    "row_errors",
    "tile_decode",
    "tile_encode",
    "unrotate",
]

MAX_DIM: int = lib.DL_MAX_DIM  # of a vector

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Codes = NDArray[np.uint8]


def isa() -> str:
    """The kernels in use: scalar, avx2 or avx512."""
    return ffi.string(lib.dl_isa()).decode()


def force_isa(name: str) -> None:
    """Use these kernels from now on, for tests; InvalidInput if this machine lacks them."""
    if lib.dl_force_isa(name.encode()) != lib.DL_OK:
        raise InvalidInput(f"this machine has no {name} kernels")


def _rotatable(x: Floats) -> Floats:
    x = floats(x)
    if not 1 <= x.shape[1] <= MAX_DIM:
        raise InvalidInput(f"vectors of 1 to {MAX_DIM} dimensions can be rotated, not of {x.shape[1]}")
    return x


def rotate(x: Floats, seed: int) -> Floats:
    """The structured random rotation of float32 [n, dim]: orthogonal, O(dim log dim), the same for the same
    seed."""
    x = _rotatable(x)
    out = np.empty_like(x)
    lib.dl_rotate(pointer("float[]", x), pointer("float[]", out), len(x), x.shape[1], seed)
    return out


def unrotate(x: Floats, seed: int) -> Floats:
    """The inverse of `rotate`."""
    x = _rotatable(x)
    out = np.empty_like(x)
    lib.dl_unrotate(pointer("float[]", x), pointer("float[]", out), len(x), x.shape[1], seed)
    return out


def _row(x: Floats, size: int) -> Floats:
    row = np.ascontiguousarray(x, np.float32)
    if row.shape != (size,):
        raise InvalidInput(f"expected {size} values, got an array of shape {list(row.shape)}")
    return row


def tile_encode(x: Floats, mean: Floats, inv_scale: Floats, edges: Floats) -> Codes:
    """uint8 [n, dim]: the number of `edges` (255, ascending) that are <= (x - mean) * inv_scale."""
    x = floats(x)
    n, dim = x.shape
    mean, inv_scale, edges = _row(mean, dim), _row(inv_scale, dim), _row(edges, 255)
    codes = np.empty((n, dim), np.uint8)
    lib.dl_tile_encode(
        pointer("float[]", x), pointer("uint8_t[]", codes), n, dim, pointer("float[]", mean),
        pointer("float[]", inv_scale), pointer("float[]", edges),
    )  # fmt: skip
    return codes


def _codes(codes: Codes) -> Codes:
    codes = np.ascontiguousarray(codes, np.uint8)
    if codes.ndim != 2:
        raise InvalidInput(f"expected codes of shape [n, dim], got {list(codes.shape)}")
    return codes


def _table(table: Floats, bits: int) -> Floats:
    if not 1 <= bits <= 8:
        raise InvalidInput(f"bits must be 1 to 8, not {bits}")
    return _row(table, 2**bits)


def tile_decode(codes: Codes, mean: Floats, scale: Floats, table: Floats, bits: int) -> Floats:
    """float32 [n, dim]: mean + scale * table[top `bits` bits of the code]; `table` holds 2 ** bits values."""
    codes = _codes(codes)
    n, dim = codes.shape
    mean, scale, table = _row(mean, dim), _row(scale, dim), _table(table, bits)
    out = np.empty((n, dim), np.float32)
    lib.dl_tile_decode(
        pointer("uint8_t[]", codes), pointer("float[]", out), n, dim, pointer("float[]", mean),
        pointer("float[]", scale), pointer("float[]", table), bits,
    )  # fmt: skip
    return out


def row_errors(x: Floats, mean: Floats, scale: Floats, edges: Floats, table: Floats, bits: int) -> Doubles:
    """float64 [n]: |x - y|^2 of each row of float32 [n, dim], y what its code of `bits` bits decodes to.

    As `tile_encode` and `tile_decode` have it, in one call: other Python threads run meanwhile, and no codes
    are kept.
    """
    x = floats(x)
    n, dim = x.shape
    mean, scale = _row(mean, dim), _row(scale, dim)
    edges, table = _row(edges, 255), _table(table, bits)
    inverse, errors = 1 / scale, np.empty(n)
    lib.dl_row_errors(
        pointer("float[]", x), pointer("double[]", errors), n, dim, pointer("float[]", mean),
        pointer("float[]", scale), pointer("float[]", inverse), pointer("float[]", edges),
        pointer("float[]", table), bits,
    )  # fmt: skip
    return errors


def bin_counts(codes: Codes) -> NDArray[np.int64]:
    """int64 [dim, 16]: how often each top-four-bit code occurs in a dimension."""
    codes = _codes(codes)
    counts = np.zeros((codes.shape[1], 16), np.int64)
    lib.dl_bin_counts(pointer("uint8_t[]", codes), pointer("int64_t[]", counts), *codes.shape)
    return counts


def moments(
    x: Floats, weight: float, mean: Doubles, squares: Doubles, decay: float = 1.0
) -> tuple[float, Doubles, Doubles]:
    """Weight, mean and sum of squared deviations, float64 [dim] each, after the rows of float32 [n, dim] too.

    The arguments are the same before them; zeros at first. Each row multiplies the weights of those before it
    by `decay`. Rows are taken one by one, so the answer has the same bits however they are cut into calls.
    """
    x = floats(x)
    n, dim = x.shape
    if mean.shape != (dim,) or squares.shape != (dim,):
        raise InvalidInput(f"expected moments of {dim} dimensions")
    total = np.array([weight])
    mean, squares = mean.astype(np.float64), squares.astype(np.float64)
    lib.dl_moments(
        pointer("float[]", x), n, dim, decay, pointer("double[]", total), pointer("double[]", mean),
        pointer("double[]", squares),
    )  # fmt: skip
    return float(total[0]), mean, squares
