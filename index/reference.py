"""What the stream looked like, and whether a window of it differs.

The *ruler* is a tile encoder in original coordinates (no rotation: a dimension keeps its name). Windows are
counted on its 16 tiles of four bits, in chunks, four to a full window. Two features of every dimension are
tested, the mean of the tiles and the mean of their squares: a shift moves the first, a change of scale the
second; being tiles, both are deaf to outliers.

Streams are not independent draws. Photographs give their SIFT descriptors in bursts, projects their commits
in topics: means of windows then scatter 4 to 15 times more (in variance) than independent rows would, and a
test that does not know it cries every time. Two tests must agree that a window differs; its p-value is the
larger of theirs.

*By its features.* The scatter is estimated (the *inflation*) from differences between reference windows at
most three apart, so that a slow trend does not count as scatter; pooled over dimensions, then shrunk towards
each dimension's own. If already chunks scatter too much, dimensions rise and fall together, and four windows
are four observations however many dimensions there are: Student's law with windows - 1 degrees of freedom.
Otherwise the part of the scatter that had to be estimated sets the degrees of freedom (Satterthwaite, 1946).
Alone it holds what it promises on independent rows, and called 13 % of the windows of a bursty stream of 128
dimensions different at a promised 1 %: one long burst moves all dimensions at once.

*By its largest score.* Each reference window is scored as the newcomer is, by the largest of its features
against its near neighbours, with a scatter that it had no part in. A newcomer must be larger than these
scores: Student's prediction interval for one more of them, of -1 / sqrt(score), which is nearly normal for
independent rows and for bursts. Scores of windows whose chunks lie further apart than usual are divided by
as much: one that a burst or a change fills in part says little, the next one will say more.

Tried and lost: the logarithm of the score (2.2 % of windows in bursts at a promised 1 %, 1.1 % so); scoring
against all other windows, which takes a slow drift inside the reference for scatter (commits then differed
from row 54,000 on, not 31,000); learning only windows that do not differ, which trims the scores (6 %). The
mean square over all features, which sees a slow drift that no single dimension shows (commits after 7,000
rows instead of 29,000), called a quarter to a half of SIFT's windows different; half the degrees of freedom
in a bursty stream never noticed that the commits drift.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex
from ..native import bin_counts
from .packing import array_bytes, array_of, arrays_of, field, items, mapping, number
from .statistics import spans
from .tile import BINS, TileParameters

__all__ = ["CHUNKS", "Chunk", "Comparison", "Reference", "normal_score", "student_tail"]

Counts = NDArray[np.int64]
Doubles = NDArray[np.float64]

CHUNKS = 4  # of a window: 250 of 1,000 rows show bursts that are longer than a few rows
WINDOWS = 16  # that a reference is made of at most, or a slow drift would move it along
NEAR = 3  # windows apart, at most, whose difference is scatter
SHRINK = 8.0  # windows that the pooled inflation counts as beside a dimension's own
BURSTY = 1.3  # inflation of chunks: independent streams up to 1.16, SIFT 1.7 to 5.5, commits 1.7 to 2.7
# Power of alpha that the features' p-value must be below: 1e-8. Not in bursts, whose scatter is not so well
# known; and of four to sixteen windows the scores alone can hardly say less than 1e-4.
FAR = 4
CAUTION = 3.0  # times a tail of scores: they are a little skewed, and neighbours share theirs
LEAST_UNREST = 1.0  # that is usual: of independent rows; less where dimensions are dead or chunks are one
LEAST_SCORE, LEAST_SPREAD = 1e-3, 1e-3  # streams of constants divide by none
SPREAD_LEAST = 0.05  # of a row's feature: a dimension constant in the reference may move by a rare row


@dataclass(frozen=True, slots=True)
class Comparison:
    """A window against the reference."""

    p_value: float  # corrected for the number of features
    scores: Doubles  # [dim]: as standard deviations of a normal law, the larger of the two features
    drifted: NDArray[np.bool_]  # [dim]: significant by itself, corrected for the number of features
    shift: Doubles  # [dim]: of the mean, in sigmas of the ruler
    inflation: float  # of the variance of window means, mean over dimensions; 1 is independent rows
    bursty: bool
    settled: bool  # every chunk moved, at least half as far as the window: the change is not inside it
    by_far: bool  # settled, and so different that no second window is needed to be sure


def normal_score(t: Doubles, freedom: Doubles) -> Doubles:
    """|t| of Student's law as the standard normal deviate of the same tail (Wallace, 1959).

    Within 0.3 for three or more degrees of freedom.
    """
    return np.sqrt(freedom * np.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)


def student_tail(t: float, freedom: float) -> float:
    """Chance that Student's law lies beyond t on one side, t >= 0.

    The incomplete beta function by its continued fraction (Abramowitz & Stegun 26.5.8, 26.7.1), to 12 digits;
    the normal law beyond 10,000 degrees of freedom.
    """
    if freedom > 1e4:
        return math.erfc(t / math.sqrt(2)) / 2
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    flip = x > (a + 1) / (a + b + 2)  # where the fraction of the other tail converges
    if flip:
        x, a, b = t * t / (freedom + t * t), b, a
    if x == 0:
        return 0.5 if flip else 0.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    fraction = 1.0
    for m in range(_terms(a), 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1 + even / (1 + odd / fraction)
    first = -(a + b) * x / (a + 1)
    share = front / a / (1 + first / fraction)
    return (1 - share if flip else share) / 2


def _terms(a: float) -> int:
    """Pairs of terms after which the fraction has settled: it takes about the square root of a."""
    return 20 + 2 * int(math.sqrt(a))


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some rows as a reference sees them."""

    counts: Counts  # [dim, 16], on the ruler
    sums: Doubles  # [dim]: of the rows, from the ruler's mean and in its sigmas: bins do not tell how far

    @property
    def rows(self) -> int:
        return int(self.counts[0].sum())

    @classmethod
    def together(cls, chunks: Sequence["Chunk"]) -> "Chunk":
        """All rows of one or more chunks."""
        counts = np.sum([chunk.counts for chunk in chunks], axis=0)
        return cls(counts, np.sum([chunk.sums for chunk in chunks], axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What a reference keeps of a window: what it moves to, over how many rows, how its chunks scatter."""

    rows: int
    features: Doubles  # [2, dim]
    scatter: Doubles  # [2, dim]: variance of the chunks' features, as of one row


@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """What the learned windows say of one more that is like them."""

    mean: Doubles  # [2, dim], of the features of all rows
    spread: Doubles  # [2, dim]: variance of one row's features
    inflation: Doubles  # [2, dim]: of the variance of windows' features, shrunk
    inflation_mean: float  # over dimensions, of the first feature, not shrunk
    freedom: Doubles  # [2, dim]: degrees of it
    bursty: bool
    unrest: Doubles  # [windows]: scatter of their chunks, mean over the features; 1 for independent rows
    scores: Doubles  # [windows]: each one's largest feature against its near neighbours


class Reference:
    """Learns what is normal from windows, each of some chunks counted on `ruler`, and compares others."""

    def __init__(self, ruler: TileParameters) -> None:
        self.ruler = ruler
        self.seen = Chunk(np.zeros((ruler.dim, BINS), np.int64), np.zeros(ruler.dim))
        self._windows: list[Window] = []
        self._known: Null | None = None  # until a window is learned

    @property
    def windows(self) -> int:
        return len(self._windows)

    @property
    def full(self) -> bool:
        return self.windows >= WINDOWS

    @property
    def rows(self) -> int:
        return self.seen.rows

    def count(self, parts: Iterable[NDArray[np.float32]]) -> Chunk:
        """How the rows of all parts fall on the ruler."""
        counts = np.zeros((self.ruler.dim, BINS), np.int64)
        sums = np.zeros(self.ruler.dim)
        for rows in spans(parts):
            counts += bin_counts(self.ruler.encode(rows))
            sums += rows.sum(axis=0, dtype=np.float64) - len(rows) * self.ruler.mean.astype(np.float64)
        return Chunk(counts, sums / self.ruler.scale)

    def features(self, counts: Counts, power: int = 1) -> Doubles:
        """[2, dim]: means over the counted rows of tile ** power and of tile ** (2 * power)."""
        places = self.ruler.table(4).astype(np.float64) ** power
        return np.stack([counts @ places, counts @ places**2]) / counts[0].sum()

    def _window(self, chunks: Sequence[Chunk]) -> Window:
        whole = Chunk.together(chunks)
        features = self.features(whole.counts)
        apart = np.zeros_like(features)
        for chunk in chunks:
            apart += chunk.rows * (self.features(chunk.counts) - features) ** 2
        return Window(whole.rows, features, apart / max(len(chunks) - 1, 1))

    def learn(self, chunks: Sequence[Chunk]) -> None:
        """Take a window into the reference."""
        self._windows.append(self._window(chunks))
        self.seen = Chunk.together([self.seen, *chunks])
        self._known = None

    def _null(self) -> Null:
        """Of three or more windows."""
        if self._known is None:
            mean = self.features(self.seen.counts)
            spread = np.maximum(self.features(self.seen.counts, 2) - mean**2, SPREAD_LEAST)
            own, scores = self._score(spread)
            inflation = self._shrunk(own)
            known = float(self.windows - 1)
            unrest = np.array([float((window.scatter / spread).mean()) for window in self._windows])
            bursty = float(unrest.mean()) > BURSTY
            if bursty:
                freedom = np.full_like(inflation, known)
            else:
                estimated = np.maximum(inflation - 1.0, 1e-3)
                freedom = known * (inflation / estimated) ** 2
            most = max(float(own[0].mean()), 1.0)
            self._known = Null(mean, spread, inflation, most, freedom, bursty, unrest, scores)
        return self._known

    def _score(self, spread: Doubles) -> tuple[Doubles, Doubles]:
        """The scatter of near windows, [2, dim], 1 for independent rows; every window's score, [windows]."""
        known = self._windows
        pairs = [(i, j) for i in range(len(known)) for j in range(max(0, i - NEAR), i)]
        apart = np.stack(
            [
                (known[i].features - known[j].features) ** 2 / (1 / known[i].rows + 1 / known[j].rows)
                for i, j in pairs
            ]
        )
        apart /= spread
        total = apart.sum(axis=0)
        scores = np.empty(len(known))
        for i, window in enumerate(known):
            its = [k for k, pair in enumerate(pairs) if i in pair]
            scatter = self._shrunk((total - apart[its].sum(axis=0)) / (len(pairs) - len(its)))
            near = [known[j] for j in range(max(0, i - NEAR), min(len(known), i + NEAR + 1)) if j != i]
            rows = sum(other.rows for other in near)
            mean = sum((other.rows / rows * other.features for other in near), np.zeros_like(spread))
            scores[i] = _largest(window.features - mean, scatter * spread * (1 / window.rows + 1 / rows))
        return total / len(pairs), scores

    def _shrunk(self, own: Doubles) -> Doubles:
        """Inflation of each feature: towards what is pooled over dimensions, the fewer windows the more."""
        pooled = np.maximum(own.mean(axis=1, keepdims=True), 1.0)
        known = float(self.windows - 1)
        return np.maximum((SHRINK * pooled + known * own) / (SHRINK + known), 1.0)

    def _by_features(self, null: Null, features: Doubles, rows: int) -> tuple[float, Doubles, float]:
        """How a window's features lie to what is known: the p-value of the most significant one, corrected
        for their number; the significance of each, [2, dim]; how far the farthest is off, in deviations."""
        variance = null.inflation * null.spread * (1 / rows + 1 / self.rows)
        t = np.abs(features - null.mean) / np.sqrt(variance)
        scores = normal_score(t, null.freedom)
        most = np.unravel_index(int(scores.argmax()), scores.shape)
        p_value = 2 * scores.size * student_tail(float(t[most]), float(null.freedom[most]))
        return p_value, scores, float(t.max())

    def stands_out(self, chunk: Chunk, alpha: float) -> bool:
        """Whether the features of a chunk differ by themselves, in a stream that is not bursty."""
        null = self._null()
        return not null.bursty and self._by_features(null, self.features(chunk.counts), chunk.rows)[0] < alpha

    def far(self, chunks: Sequence[Chunk], alpha: float) -> Comparison | None:
        """What `compare` says of chunks that differ by far; None, at little cost, of others."""
        null, whole = self._null(), Chunk.together(chunks)
        if null.bursty:
            return None
        p_value, *_ = self._by_features(null, self.features(whole.counts), whole.rows)
        comparison = self.compare(chunks, alpha) if p_value < alpha**FAR else None
        return comparison if comparison is not None and comparison.by_far else None

    def compare(self, chunks: Sequence[Chunk], alpha: float) -> Comparison:
        """Test a window against three or more that were learned, at level `alpha`."""
        null = self._null()
        window, whole = self._window(chunks), Chunk.together(chunks)
        by_feature, scores, largest = self._by_features(null, window.features, window.rows)
        restless = _restless(np.append(null.unrest, float((window.scatter / null.spread).mean())))
        score = np.append(null.scores, largest) / np.sqrt(np.maximum(restless, 1.0))
        by_score = CAUTION * _tail_of_last(score)
        apart = window.features - null.mean
        way = apart / null.spread
        moved = [float(((self.features(chunk.counts) - null.mean) * way).sum()) for chunk in chunks]
        settled = len(chunks) > 1 and min(moved) >= float((apart * way).sum()) / 2
        return Comparison(
            p_value=min(1.0, max(by_feature, by_score)),
            scores=scores.max(axis=0),
            drifted=scores.max(axis=0) > -NormalDist().inv_cdf(alpha / scores.size / 2),
            shift=whole.sums / whole.rows - self.seen.sums / self.seen.rows,
            inflation=null.inflation_mean,
            bursty=null.bursty,
            settled=settled,
            by_far=settled and not null.bursty and by_score < alpha and by_feature < alpha**FAR,
        )

    def state(self) -> dict[str, Any]:
        """For `from_state`.

        ruler: tile parameters; counts: i8 [dim, 16]; sums: f8 [dim]; rows: list of int, of each window;
        features, scatter: lists of f8 [2, dim], of each window.
        """
        return {
            "ruler": self.ruler.to_bytes(),
            "counts": array_bytes(self.seen.counts),
            "sums": array_bytes(self.seen.sums),
            "rows": [window.rows for window in self._windows],
            "features": [array_bytes(window.features) for window in self._windows],
            "scatter": [array_bytes(window.scatter) for window in self._windows],
        }

    @classmethod
    def from_state(cls, dim: int, window_rows: int, state: Any) -> "Reference":
        """What `state` said of windows of at most `window_rows`. CorruptIndex for what it cannot have
        said."""
        state = mapping(state, "reference")
        reference = cls(TileParameters.from_bytes(field(state, "ruler", bytes)))
        if reference.ruler.dim != dim:
            raise CorruptIndex(f"the reference has dimension {reference.ruler.dim}, not {dim}")
        reference.seen = Chunk(
            array_of(state, "counts", "i8", (dim, BINS)), array_of(state, "sums", "f8", (dim,))
        )
        features = arrays_of(state, "features", "f8", (2, dim))
        scatter = arrays_of(state, "scatter", "f8", (2, dim))
        rows = [int(number({"rows": each}, "rows", 1, window_rows)) for each in items(state, "rows")]
        if (
            not len(rows) == len(features) == len(scatter) <= WINDOWS
            or (reference.seen.counts < 0).any()
            or (reference.seen.counts.sum(axis=1) != sum(rows)).any()
            or any((each < 0).any() for each in scatter)
        ):
            raise CorruptIndex("a stored reference does not hold what it counts")
        reference._windows = [Window(*each) for each in zip(rows, features, scatter, strict=True)]
        return reference


def _largest(apart: Doubles, variance: Doubles) -> float:
    return math.sqrt(float((apart**2 / variance).max()))


def _restless(unrest: Doubles) -> Doubles:
    """How much further the chunks of each window lie apart than usual, as a ratio of variances; the last is
    the newcomer, the others are the reference's, among which each is compared with the rest."""
    known = unrest[:-1]
    usual = np.append((known.sum() - known) / (len(known) - 1), known.mean())
    return unrest / np.maximum(usual, LEAST_UNREST)


def _tail_of_last(scores: Doubles) -> float:
    """Chance that the last score is as large, if it is one more of the others."""
    places = -1 / np.sqrt(np.maximum(scores, LEAST_SCORE))
    known = len(places) - 1
    spread = max(float(places[:-1].std(ddof=1)), LEAST_SPREAD)
    t = (float(places[-1]) - float(places[:-1].mean())) / (spread * math.sqrt(1 + 1 / known))
    return student_tail(t, known - 1) if t > 0 else 1.0
