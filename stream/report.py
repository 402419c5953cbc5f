"""What a drift report says, as data: the history of the drift topic, put in order.

`driftline drift report` draws it (report_page) and, with --json, prints it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from .config import Settings
from .drift_words import sentence
from .history import MEASUREMENTS, history, now_of, start_of
from .report_dimensions import DimensionDrift, Dimensions, drift_of_dimensions

__all__ = [
    "Band",
    "Happening",
    "Ingest",
    "Recall",
    "Report",
    "Window",
    "make_report",
    "read_report",
]


@dataclass(frozen=True, slots=True)
class Window:
    """A window of rows that was compared (`drift.window`)."""

    time_ms: int
    rows_seen: int  # since the index was made; starts again with a new one
    fit_loss: float | None  # None where it was beyond all numbers
    drifted_share: float
    compared: bool  # False while a reference is learned
    differs: str
    dimensions: tuple[DimensionDrift, ...]  # those of the period's most drifted that the event tells of


@dataclass(frozen=True, slots=True)
class Ingest:
    """Rows written between two times at which windows were full."""

    from_ms: int
    to_ms: int
    rows: int

    @property
    def per_second(self) -> float:
        return 1000 * self.rows / (self.to_ms - self.from_ms)


@dataclass(frozen=True, slots=True)
class Recall:
    """A batch of live queries that were answered again exactly (`canary.window`)."""

    time_ms: int
    queries: int
    k: int
    ef: int
    recall: float
    low: float  # of the interval
    high: float


@dataclass(frozen=True, slots=True)
class Band:
    """The life of a frame within the report's period."""

    frame: int
    start_ms: int
    end_ms: int
    retired: bool  # at end_ms; else the frame is alive
    writing: tuple[tuple[int, int], ...]  # when new vectors were coded in it, from and to, ms
    fitted_rows: int | None  # None: not told of in this history
    rows: int | None  # that it codes now; None where no service answers


@dataclass(frozen=True, slots=True)
class Happening:
    """Anything else that was told, as a sentence."""

    time_ms: int
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """A period of a collection's life; every sequence is in order of time."""

    collection: str
    from_ms: int  # the beginning that was asked for, or the first event where none is older
    to_ms: int  # the last event
    made_ms: int
    loss_limit: float  # drift.loss_limit
    windows: tuple[Window, ...]
    dimensions: Dimensions
    restarts_ms: tuple[int, ...]  # from then on rows were counted anew, or replayed
    ingest: tuple[Ingest, ...]
    recalls: tuple[Recall, ...]
    bands: tuple[Band, ...]
    reencodes: tuple[tuple[int, int], ...]  # when slabs were moving, from and to, ms
    happenings: tuple[Happening, ...]
    now: Mapping[str, Any] | None  # live, fit_loss, frames and ready of the running service

    @property
    def alarms(self) -> tuple[Happening, ...]:
        return tuple(happening for happening in self.happenings if happening.event == "drift.detected")


async def read_report(settings: Settings, since: str | None) -> Report:
    """What the drift topic holds since a time, which `start_of` reads, as a report. Raises DriftlineError."""
    start_ms = start_of(since)
    events = await history(settings, start_ms)
    now = await asyncio.to_thread(now_of, settings)
    made_ms = time.time_ns() // 1_000_000
    return make_report(settings.topics.vectors, events, now, settings.drift.loss_limit, start_ms, made_ms)


def make_report(
    collection: str,
    events: Sequence[Mapping[str, Any]],
    now: Mapping[str, Any] | None,
    loss_limit: float,
    start_ms: int,
    made_ms: int,
) -> Report:
    """Put events in order of time into a report. Those before `start_ms` say which frames were alive then."""
    shown = [event for event in events if event["time_ms"] >= start_ms]
    # A history that is younger than what was asked for is drawn from its own beginning.
    goes_back = len(shown) < len(events)
    from_ms = shown[0]["time_ms"] if shown and not goes_back else start_ms
    to_ms = shown[-1]["time_ms"] if shown else max(start_ms, made_ms)
    compared = [event for event in shown if event["event"] == "drift.window"]
    dimensions, cells = drift_of_dimensions(compared)
    windows = tuple(_window(event, drifts) for event, drifts in zip(compared, cells, strict=True))
    ingest, restarts = _ingest(windows)
    return Report(
        collection=collection,
        from_ms=from_ms,
        to_ms=to_ms,
        made_ms=made_ms,
        loss_limit=loss_limit,
        windows=windows,
        dimensions=dimensions,
        restarts_ms=restarts,
        ingest=ingest,
        recalls=tuple(_recall(event) for event in shown if event["event"] == "canary.window"),
        bands=_bands(events, from_ms, to_ms, now),
        reencodes=_reencodes(shown, to_ms),
        happenings=tuple(
            Happening(event["time_ms"], event["event"], sentence(event))
            for event in shown
            if event["event"] not in MEASUREMENTS
        ),
        now=now,
    )


def _window(event: Mapping[str, Any], dimensions: tuple[DimensionDrift, ...]) -> Window:
    return Window(
        time_ms=event["time_ms"],
        rows_seen=event["rows_seen"],
        fit_loss=event["fit_loss"],
        drifted_share=event["drifted_share"],
        compared=event["reference_rows"] > 0,
        differs=event["differs"],
        dimensions=dimensions,
    )


def _ingest(windows: Sequence[Window]) -> tuple[tuple[Ingest, ...], tuple[int, ...]]:
    """Rows between windows, and when the count of rows fell back: then there is none to tell."""
    spans: list[Ingest] = []
    restarts: list[int] = []
    for before, window in pairwise(windows):
        rows = window.rows_seen - before.rows_seen
        if rows <= 0:
            restarts.append(window.time_ms)
        elif spans and spans[-1].to_ms == window.time_ms:  # windows of one batch are told of at once
            spans[-1] = replace(spans[-1], rows=spans[-1].rows + rows)
        elif window.time_ms > before.time_ms:
            spans.append(Ingest(before.time_ms, window.time_ms, rows))
    return tuple(spans), tuple(restarts)


def _recall(event: Mapping[str, Any]) -> Recall:
    names = ("time_ms", "queries", "k", "ef", "recall", "low", "high")
    return Recall(**{name: event[name] for name in names})


def _reencodes(events: Sequence[Mapping[str, Any]], to_ms: int) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    began: int | None = None
    for event in events:
        if event["event"] not in ("reencode.started", "reencode.finished", "reencode.cancelled"):
            continue
        if began is not None:
            spans.append((began, event["time_ms"]))
        began = event["time_ms"] if event["event"] == "reencode.started" else None
    if began is not None:
        spans.append((began, to_ms))
    return tuple(spans)


def _bands(
    events: Sequence[Mapping[str, Any]], from_ms: int, to_ms: int, now: Mapping[str, Any] | None
) -> tuple[Band, ...]:
    """The frames' lives, cut to the period."""
    rows: dict[int, int] = {} if now is None else {each["frame"]: each["rows"] for each in now["frames"]}
    alive: dict[int, Band] = {}
    ended: list[Band] = []
    writing: int | None = None

    def written_until(time_ms: int) -> None:
        if writing is not None and writing in alive:
            band = alive[writing]
            *before, (start, _) = band.writing
            alive[writing] = replace(band, writing=(*before, (start, time_ms)))

    def end(band: Band, time_ms: int) -> None:
        ended.append(replace(band, end_ms=time_ms, retired=True))

    for event in events:
        at = event["time_ms"]
        if event["event"] == "frame.opened":
            number: int = event["frame"]
            written_until(at)
            if event["expected_gain"] is None:
                # The first code after floats: of a new index, if others are alive.
                for band in alive.values():
                    end(band, at)
                alive.clear()
            known = alive.get(number) or Band(number, at, to_ms, False, (), event["fitted_rows"], None)
            alive[number] = replace(known, writing=(*known.writing, (at, to_ms)))
            writing = number
        elif event["event"] == "frame.retired":
            # One that was never opened held floats: those that an index starts with.
            number = event["frame"]
            end(alive.pop(number, None) or Band(number, from_ms, at, True, (), None, None), at)
    for band in alive.values():
        ended.append(replace(band, end_ms=to_ms, rows=rows.get(band.frame)))
    told = {band.frame for band in ended}
    # What opened it is older than the topic's records.
    ended += [Band(n, from_ms, to_ms, False, (), None, rows[n]) for n in rows if events and n not in told]

    bands = [
        replace(
            band,
            start_ms=max(band.start_ms, from_ms),
            writing=tuple((max(start, from_ms), until) for start, until in band.writing if until > from_ms),
        )
        for band in ended
        if band.end_ms >= from_ms
    ]
    return tuple(sorted(bands, key=lambda band: (band.start_ms, band.frame)))
