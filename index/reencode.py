"""Moving slabs to the frames that suit them best.

First a survey: for every slab, a sample of its rows is coded in each frame that is alive, and the squared
error compared with the one the slab has now. Only slabs that would gain enough move, the largest gain first,
each encoded anew from its raw vectors. Measuring a sample of real rows, rather than predicting from a slab's
moments, holds for any distribution of the data.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..native import FRAMES, SLAB, Core
from .drift import GAIN_BITS
from .events import Event, ReencodeDeclined, ReencodeFinished, ReencodeProgress, ReencodeStarted
from .frames import Frame, Frames
from .statistics import SPAN
from .tile import TileParameters

__all__ = ["Reencoder"]

SAMPLE = 256  # rows of a slab that the survey codes: its gain is known to a few percent
PROGRESS_STEPS = 10  # progress events of one re-encode

Vectors = NDArray[np.float32]


def _fit(rotated: Vectors, like: TileParameters) -> TileParameters:
    """Parameters for these rows, with the spread and rotation of others."""
    mean, variance = rotated.mean(axis=0, dtype=np.float64), rotated.var(axis=0, dtype=np.float64)
    seed = like.rotation_seed
    return TileParameters.fit(mean, variance, spread=like.spread, rotation_seed=seed, sample=rotated)


def _log_ratio(worse: TileParameters, better: TileParameters, rotated: Vectors) -> float:
    """Logarithm of the ratio of their mean squared errors; 0 where neither makes one."""
    before, after = better.error_rotated(rotated, GAIN_BITS), worse.error_rotated(rotated, GAIN_BITS)
    return math.log(after / before) if before > 0 and after > 0 else 0.0


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
        self._surveyed = self._end = 0  # slabs; equal: no survey is under way
        self._leaving: Frame | None = None
        self._moves: list[Move] = []
        self._declined: list[Move] = []
        self._reason = ""
        self._total = self._done = 0
        self._began = 0.0
        self._before = self._after = 0.0  # squared error, summed over the rows moved
        self._rows = 0

    @property
    def waiting(self) -> bool:
        return self._surveyed < self._end or self._done < self._total

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
            rows = self._sample_of(frame)
            if frame is self._frames.write or not len(rows):
                continue
            x = fitted.rotated(self._read(rows))
            stay = [parameters for other, parameters in self._frames.tiles if other is not frame]
            for coming in (fitted, _fit(np.concatenate([x, rotated[-len(x) :]]), fitted)):
                loss = share * _log_ratio(coming, fitted, rotated)
                kept = min(_log_ratio(rival, own, x) for rival in (coming, *stay))
                choices.append((loss + self._frames.rows(frame) * kept, frame, coming))
        return min(choices, key=lambda choice: choice[0])[1:] if choices else None

    def _sample_of(self, frame: Frame) -> NDArray[np.uint64]:
        """Row ids of some rows of a frame, from slabs all over the index."""
        found: list[NDArray[np.uint64]] = []
        for slab in np.random.default_rng(0).permutation(self._core.slabs).tolist():
            rows, lanes = self._core.slab_rows(slab)
            found.append(rows[lanes == frame.lane][: SAMPLE // 4])
            if sum(map(len, found)) >= SAMPLE:
                break
        return np.concatenate([np.empty(0, np.uint64), *found])

    def start(self, reason: str, leaving: Frame | None = None) -> None:
        """Survey all slabs, then move those that gain; with `leaving`, also all that hold rows of that
        frame."""
        self._surveyed, self._end = 0, self._core.slabs
        self._moves, self._declined = [], []
        self._leaving = leaving
        self._reason = reason
        self._total = self._done = 0

    def step(self) -> None:
        """Survey one slab or move one."""
        if self._surveyed < self._end:
            self._survey(self._surveyed)
            self._surveyed += 1
            if self._surveyed == self._end:
                self._decide()
        elif self._done < self._total:
            self._move(self._moves[self._done])
            self._done += 1
            if self._done == self._total:
                self._finish()

    # ---- survey

    def _errors(
        self, rows: NDArray[np.uint64], lanes: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]]]:
        """Each row's error in its own frame (0 in floats), and in every tile frame, by lane."""
        assert self._read is not None, "without raw vectors nothing is measured"
        tiles = self._frames.tiles
        errors = {frame.lane: np.empty(len(rows)) for frame, _ in tiles}
        for start in range(0, len(rows), SPAN):
            span = slice(start, start + SPAN)
            rotated = tiles[0][1].rotated(self._read(rows[span]))  # frames share one rotation
            for frame, parameters in tiles:
                errors[frame.lane][span] = parameters.row_errors(rotated, GAIN_BITS)
        own = np.zeros(len(rows))
        for lane, of_lane in errors.items():
            own = np.where(lanes == lane, of_lane, own)
        return own, errors

    def _survey(self, slab: int) -> None:
        if slab >= self._core.slabs:  # it was emptied and given back since
            return
        rows, lanes = self._core.slab_rows(slab)
        info = self._core.slab(slab)
        # an empty block of floats goes too: what is written there next should be codes;
        # dead slots count: a frame cannot close while one is coded in it
        forced = info.is_float or (self._leaving is not None and info.rows[self._leaving.lane] > 0)
        if self._read is None or not len(rows):
            if forced:
                self._moves.append(Move(slab, self._frames.write, len(rows), 0, 0, True))
            return
        chosen = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.intp)
        own, errors = self._errors(rows[chosen], lanes[chosen])
        means = {lane: float(of_lane.mean()) for lane, of_lane in errors.items()}
        if self._leaving is not None:
            del means[self._leaving.lane]
        best = min(means, key=means.__getitem__)
        if not forced and bool((lanes == best).all()):
            return
        move = Move(slab, self._frames.at(best), len(rows), float(own.mean()), means[best], forced)
        (self._moves if forced or move.gain >= self._min_gain else self._declined).append(move)

    def _decide(self) -> None:
        self._moves.sort(key=lambda move: (not move.forced, -move.gain))
        self._total = len(self._moves)
        self._before = self._after = 0.0
        self._rows = 0
        self._began = time.monotonic()
        if self._declined:
            best = max(move.gain for move in self._declined)
            self._emit(
                ReencodeDeclined(
                    reason="the codes of these slabs would hardly become better",
                    slabs=len(self._declined),
                    rows=sum(move.rows for move in self._declined),
                    expected_gain=best,
                    threshold=self._min_gain,
                )
            )
        if self._moves:
            self._emit(
                ReencodeStarted(
                    reason=self._reason,
                    frame=self._frames.write.number,
                    slabs=self._total,
                    rows=sum(move.rows for move in self._moves),
                    expected_gain=self._predicted(),
                )
            )

    def _predicted(self) -> float | None:
        """None where rows come from floats, whose codes have no error to compare with."""
        before = sum(move.before * move.rows for move in self._moves)
        after = sum(move.after * move.rows for move in self._moves)
        return before / after if before > 0 and after > 0 else None

    # ---- moving

    def _move(self, move: Move) -> None:
        if move.slab >= self._core.slabs:
            return
        rows, lanes = self._core.slab_rows(move.slab)
        self._core.reencode(move.slab, move.to.lane)
        self._rows += len(rows)
        if self._read is not None and len(rows):
            own, errors = self._errors(rows, lanes)
            self._before += float(own.sum())
            self._after += float(errors[move.to.lane].sum())
        done = self._done + 1
        if done * PROGRESS_STEPS // self._total > self._done * PROGRESS_STEPS // self._total:
            self._emit(ReencodeProgress(slabs_done=done, slabs=self._total, rows_done=self._rows))

    def _finish(self) -> None:
        self._emit(
            ReencodeFinished(
                slabs=self._total,
                rows=self._rows,
                seconds=time.monotonic() - self._began,
                predicted_gain=self._predicted(),
                measured_gain=self._before / self._after if self._before > 0 and self._after > 0 else None,
            )
        )
        self._moves = []
        self._total = self._done = 0
        if self._leaving is not None and self._frames.rows(self._leaving):
            # upkeep has moved rows from a slab that was to be encoded to one that was not
            self.start(self._reason, self._leaving)


assert SLAB >= SAMPLE, "a sample is part of a slab"
