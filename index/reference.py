"""What the stream looked like, and whether a window of it differs.

The *ruler* is a tile encoder in original coordinates (no rotation: a dimension keeps its name). Windows are
counted on its 16 tiles of four bits, in four chunks each. Two features of every dimension are tested, the
mean of the tiles and the mean of their
squares: a shift moves the first, a change of scale the second; being tiles, both are deaf to outliers.

Streams are not independent draws. Photographs give their SIFT descriptors in bursts, projects their commits
in topics: means of windows then scatter 4 to 15 times more (in variance) than independent rows would, and a
test that does not know it cries every time. So the scatter itself is estimated (the *inflation*): from
differences between reference windows at most three apart, so that a slow trend does not count as scatter;
pooled over dimensions, then shrunk towards each dimension's own. How well it is known depends on the stream.
If already chunks scatter too much, dimensions rise and fall together, and four windows are four
observations however many dimensions there are: Student's law with windows - 1 degrees of freedom. Otherwise
the part of the scatter that had to be estimated sets the degrees of freedom (Satterthwaite, 1946).

Tried and lost: the mean square over all features, which sees a slow drift that no single dimension shows
(commits after 7,000 rows instead of 29,000), called a quarter to a half of SIFT's windows different; half the
degrees of freedom in a bursty stream never noticed that the commits drift.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex
from ..native import bin_counts
from .packing import array_bytes, array_of, arrays_of, field, mapping, number
from .statistics import Moments, spans
from .tile import BINS, TileParameters

__all__ = ["CHUNKS", "Comparison", "Reference", "normal_score"]

Counts = NDArray[np.int64]
Doubles = NDArray[np.float64]

CHUNKS = 4  # of a window: 250 of 1,000 rows show bursts that are longer than a few rows
WINDOWS = 16  # that a reference is made of at most, or a slow drift would move it along
NEAR = 3  # windows apart, at most, whose difference is scatter
SHRINK = 8.0  # windows that the pooled inflation counts as beside a dimension's own
BURSTY = 1.3  # inflation of chunks: independent streams up to 1.16, SIFT 1.7 to 5.5, commits 1.7 to 2.7
SPREAD_LEAST = 0.05  # of a row's feature: a dimension constant in the reference may move by a rare row


@dataclass(frozen=True, slots=True)
class Comparison:
    """A window against the reference."""

    p_value: float  # of the most significant feature, times the number of features
    scores: (
        Doubles  # [dim]: significance as standard deviations of a normal law, the larger of the two features
    )
    drifted: NDArray[np.bool_]  # [dim]: significant by itself, corrected for the number of features
    shift: Doubles  # [dim]: of the mean, in sigmas of the ruler; saturates near 3
    inflation: float  # of the variance of window means, mean over dimensions; 1 is independent rows
    bursty: bool


def normal_score(t: Doubles, freedom: Doubles) -> Doubles:
    """|t| of Student's law as the standard normal deviate of the same tail (Wallace, 1959).

    Within 0.3 for three or more degrees of freedom.
    """
    return np.sqrt(freedom * np.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)


def _tail(score: float) -> float:
    """Two-sided tail of the standard normal law."""
    return math.erfc(score / math.sqrt(2))


class Reference:
    """Learns what is normal from windows, int64 [CHUNKS, dim, 16] counts on `ruler`, and compares others."""

    def __init__(self, ruler: TileParameters) -> None:
        self.ruler = ruler
        self.counts: Counts = np.zeros((ruler.dim, BINS), np.int64)
        self.windows = 0
        self._recent: list[Doubles] = []  # features [2, dim] of the last NEAR windows
        self._differences = np.zeros((2, ruler.dim))  # sum of squared differences / 2
        self._chunks = Moments(2 * ruler.dim)  # features of every chunk, one row each

    @property
    def full(self) -> bool:
        return self.windows >= WINDOWS

    @property
    def rows(self) -> int:
        return int(self.counts[0].sum())

    def count(self, parts: Iterable[NDArray[np.float32]]) -> Counts:
        """int64 [dim, 16]: how the rows of all parts fall on the ruler."""
        counts = np.zeros((self.ruler.dim, BINS), np.int64)
        for rows in spans(parts):
            counts += bin_counts(self.ruler.encode(rows))
        return counts

    def _features(self, counts: Counts, power: int = 1) -> Doubles:
        """[2, dim]: means over the counted rows of tile ** power and of tile ** (2 * power)."""
        places = self.ruler.table(4).astype(np.float64) ** power
        return (counts @ np.stack([places, places**2], axis=1) / counts[0].sum()).T

    def learn(self, window: Counts) -> None:
        """Take a window into the reference."""
        features = self._features(window.sum(axis=0))
        for near in self._recent:
            self._differences += (features - near) ** 2 / 2
        self._recent = [*self._recent, features][-NEAR:]
        self._chunks.update(np.stack([self._features(chunk).ravel() for chunk in window]))
        self.counts = self.counts + window.sum(axis=0)
        self.windows += 1

    def compare(self, window: Counts, alpha: float) -> Comparison:
        """Test a window against two or more that were learned, at level `alpha`."""
        counts = window.sum(axis=0)
        rows, dim = int(counts[0].sum()), self.ruler.dim
        mean = self._features(self.counts)
        spread = np.maximum(self._features(self.counts, 2) - mean**2, SPREAD_LEAST)  # of one row's features
        pairs = sum(min(window, NEAR) for window in range(self.windows))
        own = self._differences * (rows / pairs) / spread
        pooled = np.maximum(own.mean(axis=1, keepdims=True), 1.0)
        known = float(self.windows - 1)
        inflation = np.maximum((SHRINK * pooled + known * own) / (SHRINK + known), 1.0)
        chunks = self._chunks.value()[1].reshape(2, dim) * (self._chunks.n / (self._chunks.n - 1))
        bursty = float((chunks * (self.rows / self._chunks.n) / spread).mean()) > BURSTY
        if bursty:
            freedom = np.full_like(inflation, known)
        else:
            estimated = np.maximum(inflation - 1.0, 1e-3)
            freedom = known * (inflation / estimated) ** 2
        apart = self._features(counts) - mean
        error = np.sqrt(inflation * spread * (1 / rows + 1 / self.rows))
        scores = normal_score(np.abs(apart) / error, freedom).max(axis=0)
        tests = 2 * dim
        return Comparison(
            p_value=min(1.0, tests * _tail(float(scores.max()))),
            scores=scores,
            drifted=scores > -NormalDist().inv_cdf(alpha / tests / 2),
            shift=apart[0],
            inflation=float(pooled[0, 0]),
            bursty=bursty,
        )

    def state(self) -> dict[str, Any]:
        """For `from_state`.

        ruler: tile parameters; counts: i8 [dim, 16]; windows: int; differences: f8 [2, dim];
        recent: list of f8 [2, dim]; chunks: moments of 2 * dim features.
        """
        return {
            "ruler": self.ruler.to_bytes(),
            "counts": array_bytes(self.counts),
            "windows": self.windows,
            "differences": array_bytes(self._differences),
            "recent": [array_bytes(features) for features in self._recent],
            "chunks": self._chunks.state(),
        }

    @classmethod
    def from_state(cls, dim: int, window_rows: int, state: Any) -> "Reference":
        """What `state` said. CorruptIndex for what it cannot have said."""
        state = mapping(state, "reference")
        reference = cls(TileParameters.from_bytes(field(state, "ruler", bytes)))
        if reference.ruler.dim != dim:
            raise CorruptIndex(f"the reference has dimension {reference.ruler.dim}, not {dim}")
        reference.counts = array_of(state, "counts", "i8", (dim, BINS))
        reference.windows = int(number(state, "windows", 0, WINDOWS))
        reference._differences = array_of(state, "differences", "f8", (2, dim))
        reference._recent = arrays_of(state, "recent", "f8", (2, dim))
        reference._chunks = Moments.from_state(2 * dim, state.get("chunks"))
        rows = reference.counts.sum(axis=1)
        if (
            reference._chunks.n != CHUNKS * reference.windows
            or len(reference._recent) != min(reference.windows, NEAR)
            or (reference.counts < 0).any()
            or (rows != reference.windows * window_rows).any()
        ):
            raise CorruptIndex("a stored reference does not hold what it counts")
        return reference
