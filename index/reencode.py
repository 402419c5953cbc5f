"""Moving slabs to the frames that suit them best.

First a survey: for every slab, a sample of its rows is coded in each frame that is alive, and the squared
error compared with the one the slab has now. Only slabs that would gain enough move, the largest gain first,
each encoded anew from its raw vectors. Measuring a sample of real rows, rather than predicting from a slab's
moments, holds for any distribution of the data.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..native import FRAMES, Core, Survey
from .drift import GAIN_BITS
from .events import (
    Event,
    ReencodeCancelled,
    ReencodeDeclined,
    ReencodeFinished,
    ReencodeProgress,
    ReencodeStarted,
)
from .frames import Frame, Frames
from .tile import TileParameters

__all__ = ["FORCED", "Progress", "Reencoder", "mixture"]

SAMPLE = 256  # rows of a slab that are measured, of 1,024: its gain is known to a few percent
BUSY_S = 1e-3  # between looks whether searches still read what the last move replaced
FORCED = math.inf  # least gain with which only slabs of the frame that goes move
LEARNT = 32  # slabs that are learnt from once all have moved: codes of two frames side by side mislead
PROGRESS_STEPS = 10  # progress events of one re-encode

Vectors = NDArray[np.float32]


def mixture(worlds: Sequence[tuple[Vectors, float]], like: TileParameters) -> TileParameters:
    """Parameters for several worlds together, with the spread and rotation of others.

    Of each: rotated rows, float32 [n, dim], and how many rows of the index they stand for. Mean and variance
    are those of the mixture; the histogram is of as many of the rows as come in its proportions.
    """
    total = sum(rows for _, rows in worlds)
    parts = [(x, rows / total) for x, rows in worlds]
    means = [x.mean(axis=0, dtype=np.float64) for x, _ in parts]
    mean = sum((share * own for (_, share), own in zip(parts, means, strict=True)), np.zeros(like.dim))
    variance = np.zeros(like.dim)
    for (x, share), own in zip(parts, means, strict=True):
        variance += share * (x.var(axis=0, dtype=np.float64) + (own - mean) ** 2)
    most = min(len(x) / share for x, share in parts if share > 0)
    sample = np.concatenate([x[: round(share * most)] for x, share in parts])
    seed = like.rotation_seed
    return TileParameters.fit(mean, variance, spread=like.spread, rotation_seed=seed, sample=sample)


def _log_ratio(worse: TileParameters, better: TileParameters, rotated: Vectors) -> float:
    """Logarithm of the ratio of their mean squared errors; 0 where neither makes one."""
    before, after = better.error_rotated(rotated, GAIN_BITS), worse.error_rotated(rotated, GAIN_BITS)
    return math.log(after / before) if before > 0 and after > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a re-encode is."""

    state: Literal["idle", "waiting", "survey", "moving"]
    """waiting: for the decision whether a frame opens, which the next step of upkeep takes."""
    paused: bool  # by hand, whatever the state: what begins later waits too
    reason: str  # why it began; empty while idle or waiting
    slabs_done: int  # surveyed, then moved
    slabs: int  # to survey, then to move
    rows_done: int  # moved
    seconds: float  # since the first slab was to move
    expected_gain: float | None  # error before / after; None before the survey is over, and from floats


@dataclass(frozen=True, slots=True)
class Move:
    """One slab, where it goes, and the mean squared error of its rows before and after as the survey saw
    it."""

    slab: int
    to: Frame
    rows: int
    before: float
    after: float
    forced: bool  # its old frame must go: the slab moves whatever it gains

    @property
    def gain(self) -> float:
        return self.before / self.after if self.after > 0 else 1.0


class Reencoder:
    """One re-encode at a time, in steps of one slab. `read` gives vectors of row ids as the index codes
    them."""

    def __init__(
        self,
        core: Core,
        frames: Frames,
        read: Callable[[NDArray[np.uint64]], Vectors] | None,
        emit: Callable[[Event], None],
        min_gain: float,
    ) -> None:
        self._core = core
        self._frames = frames
        self._read = read
        self._emit = emit
        self._min_gain = min_gain
        self._least = min_gain  # of the re-encode under way
        self._surveyed = self._end = 0  # slabs; equal: no survey is under way
        self._leaving: Frame | None = None
        self._moves: list[Move] = []
        self._declined: list[Move] = []
        self._learning: list[int] = []  # slabs to learn from, once all have moved
        self._reason = ""
        self._total = self._done = 0
        self._began = 0.0
        self._before = self._after = 0.0  # squared error, summed over the rows measured
        self._rows = 0
        self._expected: float | None = None

    @property
    def waiting(self) -> bool:
        return self._surveyed < self._end or self._done < self._total or bool(self._learning)

    @property
    def leaving(self) -> Frame | None:
        """The frame whose slabs all move to others."""
        return self._leaving if self.waiting else None

    @property
    def possible(self) -> bool:
        """Whether there are raw vectors to encode anew."""
        return self._read is not None

    def progress(self, paused: bool, deciding: bool, *, over: bool) -> Progress:
        """Any thread may ask. over: what is under way ends with the next step."""
        surveyed, end, done, total = self._surveyed, self._end, self._done, self._total
        learning = bool(self._learning) and not over
        if over:
            end = total = 0
        if surveyed < end:
            return Progress("survey", paused, self._reason, surveyed, end, 0, 0.0, None)
        if done < total or learning:
            seconds = time.monotonic() - self._began
            return Progress("moving", paused, self._reason, done, total, self._rows, seconds, self._expected)
        return Progress("waiting" if deciding else "idle", paused, "", 0, 0, 0, 0.0, None)

    def give_up(self, fitted: TileParameters, recent: Vectors) -> tuple[Frame, TileParameters] | None:
        """Which frame makes room for a new one, and the parameters of that one. None without raw vectors.

        The new one is `fitted`, to the recent rows alone, or fitted to them and to rows of the one that goes.
        Of all choices the one that loses least: errors count as ratios to those under each world's own
        parameters, since a search needs each world as sharp as its own distances are small.
        """
        if self._read is None:
            return None
        rotated = fitted.rotated(recent)
        share = len(self._core) / FRAMES  # rows that the newest world is taken to come to
        choices: list[tuple[float, Frame, TileParameters]] = []
        for frame, own in self._frames.tiles:
            if frame is self._frames.write:
                continue
            rows = self._sample_of(frame)
            if not len(rows):  # all deleted: nothing is lost
                return frame, fitted
            x = fitted.rotated(self._read(rows))
            stay = [parameters for other, parameters in self._frames.tiles if other is not frame]
            both = mixture([(x, self._frames.rows(frame)), (rotated, share)], fitted)
            for coming in (fitted, both):
                loss = share * _log_ratio(coming, fitted, rotated)
                kept = min(_log_ratio(rival, own, x) for rival in (coming, *stay))
                choices.append((loss + self._frames.rows(frame) * kept, frame, coming))
        return min(choices, key=lambda choice: choice[0])[1:] if choices else None

    def _sample_of(self, frame: Frame) -> NDArray[np.uint64]:
        """Row ids of some rows of a frame, from slabs all over the index."""
        found: list[NDArray[np.uint64]] = []
        slabs = self._core.slabs
        for slab in random.Random(0).sample(range(slabs), slabs):
            rows, lanes = self._core.slab_rows(slab)
            found.append(rows[lanes == frame.lane][: SAMPLE // 4])
            if sum(map(len, found)) >= SAMPLE:
                break
        return np.concatenate([np.empty(0, np.uint64), *found])

    def start(self, reason: str, leaving: Frame | None = None, min_gain: float | None = None) -> None:
        """Survey all slabs, then move those that gain `min_gain` (default: the index's); with `leaving`, also
        all that hold rows of that frame. What is under way ends: the new survey sees what it saw, and the
        frame that was leaving still does."""
        leaving = leaving or self.leaving
        self.end(f"another takes its place ({reason})")
        self._surveyed, self._end = 0, self._core.slabs
        self._leaving = leaving
        self._least = self._min_gain if min_gain is None else min_gain
        self._reason = reason

    def end(self, reason: str) -> None:
        """Leave all slabs where they are."""
        if not self.waiting:
            return
        done, total = self._done, self._total
        self._forget()
        self._emit(ReencodeCancelled(reason, done, total, self._rows if total else 0))

    def _forget(self) -> None:
        self._surveyed = self._end = 0
        self._total = self._done = 0
        self._moves, self._declined, self._learning = [], [], []
        self._leaving = None

    def step(self) -> None:
        """Survey one slab, move one, or learn from one when searches may end now."""
        if self._surveyed < self._end:
            self._survey(self._surveyed)
            if self._surveyed + 1 == self._end:
                self._decide()
            self._surveyed += 1  # after it: who looks meanwhile must not find nothing under way
        elif self._done < self._total and self._move(self._moves[self._done]):
            if self._done + 1 == self._total:
                slabs = max(self._core.slabs, 1)  # all may have been given back since
                self._learning = np.linspace(0, slabs - 1, min(LEARNT, slabs)).astype(int).tolist()
            self._done += 1  # after it: who looks meanwhile must not find nothing under way
        elif self._learning:
            if self._learning[-1] < self._core.slabs:
                self._core.learn(self._learning[-1])
            self._learning.pop()
            if not self._learning:
                self._finish()

    # ---- survey

    def _measure(self, slab: int, live: int, first: int) -> Survey:
        """How well SAMPLE of its `live` rows are coded, evenly spread from row `first`.

        One call into the core, which reads, rotates and codes: while Python does any of it, in calls that are
        too short for a waiting search to get the interpreter, that search waits for all of it (4 ms, where
        the search itself takes 0.1).
        """
        every = max(live // SAMPLE, 1)
        return self._core.survey(slab, first % every, every, GAIN_BITS, self._frames.tables(GAIN_BITS))

    def _survey(self, slab: int) -> None:
        if slab >= self._core.slabs:  # it was emptied and given back since
            return
        info = self._core.slab(slab)
        # an empty block of floats goes too: what is written there next should be codes;
        # dead slots count: a frame cannot close while one is coded in it
        forced = info.is_float or (self._leaving is not None and info.rows[self._leaving.lane] > 0)
        if self._least == FORCED and not forced:
            return
        found = self._measure(slab, info.live, 0)
        live = sum(found.live)
        if not found.rows:
            if forced:
                self._moves.append(Move(slab, self._frames.write, live, 0, 0, True))
            return
        means = {frame.lane: found.errors[frame.lane] / found.rows for frame, _ in self._frames.tiles}
        if self._leaving is not None:
            del means[self._leaving.lane]
        best = min(means, key=means.__getitem__)
        if not forced and found.live[best] == live:
            return
        move = Move(slab, self._frames.at(best), live, found.own / found.rows, means[best], forced)
        (self._moves if forced or move.gain >= self._least else self._declined).append(move)

    def _decide(self) -> None:
        self._moves.sort(key=lambda move: -move.gain)
        self._done, self._total = 0, len(self._moves)
        self._before = self._after = 0.0
        self._rows = 0
        self._began = time.monotonic()
        self._expected = self._predicted()
        if self._declined:
            best = max(move.gain for move in self._declined)
            self._emit(
                ReencodeDeclined(
                    reason="the codes of these slabs would hardly become better",
                    slabs=len(self._declined),
                    rows=sum(move.rows for move in self._declined),
                    expected_gain=best,
                    threshold=self._least,
                )
            )
        if self._moves:
            self._emit(
                ReencodeStarted(
                    reason=self._reason,
                    frame=self._frames.write.number,
                    slabs=self._total,
                    rows=sum(move.rows for move in self._moves),
                    expected_gain=self._expected,
                )
            )

    def _predicted(self) -> float | None:
        """None where rows come from floats, whose codes have no error to compare with."""
        before = sum(move.before * move.rows for move in self._moves)
        after = sum(move.after * move.rows for move in self._moves)
        return before / after if before > 0 and after > 0 else None

    # ---- moving

    def _move(self, move: Move) -> bool:
        """False while a search may still read what the last move replaced: it waits, for memory's sake."""
        if move.slab >= self._core.slabs:
            return True
        found = self._measure(move.slab, move.rows, 1)  # other rows than the survey's, where there are more
        if not self._core.reencode(move.slab, move.to.lane):
            time.sleep(BUSY_S)
            return False
        self._rows += sum(found.live)
        self._before += found.own
        self._after += found.errors[move.to.lane]
        done = self._done + 1
        if done * PROGRESS_STEPS // self._total > self._done * PROGRESS_STEPS // self._total:
            self._emit(ReencodeProgress(slabs_done=done, slabs=self._total, rows_done=self._rows))
        return True

    def _finish(self) -> None:
        self._emit(
            ReencodeFinished(
                slabs=self._total,
                rows=self._rows,
                seconds=time.monotonic() - self._began,
                predicted_gain=self._expected,
                measured_gain=self._before / self._after if self._before > 0 and self._after > 0 else None,
            )
        )
        leaving = self._leaving
        self._forget()
        if leaving is not None and self._frames.rows(leaving):
            # upkeep has moved rows from a slab that was to be encoded to one that was not
            self.start(self._reason, leaving, self._least)

    # ---- as part of a cut

    def state(self) -> dict[str, Any] | None:
        """For `resume`: reason, min_gain, leaving (a frame's number or nil); None while nothing is under
        way."""
        if not self.waiting:
            return None
        leaving = None if self._leaving is None else self._leaving.number
        return {"reason": self._reason, "min_gain": self._least, "leaving": leaving}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: all slabs are surveyed again, and those that have moved stay."""
        leaving = next((frame for frame in self._frames.alive if frame.number == state["leaving"]), None)
        self.start(str(state["reason"]), leaving, float(state["min_gain"]))
