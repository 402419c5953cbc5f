"""Tiles of lognormal dimensions, each with edges and a table of its own, from mean and deviation of log x.

Only a bare TileEncoder uses them. A frame of the index is one table for all dimensions, and a rotated normal
code has less error in all but a few dimensions: docs/tile.md.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex
from ..native import MAX_DIM
from .laws import lognormal_edges, lognormal_table
from .packing import array_bytes, array_of, mapping, message, message_of, number
from .statistics import as_rows
from .tile import SPREADS, check_codes, tiles_of

__all__ = ["LogMoments", "LognormalParameters"]

Vectors = NDArray[np.float32]
Doubles = NDArray[np.float64]
Codes = NDArray[np.uint8]

SPAN = 1024  # rows worked on at once
ZERO = float(np.finfo(np.float32).tiny)  # what is below has no logarithm here: 0, negative or denormal
MOST = float(np.finfo(np.float32).max)
NARROWEST = 2.0**-23  # of a deviation of log x: what float32 cannot tell apart is not spread
WIDEST = 8.0  # a factor of 3,000 for each deviation; beyond, tails of the law leave float64


class LogMoments:
    """Mean and variance of log x of each dimension over a stream of rows, in float64.

    Values below the least ordinary float32 (0, negatives, denormals) have no logarithm and do not count.
    """

    def __init__(self, dim: int) -> None:
        self._n = np.zeros(dim)
        self._mean = np.zeros(dim)
        self._squares = np.zeros(dim)

    def update(self, x: Vectors) -> None:
        """Take the rows of float32 [n, dim]; dimension by dimension as Moments does."""
        for start in range(0, len(x), SPAN):
            rows = x[start : start + SPAN].astype(np.float64)
            counts = rows >= ZERO
            logs = np.log(rows, where=counts, out=np.zeros_like(rows))
            n = counts.sum(axis=0)
            mean = logs.sum(axis=0) / np.maximum(n, 1)
            self._add(n, mean, (((logs - mean) * counts) ** 2).sum(axis=0))

    def merge(self, other: "LogMoments") -> None:
        """Take what `other` has seen (Chan, Golub and LeVeque, 1979)."""
        self._add(other._n, other._mean, other._squares)

    def _add(self, n: Doubles, mean: Doubles, squares: Doubles) -> None:
        total = np.maximum(self._n + n, 1)
        apart = mean - self._mean
        self._squares = self._squares + squares + apart * apart * (self._n * n / total)
        self._mean = self._mean + apart * (n / total)
        self._n = self._n + n

    def value(self) -> tuple[Doubles, Doubles]:
        """Mean and (population) variance of log x, float64 [dim] each.

        A dimension that was never positive has the logarithm of the least float32, and no variance.
        """
        seen = self._n > 0
        mean = np.where(seen, self._mean, np.log(ZERO))
        return mean, self._squares / np.maximum(self._n, 1)

    def state(self) -> dict[str, Any]:
        """For `from_state`: n, mean and squares, f8 [dim] each."""
        return {
            "n": array_bytes(self._n),
            "mean": array_bytes(self._mean),
            "squares": array_bytes(self._squares),
        }

    @classmethod
    def from_state(cls, dim: int, state: Any) -> "LogMoments":
        """What `state` said. CorruptIndex for what it cannot have said."""
        state = mapping(state, "moments of logarithms")
        restored = cls(dim)
        restored._n, restored._mean, restored._squares = (
            array_of(state, name, "f8", (dim,)) for name in ("n", "mean", "squares")
        )
        if (restored._n < 0).any() or (restored._squares < 0).any() or (np.abs(restored._mean) > 100).any():
            raise CorruptIndex("stored moments of logarithms hold what no rows have")
        return restored


@dataclass(frozen=True, eq=False)
class LognormalParameters:
    """Everything needed to code vectors whose dimensions are lognormal, and to decode them. Immutable.

    mean, sigma: float64 [dim], of log x; spread and levels as in TileParameters. Never rotated: a sum of many
    lognormal values is not lognormal.

    Stored by `to_bytes` as a message of kind "lognormal tile" (index/packing.py): mean and sigma as f8 [dim],
    spread as float, levels as int.
    """

    mean: Doubles
    sigma: Doubles
    spread: float
    levels: int

    @classmethod
    def fit(cls, mean: Doubles, variance: Doubles, *, spread: float, levels: int) -> "LognormalParameters":
        """Parameters from mean and variance of log x; sigma is kept within NARROWEST and WIDEST."""
        return cls(mean, np.clip(np.sqrt(variance), NARROWEST, WIDEST), spread, levels)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @cached_property
    def edges(self) -> Vectors:
        """float32 [dim, levels - 1]: a code is the number of edges that are at or below x."""
        edges = lognormal_edges(self.mean, self.sigma, self.spread, self.levels)
        return np.clip(edges, ZERO, MOST).astype(np.float32)

    def table(self, bits: int = 8) -> Vectors:
        """float32 [dim, tiles]: what codes, or their top `bits` bits, decode to; see TileParameters.table."""
        tiles = tiles_of(self.levels, bits)
        places = lognormal_table(self.mean, self.sigma, self.spread, tiles)
        return np.clip(places, 0, MOST).astype(np.float32)

    def encode(self, x: Vectors) -> Codes:
        """uint8 [n, dim] of float32 [n, dim]. Whatever has no logarithm gets the lowest tile."""
        rows = as_rows(x, self.dim)
        codes = np.empty(rows.shape, np.uint8)
        for d, edges in enumerate(self.edges):
            codes[:, d] = np.searchsorted(edges, np.ascontiguousarray(rows[:, d]), side="right")
        return codes

    def decode(self, codes: Codes, bits: int = 8) -> Vectors:
        """float32 [n, dim] from the codes, or from their top `bits` bits."""
        check_codes(codes, self.dim)
        table = self.table(bits)
        tiles = np.minimum(codes, self.levels - 1) // (self.levels // table.shape[1])
        return table[np.arange(self.dim), tiles]

    def to_bytes(self) -> bytes:
        return message(
            "lognormal tile",
            {
                "mean": array_bytes(self.mean),
                "sigma": array_bytes(self.sigma),
                "spread": self.spread,
                "levels": self.levels,
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "LognormalParameters":
        """What `to_bytes` wrote. CorruptIndex for anything that it could not have written."""
        state = message_of("lognormal tile", data)
        mean = array_of(state, "mean", "f8", (-1,))
        if not 1 <= len(mean) <= MAX_DIM:
            raise CorruptIndex(f"tile parameters of dimension {len(mean)}")
        sigma = array_of(state, "sigma", "f8", (len(mean),))
        if not (sigma.min() >= NARROWEST and sigma.max() <= WIDEST and np.abs(mean).max() <= np.log(MOST)):
            raise CorruptIndex("tile parameters hold a logarithm that cannot be")
        return cls(
            mean, sigma, float(number(state, "spread", *SPREADS)), int(number(state, "levels", 2, 256))
        )
