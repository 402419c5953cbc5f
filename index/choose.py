"""Which law, and whether to rotate: measured on a sample, the cheapest of the codes that are as good.

Candidates are fitted to the statistics and code the sample. One code serves at every precision, so those
whose four-bit prefix is POOR are out; then the error of the whole code decides. Codes within AS_GOOD of the
least are told apart by their prefix, then by what they cost.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex
from ..native import rotate
from .events import CodeError, EncoderChosen
from .lognormal import ZERO, LogMoments, LognormalParameters
from .packing import array_bytes, array_of, mapping, number
from .statistics import LARGEST, Moments
from .tile import LEAST, MOST, TileParameters

__all__ = [
    "Evidence",
    "Parameters",
    "candidates",
    "choose",
    "explained",
    "frame_chosen",
    "lattice_of",
    "law_of",
]

Vectors = NDArray[np.float32]
Doubles = NDArray[np.float64]
Parameters = TileParameters | LognormalParameters

ROWS = 1024  # of the sample: a normal code fitted to so many has 0.2 % more error than the best
AS_GOOD = 1.1  # a rotation lowers the error of commits384 by 3 % and doubles what coding costs
POOR = 1.5  # times the least error of a prefix: bytes of SIFT held exactly would have 1.9 times
EXACT = 1e-10  # of the variance: less error than any distance shows
WHOLE = 1e-3  # of a step: nearer to a whole number of steps is one, as k / 255 in float32 is
FEW = 64  # rows that show already that values are not whole steps


class Evidence:
    """What a stream has shown: ROWS of its rows, each as likely as any other, and the range of all values.

    Every row draws a number, and those with the lowest are kept: what is kept depends on the seed and the
    rows, not on how they were cut into batches.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.least = math.inf
        self.most = -math.inf
        self.rows: Vectors = np.empty((0, dim), np.float32)
        self._draws: Doubles = np.empty(0)
        self._drawn = 0  # by all rows that came here
        self._seed = seed

    def update(self, x: Vectors) -> None:
        """Take the rows of float32 [n, dim]."""
        if not len(x):
            return
        self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))
        draws = _numbers(self._seed, self._drawn, len(x))
        self._drawn += len(x)
        low = np.flatnonzero(draws < self._draws.max()) if len(self.rows) == ROWS else np.arange(len(x))
        low = low[_lowest(draws[low])]
        if len(low):
            self._keep(x[low], draws[low])

    def merge(self, other: "Evidence") -> None:
        """Take what `other` has seen: of all rows the ones with the lowest draws are kept."""
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self._keep(other.rows, other._draws)

    def _keep(self, rows: Vectors, draws: Doubles) -> None:
        draws = np.concatenate([self._draws, draws])
        kept = _lowest(draws)
        self.rows, self._draws = np.concatenate([self.rows, rows])[kept], draws[kept]

    def state(self) -> dict[str, Any]:
        """For `from_state`: range, f4 [2], or nil before the first row; rows, f4 [n, dim]; draws, f8 [n];
        drawn, int: rows that came."""
        seen = np.array([self.least, self.most], np.float32)
        return {
            "range": array_bytes(seen) if len(self.rows) else None,
            "rows": array_bytes(self.rows),
            "draws": array_bytes(self._draws),
            "drawn": self._drawn,
        }

    @classmethod
    def from_state(cls, dim: int, seed: int, state: Any) -> "Evidence":
        """What `state` said. CorruptIndex for what it cannot have said."""
        state = mapping(state, "evidence")
        evidence = cls(dim, seed)
        evidence.rows = array_of(state, "rows", "f4", (-1, dim))
        evidence._draws = array_of(state, "draws", "f8", (len(evidence.rows),))
        evidence._drawn = int(number(state, "drawn", 0, 2**62))
        if len(evidence.rows) > ROWS or (np.abs(evidence.rows) > LARGEST).any():
            raise CorruptIndex("a stored sample holds what was not sampled")
        if len(evidence.rows):
            evidence.least, evidence.most = map(float, array_of(state, "range", "f4", (2,)))
            if evidence.rows.min() < evidence.least or evidence.rows.max() > evidence.most:
                raise CorruptIndex("a stored sample lies outside the range of all values")
        return evidence


def _lowest(draws: Doubles) -> NDArray[np.int64]:
    """Where the ROWS lowest stand, ascending."""
    return np.sort(np.argpartition(draws, ROWS)[:ROWS]) if len(draws) > ROWS else np.arange(len(draws))


def _numbers(seed: int, first: int, count: int) -> Doubles:
    """`count` random numbers in [0, 1) of a sequence, from place `first` on: SplitMix64 (Steele et al.,
    OOPSLA 2014). numpy's generators take 1.6 MB of memory when they are first called."""
    places = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    z = np.uint64(seed) + places * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


def _distinct(values: Vectors) -> Vectors:
    """Ascending. (numpy's unique takes a megabyte of memory when it is first called.)"""
    ascending = np.sort(values, axis=None)
    return ascending[np.append(True, ascending[1:] > ascending[:-1])]


def lattice_of(evidence: Evidence, levels: int) -> TileParameters | None:
    """The lattice that all values lie on: whole steps, no more of them than levels. None if there is none."""
    rows = evidence.rows
    if len(_distinct(rows[:FEW])) > levels:
        return None
    values = _distinct(np.append(rows, np.array([evidence.least, evidence.most], np.float32))).astype(float)
    if not 2 <= len(values) <= levels:
        return None
    reach = evidence.most - evidence.least
    count = round(reach / np.diff(values).min())
    places = (values - evidence.least) * (count / reach)
    if count >= levels or np.abs(places - np.rint(places)).max() > WHOLE:
        return None
    # Few steps are put as far apart as the levels allow, so that prefixes tell them apart too.
    step = reach / count / ((levels - 1) // count)
    if not LEAST <= step <= MOST:
        return None
    seen = np.rint((rows.astype(float) - evidence.least) / step).astype(np.int64)
    return TileParameters.lattice(
        rows.shape[1], evidence.least, step, np.bincount(seen.ravel(), minlength=levels)
    )


def candidates(
    evidence: Evidence,
    mean: Doubles,
    variance: Doubles,
    *,
    laws: bool,
    seed: int | None,
    spread: float,
    levels: int,
) -> list[Parameters]:
    """Codes that could be chosen, the cheapest first.

    laws: whether others than the normal law; seed: of a rotation, None for no rotation. Mean and variance are
    those of all rows, not rotated. A rotation keeps the sum of the variances; how it spreads them over the
    dimensions is estimated from the sample.
    """
    found: list[Parameters] = [TileParameters.fit(mean, variance, spread=spread, levels=levels)]
    lattice = lattice_of(evidence, levels) if laws else None
    if lattice is not None:
        found.append(lattice)
    if seed is not None:
        turned = rotate(np.concatenate([evidence.rows, mean[None].astype(np.float32)]), seed).astype(float)
        spreads = turned[:-1].var(axis=0)
        spreads *= variance.sum() / max(spreads.sum(), LEAST)
        found.append(
            TileParameters.fit(turned[-1], spreads, spread=spread, rotation_seed=seed, levels=levels)
        )
    if laws and evidence.least >= ZERO:
        logs = LogMoments(len(mean))
        logs.update(evidence.rows)
        found.append(LognormalParameters.fit(*logs.value(), spread=spread, levels=levels))
    return found


def choose(found: Sequence[Parameters], rows: Vectors) -> tuple[Parameters, EncoderChosen]:
    """The best of candidates, by what they make of rows, float32 [n, dim], and why."""
    measured = [code_error(parameters, rows) for parameters in found]
    good = list(range(len(found)))
    whole, prefix = [code.error for code in measured], [code.error_4_bits for code in measured]
    for errors, factor in ((prefix, POOR), (whole, AS_GOOD), (prefix, AS_GOOD)):
        limit = factor * min(errors[i] for i in good) + EXACT
        good = [i for i in good if errors[i] <= limit]
    best = good[0]
    return found[best], EncoderChosen(
        distribution=measured[best].distribution,
        rotation=measured[best].rotation,
        reason=_reason(found[best], measured[best], measured),
        measured=tuple(measured),
    )


def frame_chosen(parameters: TileParameters, rows: Vectors) -> EncoderChosen:
    """The code of an index's frame, measured on rows, float32 [n, dim], beside those of a bare encoder.

    An index has no choice. Lattices hold bytes without loss, but not rotated: their top three bits route
    worse, and their top bit says little of what is far. Recall@10 at ef = 10 fell from 0.95 to 0.64 on
    fashion-mnist and from 0.82 to 0.75 on SIFT.
    """
    evidence = Evidence(parameters.dim, 0)
    evidence.update(rows)
    moments = Moments(parameters.dim)
    moments.update(rows)
    others = candidates(
        evidence, *moments.value(), laws=True, seed=None, spread=parameters.spread, levels=parameters.levels
    )
    measured = tuple(code_error(code, evidence.rows) for code in (parameters, *others))
    return EncoderChosen(
        distribution=measured[0].distribution,
        rotation=measured[0].rotation,
        reason="a few bits of each code must route a search, and only this code's can",
        measured=measured,
    )


def explained(chosen: EncoderChosen, fitted_rows: int) -> str:
    """What was chosen and why, in lines for people."""
    lines = [
        f"{chosen.distribution} law, rotation {chosen.rotation}: {chosen.reason}",
        f"fitted to {fitted_rows:,} rows",
        "error / variance on a sample, whole code and top four bits:",
    ]
    lines += [
        f"  {code.distribution}, rotation {code.rotation}: {code.error:.3g}, {code.error_4_bits:.3g}"
        for code in chosen.measured
    ]
    return "\n".join(lines)


def code_error(parameters: Parameters, rows: Vectors) -> CodeError:
    """Error of rows, float32 [n, dim], in units of their variance."""
    moments = Moments(rows.shape[1])
    moments.update(rows)
    variance = max(float(moments.value()[1].sum()), LEAST)
    prefix = 4 if parameters.levels & (parameters.levels - 1) == 0 and parameters.levels >= 16 else 8
    errors = [_squared_error(parameters, rows, bits) / variance for bits in (8, prefix)]
    distribution, rotation = law_of(parameters)
    return CodeError(distribution=distribution, rotation=rotation, error=errors[0], error_4_bits=errors[1])


def _squared_error(parameters: Parameters, rows: Vectors, bits: int) -> float:
    """Mean over rows of |x - decode(encode(x))|^2."""
    if isinstance(parameters, TileParameters):
        return parameters.error(rows, bits)
    decoded = parameters.decode(parameters.encode(rows), bits)
    return float(np.square(rows - decoded, dtype=np.float64).sum()) / len(rows)


def law_of(parameters: Parameters) -> tuple[str, str]:
    """Distribution and rotation, as CodeError names them."""
    if isinstance(parameters, LognormalParameters):
        return "lognormal", "none"
    distribution = "normal" if parameters.steps is None else "lattice"
    return distribution, "none" if parameters.rotation_seed is None else "random"


def _reason(chosen: Parameters, code: CodeError, measured: Sequence[CodeError]) -> str:
    if isinstance(chosen, TileParameters) and chosen.steps is not None:
        return f"all values are whole steps of {chosen.scale[0]:.4g}, which its codes hold without loss"
    others = [other for other in measured if other is not code]
    if not others:
        return "nothing else was allowed"
    next_best = min(others, key=lambda other: other.error)
    name = f"{next_best.distribution}, rotation {next_best.rotation}"
    if next_best.error * AS_GOOD + EXACT < code.error:
        ratio = next_best.error_4_bits / max(code.error_4_bits, EXACT)
        return f"less error ({name}) would cost the prefix of four bits {ratio:.2f} times the error"
    if next_best.error <= code.error * AS_GOOD + EXACT:
        return "no other code has clearly less error, and it costs the least"
    return f"the next best ({name}) would have {next_best.error / max(code.error, EXACT):.2f} times the error"
