"""What the core answers, and the forms it comes in: as its own bytes, in parts, or put together.

All hold nq answers of up to k hits: keys and payloads as nq lists, distances float32 [nq, k] (+inf beyond an
answer's count), rows uint64 [nq, k] (2**64 - 1 where there is no raw vector) and frames uint8 [nq, k].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from struct import unpack_from
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answers", "JoinedAnswers", "MergedAnswers", "PackedAnswers"]

Floats = NDArray[np.float32]


class PackedAnswers:
    """The core's own bytes (driftline.h, dl_hits), taken apart as they are asked for."""

    # By hand: before Python 3.12 cached_property takes a lock, on every query.
    _keys: list[list[bytes]] | None = None

    def __init__(self, data: bytes, nq: int, k: int) -> None:
        self._data = data
        self._nq = nq
        self._k = k

    def _at(self, start: int, dtype: type[np.generic]) -> NDArray[Any]:
        return np.frombuffer(self._data, dtype, self._nq * self._k, start).reshape(self._nq, self._k)

    @property
    def rows(self) -> NDArray[np.uint64]:
        return self._at(0, np.uint64)

    @property
    def distances(self) -> Floats:
        return self._at(24 * self._nq * self._k + 8, np.float32)

    @property
    def frames(self) -> NDArray[np.uint8]:
        return self._at(28 * self._nq * self._k + 8 + 4 * self._nq, np.uint8)

    def _places(self) -> tuple[int, ...]:
        """Of every hit in turn, where its key begins and where that ends and the payload begins; the end."""
        n = self._nq * self._k
        return unpack_from(f"={2 * n + 1}Q", self._data, 8 * n)

    @property
    def keys(self) -> list[list[bytes]]:
        if self._keys is None:
            data, places = self._data, iter(self._places())
            hits = zip(places, places, strict=False)
            self._keys = [[data[a:b] for a, b in islice(hits, self._k) if a < b] for _ in range(self._nq)]
        return self._keys

    @cached_property
    def payloads(self) -> list[list[bytes | None]]:
        data, places = self._data, self._places()
        hits = zip(places[::2], places[1::2], places[2::2], strict=False)
        return [[data[b:c] or None for a, b, c in islice(hits, self._k) if a < b] for _ in range(self._nq)]


class JoinedAnswers:
    """The answers of several calls, one after the other."""

    def __init__(self, parts: Sequence["Answers"]) -> None:
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
