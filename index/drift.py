"""Watching a stream for drift, and knowing what a new frame would gain.

Rows are taken in windows of a fixed number. A window *differs* if its distribution does (index/reference.py),
or if its rows are coded `loss_limit` times worse than they could be: the first is drift, the second is what
drift costs. Windows running that differ are an alarm. With it the old reference is dropped and a new one
learned from what comes next, so that one change is one alarm; while it is learned no test is made, which is
the cooldown. The fit loss is armed again once it has come down.

The work of a window is bounded: all rows are coded once, in original coordinates; only a sample of them is
rotated, from 256 rows in high dimensions to all in low ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from .divergence import jensen_shannon, psi, wasserstein
from .events import DriftDetected, DriftWindow, WorstDimension
from .packing import array_bytes, arrays_of, field, mapping, number
from .recent import Recent
from .reference import CHUNKS, Comparison, Reference
from .statistics import as_rows
from .tile import BINS, TileParameters

__all__ = ["GAIN_BITS", "DriftMonitor", "DriftSettings", "expected_gain"]

Vectors = NDArray[np.float32]
Counts = NDArray[np.int64]

STATE_VERSION = 2  # 1 held the kept rows rotated, and is read
GAIN_BITS = 4  # at which codes are judged: they route a search, and what it misses no further bit can rank
SAMPLE = 200_000  # components of a window's rows that are rotated, but not less than LEAST rows
LEAST = 256
JUDGED = 100_000  # components of the sample that the fit loss is measured on, known to about 2 % then
CONFIRM = 2  # windows running that make an alarm
CONFIRM_BURSTY = 3  # in a bursty stream, where one burst may fill two windows: SIFT, photo after photo
WORST = 5  # dimensions named in a report


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """How drift is watched for. InvalidInput for values out of range."""

    window_rows: int = 1000
    """Rows of a window, rounded down to a multiple of 4; 64 or more."""
    alpha: float = 0.01
    """Chance that a window of unchanged data differs in distribution; an alarm needs two or three running."""
    reference_windows: int = 4
    """Windows that a reference is made of before anything is compared with it, 3 to 16; it grows to 16."""
    loss_limit: float = 1.25
    """Fit loss from which a window differs; at four bits, the stationary sets at hand stay below 1.08."""
    min_gain: float = 1.1
    """Least gain (squared error before / after) for which a frame is opened or a slab encoded anew."""
    forget_rows: float = 10_000.0
    """Rows after which an older row counts half in the statistics that a frame is fitted to."""

    def __post_init__(self) -> None:
        ranges = {
            "window_rows": (64, 10_000_000), "alpha": (1e-12, 0.5), "reference_windows": (3, 16),
            "loss_limit": (1.0, math.inf), "min_gain": (1.0, math.inf), "forget_rows": (1.0, math.inf),
        }  # fmt: skip
        for name in (known.name for known in fields(self)):
            least, most = ranges[name]
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInput(f"{name} must be {least:g} to {most:g}, not {value}")


def expected_gain(now: TileParameters, other: TileParameters, rows: Vectors, bits: int = GAIN_BITS) -> float:
    """Mean squared error of float32 [n, dim] `rows` coded by `now` / by `other`: above 1, `other` is better.

    Measured, not predicted: it holds for any distribution. 1 where neither makes an error.
    """
    before, after = now.error(rows, bits), other.error(rows, bits)
    if after > 0:
        return before / after
    return math.inf if before > 0 else 1.0


class DriftMonitor:
    """The statistics of a stream of rows. One thread at a time.

    rotation_seed: of the rotation that frames use; None if they use none.
    """

    def __init__(self, dim: int, settings: DriftSettings | None = None, *, rotation_seed: int | None) -> None:
        self.dim = dim
        self.settings = settings or DriftSettings()
        self.rotation_seed = rotation_seed
        self.rows_seen = 0
        self._chunk_rows = self.settings.window_rows // CHUNKS
        self._stride = -(-self._chunk_rows * CHUNKS // max(LEAST, SAMPLE // dim))
        forget = self.settings.forget_rows / self._stride
        self._recent = Recent(dim, rotation_seed, forget, CONFIRM * CHUNKS)
        self._reference: Reference | None = None  # none before the first window
        self._held: list[Counts] = []  # windows that the reference learns once a later one agrees with it
        self._differing = 0  # windows running
        self._armed = True  # whether the fit loss can make a window differ
        self._first: list[Vectors] = []  # chunks of the first window, before there is a ruler
        self._counts: list[Counts] = []  # of each chunk of the open window
        self._pending: list[Vectors] = []  # rows that do not fill a chunk yet

    # ---- taking rows

    def update(
        self,
        rows: Vectors,
        frame: TileParameters | None,
        others: Sequence[TileParameters] = (),
        *,
        stored: bool = False,
    ) -> list[DriftWindow | DriftDetected]:
        """Take float32 [n, dim], in the order of writing; what was found, for every window that they fill.

        frame: that they are written in; None while they are held as floats: all is learned, nothing said.
        others: frames that are alive beside it. stored: the rows lie where they stay and never change, so
        those that are wanted later need no copy. Whatever the batches, the windows are the same.
        """
        for parameters in (frame, *others):
            if parameters is not None and parameters.rotation_seed != self.rotation_seed:
                raise InvalidInput("a frame has another rotation than the statistics")
        rows = as_rows(rows, self.dim)
        found: list[DriftWindow | DriftDetected] = []
        while len(rows):
            room = self._chunk_rows - sum(map(len, self._pending))
            self._pending.append(rows[:room] if stored else rows[:room].copy())
            if len(rows) < room:
                break
            rows = rows[room:]
            parts, self._pending = self._pending, []
            self._take_chunk(parts, frame is None)
            if max(len(self._counts), len(self._first)) == CHUNKS:
                found.extend(self._close_window(frame, others))
        return found

    def _take_chunk(self, parts: list[Vectors], is_float: bool) -> None:
        self.rows_seen += self._chunk_rows
        if self._reference is None:
            self._first.append(np.concatenate(parts))
        else:
            self._counts.append(self._reference.count(parts))
        # A frame may soon be fitted to few rows: while they are floats, and after a change. Take all of them.
        self._recent.add(parts, 1 if is_float or self._differing else self._stride)

    # ---- a window

    def _close_window(
        self, frame: TileParameters | None, others: Sequence[TileParameters]
    ) -> list[DriftWindow | DriftDetected]:
        if self._reference is None:
            return self._first_window()
        reference, counts = self._reference, np.stack(self._counts)
        self._counts = []
        if frame is None:
            self._recent.close_window(differing=0)
            if not reference.full:
                reference.learn(counts)
            return []

        comparison = None
        if reference.windows >= self.settings.reference_windows:
            comparison = reference.compare(counts, self.settings.alpha)
        error, best_error = self._errors(frame, others)
        loss = error / best_error if best_error > 0 else 1.0
        differs = self._judge(comparison, loss)
        self._differing = self._differing + 1 if differs else 0
        self._recent.close_window(self._differing)
        self._learn(reference, counts, bool(differs))
        bursty = differs == "distribution" and comparison is not None and comparison.bursty
        report = DriftWindow(
            rows=CHUNKS * self._chunk_rows,
            rows_seen=self.rows_seen,
            fit_loss=loss,
            error=error,
            best_error=best_error,
            differs=differs,
            detected=self._differing >= (CONFIRM_BURSTY if bursty else CONFIRM),
            **_compared(reference, counts.sum(axis=0), comparison),
        )
        return [report, self._alarm(report)] if report.detected else [report]

    def _first_window(self) -> list[DriftWindow | DriftDetected]:
        """It gives the ruler, and is what later windows are compared with."""
        self._recent.close_window(differing=0)
        self._reference = Reference(self._recent.ruler())
        self._reference.learn(np.stack([self._reference.count([chunk]) for chunk in self._first]))
        self._first = []
        return []

    def _errors(self, frame: TileParameters, others: Sequence[TileParameters]) -> tuple[float, float]:
        """Mean squared error of rows of the window in its frame, and the least that any frame or a refit has.

        The refit is to the window before: one to the window itself would know its bursts, and always win.
        """
        rows = self._recent.window_rows(CHUNKS, max(LEAST // 2, JUDGED // self.dim))
        rivals = others if self._recent.last_fit is None else (*others, self._recent.last_fit)
        errors = [
            float(np.concatenate([parameters.row_errors(some, GAIN_BITS) for some in rows]).mean())
            for parameters in (frame, *rivals)
        ]
        return errors[0], min(errors)

    def _judge(self, comparison: Comparison | None, loss: float) -> str:
        """Whether a window differs, and by what."""
        if not self._armed and loss < (1 + self.settings.loss_limit) / 2:
            self._armed = True
        if self._armed and loss >= self.settings.loss_limit:
            return "fit_loss"
        return "distribution" if comparison is not None and comparison.p_value < self.settings.alpha else ""

    def _learn(self, reference: Reference, counts: Counts, differs: bool) -> None:
        """Into the reference, once a later window agrees: a change may have begun inside this one."""
        if reference.full:
            return
        if reference.windows < self.settings.reference_windows and not differs:
            reference.learn(counts)
            return
        self._held.append(counts)
        if not differs:
            for held in self._held[:-1]:
                reference.learn(held)
            self._held = self._held[-1:]

    def _alarm(self, report: DriftWindow) -> DriftDetected:
        """Forget the old world: the next frame and the next reference are of what came after the change."""
        since = self.rows_seen - self._differing * report.rows
        self._recent.forget_what_was_before()
        self._reference = Reference(self._recent.ruler())
        self._held, self._differing, self._armed = [], 0, False
        return DriftDetected(
            rows_seen=self.rows_seen,
            since_rows_seen=since,
            differs=report.differs,
            fit_loss=report.fit_loss,
            drifted_share=report.drifted_share,
            mean_shift_sigmas=report.mean_shift_sigmas,
            p_value=report.p_value,
            worst=report.worst,
        )

    # ---- fitting

    def _waiting(self) -> Vectors:
        return np.concatenate([np.empty((0, self.dim), np.float32), *self._pending])

    def fit(self) -> TileParameters:
        """Parameters for a new frame, from the newest rows; after an alarm, from those since the change.

        InvalidInput before the first row.
        """
        return self._recent.fit(self._waiting())

    def recent(self, most: int | None = None) -> Vectors:
        """Some of the newest rows, oldest first, float32 [n, dim]; at most `most` of them, evenly."""
        return self._recent.rows(self._waiting(), most)

    def excess(self) -> float:
        """By what share a fit of the older half of the newest rows codes the newer worse than its own."""
        return self._recent.excess(self._waiting(), GAIN_BITS)

    # ---- as part of a cut

    def state(self) -> dict[str, Any]:
        """For `from_state`; a monitor restored from it goes on as if nothing had happened.

        version, dim, rows_seen, differing: int; rotation_seed: int or nil; window_rows: int, as rounded;
        armed: bool; recent (index/recent.py); reference (index/reference.py) or nil;
        held, counts: lists of i8 [4, dim, 16] and [dim, 16]; first, pending: lists of f4 [n, dim].
        """
        return {
            "version": STATE_VERSION,
            "dim": self.dim,
            "rotation_seed": self.rotation_seed,
            "window_rows": CHUNKS * self._chunk_rows,
            "rows_seen": self.rows_seen,
            "differing": self._differing,
            "armed": self._armed,
            "recent": self._recent.state(),
            "reference": None if self._reference is None else self._reference.state(),
            "held": [array_bytes(counts) for counts in self._held],
            "counts": [array_bytes(counts) for counts in self._counts],
            "first": [array_bytes(rows) for rows in self._first],
            "pending": [array_bytes(rows) for rows in self._pending],
        }

    @classmethod
    def from_state(cls, state: Any, settings: DriftSettings | None = None) -> "DriftMonitor":
        """What `state` said, under `settings`; with windows of another length a new reference is learned.

        CorruptIndex for what it cannot have said.
        """
        known = mapping(state, "drift statistics")
        version = int(number(known, "version", 1, 2**31))
        if version > STATE_VERSION:
            raise CorruptIndex(f"drift statistics of version {version}, not {STATE_VERSION}")
        dim = int(number(known, "dim", 1, 4096))
        seed = known.get("rotation_seed")
        monitor = cls(
            dim,
            settings,
            rotation_seed=None if seed is None else int(number(known, "rotation_seed", 0, 2**64 - 1)),
        )
        monitor.rows_seen = int(number(known, "rows_seen", 0, 2**62))
        monitor._recent.restore(known.get("recent"), version)
        chunk_rows = monitor._chunk_rows
        if field(known, "window_rows", int) != CHUNKS * chunk_rows:
            return monitor
        monitor._differing = int(number(known, "differing", 0, 2**31))
        monitor._armed = field(known, "armed", bool)
        if known.get("reference") is not None:
            monitor._reference = Reference.from_state(dim, CHUNKS * chunk_rows, known["reference"])
        monitor._held = arrays_of(known, "held", "i8", (CHUNKS, dim, BINS))
        monitor._counts = arrays_of(known, "counts", "i8", (dim, BINS))
        monitor._first = arrays_of(known, "first", "f4", (chunk_rows, dim))
        monitor._pending = arrays_of(known, "pending", "f4", (-1, dim))
        counted = [counts.sum(axis=-1) for counts in (*monitor._held, *monitor._counts)]
        if (
            any((rows != chunk_rows).any() for rows in counted)
            or max(len(monitor._counts), len(monitor._first)) >= CHUNKS
            or sum(map(len, monitor._pending)) >= chunk_rows
        ):
            raise CorruptIndex("the stored drift statistics do not hold the rows that they count")
        return monitor


def _compared(reference: Reference, window: Counts, comparison: Comparison | None) -> dict[str, Any]:
    """The fields of a report that compare; nothing differs while the reference is learned."""
    if comparison is None:
        return {
            "psi": 0.0, "jensen_shannon": 0.0, "wasserstein_sigmas": 0.0, "mean_shift_sigmas": 0.0,
            "drifted_share": 0.0, "worst": (), "inflation": 1.0, "p_value": 1.0, "reference_rows": 0,
        }  # fmt: skip
    known = reference.counts
    psis = psi(known, window)
    worst = np.argsort(-comparison.scores, kind="stable")[:WORST]
    return {
        "psi": float(psis.mean()),
        "jensen_shannon": float(jensen_shannon(known, window).mean()),
        "wasserstein_sigmas": float(wasserstein(known, window, reference.ruler.table(4)).mean()),
        "mean_shift_sigmas": math.sqrt(float(np.mean(comparison.shift**2))),
        "drifted_share": float(comparison.drifted.mean()),
        "worst": tuple(WorstDimension(int(d), float(psis[d]), float(comparison.shift[d])) for d in worst),
        "inflation": comparison.inflation,
        "p_value": comparison.p_value,
        "reference_rows": reference.rows,
    }
