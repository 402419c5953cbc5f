"""What a new frame would be fitted to: statistics and a sample of the newest rows."""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import bin_counts, rotate, unrotate
from .packing import array_bytes, arrays_of, items, mapping
from .statistics import SPAN, Moments, spans
from .tile import TileParameters

__all__ = ["Recent"]

Vectors = NDArray[np.float32]


def _strided(parts: list[Vectors], stride: int) -> list[Vectors]:
    """Every `stride`-th row of what the parts are together, as views of them."""
    taken: list[Vectors] = []
    start = 0
    for part in parts:
        taken.append(part[start::stride])
        start = (start - len(part)) % stride
    return taken


class Recent:
    """Moments of the newest rows, in original and in rotated coordinates, and the rows of the last chunks.

    Rows come in chunks; chunks make windows. After a change all is forgotten but the rows of the chunks that
    came after it: the next frame is fitted to them and to nothing else.

    forget: rows added after which an older one counts half. chunks: how many of them are kept as rows.
    """

    def __init__(self, dim: int, rotation_seed: int | None, forget: float, chunks: int) -> None:
        self.dim = dim
        self._seed = rotation_seed
        self._forget = forget
        self._all = self._pair(forget)
        self._window = self._pair()
        self.last_fit: TileParameters | None = None
        """Fitted to the last closed window; once what was before is forgotten, to what was kept."""
        self._sample: deque[list[Vectors]] = deque(maxlen=chunks)  # of each chunk

    def _pair(self, forget: float | None = None) -> tuple[Moments, Moments]:
        return Moments(self.dim, forget), Moments(self.dim, forget)

    def _rotated(self, x: Vectors) -> Vectors:
        return np.ascontiguousarray(x) if self._seed is None else rotate(x, self._seed)

    def add(self, parts: list[Vectors], stride: int) -> None:
        """Take every `stride`-th row of a chunk, its parts float32 [n, dim], into the open window.

        Of parts that own their rows a copy is kept; others are views of rows that stay where they lie.
        """
        kept = [
            rows.copy() if stride > 1 and part.flags.owndata else rows
            for part, rows in zip(parts, _strided(parts, stride), strict=True)
        ]
        for whole, moments in zip(self._window, self._moments(kept), strict=True):
            whole.merge(moments)
        self._sample.append(kept)

    def _moments(self, parts: list[Vectors]) -> tuple[Moments, Moments]:
        moments = self._pair()
        for rows in spans(parts):
            moments[0].update(rows)
            moments[1].update(self._rotated(rows))
        return moments

    def window_rows(self, chunks: int, most: int) -> list[Vectors]:
        """At most `most` rotated rows, spread over the last chunks; some in each array."""
        parts = [part for chunk in list(self._sample)[-chunks:] for part in chunk]
        return [self._rotated(rows) for rows in spans(_strided(parts, -(-sum(map(len, parts)) // most)))]

    def close_window(self) -> None:
        """The open window is over."""
        for whole, window in zip(self._all, self._window, strict=True):
            whole.merge(window)
        self.last_fit = TileParameters.fit(*self._window[1].value(), rotation_seed=self._seed)
        self._window = self._pair()

    def forget_what_was_before(self, chunks: int) -> None:
        """Keep the last chunks, one or more, and nothing else. No window is open."""
        while len(self._sample) > chunks:
            self._sample.popleft()
        since = self._moments([part for chunk in self._sample for part in chunk])
        self._all = self._pair(self._forget)
        for whole, moments in zip(self._all, since, strict=True):
            whole.merge(moments)
        self.last_fit = TileParameters.fit(*since[1].value(), rotation_seed=self._seed)

    def ruler(self) -> TileParameters:
        """Parameters in original coordinates, of all closed windows."""
        return TileParameters.fit(*self._all[0].value())

    def fit(self, pending: Vectors) -> TileParameters:
        """Parameters for a new frame, from all rows so far and `pending`; a histogram of the kept rows."""
        parts = self._parts(pending)
        rows = sum(map(len, parts))
        if not rows:
            raise InvalidInput("no row has been seen yet that a frame could be fitted to")
        moments = copy.copy(self._all[1])
        moments.merge(self._window[1])
        moments.update(self._rotated(pending))
        bare = TileParameters.fit(*moments.value(), rotation_seed=self._seed)
        counts = sum(bin_counts(bare.encode(some)) for some in spans(parts))
        return replace(bare, counts=counts, rows=rows)

    def rows(self, pending: Vectors, most: int | None = None) -> Vectors:
        """The kept rows and `pending`, oldest first; at most `most` of them, evenly."""
        parts = self._parts(pending)
        stride = 1 if most is None else max(1, -(-sum(map(len, parts)) // most))
        return np.concatenate(_strided(parts, stride))

    def _parts(self, pending: Vectors) -> list[Vectors]:
        return [*(part for chunk in self._sample for part in chunk), pending]

    def excess(self, pending: Vectors, bits: int) -> float:
        """By what share a fit of the older half of the kept rows codes the newer half worse than its own."""
        parts = self._parts(pending)
        half = sum(map(len, parts)) // 2
        if not half:
            return np.inf
        older, newer = Moments(self.dim), Moments(self.dim)
        for first, rows in self._rotated_spans(parts):
            cut = min(max(half - first, 0), len(rows))
            older.update(rows[:cut])
            newer.update(rows[cut:])
        fits = [TileParameters.fit(*moments.value(), rotation_seed=self._seed) for moments in (older, newer)]
        errors = [0.0, 0.0]
        for first, rows in self._rotated_spans(parts):
            for i, fitted in enumerate(fits):
                errors[i] += float(fitted.row_errors(rows[max(half - first, 0) :], bits).sum())
        return errors[0] / errors[1] - 1 if errors[1] > 0 else 0.0

    def _rotated_spans(self, parts: list[Vectors]) -> Iterator[tuple[int, Vectors]]:
        """The rows of the parts, some at once, each time with how many came before them."""
        for before, rows in enumerate(spans(parts)):
            yield before * SPAN, self._rotated(rows)

    def state(self) -> dict[str, Any]:
        """For `restore`.

        all, window: two moments each; last: tile parameters or nil; rows: list of f4 [n, dim], the kept rows
        of each chunk.
        """
        return {
            "all": [moments.state() for moments in self._all],
            "window": [moments.state() for moments in self._window],
            "last": None if self.last_fit is None else self.last_fit.to_bytes(),
            "rows": [array_bytes(np.concatenate(chunk)) for chunk in self._sample],
        }

    def restore(self, state: Any, version: int) -> None:
        """Take over what `state` said; version 1 held the rows rotated, in `sample`. CorruptIndex for what it
        cannot have said."""
        state = mapping(state, "recent statistics")
        self._all = self._restored(state, "all")
        self._window = self._restored(state, "window")
        last = state.get("last")
        self.last_fit = None if last is None else TileParameters.from_bytes(last)
        rows = arrays_of(state, "sample" if version == 1 else "rows", "f4", (-1, self.dim))
        if version == 1 and self._seed is not None:
            rows = [unrotate(chunk, self._seed) for chunk in rows]
        self._sample.extend([chunk] for chunk in rows)

    def _restored(self, state: dict[str, Any], name: str) -> tuple[Moments, Moments]:
        pair = items(state, name)
        if len(pair) != 2:
            raise CorruptIndex(f"{name} holds {len(pair)} moments, not two")
        return Moments.from_state(self.dim, pair[0]), Moments.from_state(self.dim, pair[1])
