"""One system in a process of its own, as a benchmark asks it. Made there by `peers.process.Process`."""

import gc
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from vectors import load_vectors

from . import Keys, Shape, Vectors, make
from .process import Memory, memory

__all__ = ["GRID", "Built", "Changed", "Curve", "Data", "K", "Measured", "at_recall"]

K = 10
GRID = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)  # of ef
LEAST_S = 0.2  # a measurement lasts at least so long: queries are asked again
WARM = 200  # rows
PIECE = 1000  # rows written between two steps of a progress bar

Curve = list[tuple[float, float]]  # recall and QPS, by ef


@dataclass(frozen=True, slots=True)
class Data:
    """What to measure on, by the places that the command line names; every process loads it for itself."""

    base: str
    queries: str
    limit: int | None
    ask: int

    def load(self) -> tuple[Vectors, Vectors]:
        return load_vectors(self.base, self.limit), load_vectors(self.queries, self.ask)


class Measured:
    """The system, empty, and the data."""

    def __init__(self, name: str, shape: Shape, data: Data, *, changing: bool = False) -> None:
        self.base, self.queries = data.load()
        for _ in make(name, replace(shape, rows=WARM), changing=changing).build(self.base[:WARM]):
            pass  # its code and its buffers are in memory before anything is counted
        self.single = [self.queries[i : i + 1] for i in range(len(self.queries))]
        self.threads = shape.threads
        self.before = memory()
        self.system: Any = make(name, shape, changing=changing)

    def memory(self) -> Memory:
        """What the process has more than before the system was made."""
        return memory() - self.before

    def answers(self, ef: int) -> list[list[int]]:
        self.system.prepare(ef, self.threads)
        return self.system.keys(self.system.search_batch(self.queries, K))

    def qps(self, ef: int) -> float:
        """With one call per query, on one thread."""
        self.system.prepare(ef, 1)
        return self.rate(lambda: [self.system.search_one(query, K) for query in self.single])

    def qps_batch(self, ef: int) -> float:
        """With one call for all queries, on all threads."""
        self.system.prepare(ef, self.threads)
        return self.rate(lambda: self.system.search_batch(self.queries, K))

    def rate(self, ask: Callable[[], object]) -> float:
        """Queries per second of asking all of them, as often as it takes."""
        gc.disable()
        passes, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < LEAST_S or not passes:
            ask()
            passes += 1
        gc.enable()
        return passes * len(self.queries) / seconds


class Built(Measured):
    """Holds the first rows of the data, for ever."""

    def build(self) -> Generator[int, None, tuple[float, Memory]]:
        """Yields rows done; returns seconds, and the memory added."""
        began = time.perf_counter()
        yield from self.system.build(self.base)
        seconds = time.perf_counter() - began
        added = self.memory()
        del self.base
        self.system.tune(self.queries)
        return seconds, added


class Changed(Measured):
    """Its rows come and go: a key has the vector of a row of the data."""

    def __init__(self, name: str, shape: Shape, data: Data) -> None:
        super().__init__(name, shape, data, changing=True)

    def upsert(self, keys: Keys, rows: Keys) -> Generator[int]:
        """Yields how many are done."""
        for first in range(0, len(keys), PIECE):
            piece = slice(first, first + PIECE)
            self.system.upsert(keys[piece], self.base[rows[piece]])
            yield min(first + PIECE, len(keys))

    def delete(self, keys: Keys) -> None:
        self.system.delete(keys)

    def settle(self, limit_s: float = math.inf) -> float:
        """Upkeep until none is left or the time is up; how many seconds that takes."""
        began = time.monotonic()
        self.system.settle(limit_s)
        return time.monotonic() - began

    def check(self) -> str:
        """The system's own check of its graph, in words."""
        check = getattr(self.system, "check", None)
        if check is None:
            return "has no check of its graph"
        try:
            check()
        except Exception as error:
            return str(error)
        return "every node is reachable"


def at_recall(curve: Curve, target: float) -> float | None:
    """QPS where the curve passes the target; None where it never does."""
    if curve[0][0] >= target:
        return curve[0][1]  # of the least ef: there is nothing faster
    for (low, fast), (high, slow) in pairwise(curve):
        if low < target <= high:
            share = (target - low) / (high - low)
            return math.exp(math.log(fast) * (1 - share) + math.log(slow) * share)
    return None
