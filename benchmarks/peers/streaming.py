"""driftline as its service runs it: keys of 16 bytes, raw vectors in files, upkeep after every batch."""

import math
import tempfile
import time
from collections.abc import Generator

from driftline.index.hits import Hits
from driftline.index.online import OnlineIndex
from driftline.snapshots.segments import FileRawVectors

from . import Keys, Shape, Vectors

BATCH = 512  # as many as the service applies at once
STEP_S = 0.02  # of upkeep, as in the service


class Driftline:
    def __init__(self, shape: Shape, *, changing: bool = False) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="driftline-benchmark-")
        raw = FileRawVectors(self.directory.name, shape.dim, {})
        self.index = OnlineIndex(
            shape.dim, shape.metric, shape.m, shape.ef_construction, route_bits=shape.route_bits, raw=raw
        )
        self.threads = shape.threads
        self.ef, self.asking = 64, 1

    def build(self, rows: Vectors) -> Generator[int]:
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            self.index.upsert(names(range(first, first + len(batch))), batch, threads=self.threads)
            self.index.maintain(STEP_S)
            self.index.take_events()
            yield first + len(batch)
        self.settle()

    def upsert(self, keys: Keys, rows: Vectors) -> None:
        for first in range(0, len(keys), BATCH):
            span = slice(first, first + BATCH)
            self.index.upsert(names(keys[span].tolist()), rows[span], threads=self.threads)
            self.index.maintain(STEP_S)
            self.index.take_events()

    def delete(self, keys: Keys) -> None:
        for first in range(0, len(keys), BATCH):
            self.index.delete(names(keys[first : first + BATCH].tolist()))
            self.index.maintain(STEP_S)

    def settle(self, limit_s: float = math.inf) -> None:
        deadline = time.monotonic() + limit_s
        while self.index.maintain(STEP_S) and time.monotonic() < deadline:
            self.index.take_events()

    def check(self) -> None:
        self.index.check()

    def tune(self, queries: Vectors) -> None:
        pass

    def prepare(self, ef: int, threads: int) -> None:
        self.ef, self.asking = ef, threads

    def search_one(self, query: Vectors, k: int) -> Hits:
        return self.index.search(query, k, self.ef)

    def search_batch(self, queries: Vectors, k: int) -> Hits:
        if self.asking == 1:
            return self.index.search(queries, k, self.ef)
        return self.index.search(queries, k, self.ef, threads=self.asking)

    def keys(self, answer: Hits) -> list[list[int]]:
        return [[int(key) for key in keys] for keys in answer.keys]


def names(numbers: "range | list[int]") -> list[bytes]:
    return [b"%016d" % number for number in numbers]
