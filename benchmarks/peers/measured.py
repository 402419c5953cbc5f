"""One system in a process of its own, as a benchmark asks it. Made there by `peers.process.Process`."""

import gc
import time
from collections.abc import Callable
from dataclasses import replace

from . import Shape, Vectors, make
from .process import Memory, memory

__all__ = ["K", "Measured"]

K = 10
LEAST_S = 0.2  # a measurement lasts at least so long: queries are asked again
WARM = 200  # rows


class Measured:
    """The system, empty, and the queries. `rows` are any that it may be warmed up with."""

    def __init__(self, name: str, shape: Shape, rows: Vectors, queries: Vectors, *, changing: bool = False):
        for _ in make(name, replace(shape, rows=WARM), changing=changing).build(rows[:WARM]):
            pass  # its code and its buffers are in memory before anything is counted
        self.queries = queries
        self.single = [queries[i : i + 1] for i in range(len(queries))]
        self.before = memory()
        self.system = make(name, shape, changing=changing)

    def memory(self) -> Memory:
        """What the process has more than before the system was made."""
        return memory() - self.before

    def answers(self, ef: int) -> list[list[int]]:
        self.system.set_ef(ef)
        return self.system.keys(self.system.search_batch(self.queries, K))

    def qps(self, ef: int) -> float:
        """With one call per query."""
        self.system.set_ef(ef)
        return self.rate(lambda: [self.system.search_one(query, K) for query in self.single])

    def qps_batch(self, ef: int) -> float:
        """With one call for all queries."""
        self.system.set_ef(ef)
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
