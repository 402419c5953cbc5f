"""The systems measured beside each other: one small class each, all with the same few verbs.

A system is made and used in a process of its own (`peers.process`), one thread unless told otherwise, at the
same M: hnsw's M and 2 M links at level 0, a Vamana graph's degree 2 M.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["SYSTEMS", "Changing", "Keys", "Metric", "Shape", "System", "Unavailable", "Vectors", "make"]

Vectors = NDArray[np.float32]
Keys = NDArray[np.int64]
Metric = Literal["l2", "ip", "cosine"]

# Where each is, and what its class takes besides the shape.
SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "driftline": ("streaming", "Driftline", {}),
    "hnswlib": ("hnsw", "Hnswlib", {}),
    "faiss-hnsw-sq8": ("hnsw", "Faiss", {}),
    "usearch-f16": ("hnsw", "Usearch", {"dtype": "f16"}),
    "usearch-bf16": ("hnsw", "Usearch", {"dtype": "bf16"}),
    "usearch-i8": ("hnsw", "Usearch", {"dtype": "i8"}),
    "glass-sq8": ("glassy", "Glass", {"search": "SQ8U", "refine": ""}),
    "glass-sq8-f16": ("glassy", "Glass", {"search": "SQ8U", "refine": "FP16"}),
    "glass-sq4-f16": ("glassy", "Glass", {"search": "SQ4U", "refine": "FP16"}),
    "svs-lvq8": ("vamana", "Svs", {"primary": 8, "residual": 0}),
    "svs-lvq4x8": ("vamana", "Svs", {"primary": 4, "residual": 8}),
    "svs-f16": ("vamana", "Svs", {"primary": 16, "residual": 0}),
}


class Unavailable(Exception):
    """A system cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What every system is built with."""

    dim: int
    rows: int  # as many as it will hold at once
    metric: Metric = "l2"
    m: int = 16
    ef_construction: int = 200
    threads: int = 1
    route_bits: Literal[3, 5] | None = None  # of driftline alone


class System(Protocol):
    """Built once, then asked."""

    def build(self, rows: Vectors) -> Generator[int]:
        """Index the rows under their numbers; yields how many are done."""
        ...

    def tune(self, queries: Vectors) -> None:
        """What its documentation recommends to do once before measuring; not part of the build's time."""
        ...

    def prepare(self, ef: int, threads: int) -> None:
        """For the searches that follow: candidates to keep, and threads for a batch."""
        ...

    def search_one(self, query: Vectors, k: int) -> object:
        """One call for one query [1, dim]; the answer in the system's own form."""
        ...

    def search_batch(self, queries: Vectors, k: int) -> Any:
        """One call for all of them; the answer in the system's own form, as `keys` takes it."""
        ...

    def keys(self, answer: Any) -> list[list[int]]:
        """Of `search_batch`'s answer: the keys per query; fewer than k where the system found fewer."""
        ...


class Changing(System, Protocol):
    """One that takes changes."""

    def upsert(self, keys: Keys, rows: Vectors) -> None: ...

    def delete(self, keys: Keys) -> None: ...

    def settle(self, limit_s: float = math.inf) -> None:
        """Upkeep that is put off, until none is left or the time is up."""
        ...


def make(name: str, shape: Shape, *, changing: bool = False) -> Any:
    """The system; raises Unavailable if it cannot be had here. changing: it must take deletes."""
    if name not in SYSTEMS:
        raise Unavailable(f"not one of {', '.join(SYSTEMS)}")
    module, cls, options = SYSTEMS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), cls)(shape, changing=changing, **options)
    except ImportError as error:
        raise Unavailable(f'{error}; pip install -e ".[peers]"') from error


def normalised(x: Vectors) -> Vectors:
    """Rows of length 1, for systems that know cosine only as an inner product."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)
