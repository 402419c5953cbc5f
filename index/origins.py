"""Where the keys of an index come from (sources.py): those that are live, and those deleted of late.

A deleted key leaves nothing in the index. Where its older value stands in another partition that is read
later, that value must not come back: so a delete's source is remembered for a while.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..native import Core
from .sources import Sources, another_partition, contest, time_word

__all__ = ["MOST_TOMBSTONES", "Origins", "Tombstones"]

MOST_TOMBSTONES = 1 << 17  # some 30 MB; beyond it the oldest go


class Origins:
    """Decides which records of keys hold. One thread's at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.tombstones = Tombstones()
        self.contested = 0
        """How many records found their key held by another partition's."""

    def holding(self, keys: Sequence[bytes], sources: Sources) -> tuple[NDArray[np.intp], Sources]:
        """Of n records of as many keys: the rows of those that hold from now on, and their sources then."""
        held = self._core.sources(keys)
        self.tombstones.fill(keys, held)
        holds, raised = contest(held, sources)
        self.contested += int(another_partition(held, sources).sum())
        rows = np.flatnonzero(holds)
        return rows, raised[rows]


class Tombstones:
    """Sources of deleted keys, in the order in which they were deleted. One thread's at a time."""

    def __init__(self, most: int = MOST_TOMBSTONES) -> None:
        self._most = most
        self._kept: dict[bytes, tuple[int, int]] = {}  # a source's words
        self.dropped = 0
        """How many were given up because there were too many."""

    def __len__(self) -> int:
        return len(self._kept)

    def fill(self, keys: Sequence[bytes], sources: Sources) -> None:
        """Write those of deleted keys into [n, 2]; the rows of other keys stay as they are."""
        if not self._kept:
            return
        for row, key in enumerate(keys):
            kept = self._kept.get(key)
            if kept is not None:
                sources[row] = kept

    def remember(self, keys: Iterable[bytes], sources: Sources) -> None:
        """These keys are deleted now."""
        for key, (high, low) in zip(keys, sources.tolist(), strict=True):
            self._kept.pop(key, None)  # so that the order is that of time
            self._kept[key] = high, low
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
            self.dropped += 1

    def discard(self, keys: Iterable[bytes]) -> None:
        """These keys are live again."""
        if self._kept:
            for key in keys:
                self._kept.pop(key, None)

    def forget(self, before_ms: int) -> None:
        """Those with an older timestamp, as far as none that is younger was remembered before them."""
        end = time_word(before_ms)
        while self._kept and (oldest := next(iter(self._kept.items())))[1][0] < end:
            del self._kept[oldest[0]]

    def state(self) -> list[Any]:
        """As msgpack takes it: [key, word, word] each."""
        return [[key, high, low] for key, (high, low) in self._kept.items()]

    def restore(self, state: list[Any]) -> None:
        """As it was."""
        self._kept = {key: (high, low) for key, high, low in state}
