"""What an index tells: drift, frames and re-encodes, as values. docs/drift.md says how to read them.

Fields carry their unit in their name: `rows`, `slabs`, `seconds`, `_sigmas` (standard deviations of the
reference). An `error` is the mean squared error of a coded vector; `loss`, `gain`, `share` and `inflation`
are ratios.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

__all__ = [
    "CanaryWindow",
    "CodeError",
    "DriftDetected",
    "DriftWindow",
    "EfChanged",
    "EncoderChosen",
    "Event",
    "FrameOpened",
    "FrameRetired",
    "ReencodeCancelled",
    "ReencodeDeclined",
    "ReencodeFinished",
    "ReencodePaused",
    "ReencodeProgress",
    "ReencodeResumed",
    "ReencodeStarted",
    "WorstDimension",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an index; `name` says what."""

    name: ClassVar[str]

    def to_fields(self) -> dict[str, Any]:
        """The fields as plain values that JSON and msgpack can hold."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class WorstDimension:
    """One of the dimensions that drifted most, numbered as the vectors' producer numbers them."""

    dimension: int
    psi: float  # population stability index; above 0.25 is commonly called a large change
    shift_sigmas: float  # of the mean, signed


@dataclass(frozen=True, slots=True)
class DriftWindow(Event):
    """A window of rows was compared with the reference; one for each window."""

    name: ClassVar[str] = "drift.window"
    rows: int  # of the window
    rows_seen: int  # since the index was made, with this window
    seconds: float | None  # from its first row to its end, as the writer tells the time; None if it does not
    fit_loss: float  # error / best_error, never below 1: "codes are 1.2 times worse than they could be"
    error: float  # of a sample of the window's rows, at four bits, in the frame they were written in
    best_error: float  # the least among that frame, the other live ones, and one fitted to the window before
    psi: float  # population stability index; mean over dimensions, like the next two
    jensen_shannon: float  # divergence in bits: 0 the same, 1 disjoint
    wasserstein_sigmas: float
    mean_shift_sigmas: float  # root mean square over dimensions
    drifted_share: float  # of dimensions that differ significantly, each by itself
    worst: tuple[WorstDimension, ...]  # the most significant first
    scores: str  # of every dimension: significance in standard deviations; base64 of little-endian f2 [dim]
    shifts: str  # of every dimension's mean in sigmas, the same form; empty while a reference is learned
    psis: str
    inflation: float  # how many times more (in variance) window means scatter than independent rows would
    p_value: float  # of the most significant dimension, corrected for their number; 1 while learning
    reference_rows: int  # that the window was compared with
    differs: str  # "distribution" (p_value below alpha), "fit_loss" (beyond its limit) or "" for neither
    detected: bool  # windows running have differed, or this one by far; a drift.detected follows


@dataclass(frozen=True, slots=True)
class DriftDetected(Event):
    """The data are not what they were: windows running differ, or one by far. A new reference is learned from
    here on."""

    name: ClassVar[str] = "drift.detected"
    rows_seen: int
    since_rows_seen: int  # rows seen before the first window that differed
    differs: str  # as in the last of these windows
    kind: str  # "abrupt", "gradual", "scale" or "returning" (index/kinds.py)
    fit_loss: float
    drifted_share: float
    mean_shift_sigmas: float
    p_value: float
    worst: tuple[WorstDimension, ...]


@dataclass(frozen=True, slots=True)
class CodeError:
    """How well a code did on a sample of the rows."""

    distribution: str  # "normal", "lognormal" or "lattice"
    rotation: str  # "random" or "none"
    error: float  # of the whole code, in units of the rows' variance
    error_4_bits: float  # of its top four bits; of the whole code where it has no such prefix


@dataclass(frozen=True, slots=True)
class EncoderChosen(Event):
    """Which law codes the vectors, and whether they are rotated first."""

    name: ClassVar[str] = "encoder.chosen"
    distribution: str
    rotation: str
    reason: str
    measured: tuple[CodeError, ...]  # this code and the others that there was a choice of


@dataclass(frozen=True, slots=True)
class FrameOpened(Event):
    """New vectors are coded with parameters of their own from now on."""

    name: ClassVar[str] = "frame.opened"
    frame: int
    reason: str
    fitted_rows: int  # that the histogram recorded with it counts
    expected_gain: float | None  # error of recent rows in the old frame / in this one; None: it held floats


@dataclass(frozen=True, slots=True)
class FrameRetired(Event):
    """A frame that codes no vector any more is gone."""

    name: ClassVar[str] = "frame.retired"
    frame: int


@dataclass(frozen=True, slots=True)
class ReencodeStarted(Event):
    """Slabs move to other frames, in the background."""

    name: ClassVar[str] = "reencode.started"
    reason: str
    frame: int  # that new vectors are written in
    slabs: int
    rows: int
    expected_gain: float | None  # error before / after, from a sample of every slab; None if they held floats


@dataclass(frozen=True, slots=True)
class SlabsMoved(Event):
    """How far slabs have moved; its kinds say when that is told."""

    slabs_done: int
    slabs: int  # that are to move; 0: nothing is moving
    rows_done: int


@dataclass(frozen=True, slots=True)
class ReencodeProgress(SlabsMoved):
    """Now and then while slabs move."""

    name: ClassVar[str] = "reencode.progress"


@dataclass(frozen=True, slots=True)
class ReencodePaused(SlabsMoved):
    """No slab moves until it is resumed."""

    name: ClassVar[str] = "reencode.paused"


@dataclass(frozen=True, slots=True)
class ReencodeResumed(SlabsMoved):
    """What was paused goes on."""

    name: ClassVar[str] = "reencode.resumed"


@dataclass(frozen=True, slots=True)
class ReencodeFinished(Event):
    """All slabs that were to move have moved."""

    name: ClassVar[str] = "reencode.finished"
    slabs: int
    rows: int
    seconds: float
    predicted_gain: float | None
    measured_gain: float | None  # error before / after over a quarter of the rows that moved


@dataclass(frozen=True, slots=True)
class ReencodeCancelled(Event):
    """A re-encode ended before all slabs had moved; those that had stay where they are."""

    name: ClassVar[str] = "reencode.cancelled"
    reason: str
    slabs_done: int
    slabs: int  # that were to move; 0: they were still being surveyed
    rows_done: int


@dataclass(frozen=True, slots=True)
class ReencodeDeclined(Event):
    """Slabs stay as they are, since moving them would not pay."""

    name: ClassVar[str] = "reencode.declined"
    reason: str
    slabs: int
    rows: int
    expected_gain: float | None  # the largest among them
    threshold: float  # what it would have had to reach


@dataclass(frozen=True, slots=True)
class CanaryWindow(Event):
    """A sample of live queries was asked again, beside a pass over all codes."""

    name: ClassVar[str] = "canary.window"
    queries: int
    k: int
    ef: int  # that they were asked with: the service's own, not that of a request
    recall: float  # mean over the queries of the share of the k nearest that was found
    low: float  # of the 95 % interval around it
    high: float
    raw_recall: float | None  # against a pass over all raw vectors; None: not in this window
    cpu_share: float  # of one core, while the window lasted


@dataclass(frozen=True, slots=True)
class EfChanged(Event):
    """Searches that do not say go as wide as this from now on, because of the recall that was measured."""

    name: ClassVar[str] = "ef.changed"
    ef: int
    before: int
    recall: float
    target: float
    reason: str
