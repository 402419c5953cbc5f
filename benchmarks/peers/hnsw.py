"""hnswlib, faiss and usearch: HNSW graphs over floats, short floats and 8-bit codes."""

import math
from collections.abc import Generator
from typing import Any

import numpy as np

from . import Keys, Shape, Unavailable, Vectors, normalised

PIECE = 10_000  # rows per call where there is nothing to lose by it: the progress bar moves


class Hnswlib:
    def __init__(self, shape: Shape, *, changing: bool = False) -> None:
        import hnswlib

        self.index = hnswlib.Index(shape.metric, shape.dim)
        self.index.init_index(
            shape.rows,
            M=shape.m,
            ef_construction=shape.ef_construction,
            random_seed=0,
            allow_replace_deleted=changing,
        )
        self.threads = shape.threads

    def build(self, rows: Vectors) -> Generator[int]:
        for first in range(0, len(rows), PIECE):
            piece = rows[first : first + PIECE]
            self.index.add_items(piece, np.arange(first, first + len(piece)), self.threads)
            yield first + len(piece)

    def upsert(self, keys: Keys, rows: Vectors) -> None:
        """Takes keys that were never there: it mixes up labels when one comes back."""
        self.index.add_items(rows, keys, self.threads, replace_deleted=True)

    def delete(self, keys: Keys) -> None:
        for key in keys.tolist():
            self.index.mark_deleted(key)

    def settle(self, limit_s: float = math.inf) -> None:
        pass

    def tune(self, queries: Vectors) -> None:
        pass

    def prepare(self, ef: int, threads: int) -> None:
        self.index.set_ef(ef)
        self.index.set_num_threads(threads)

    def search_one(self, query: Vectors, k: int) -> Any:
        return self.index.knn_query(query, k)

    search_batch = search_one

    def keys(self, answer: Any) -> list[list[int]]:
        return answer[0].tolist()


class Faiss:
    """IndexHNSWSQ: 8 bits per dimension between its least and largest value, learnt from all rows."""

    def __init__(self, shape: Shape, *, changing: bool = False) -> None:
        import faiss

        faiss.omp_set_num_threads(shape.threads)
        self.faiss = faiss
        metric = faiss.METRIC_L2 if shape.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.index = faiss.IndexHNSWSQ(shape.dim, faiss.ScalarQuantizer.QT_8bit, shape.m, metric)
        self.index.hnsw.efConstruction = shape.ef_construction
        self.cosine = shape.metric == "cosine"

    def build(self, rows: Vectors) -> Generator[int]:
        rows = normalised(rows) if self.cosine else rows
        self.index.train(rows)
        self.index.add(rows)  # in one call: it links the highest levels first
        yield len(rows)

    def tune(self, queries: Vectors) -> None:
        pass

    def prepare(self, ef: int, threads: int) -> None:
        self.index.hnsw.efSearch = ef
        self.faiss.omp_set_num_threads(threads)

    def search_one(self, query: Vectors, k: int) -> Any:
        return self.index.search(query, k)

    search_batch = search_one

    def keys(self, answer: Any) -> list[list[int]]:
        return found(answer[1])


class Usearch:
    def __init__(self, shape: Shape, dtype: str, *, changing: bool = False) -> None:
        from usearch.index import Index

        self.index = Index(
            ndim=shape.dim,
            metric={"l2": "l2sq", "ip": "ip", "cosine": "cos"}[shape.metric],
            dtype=dtype,
            connectivity=shape.m,
            expansion_add=shape.ef_construction,
        )
        self.dtype, self.threads = dtype, shape.threads

    def build(self, rows: Vectors) -> Generator[int]:
        if self.dtype == "i8" and np.abs(rows).max() > 1:
            raise Unavailable("its 8-bit codes are of components from -1 to 1, which these are not")
        for first in range(0, len(rows), PIECE):
            piece = rows[first : first + PIECE]
            self.index.add(np.arange(first, first + len(piece)), piece, threads=self.threads)
            yield first + len(piece)

    def upsert(self, keys: Keys, rows: Vectors) -> None:
        known = keys[self.index.contains(keys)]
        if len(known):
            self.delete(known)
        self.index.add(keys, rows, threads=self.threads)

    def delete(self, keys: Keys) -> None:
        self.index.remove(keys, threads=self.threads)

    def settle(self, limit_s: float = math.inf) -> None:
        pass

    def tune(self, queries: Vectors) -> None:
        pass

    def prepare(self, ef: int, threads: int) -> None:
        self.index.expansion_search = ef
        self.asking = threads

    def search_one(self, query: Vectors, k: int) -> Any:
        return self.index.search(query[0], k, threads=1)

    def search_batch(self, queries: Vectors, k: int) -> Any:
        return self.index.search(queries, k, threads=self.asking)

    def keys(self, answer: Any) -> list[list[int]]:
        return [keys[:count].tolist() for keys, count in zip(answer.keys, answer.counts, strict=True)]


def found(rows: Any) -> list[list[int]]:
    """Without the -1 that stand for nothing found."""
    return [[row for row in answer if row >= 0] for answer in rows.tolist()]
