"""Endless stationary streams, in blocks of BLOCK rows: whatever is said to change in one is a false alarm."""

from collections.abc import Callable, Iterator

import numpy as np
from vectors import Vectors

__all__ = ["BLOCK", "LAWS", "Blocks", "resampled", "rows_of"]

BLOCK = 1000  # rows
BURST_ROWS = 100  # mean length of a burst, geometric
BURST_SIGMAS = 0.5  # how far bursts lie apart, in standard deviations of the rows within one
SWELL_ROWS, SWELL_SIGMAS = 1000, 0.03  # means of windows scatter 1.7 times more, their quarters' 1.2 times
MEMORY = 0.95  # correlation of a row with the one before

Blocks = Iterator[Vectors]


def normal(rng: np.random.Generator, dim: int) -> Blocks:
    while True:
        yield rng.standard_normal((BLOCK, dim), np.float32)


def laplace(rng: np.random.Generator, dim: int) -> Blocks:
    while True:
        yield rng.laplace(size=(BLOCK, dim)).astype(np.float32)


def lognormal(rng: np.random.Generator, dim: int) -> Blocks:
    """Log-sigma 0.8."""
    while True:
        yield np.exp(0.8 * rng.standard_normal((BLOCK, dim), np.float32))


def bursts(
    rng: np.random.Generator, dim: int, length: float = BURST_ROWS, sigmas: float = BURST_SIGMAS
) -> Blocks:
    """Rows in runs that share an offset, as descriptors of one photograph do."""
    offset = rng.normal(scale=sigmas, size=(1, dim))
    while True:
        starts = rng.random(BLOCK) < 1 / length
        offsets = np.concatenate([offset, rng.normal(scale=sigmas, size=(int(starts.sum()), dim))])
        offset = offsets[-1:]
        yield (rng.standard_normal((BLOCK, dim)) + offsets[np.cumsum(starts)]).astype(np.float32)


def swell(rng: np.random.Generator, dim: int) -> Blocks:
    """Bursts as long as a window and so low that nothing inside it shows them."""
    return bursts(rng, dim, SWELL_ROWS, SWELL_SIGMAS)


def autoregressive(rng: np.random.Generator, dim: int) -> Blocks:
    """Every row remembers the one before: unit variance, correlation MEMORY ** rows apart."""
    last = rng.standard_normal(dim)
    fresh = np.sqrt(1 - MEMORY**2)
    while True:
        rows = fresh * rng.standard_normal((BLOCK, dim))
        for row in rows:
            row += MEMORY * last
            last = row
        last = last.copy()
        yield rows.astype(np.float32)


LAWS: dict[str, Callable[[np.random.Generator, int], Blocks]] = {
    "normal": normal,
    "laplace": laplace,
    "lognormal": lognormal,
    "bursts": bursts,
    "swell": swell,
    "autoregressive": autoregressive,
}


def resampled(rng: np.random.Generator, rows: Vectors) -> Blocks:
    """Rows drawn from a set, with replacement: a stream without end, and without order."""
    while True:
        yield rows[rng.integers(len(rows), size=BLOCK)]


def rows_of(blocks: Blocks, count: int) -> Vectors:
    """The next `count` rows, of which the last block may have more."""
    taken = [next(blocks) for _ in range(-(-count // BLOCK))]
    return np.concatenate(taken)[:count]
