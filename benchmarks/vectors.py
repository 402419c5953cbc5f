"""The vectors of a benchmark: files named on the command line, their exact neighbours, and recall."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DEMO",
    "Vectors",
    "as_l2",
    "file_and_array",
    "kth_distances",
    "load_vectors",
    "open_vectors",
    "recall",
]

DEMO = Path(__file__).parent.parent / "stream" / "demo_data" / "demo384.npz"  # real, and in every clone
BLOCK = 64  # queries at once: distances to a million vectors take 256 MB

Vectors = NDArray[np.float32]


def file_and_array(place: str) -> tuple[Path, str | None]:
    """FILE.npy or FILE.npz:ARRAY as file and array."""
    file, colon, array = place.rpartition(":")
    return (Path(file), array) if colon else (Path(place), None)


def open_vectors(place: str) -> NDArray[Any]:
    """FILE.npy (mapped) or FILE.npz:ARRAY (loaded), with the type of its components."""
    file, array = file_and_array(place)
    stored: Any = np.load(file, mmap_mode="r")
    return stored if array is None else stored[array]


def load_vectors(place: str, limit: int | None = None, dim: int | None = None) -> Vectors:
    """The first `limit` rows and `dim` components, as float32."""
    stored = open_vectors(place)[:limit]
    return np.ascontiguousarray(stored if dim is None else stored[:, :dim], np.float32)


def as_l2(base: Vectors, queries: Vectors, metric: str) -> tuple[Vectors, Vectors]:
    """Vectors whose order by squared distance is that of the metric, so that one oracle serves all three.

    For inner products every row gets one more component that makes all rows equally long (Bachrach et al.,
    2014).
    """
    if metric == "cosine":
        return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (base, queries))
    if metric == "ip":
        squares = np.einsum("ij,ij->i", base, base, dtype=np.float64)
        more = np.sqrt(squares.max() - squares).astype(np.float32)
        return np.c_[base, more], np.c_[queries, np.zeros(len(queries), np.float32)]
    return base, queries


def kth_distances(base: Vectors, queries: Vectors, k: int) -> NDArray[np.float64]:
    """Squared distance from each query to its k-th nearest, by brute force: float64 [nq].

    Found in float32, with twice as many candidates as needed because that rounds; measured again in float64.
    """
    squares = np.einsum("ij,ij->i", base, base)
    kth = np.empty(len(queries))
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        rough = squares - 2 * block @ base.T
        near = np.argpartition(rough, min(2 * k, len(base) - 1), axis=1)[:, : 2 * k]
        true = ((base[near].astype(np.float64) - block[:, None]) ** 2).sum(axis=2)
        kth[start : start + BLOCK] = np.sort(true, axis=1)[:, k - 1]
    return kth


def recall(
    base: Vectors, queries: Vectors, kth: NDArray[np.float64], rows: Sequence[Sequence[int]], k: int
) -> float:
    """Mean share of the k nearest among the hits. `rows` are the hits' row numbers in `base`.

    A hit counts if it is as near as the true k-th: among equally near ones any will do.
    """
    found = 0
    for query, limit, hits in zip(queries, kth, rows, strict=True):
        true = ((base[np.unique(hits[:k])].astype(np.float64) - query) ** 2).sum(axis=1)
        found += int((true <= limit * (1 + 1e-9)).sum())
    return found / (k * len(queries))
