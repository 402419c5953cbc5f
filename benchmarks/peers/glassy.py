"""Glass (zilliztech/pyglass): HNSW built over 8-bit codes, searched over 8 or 4 bits.

From PyPI it is pyglass-portable, compiled for AVX2; upstream's own is compiled for the machine it is built
on. Whichever is installed as `glass` is measured; the name of its wheel stands in the figures.
"""

from collections.abc import Generator
from typing import Any

from . import Shape, Vectors, normalised
from .hnsw import found

LEAST = 15  # candidates: it refines 1.5 k, and with fewer its batch search returns what it never wrote


class Glass:
    def __init__(self, shape: Shape, search: str, refine: str, *, changing: bool = False) -> None:
        import glass

        glass.set_num_threads(shape.threads)
        self.glass = glass
        self.metric = "L2" if shape.metric == "l2" else "IP"
        self.cosine = shape.metric == "cosine"
        self.quantizers = search, refine
        self.threads = shape.threads
        # Built over SQ8U, as its manual recommends; R is the degree at level 0.
        self.builder = glass.Index("HNSW", self.metric, "SQ8U", 2 * shape.m, shape.ef_construction)

    def build(self, rows: Vectors) -> Generator[int]:
        rows = normalised(rows) if self.cosine else rows
        graph = self.builder.build(rows)
        self.searcher = self.glass.Searcher(graph, rows, self.metric, *self.quantizers)
        yield len(rows)

    def tune(self, queries: Vectors) -> None:
        self.searcher.optimize(self.threads)  # tries prefetch distances, on rows of its own

    def prepare(self, ef: int, threads: int) -> None:
        self.asking = threads
        self.searcher.set_ef(max(ef, LEAST) if self.quantizers[1] else ef)

    def search_one(self, query: Vectors, k: int) -> Any:
        return self.searcher.search(query[0], k)

    def search_batch(self, queries: Vectors, k: int) -> Any:
        return self.searcher.batch_search(queries, k, self.asking)

    def keys(self, answer: Any) -> list[list[int]]:
        return found(answer[0])
