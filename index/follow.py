"""Following the data: when floats become codes, when a new frame opens, when slabs are encoded anew.

Writers only report what they wrote; every decision is taken and carried out by `step`, in the thread that
does the upkeep: frames change in one place. Four are alive at most: when a fifth is wanted, the one whose
rows lose least by it goes.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..native import Core
from .drift import DriftMonitor, expected_gain
from .events import DriftDetected, Event, FrameOpened, FrameRetired, ReencodeDeclined
from .frames import Frame, Frames
from .reencode import Reencoder
from .tile import TileParameters

__all__ = ["Follower"]

FEWEST_ROWS = 1_000  # that the first code is fitted to, unless `compress_after` says otherwise
MOST_ROWS = 16_000  # held as floats: a stream that has not settled by then is one that the monitor is for
EXCESS = 0.02  # of squared error over the best fit, that the first code may have
AS_GOOD = 1.05  # a frame that is alive is used again if a new one would not beat it by more

Vectors = NDArray[np.float32]


class Follower:
    """Watches what is written and keeps the frames in step with it."""

    def __init__(
        self,
        core: Core,
        frames: Frames,
        monitor: DriftMonitor,
        reencoder: Reencoder,
        emit: Callable[[Event], None],
        *,
        compress_after: int | None,
    ) -> None:
        self._core = core
        self._frames = frames
        self._monitor = monitor
        self._reencoder = reencoder
        self._emit = emit
        self._min_gain = monitor.settings.min_gain
        self._compress_after = compress_after
        self._look_at = compress_after or FEWEST_ROWS  # rows at which compressing is considered next
        self._lock = threading.Lock()  # the monitor's: writers update it, upkeep fits from it
        self._drifted = False
        self._coming: TileParameters | None = None  # opens as soon as a lane is free
        self._gain = 1.0  # expected of it
        self.fit_loss: float | None = None

    def observe(self, x: Vectors, *, stored: bool = False, now_ms: int | None = None) -> None:
        """Rows as they are coded, float32 [n, dim], in the order they were written.

        stored, now_ms: see DriftMonitor.
        """
        write = self._frames.write
        others = [parameters for frame, parameters in self._frames.tiles if frame is not write]
        with self._lock:
            for event in self._monitor.update(x, write.parameters, others, stored=stored, now_ms=now_ms):
                self._emit(event)
                self._drifted |= isinstance(event, DriftDetected)
                self.fit_loss = event.fit_loss

    @property
    def waiting(self) -> bool:
        """Whether a decision is due or slabs are to move."""
        return self._drifted or self._coming is not None or self._reencoder.waiting

    def step(self) -> bool:
        """One bounded step; True while more waits."""
        write = self._frames.write.parameters
        if write is None:
            self._drifted = False
            self._maybe_compress()
        elif self._coming is not None:
            if not self._frames.full:
                self._use(self._frames.open(self._coming), "drift", self._gain)
                self._coming = None
        elif self._drifted and not self._reencoder.waiting:
            self._drifted = False
            self._answer_drift(write)
        if self._reencoder.waiting:
            self._reencoder.step()
        for frame in self._frames.close_unused():
            self._emit(FrameRetired(frame=frame.number))
        return self.waiting

    def _maybe_compress(self) -> None:
        rows = len(self._core)
        if rows < self._look_at:
            return
        with self._lock:
            if self._compress_after is None and rows < MOST_ROWS and self._monitor.excess() > EXCESS:
                self._look_at = 2 * rows
                return
            parameters = self._monitor.fit()
        self._use(self._frames.open(parameters), "enough rows are known to fit a code", None)

    def _answer_drift(self, now: TileParameters) -> None:
        """Find the best parameters for what comes in now: those of a frame that is alive, or new ones."""
        with self._lock:
            fitted, recent = self._monitor.fit(), self._monitor.recent()
        alive = {frame: expected_gain(now, parameters, recent) for frame, parameters in self._frames.tiles}
        best = max(alive, key=alive.__getitem__)
        gain = expected_gain(now, fitted, recent)
        if max(gain, alive[best]) < self._min_gain:
            self._decline("the data drifted, and the code still fits what comes in now", gain)
        elif gain <= alive[best] * AS_GOOD:
            self._use(best, "an earlier frame fits again", alive[best])
        elif not self._frames.full:
            self._use(self._frames.open(fitted), "drift", gain)
        else:
            self._make_room(now, fitted, recent)

    def _make_room(self, now: TileParameters, fitted: TileParameters, recent: Vectors) -> None:
        """All four frames are alive: one of them goes, if what takes its place is worth it."""
        choice = self._reencoder.give_up(fitted, recent)
        gain = 1.0 if choice is None else expected_gain(now, choice[1], recent)
        if choice is None or gain < self._min_gain:
            self._decline("four frames are alive, and none can make room for one that is better", gain)
            return
        leaving, self._coming = choice
        self._gain = gain
        self._reencoder.start("a frame makes room for a new one", leaving)

    def _decline(self, reason: str, gain: float) -> None:
        threshold = self._min_gain
        self._emit(ReencodeDeclined(reason=reason, slabs=0, rows=0, expected_gain=gain, threshold=threshold))

    def _use(self, frame: Frame, reason: str, gain: float | None) -> None:
        assert frame.parameters is not None, "vectors are never written in floats again"
        self._frames.write_in(frame)
        rows = frame.parameters.rows
        self._emit(FrameOpened(frame=frame.number, reason=reason, fitted_rows=rows, expected_gain=gain))
        self._reencoder.start(reason)

    # ---- as part of a cut

    def state(self) -> dict[str, Any]:
        with self._lock:
            return {
                "monitor": self._monitor.state(),
                "drifted": self._drifted or self._coming is not None,  # then it is decided again
                "look_at": self._look_at,
            }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; slabs that were on their way are looked at again."""
        self._drifted = bool(state["drifted"])
        self._look_at = int(state["look_at"])
        if self._frames.write.parameters is not None:
            self._reencoder.start("the index was loaded")
