"""The recall canary: how much of what they should find live queries do find, measured while they are
answered.

A sample of the queries is asked again in the background, each twice at one moment (OnlineIndex.witness): by
the graph as it is asked live, and by a pass over all codes. The share of the second answer that is in the
first is the query's recall; a window of queries gives the mean and an interval.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .events import CanaryWindow
from .hits import Witnessed

__all__ = ["Canary", "CanarySettings", "Vectors", "interval"]

BATCH = 16  # queries that one pass over the codes answers; a bound in native/witness.c
RAW_EVERY = 10  # windows, one of which is checked by raw vectors too
ROUNDING = 1e-12  # variances below are 0
Z = 1.959964  # of the normal law: 95 %, both sides

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """How recall is watched. InvalidInput for values out of range."""

    sample: int = 200
    """Queries of a window, 30 or more."""
    k: int = 10
    """Nearest that are asked for."""
    budget: float = 0.04
    """Share of one core that the checks may take, at most 1; 0: no checks. What surrounds them is less
    than a hundredth of that."""
    every_seconds: float = 60.0
    """Windows begin at least so far apart: those of a small index would come several a second."""

    def __post_init__(self) -> None:
        ranges = {"sample": (30, 100_000), "k": (1, 1000), "budget": (0, 1), "every_seconds": (0, math.inf)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInput(f"{name} must be {least} to {most}, not {value}")


class Witness(Protocol):
    """What of an OnlineIndex the canary uses."""

    def witness(self, queries: Vectors, k: int, ef: int, *, rescore: bool, raw: bool) -> Witnessed: ...


def interval(recalls: NDArray[np.float64]) -> tuple[float, float]:
    """A 95 % interval for the mean recall of all queries like these; recalls: float64 [n] of single queries,
    each 0 to 1, n at least 2.

    Wilson's interval for a proportion with continuity correction (Newcombe 1998, method 4), as if of so many
    independent hits as have the variance that the recalls show (Korn & Graubard 1998): hits of one query are
    missed together. Where all recalls are the same a query counts as one hit, as if it missed all or none.
    Near 1 recalls are too skew for a normal or Student's interval: at a recall of 0.9995 those held the truth
    in 65 % of windows of 200 queries; bootstrap-t in 99 %, three times as wide as this one there, and in less
    than 93 % at recalls below 0.9.
    """
    mean, variance = float(recalls.mean()), float(recalls.var(ddof=1))
    n = len(recalls) * (mean * (1 - mean) / variance if variance > ROUNDING else 1)

    def score(p: float, side: int) -> float:
        spread = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return (p + Z**2 / (2 * n) + side * spread) / (1 + Z**2 / n)

    low = score(max(mean - 0.5 / n, 0), -1) if mean > 0 else 0.0
    high = score(min(mean + 0.5 / n, 1), 1) if mean < 1 else 1.0
    return low, high


class Canary:
    """Takes the sample and checks it. `offer` may be called by any thread, `step` by one at a time.

    rescore: as live searches are asked. clock: seconds that pass; cpu: seconds that this thread has computed.
    """

    def __init__(
        self,
        settings: CanarySettings | None = None,
        *,
        rescore: bool = True,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self.settings = settings or CanarySettings()
        self._rescore = rescore
        self._clock = clock
        self._cpu = cpu
        self._random = random.Random(seed)
        self._lock = threading.Lock()  # of the next two
        self._sample: list[Vectors] = []
        self._offered = 0  # since the last window was drawn
        self.free_at = -math.inf
        """When, by the clock, the budget allows the next batch."""
        self._queries: Vectors | None = None  # of the open window
        self._done: list[Witnessed] = []
        self._ef = 0
        self._began, self._spent = -math.inf, 0.0
        self._windows = 0

    def offer(self, query: Vectors) -> None:
        """A live query, float32 [dim]; copied if it enters the sample: of all that are offered until a window
        is drawn each is as likely to be in it (reservoir sampling, Vitter 1985, algorithm R)."""
        size = self.settings.sample
        with self._lock:
            self._offered += 1
            if len(self._sample) < size:
                self._sample.append(query.copy())
            elif (place := int(self._random.random() * self._offered)) < size:
                self._sample[place] = query.copy()

    @property
    def due(self) -> bool:
        """Whether `step` would do anything: there is something to check and the budget allows it."""
        if not self.settings.budget or self._clock() < self.free_at:
            return False
        if self._queries is not None:
            return True
        full = len(self._sample) == self.settings.sample
        return full and self._clock() >= self._began + self.settings.every_seconds

    def step(self, index: Witness, ef: int) -> CanaryWindow | None:
        """Check one batch, if it is due; the window that it completes, asked with the `ef` of its first
        batch."""
        if not self.due:
            return None
        now, cpu = self._clock(), self._cpu()
        queries = self._open(now, ef) if self._queries is None else self._queries
        at = BATCH * len(self._done)
        raw = self._windows % RAW_EVERY == 0
        batch, k = queries[at : at + BATCH], self.settings.k
        self._done.append(index.witness(batch, k, self._ef, rescore=self._rescore, raw=raw))
        spent = self._cpu() - cpu
        self._spent += spent
        self.free_at = now + spent / self.settings.budget
        return self._close() if at + BATCH >= len(queries) else None

    def _open(self, now: float, ef: int) -> Vectors:
        with self._lock:
            queries = np.stack(self._sample)
            self._sample, self._offered = [], 0
        self._queries, self._ef = queries, ef
        self._began, self._spent = now, 0.0
        return queries

    def _close(self) -> CanaryWindow:
        done, self._done, self._queries = self._done, [], None
        self._windows += 1
        recalls = np.concatenate([part.recalls() for part in done])
        low, high = interval(recalls)
        raw = [part.recalls(exact=True) for part in done if part.exact is not None]
        return CanaryWindow(
            queries=len(recalls),
            k=self.settings.k,
            ef=self._ef,
            recall=float(recalls.mean()),
            low=low,
            high=high,
            raw_recall=float(np.concatenate(raw).mean()) if raw else None,
            cpu_share=self._spent / max(self.free_at - self._began, 1e-9),
        )
