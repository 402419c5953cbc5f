"""Following the data: when floats become codes, when a new frame opens, when slabs are encoded anew.

Writers only report what they wrote; every decision is taken and carried out by `step`, in the thread that
does the upkeep: frames change in one place. Three settle, and the fourth lane is kept free for what comes
next: a frame that takes it opens at once, and the one whose rows lose least by it goes afterwards.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..native import FRAMES, Core
from .choose import explained, frame_chosen
from .decide import Action, decide
from .drift import DriftMonitor, expected_gain
from .events import (
    DriftDetected,
    Event,
    FrameOpened,
    FrameRetired,
    ReencodeDeclined,
    ReencodePaused,
    ReencodeResumed,
)
from .frames import Frame, Frames
from .kinds import RETURNS
from .reencode import FORCED, Progress, Reencoder
from .tile import TileParameters

__all__ = ["Follower"]

FEWEST_ROWS = 1_000  # that the first code is fitted to, unless `compress_after` says otherwise
MOST_ROWS = 16_000  # held as floats: a stream that has not settled by then is one that the monitor is for
EXCESS = 0.02  # of squared error over the best fit, that the first code may have
BY_HAND = 1.02  # least gain of what is asked for now; less is within the error of a sample
JUDGED = 512  # of the newest rows, by which frames are compared: fewer bytes than the codes of two slabs

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
        # What is wanted by hand: set by any thread, acted upon by the next step.
        self._asked: float | None = None  # a re-encode of what gains so much
        self._cancelled = False
        self._paused = False
        self._lost: bool | None = None  # of recall, as the canary says; None: nobody knows
        self._held_back = ""  # why slabs should move, while recall holds without it
        self.fit_loss: float | None = None
        self.changes = 0
        """Steps that had something to do, and wishes by hand: while it stays, so does what a cut holds of
        them. Any thread may ask."""

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

    def heed(self, lost: bool | None) -> None:
        """Whether recall is lost, for what is decided from now on; None: nobody knows."""
        self._lost = lost

    @property
    def drifted(self) -> bool:
        """Whether drift is being answered, or was and older rows were left as they are."""
        return self.waiting or bool(self._held_back)

    # ---- by hand

    def ask(self, *, now: bool) -> None:
        """See OnlineIndex.reencode."""
        if not self._reencoder.possible:
            raise InvalidInput("no raw vectors are kept, and only from them can rows be encoded anew")
        if self._frames.write.parameters is None:
            raise InvalidInput("rows are still held as floats; they become codes once enough are known")
        self.unpause()
        self.changes += 1
        self._asked = BY_HAND if now else self._min_gain

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.changes += 1
            self._emit(ReencodePaused(*_moved(self.progress)))

    def unpause(self) -> None:
        if self._paused:
            self._paused = False
            self.changes += 1
            self._emit(ReencodeResumed(*_moved(self.progress)))

    def cancel(self) -> None:
        self._cancelled = self.waiting
        self._asked = None
        if self._frames.full:  # what waits for a lane is not to get one
            self._drifted = False
        self._paused = False
        self.changes += 1

    @property
    def progress(self) -> Progress:
        """Any thread may ask."""
        return self._reencoder.progress(self._paused, self._deciding, over=self._cancelled)

    # ---- upkeep

    @property
    def _deciding(self) -> bool:
        return self._drifted or self._asked is not None

    @property
    def waiting(self) -> bool:
        """Whether a decision is due or slabs are to move, now or when they are no longer paused."""
        return self._deciding or self._reencoder.waiting

    @property
    def _due(self) -> bool:
        """Whether a step has something to do. While paused new vectors may still get a frame of their own."""
        if self._paused:
            return self._cancelled or (self._drifted and not self._frames.full)
        return self._cancelled or self.waiting

    def step(self) -> bool:
        """One bounded step; True while more can be done."""
        self.changes += self._due
        if self._cancelled:
            self._reencoder.end("cancelled by hand")
            self._cancelled = False
        write = self._frames.write.parameters
        if write is None:
            self._drifted = False
            self._maybe_compress()
        elif self._asked is not None:
            least, self._drifted = self._asked, False
            if not self._follow(write, "asked for by hand", least):
                self._reencoder.start("asked for by hand", min_gain=least)
            self._asked = None  # after it: who looks meanwhile must find something under way
        elif self._drifted and (self._paused or not self._reencoder.waiting):
            self._drifted = False  # before it: a writer may find the next one meanwhile
            self._follow(write, "drift", self._min_gain)
        elif self._held_back and not self._due and decide(True, self._lost) is Action.REENCODE:
            self._move(self._held_back, None)
        if self._reencoder.waiting and not self._paused:
            self._reencoder.step()
        if not self._reencoder.waiting:  # until then slabs may be on their way to a frame that is empty now
            for frame in self._frames.close_unused():
                self._emit(FrameRetired(frame=frame.number))
        return self._due

    def _maybe_compress(self) -> None:
        rows = len(self._core)
        if rows < self._look_at:
            return
        with self._lock:
            if self._compress_after is None and rows < MOST_ROWS and self._monitor.excess() > EXCESS:
                self._look_at = 2 * rows
                return
            parameters, recent = self._monitor.fit(), self._monitor.recent(JUDGED)
        if len(recent):
            self._emit(frame_chosen(parameters, recent))
        self._use(self._frames.open(parameters), "enough rows are known to fit a code", None)

    def explain(self) -> str:
        """See OnlineIndex.explain."""
        write = self._frames.write
        if write.parameters is None:
            return f"{len(self._core):,} rows are held as floats, until enough are known to fit a code"
        with self._lock:
            recent = self._monitor.recent(JUDGED)
        alive = len(self._frames.alive)
        frames = f"frame {write.number} codes new vectors; {alive} of at most {FRAMES} are alive"
        if not len(recent):
            return frames
        return f"{frames}\n{explained(frame_chosen(write.parameters, recent), write.parameters.rows)}"

    def _follow(self, now: TileParameters, reason: str, least: float) -> bool:
        """Find the best parameters for what comes in now: those of a frame that is alive, or new ones. True
        if they gain `least`; then slabs are to move."""
        with self._lock:
            fitted, recent = self._monitor.fit(), self._monitor.recent(JUDGED)
        staying = [tile for tile in self._frames.tiles if tile[0] is not self._reencoder.leaving]
        alive = {frame: expected_gain(now, parameters, recent) for frame, parameters in staying}
        best = max(alive, key=alive.__getitem__)
        gain = expected_gain(now, fitted, recent)
        if max(gain, alive[best]) < least:
            return self._decline("the code still fits what comes in now", gain, least)
        if gain <= alive[best] * RETURNS and best is not self._frames.write:
            return self._use(best, "an earlier frame fits again", alive[best], least)
        leaving: Frame | None = None
        if self._frames.free <= 1 and (choice := self._reencoder.give_up(fitted, recent)):
            leaving, fitted = choice
            gain = expected_gain(now, fitted, recent)
        if gain < least or (self._frames.full and leaving is None):
            return self._decline("no frame can make room for one that is better", gain, least)
        if self._frames.full:  # nothing left for the last one that came: it was cancelled
            self._drifted = True  # decided again once there is room
            self._reencoder.start("a frame makes room for a new one", leaving, FORCED)
            return True
        return self._use(self._frames.open(fitted), reason, gain, least, leaving)

    def _decline(self, reason: str, gain: float, least: float) -> bool:
        self._emit(ReencodeDeclined(reason=reason, slabs=0, rows=0, expected_gain=gain, threshold=least))
        return False

    def _use(
        self,
        frame: Frame,
        reason: str,
        gain: float | None,
        least: float | None = None,
        leaving: Frame | None = None,
    ) -> bool:
        """Write new vectors in this frame from now on. True if older ones are to move as well: not where
        recall holds without it; then only those of a frame that is `leaving` do."""
        assert frame.parameters is not None, "vectors are never written in floats again"
        self._frames.write_in(frame)
        rows = frame.parameters.rows
        self._emit(FrameOpened(frame=frame.number, reason=reason, fitted_rows=rows, expected_gain=gain))
        if gain is not None and self._asked is None and decide(True, self._lost) is Action.WARN:
            self._held_back = reason
            held = "searches find what they should, so older vectors keep their codes"
            slabs, live = self._core.slabs, len(self._core)
            threshold = self._min_gain if least is None else least
            self._emit(
                ReencodeDeclined(reason=held, slabs=slabs, rows=live, expected_gain=None, threshold=threshold)
            )
            if leaving is not None:
                self._reencoder.start(reason, leaving, FORCED)
            return False
        self._move(reason, least, leaving)
        return True

    def _move(self, reason: str, least: float | None, leaving: Frame | None = None) -> None:
        self._held_back = ""
        self._reencoder.start(reason, leaving, least)

    # ---- as part of a cut

    def state(self) -> dict[str, Any]:
        """For `resume`: monitor (index/drift.py), drifted, look_at, paused, asked (a gain or nil), reencode
        (index/reencode.py, nil while none is under way)."""
        over = self._cancelled  # by a step that has yet to come
        with self._lock:
            return {
                "monitor": self._monitor.state(),
                "drifted": self._drifted,
                "look_at": self._look_at,
                "asked": self._asked,
                "paused": self._paused,
                "reencode": None if over else self._reencoder.state(),
            }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._drifted = bool(state["drifted"])
        self._look_at = int(state["look_at"])
        if self._frames.write.parameters is None:
            return
        if "reencode" not in state:  # the first form said nothing of it: all slabs are looked at
            self._reencoder.start("the index was loaded")
            return
        self._paused = bool(state["paused"])
        self._asked = None if state["asked"] is None else float(state["asked"])
        # the second form also held parameters that waited for a lane: they are fitted anew once one is free
        self._drifted |= state.get("coming") is not None
        if state["reencode"] is not None:
            self._reencoder.resume(state["reencode"])


def _moved(progress: Progress) -> tuple[int, int, int]:
    """Slabs that have moved, of how many, and their rows."""
    if progress.state != "moving":
        return 0, 0, 0
    return progress.slabs_done, progress.slabs, progress.rows_done
