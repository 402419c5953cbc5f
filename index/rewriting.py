"""Rewriting of raw segments in which few rows are still wanted.

Rows are only appended, and a segment goes when no slot refers to it any more: of rows replaced at random, a
few keep each segment alive for long. So the live rows of the segment with the least share of them are
appended anew and their slots rebased, as long as the segments hold more than SPARE times what is referred to.
Taking the sparsest costs least (Rosenblum & Ousterhout, "The design and implementation of a log-structured
file system", 1992, section 3.5, call it greedy): for rows replaced at random at this SPARE, some 1.3 rows are
copied per row written.

A row's bytes and its hash stay as they are, so digest and answers do. Snapshots that name the old segment
keep its file.
"""

import threading
from collections.abc import Callable, Collection, Iterable

from ..errors import SnapshotError
from ..native import SLAB, Core
from .raw import RawVectors, segments_of

__all__ = ["Rewriter"]

SPARE = 1.3
APPENDED = 256  # rows at a time: writers wait for them, a millisecond


class Rewriter:
    """Rewrites one segment after the other, in steps. Whoever calls holds the upkeep lock."""

    def __init__(
        self,
        core: Core,
        raw: RawVectors,
        attach: Callable[[Iterable[int]], None],
        writing: threading.RLock,
    ) -> None:
        """attach: makes segments readable for the core; writing: held while rows are appended."""
        self._core = core
        self._raw = raw
        self._attach = attach
        self._writing = writing
        self._segment: int | None = None
        self._slab = 0  # where to go on
        self._done: set[int] = set()  # only dead slots refer to them, and go sooner or later

    @property
    def busy(self) -> bool:
        """Whether a segment is being rewritten."""
        return self._segment is not None

    def choose(self, attached: Collection[int]) -> None:
        """Begin with the sparsest of these segments, if too much of what they hold is not wanted any more."""
        stored = self._raw.high_water()
        self._done.intersection_update(attached)
        closed = set(attached) - self._done - {max(stored, default=-1)}  # that one is appended to
        rows = {segment: stored[segment] for segment in closed}
        wanted = self._core.referring(list(rows))
        spare = sum(rows.values()) - SPARE * sum(wanted.values())
        self._segment, self._slab = None, 0
        if rows and spare > max(rows.values()):
            self._segment = min(rows, key=lambda segment: wanted[segment] / rows[segment])

    def step(self) -> bool:
        """Move some rows; True when the segment is done, and may be let go."""
        if self._segment is None:
            return False
        slots, rows, self._slab = self._core.segment_slots(self._segment, self._slab, SLAB)
        try:
            for start in range(0, len(slots), APPENDED):
                span = slice(start, start + APPENDED)
                with self._writing:
                    hashes = self._raw.hashes(rows[span]) if self._raw.hashed else None
                    others = self._raw.append(self._raw.read(rows[span]), hashes)
                    self._attach(segments_of(others))
                    self._core.rebase(slots[span], rows[span], others)
        except SnapshotError:  # no room on the disk: who writes will say so
            self._segment = None
            return False
        if self._slab < self._core.slabs:
            return False
        self._done.add(self._segment)
        return True
