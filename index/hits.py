"""What the index answers with."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..native import Answers
from .keys import Key, Keys

__all__ = ["FrameRows", "Hits", "Row", "Stats", "Witnessed"]


class Hits:
    """Answers to nq queries, nearest first. What is not asked for is never taken out of the core's answer."""

    _decoded: list[list[Key]] | None = None

    def __init__(self, answers: Answers, keys: Keys, numbers: NDArray[np.int64]) -> None:
        self._answers = answers
        self._keys = keys
        self._numbers = numbers

    @property
    def keys(self) -> list[list[Key]]:
        """nq lists of up to k keys."""
        if self._decoded is None:
            self._decoded = self._keys.decode_each(self._answers.keys)
        return self._decoded

    @property
    def attributes(self) -> list[list[bytes | None]]:
        """nq lists of up to k attributes."""
        return self._answers.payloads

    @property
    def distances(self) -> NDArray[np.float32]:
        """float32 [nq, k], ascending, +inf beyond an answer's end.

        Squared Euclidean (l2), -<q, x> (ip), 1 - cos (cosine).
        """
        return self._answers.distances

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """int64 [nq, k], the frame each vector is coded in, -1 beyond the end."""
        frames = self._numbers[self._answers.frames]
        frames[np.isinf(self._answers.distances)] = -1
        return frames


@dataclass(frozen=True, slots=True)
class Witnessed:
    """Distances float32 [nq, k] of one moment, ascending, +inf beyond what is live: by raw vectors, or by
    codes where there are none."""

    found: NDArray[np.float32]  # by a search
    best: NDArray[np.float32]  # by a pass over all codes, and the raw vectors of the nearest by code
    exact: NDArray[np.float32] | None  # by a pass over all raw vectors, if it was asked for

    def recalls(self, *, exact: bool = False) -> NDArray[np.float64]:
        """float64 [nq]: the share of the k nearest (or of all, where fewer are live) that was found; by the
        raw pass with `exact`.

        A hit counts if its distance is at most that of the true k-th, whichever key it has: among equals
        none is the right one.
        """
        true = self.exact if exact else self.best
        assert true is not None, "the raw pass was not asked for"
        wanted = np.isfinite(true).sum(axis=1)
        last = np.where(np.isfinite(true), true, -np.inf).max(axis=1, keepdims=True)
        good = (self.found <= last).sum(axis=1)
        return np.minimum(good, wanted) / np.maximum(wanted, 1) + (wanted == 0)


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
    fit_loss: float | None  # of the newest window: squared error / the least possible; None while floats
    reencoding: bool  # slabs wait to move to another frame
    bytes: Mapping[str, int]  # of memory by part: codes, links, keys, meta, scratch, total; raw vectors apart
