"""What the core answers, and the forms it comes in: as its own bytes, in parts, or put together.

All hold nq answers of up to k hits: keys and payloads as nq lists, distances float32 [nq, k] (+inf beyond an
answer's count), rows uint64 [nq, k] (2**64 - 1 where there is no raw vector) and frames uint8 [nq, k].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answers", "JoinedAnswers", "MergedAnswers", "PackedAnswers"]

Floats = NDArray[np.float32]


class PackedAnswers:
    """The core's own bytes (driftline.h, dl_hits), taken apart as they are asked for."""

    def __init__(self, data: bytes, nq: int, k: int) -> None:
        self._data = data
        self._shape = nq, k
        self._keys: list[list[bytes]] | None = None  # by hand: cached_property takes a lock, on every query

    def _at(self, start: int, dtype: type[np.generic], count: int) -> NDArray[Any]:
        return np.frombuffer(self._data, dtype, count, start)

    @cached_property
    def rows(self) -> NDArray[np.uint64]:
        nq, k = self._shape
        return self._at(0, np.uint64, nq * k).reshape(nq, k)

    @cached_property
    def distances(self) -> Floats:
        nq, k = self._shape
        return self._at(24 * nq * k + 16, np.float32, nq * k).reshape(nq, k)

    @cached_property
    def frames(self) -> NDArray[np.uint8]:
        nq, k = self._shape
        return self._at(28 * nq * k + 4 * nq + 16, np.uint8, nq * k).reshape(nq, k)

    def _words(self, kind: Literal["I", "Q"], start: int, end: int) -> list[int]:
        return memoryview(self._data)[start:end].cast(kind).tolist()

    def _texts(self, ends_at: int, last: bool) -> list[list[bytes]]:
        nq, k = self._shape
        data = self._data
        ends = self._words("Q", ends_at, ends_at + 8 * (nq * k + 1))
        start = len(data) - ends[-1] if last else 29 * nq * k + 4 * nq + 16
        counts = self._words("I", 28 * nq * k + 16, 28 * nq * k + 16 + 4 * nq)
        return [
            [data[start + a : start + b] for a, b in pairwise(ends[q * k : q * k + count + 1])]
            for q, count in enumerate(counts)
        ]

    @property
    def keys(self) -> list[list[bytes]]:
        if self._keys is None:
            self._keys = self._texts(8 * self._shape[0] * self._shape[1], last=False)
        return self._keys

    @cached_property
    def payloads(self) -> list[list[bytes | None]]:
        texts = self._texts(16 * self._shape[0] * self._shape[1] + 8, last=True)
        return [[item or None for item in items] for items in texts]


class JoinedAnswers:
    """The answers of several calls, one after the other."""

    def __init__(self, parts: Sequence[PackedAnswers]) -> None:
        self._parts = parts

    @cached_property
    def keys(self) -> list[list[bytes]]:
        return [keys for part in self._parts for keys in part.keys]

    @cached_property
    def payloads(self) -> list[list[bytes | None]]:
        return [payloads for part in self._parts for payloads in part.payloads]

    @cached_property
    def distances(self) -> Floats:
        return np.concatenate([part.distances for part in self._parts])

    @cached_property
    def rows(self) -> NDArray[np.uint64]:
        return np.concatenate([part.rows for part in self._parts])

    @cached_property
    def frames(self) -> NDArray[np.uint8]:
        return np.concatenate([part.frames for part in self._parts])


@dataclass(frozen=True, slots=True)
class MergedAnswers:
    """Answers put together from several of the core's."""

    keys: list[list[bytes]]
    payloads: list[list[bytes | None]]
    distances: NDArray[np.float32]
    rows: NDArray[np.uint64]
    frames: NDArray[np.uint8]


Answers = PackedAnswers | JoinedAnswers | MergedAnswers
