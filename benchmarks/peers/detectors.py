"""Drift detectors that people use, on vectors: those for one variable watch each dimension.

Each takes float32 [n, dim] in the order of the stream and gives the rows (counted from the first that it was
given) at which it raised an alarm. None says anything about the first LEARNED rows: driftline's first
reference is as long. Values are in sigmas of these rows.

| detector     | is                      | settings                                                          |
|--------------|-------------------------|-------------------------------------------------------------------|
| Page-Hinkley | river's, by dimension   | delta 0.125, half of the shift that is looked for; threshold      |
|              |                         | where a random walk with that drift crosses once in               |
|              |                         | 1,000 dim / alpha rows. With river's own (0.005 and 50) every     |
|              |                         | window of independent rows had an alarm; its factor of forgetting |
|              |                         | is 1: with its own 0.9999 the sum no longer has that drift, and   |
|              |                         | 55 % of windows had one at 16 dimensions                          |
| ADWIN        | river's, by dimension   | delta = alpha / dim                                               |
| KS           | Kolmogorov-Smirnov, two | p < alpha / dim (Bonferroni), windows of 1,000 rows against the   |
|              | samples, by dimension   | first LEARNED                                                     |
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEARNED", "MAKERS", "Detector"]

LEARNED = 4000
WINDOW = 1000
DELTA = 0.125  # sigmas

Vectors = NDArray[np.float32]


class Detector(Protocol):
    """Watches a stream of rows."""

    def update(self, rows: Vectors) -> list[int]: ...


class ByDimension:
    """A detector of one variable, `make()`, for every dimension; after an alarm the one that gave it begins
    anew, by itself."""

    def __init__(self, dim: int, make: Callable[[], Any]) -> None:
        self._each = [make() for _ in range(dim)]
        self._first: list[Vectors] = []
        self._seen = 0
        self._mean = self._scale = np.zeros(dim)

    def update(self, rows: Vectors) -> list[int]:
        alarms: list[int] = []
        for row in rows:
            self._seen += 1
            if self._seen <= LEARNED:
                self._first.append(row)
                if self._seen == LEARNED:
                    first = np.stack(self._first).astype(np.float64)
                    self._mean, self._scale = first.mean(axis=0), first.std(axis=0) + 1e-9
                    self._first = []
                continue
            found = False
            for detector, value in zip(self._each, ((row - self._mean) / self._scale).tolist(), strict=True):
                detector.update(value)
                found |= detector.drift_detected
            if found:
                alarms.append(self._seen)
        return alarms


class KolmogorovSmirnov:
    """Each window of WINDOW rows against the first LEARNED, dimension by dimension."""

    def __init__(self, dim: int, alpha: float) -> None:
        self._limit = alpha / dim
        self._reference = self._held = np.empty((0, dim), np.float32)
        self._seen = 0

    def update(self, rows: Vectors) -> list[int]:
        alarms: list[int] = []
        self._held = np.concatenate([self._held, rows])
        if not len(self._reference) and len(self._held) >= LEARNED:
            self._reference = np.sort(self._held[:LEARNED], axis=0)
            self._held, self._seen = self._held[LEARNED:], LEARNED
        while len(self._reference) and len(self._held) >= WINDOW:
            window, self._held = np.sort(self._held[:WINDOW], axis=0), self._held[WINDOW:]
            self._seen += WINDOW
            if min(self._p_values(window)) < self._limit:
                alarms.append(self._seen)
        return alarms

    def _p_values(self, window: Vectors) -> list[float]:
        """As scipy.stats.ks_2samp(method="asymp") gives them, which takes one dimension at a time."""
        from scipy.stats import kstwo

        known = self._reference
        apart = [0.0] * known.shape[1]
        for d in range(known.shape[1]):
            values = np.concatenate([known[:, d], window[:, d]])
            shares = [
                np.searchsorted(rows[:, d], values, side="right") / len(rows) for rows in (known, window)
            ]
            apart[d] = float(np.abs(shares[0] - shares[1]).max())
        rows = round(len(known) * len(window) / (len(known) + len(window)))
        return kstwo.sf(apart, rows).tolist()


def page_hinkley(dim: int, alpha: float) -> Detector:
    from river.drift import PageHinkley

    # Both sides; the excursion of a random walk with drift -delta exceeds h with chance exp(-2 delta h).
    threshold = math.log(2 * WINDOW * dim / alpha) / (2 * DELTA)
    return ByDimension(dim, lambda: PageHinkley(delta=DELTA, threshold=threshold, alpha=1.0))


def adwin(dim: int, alpha: float) -> Detector:
    from river.drift import ADWIN

    return ByDimension(dim, lambda: ADWIN(delta=alpha / dim))


MAKERS: dict[str, Callable[[int, float], Detector]] = {
    "Page-Hinkley": page_hinkley,
    "ADWIN": adwin,
    "KS": KolmogorovSmirnov,
}
