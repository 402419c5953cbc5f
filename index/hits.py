"""What the index answers with."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .keys import Key

__all__ = ["FrameRows", "Hits", "Row", "Stats"]


@dataclass(frozen=True, slots=True)
class Hits:
    """Answers to nq queries, nearest first.

    keys, attributes: nq lists of up to k items; distances: float32 [nq, k], ascending, +inf beyond an
    answer's end: squared Euclidean (l2), -<q, x> (ip), 1 - cos (cosine); frames: int64 [nq, k], the frame
    each vector is coded in, -1 beyond the end.
    """

    keys: list[list[Key]]
    distances: NDArray[np.float32]
    frames: NDArray[np.int64]
    attributes: list[list[bytes | None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One live key. `vector` is float32 [dim]: as it was given, or decoded from its code where no raw vectors
    are kept."""

    key: Key
    vector: NDArray[np.float32]
    attributes: bytes | None
    frame: int


@dataclass(frozen=True, slots=True)
class FrameRows:
    """One set of encoder parameters that is alive, and how many slots it occupies."""

    frame: int
    kind: str  # "float" or "tile"
    rows: int


@dataclass(frozen=True, slots=True)
class Stats:
    """One moment of an index."""

    live: int  # keys that answer searches
    slots: int  # slots ever used
    dead: int  # slots of deleted vectors that are not yet reusable
    frames: tuple[FrameRows, ...]
    fit_loss: (
        float | None
    )  # of the newest window: squared error of the codes / the least possible; None while floats
    reencoding: bool  # slabs wait to move to another frame
    bytes: Mapping[str, int]  # of memory by part: codes, links, keys, meta, scratch, total; raw vectors apart
