"""The five plots of a drift report, as SVG: fit loss, recall, frames, dimensions, ingest rate.

Each takes the report and the time axis they share and returns an SVG element; what is drawn says what it is
when it is pointed at (`<title>`). With nothing to draw there is no plot: the page says why.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol, TypeVar

from .report import Band, Ingest, Recall, Report, Window
from .report_dimensions import DimensionDrift
from .report_plots import LEFT, RIGHT, TOP, TimeAxis, clock, linear, logarithmic, number, tag, text

__all__ = ["HEAT", "POINTS", "dimension_plot", "fit_loss_plot", "frame_plot", "ingest_plot", "recall_plot"]

POINTS = 300  # of a curve at most; where there are more, the worst in each stretch of time is drawn
HEAT = (0.1, 0.25, 0.5, 1.0)  # PSI between the five shades of the heat map
HEAT_ROW = 16  # height of a dimension
HEAT_COLUMN = 9.0  # least width
CLOSEST = 1.0  # that lines of two alarms may be
LANE = 40  # height for one frame
SHORTEST = 17.0  # width that a band takes with its number above it
CHARACTER = 6.6  # width of one in a label, on average
LEAST_RECALL_RANGE = 0.02


class Timed(Protocol):
    @property
    def time_ms(self) -> int: ...


Item = TypeVar("Item", bound=Timed)


def fit_loss_plot(report: Report, axis: TimeAxis) -> str:
    """How many times larger the error of the codes is than it could be, window by window."""
    windows = [window for window in report.windows if window.fit_loss is not None]
    if not windows:
        return ""
    height = 240
    highest = max(report.loss_limit, *(_loss(window) for window in windows))
    scale = logarithmic(1.0, max(1.5, 1.15 * highest), height)
    limit = scale.y(report.loss_limit)
    scale = replace(scale, ticks=[value for value in scale.ticks if abs(scale.y(value) - limit) >= 13])
    shown = _worst(windows, axis, _loss)
    radius = _radius(len(shown))
    dots = "".join(
        tag(
            "circle",
            tag("title", text(_window_words(window))),
            class_="dot differs" if window.differs else "dot loss",
            cx=axis.x(window.time_ms), cy=scale.y(_loss(window)), r=4 if window.differs else radius,
        )
        for window in shown
    )  # fmt: skip
    body = (
        scale.drawn()
        + tag("line", class_="limit", x1=LEFT, x2=RIGHT, y1=limit, y2=limit)
        + tag("text", f"{report.loss_limit:g}", class_="note", x=LEFT - 8, y=limit + 4, text_anchor="end")
        + _curve(report, axis, shown, lambda window: scale.y(_loss(window)), "line loss")
    )
    return axis.plot("Fit loss over time", height, body, _alarms(report, axis, height) + dots)


def recall_plot(report: Report, axis: TimeAxis) -> str:
    """The share of the true nearest neighbours that live queries found, with its interval."""
    if not report.recalls:
        return ""
    height = 220
    shown = _worst(report.recalls, axis, lambda recall: -recall.recall)
    radius = _radius(len(shown))
    lowest = min(recall.low for recall in shown)
    scale = linear(max(0.0, min(lowest - 0.005, 1 - LEAST_RECALL_RANGE)), 1.0, height)
    interval = "".join(_interval(run, axis, scale.y) for run in _runs(report, shown))
    dots = "".join(
        tag(
            "circle",
            tag("title", text(
                f"{clock(recall.time_ms)}: recall@{recall.k} {recall.recall:.4f}, between {recall.low:.4f} "
                f"and {recall.high:.4f}; {recall.queries:,} queries, ef {recall.ef}"
            )),
            class_="dot recall", cx=axis.x(recall.time_ms), cy=scale.y(recall.recall), r=radius,
        )
        for recall in shown
    )  # fmt: skip
    curve = _curve(report, axis, shown, lambda recall: scale.y(recall.recall), "line recall")
    body = scale.drawn(lambda value: f"{value:.3f}") + interval + curve
    return axis.plot("Recall over time", height, body, _alarms(report, axis, height) + dots)


def frame_plot(report: Report, axis: TimeAxis) -> str:
    """Which frames were alive, and which one new vectors were coded in."""
    if not report.bands:
        return ""
    lanes = _lanes(report.bands, axis)
    height = TOP + LANE * (max(lanes) + 1) + 30
    parts: list[str] = []
    for lane, band in zip(lanes, report.bands, strict=True):
        y = TOP + LANE * lane + 28
        colour = f"frame-{band.frame % 6}"
        start, end = axis.x(band.start_ms), axis.x(band.end_ms)
        life = tag(
            "rect", class_=f"life {colour}", x=start, y=y - 3, width=max(2.0, end - start), height=6, rx=2
        )
        written = "".join(
            tag(
                "rect",
                class_=f"writing {colour}", x=axis.x(since), y=y - 9,
                width=max(2.0, axis.x(until) - axis.x(since)), height=18, rx=3,
            )
            for since, until in band.writing
        )  # fmt: skip
        names = [f"frame {band.frame}", str(band.frame)]
        if band.rows is not None:
            names.insert(0, f"frame {band.frame}: {band.rows:,} rows now")
        name = next((name for name in names if CHARACTER * len(name) <= max(end - start, SHORTEST) - 3), "")
        label = tag("text", name, class_="label", x=start + 3, y=y - 13) if name else ""
        parts.append(tag("g", tag("title", text(_band_words(band))) + life + written + label, class_="band"))
    y = height - 14
    for since, until in report.reencodes:
        width = max(2.0, axis.x(until) - axis.x(since))
        words = f"{clock(since)}: slabs moved to another frame for {(until - since) / 1000:.1f} s"
        parts.append(
            tag(
                "rect",
                tag("title", words),
                class_="reencode",
                x=axis.x(since),
                y=y - 4,
                width=width,
                height=8,
            )
        )
    if report.reencodes:
        parts.append(tag("text", "moving", class_="tick", x=LEFT - 8, y=y + 4, text_anchor="end"))
    return axis.plot("Frames over time", height, "".join(parts), _alarms(report, axis, height))


def dimension_plot(report: Report, axis: TimeAxis) -> str:
    """The dimensions that drifted most, those that drifted more above."""
    columns = _columns(report, axis)
    chosen = report.dimensions.drifted
    if not chosen:
        return ""
    height = TOP + 8 + HEAT_ROW * len(chosen)
    parts: list[str] = []
    for start, end, windows, cells in columns:
        width = end - start
        learning = not any(window.compared for window in windows)
        ground = "learning" if learning else "compared"
        parts.append(tag("rect", class_=ground, x=start, y=TOP + 8, width=width, height=height - TOP - 8))
        for row, dimension in enumerate(chosen):
            cell = cells.get(dimension)
            if cell is None:
                continue
            words = (
                f"dimension {dimension}, {clock(windows[-1].time_ms)}: PSI {cell.psi:.3f}, "
                f"mean {cell.shift_sigmas:+.2f} sigma"
            )
            parts.append(
                tag(
                    "rect", tag("title", text(words)),
                    class_=f"heat heat-{sum(cell.psi >= limit for limit in HEAT)}",
                    x=start, y=TOP + 8 + HEAT_ROW * row, width=width, height=HEAT_ROW - 1,
                )
            )  # fmt: skip
    for row, dimension in enumerate(chosen):
        y = TOP + 8 + HEAT_ROW * row + 12
        parts.append(tag("text", f"dim {dimension}", class_="tick", x=LEFT - 8, y=y, text_anchor="end"))
    return axis.plot("Drifted dimensions over time", height, "".join(parts), _alarms(report, axis, height))


def ingest_plot(report: Report, axis: TimeAxis) -> str:
    """Rows a second between full windows."""
    spans = _merged(report.ingest, axis)
    if not spans:
        return ""
    height = 170
    scale = linear(0.0, 1.1 * max(span.per_second for span in spans), height)
    bars = "".join(
        tag(
            "rect",
            tag("title", text(
                f"{clock(span.from_ms)} to {clock(span.to_ms)}: {span.rows:,} rows, "
                f"{number(span.per_second)} a second"
            )),
            class_="ingest", x=axis.x(span.from_ms), y=scale.y(span.per_second),
            width=max(0.7, axis.x(span.to_ms) - axis.x(span.from_ms)),
            height=height - scale.y(span.per_second),
        )
        for span in spans
    )  # fmt: skip
    return axis.plot("Ingest rate over time", height, scale.drawn() + bars, _alarms(report, axis, height))


def _loss(window: Window) -> float:
    return max(1.0, window.fit_loss or 1.0)


def _window_words(window: Window) -> str:
    words = f"{clock(window.time_ms)}, rows up to {window.rows_seen:,}: fit loss {window.fit_loss:.3f}"
    if not window.compared:
        return words + "; a reference is being learned"
    words += f"; {window.drifted_share:.0%} of dimensions differ from the reference"
    return words + (f"; differs by its {window.differs.replace('_', ' ')}" if window.differs else "")


def _band_words(band: Band) -> str:
    words = f"frame {band.frame}: from {clock(band.start_ms)}"
    words += f" to {clock(band.end_ms)}, when it coded no vector any more" if band.retired else " on"
    if band.fitted_rows is not None:
        words += f"; fitted to {band.fitted_rows:,} rows"
    return words + ("" if band.rows is None else f"; codes {band.rows:,} rows now")


def _alarms(report: Report, axis: TimeAxis, height: int) -> str:
    """A line through the plot and a number above it for each alarm; a thin line where rows were counted
    anew."""
    parts = [
        tag(
            "line", tag("title", f"{clock(at)}: the index was started again, and counts its rows anew"),
            class_="restart", x1=axis.x(at), x2=axis.x(at), y1=TOP, y2=height,
        )
        for at in report.restarts_ms
    ]  # fmt: skip
    taken = drawn = 0.0  # up to here there are numbers already, and lines
    for index, alarm in enumerate(report.alarms, 1):
        x = axis.x(alarm.time_ms)
        if x < drawn + CLOSEST:
            continue
        drawn = x
        line = tag("line", class_="alarm", x1=x, x2=x, y1=TOP - 4, y2=height)
        flag = ""
        if x - 9 >= taken:
            taken = x + 9
            flag = tag("circle", class_="flag", cx=x, cy=10, r=9)
            flag += tag("text", str(index), class_="flag-number", x=x, y=14, text_anchor="middle")
        title = tag("title", text(f"{clock(alarm.time_ms)}: {alarm.text}"))
        parts.append(tag("g", title + line + flag, class_="alarm-mark"))
    return "".join(parts)


def _worst(items: Sequence[Item], axis: TimeAxis, badness: Callable[[Item], float]) -> list[Item]:
    """All of them, or of too many the worst in each of POINTS stretches of time."""
    if len(items) <= POINTS:
        return list(items)
    found: dict[int, Item] = {}
    for item in items:
        stretch = int(POINTS * (item.time_ms - axis.from_ms) / (axis.to_ms - axis.from_ms))
        if stretch not in found or badness(item) > badness(found[stretch]):
            found[stretch] = item
    return list(found.values())


def _radius(dots: int) -> float:
    """Of a dot that is one of so many."""
    return 3.0 if dots <= POINTS // 3 else 1.8


def _runs(report: Report, items: Iterable[Item]) -> list[list[Item]]:
    """Cut where rows were counted anew: what was before is of another index."""
    runs: defaultdict[int, list[Item]] = defaultdict(list)
    for item in items:
        runs[sum(item.time_ms >= at for at in report.restarts_ms)].append(item)
    return list(runs.values())


def _curve(
    report: Report, axis: TimeAxis, items: Iterable[Item], y: Callable[[Item], float], class_: str
) -> str:
    return "".join(
        tag("polyline", class_=class_, points=" ".join(f"{axis.x(i.time_ms):.1f},{y(i):.1f}" for i in run))
        for run in _runs(report, items)
    )


def _interval(run: Sequence[Recall], axis: TimeAxis, y: Callable[[float], float]) -> str:
    """The band between the limits of the interval; an upright line for one that stands alone."""
    there = [f"{axis.x(recall.time_ms):.1f},{y(recall.high):.1f}" for recall in run]
    back = [f"{axis.x(recall.time_ms):.1f},{y(recall.low):.1f}" for recall in reversed(run)]
    return tag("polygon", class_="interval", points=" ".join(there + back))


def _lanes(bands: Sequence[Band], axis: TimeAxis) -> list[int]:
    """A row for each band, the first that is free: four at most, or one more for a life too short to see."""
    free_from: list[float] = []
    lanes: list[int] = []
    for band in bands:
        start, end = axis.x(band.start_ms), axis.x(band.end_ms)
        lane = next((lane for lane, free in enumerate(free_from) if free <= start), len(free_from))
        if lane == len(free_from):
            free_from.append(0.0)
        free_from[lane] = max(end, start + SHORTEST)
        lanes.append(lane)
    return lanes


def _columns(
    report: Report, axis: TimeAxis
) -> list[tuple[float, float, list[Window], dict[int, DimensionDrift]]]:
    """Windows put together until they are wide enough to see: from, to, which, and the worst by dimension.

    A window reaches back to the one before: its rows came in that time.
    """
    columns: list[tuple[float, float, list[Window], dict[int, DimensionDrift]]] = []
    start = axis.x(report.from_ms)
    if report.windows and report.windows[0].time_ms == report.from_ms:
        gaps = [after.time_ms - before.time_ms for before, after in pairwise(report.windows)]
        start = max(float(LEFT), start - max(HEAT_COLUMN, axis.x(axis.from_ms + (gaps or [0])[0]) - LEFT))
    held: list[Window] = []
    for index, window in enumerate(report.windows):
        held.append(window)
        end = axis.x(window.time_ms)
        if end - start < HEAT_COLUMN and index + 1 < len(report.windows):
            continue
        cells: dict[int, DimensionDrift] = {}
        for each in held:
            for found in each.dimensions:
                if found.dimension not in cells or found.psi > cells[found.dimension].psi:
                    cells[found.dimension] = found
        columns.append((start, max(end, start + 1), held, cells))
        start, held = end, []
    return columns


def _merged(spans: Sequence[Ingest], axis: TimeAxis) -> list[Ingest]:
    """Neighbours put together until there are POINTS at most."""
    least_ms = (axis.to_ms - axis.from_ms) / POINTS if len(spans) > POINTS else 0
    merged: list[Ingest] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last is not None and last.to_ms == span.from_ms and last.to_ms - last.from_ms < least_ms:
            merged[-1] = Ingest(last.from_ms, span.to_ms, last.rows + span.rows)
        else:
            merged.append(span)
    return merged
