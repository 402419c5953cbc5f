"""Rows on their way into the index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sources import Sources

__all__ = ["Batch", "turns"]

Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Batch:
    """n rows: keys and attributes as the index keeps them, float32 [n, dim], and where they come from."""

    keys: list[bytes]
    payloads: list[bytes]
    vectors: NDArray[np.float32]
    sources: Sources | None

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, places: Places) -> "Batch":
        """The rows at these places."""
        if len(places) == len(self):
            return self
        chosen: list[int] = places.tolist()
        return Batch(
            [self.keys[place] for place in chosen],
            [self.payloads[place] for place in chosen],
            self.vectors[places],
            None if self.sources is None else self.sources[places],
        )

    def last(self) -> "Batch":
        """Each key's last row, in the order in which keys came first."""
        rows = {key: row for row, key in enumerate(self.keys)}
        return self.only(np.fromiter(rows.values(), np.intp, len(rows)))


def turns(keys: Sequence[bytes]) -> Iterator[Places]:
    """The places of keys, so divided that none comes twice in a part, and in order: mostly one part."""
    if len(set(keys)) == len(keys):
        yield np.arange(len(keys))
        return
    met: dict[bytes, int] = {}
    turn_of = np.empty(len(keys), np.intp)
    for place, key in enumerate(keys):
        turn_of[place] = met[key] = met.get(key, -1) + 1
    for turn in range(int(turn_of.max()) + 1):
        yield np.flatnonzero(turn_of == turn)
