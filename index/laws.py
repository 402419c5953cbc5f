"""The laws that tiles are made for: where the tiles of a law meet, and what they decode to.

Everything here is computed once for an encoder, in float64. Tiles are numbered from below, and the tiles of a
*prefix* (the top bits of a code) are unions of neighbouring ones.

*normal*, unit: tiles of equal probability of a normal law `spread` times as wide. The best density of tiles
is the cube root of the law's (Panter and Dite, 1951): spread = sqrt(3). A tile decodes to the law's mean in
it.

*lognormal*: log x = m + s z with z normal. The cube root of its density is, in z, normal again, sqrt(3) times
as wide and 2 s further up: (spread^2 - 1) s for any spread, so that spread = 1 is tiles of equal probability.

*lattice*: values are whole steps. Every tile is a step and stands for itself; a prefix decodes to the mean of
the values in it as they were counted, over all dimensions, since all share one table.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SPREAD",
    "lattice_edges",
    "lattice_table",
    "lognormal_edges",
    "lognormal_table",
    "normal_edges",
    "normal_table",
]

Vectors = NDArray[np.float32]
Doubles = NDArray[np.float64]

SPREAD = math.sqrt(3)
UNIT = NormalDist()
erfc: Any = np.frompyfunc(math.erfc, 1, 1)


def _lower_quantiles(levels: int) -> list[float]:
    """Where the lower half of `levels` tiles of equal probability meet: the lower tail is accurate."""
    return [UNIT.inv_cdf(k / levels) for k in range(1, (levels + 1) // 2)]


def _mirrored(lower: list[float], middle: bool) -> list[float]:
    """`lower` and its mirror image above 0, with a 0 between them where there is a `middle`."""
    return [*lower, *([0.0] if middle else []), *(-value for value in reversed(lower))]


def _read_only(values: Any) -> Vectors:
    array = np.asarray(values, np.float32)
    array.flags.writeable = False
    return array


@lru_cache(maxsize=32)
def normal_edges(spread: float, levels: int = 256) -> Vectors:
    """float32 [255]: where the tiles of the unit normal law meet, read-only.

    The first levels - 1 of them; those that follow lie beyond, at the mean distance, since the core counts
    255: what is behind them is in the outermost tile too.
    """
    lower = [spread * quantile for quantile in _lower_quantiles(levels)]
    edges = np.array(_mirrored(lower, levels % 2 == 0))
    apart = (edges[-1] - edges[0]) / (levels - 2) if levels > 2 else 1.0
    return _read_only(np.concatenate([edges, edges[-1] + apart * np.arange(1, 257 - levels)]))


@lru_cache(maxsize=64)
def normal_table(spread: float, tiles: int) -> Vectors:
    """float32 [tiles]: what the tiles of the unit normal law decode to, read-only."""
    half = tiles // 2
    if spread == 1.0:
        lower = [UNIT.inv_cdf((k + 0.5) / tiles) for k in range(half)]
    else:
        # The mean inside [a, b] is (phi(a) - phi(b)) / (Phi(b) - Phi(a)). In the lower tail erfc keeps every
        # digit of Phi, and no tile but an odd number's middle one, whose mean is 0, straddles 0.
        edges = [-math.inf, *(spread * quantile for quantile in _lower_quantiles(tiles))]
        edges = edges if tiles % 2 else [*edges, 0.0]
        density = [math.exp(-0.5 * edge * edge) / math.sqrt(2 * math.pi) for edge in edges]
        below = [0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges]
        lower = [(density[k] - density[k + 1]) / (below[k + 1] - below[k]) for k in range(half)]
    return _read_only(_mirrored(lower, tiles % 2 == 1))


def _lognormal_places(sigma: Doubles, spread: float, tiles: int) -> Doubles:
    """float64 [dim, tiles - 1]: where tiles meet in z."""
    lower = [spread * quantile for quantile in _lower_quantiles(tiles)]
    return np.array(_mirrored(lower, tiles % 2 == 0)) + (spread**2 - 1) * sigma[:, None]


def _between(low: Doubles, high: Doubles) -> Doubles:
    """Probability of the unit normal law from `low` to `high`, to all digits in either tail."""
    flip = low > 0  # then both are mirrored into the lower tail
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    tails = 0.5 * erfc(np.stack([-a, -b]) / math.sqrt(2)).astype(np.float64)
    return tails[1] - tails[0]


def lognormal_edges(mean: Doubles, sigma: Doubles, spread: float, levels: int) -> Doubles:
    """float64 [dim, levels - 1]: where the tiles of each dimension meet; `mean` and `sigma` are of the
    logarithm."""
    return np.exp(mean[:, None] + sigma[:, None] * _lognormal_places(sigma, spread, levels))


def lognormal_table(mean: Doubles, sigma: Doubles, spread: float, tiles: int) -> Doubles:
    """float64 [dim, tiles]: what the tiles of each dimension decode to.

    The mean of e^(m + s z) over z in [a, b] is e^(m + s^2 / 2) (Phi(b - s) - Phi(a - s)) / (Phi(b) - Phi(a)).
    """
    if spread == 1.0:
        middles = np.array([UNIT.inv_cdf((k + 0.5) / tiles) for k in range(tiles)])
        return np.exp(mean[:, None] + sigma[:, None] * middles)
    ends = np.full((len(mean), 1), np.inf)
    places = np.concatenate([-ends, _lognormal_places(sigma, spread, tiles), ends], axis=1)
    low, high, s = places[:, :-1], places[:, 1:], sigma[:, None]
    return np.exp(mean[:, None] + s * s / 2) * (_between(low - s, high - s) / _between(low, high))


@lru_cache(maxsize=1)
def lattice_edges() -> Vectors:
    """float32 [255]: half way between steps, read-only."""
    return _read_only(np.arange(1, 256) - 0.5)


def lattice_table(counts: NDArray[np.int64], tiles: int) -> Vectors:
    """float32 [tiles]: mean step in each of `tiles` runs of steps, counts int64 [levels]; their middle where
    nothing was counted."""
    steps = np.arange(len(counts), dtype=np.float64).reshape(tiles, -1)
    weights = counts.reshape(tiles, -1)
    total = weights.sum(axis=1)
    means = (steps * weights).sum(axis=1) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, means, steps.mean(axis=1)), np.float32)
