"""The drift report as one HTML page that needs nothing else: no script, no font, no network.

For people who do not know the code: it opens with what is the case, every plot says what it shows, and the
words are explained at the end.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..errors import DriftlineError
from .report import Report
from .report_charts import HEAT, POINTS, dimension_plot, fit_loss_plot, frame_plot, ingest_plot, recall_plot
from .report_plots import TimeAxis, clock, number, tag, text
from .report_style import STYLE

__all__ = ["page", "write_page"]

# What the page may do: be styled. Nothing is fetched and nothing runs, whatever an event holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LISTED = 60  # happenings that are open to see; earlier ones unfold
MOST_LISTED = 1000

WORDS = (
    (
        "Window",
        "A thousand vectors or so in a row, as they were written (drift.window_rows).",
    ),
    (
        "Fit loss",
        "Vectors are kept as short codes. The squared error of a window's codes, divided by the least "
        "error that codes of the same length could have: 1 is as good as it gets, 1.5 says half again as "
        "much error.",
    ),
    (
        "Frame",
        "One set of parameters that codes are made with. When the data change enough, a new frame is "
        "opened, new vectors use it, and older ones move to it where that makes their error smaller. At "
        "most four are alive.",
    ),
    (
        "Reference",
        "The windows that later ones are compared with. After a change is noticed a new one is learned, "
        "and nothing is compared meanwhile.",
    ),
    (
        "PSI",
        "Population stability index of a dimension: how different its values are spread from those of "
        "the reference. By custom 0.1 is a change and 0.25 a large one.",
    ),
    (
        "Recall@k",
        "The share of the k truly nearest vectors that a search finds. It is measured by answering a "
        "sample of live queries again, exactly; the interval says how far the sample may mislead.",
    ),
)  # fmt: skip


def page(report: Report) -> str:
    """The whole page."""
    title = f"Drift of {report.collection}"
    axis = TimeAxis.over(report.from_ms, report.to_ms)
    body = (
        tag("h1", text(title))
        + tag("p", text(_period(report)), class_="soft")
        + tag("p", text(_verdict(report)), class_="verdict")
        + tag("div", "".join(_tile(*each) for each in _tiles(report)), class_="tiles")
        + "".join(_figures(report, axis))
        + _happenings(report)
        + _glossary()
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def write_page(report: Report, out: Path) -> None:
    """The page as a file. Raises DriftlineError where it cannot be written."""
    try:
        out.write_text(page(report), "utf-8")
    except OSError as error:
        raise DriftlineError(f"cannot write {out}: {error.strerror}") from error


def _period(report: Report) -> str:
    made = f"made {clock(report.made_ms, '%d %b %Y %H:%M %Z').strip()}"
    if not (report.windows or report.happenings or report.recalls):
        return f"Nothing has been told of this period; {made}."
    same_day = clock(report.from_ms, "%x") == clock(report.to_ms, "%x")
    rows = sum(span.rows for span in report.ingest)
    counted = f", {rows:,} vectors written between full windows" if rows else ""
    start = clock(report.from_ms, "%d %b %Y %H:%M:%S")
    end = clock(report.to_ms, "%H:%M:%S" if same_day else "%d %b %Y %H:%M:%S")
    return f"{start} to {end}{counted}; {made}. Times are local."


def _verdict(report: Report) -> str:
    """What is the case, in a sentence or three."""
    losses = [window.fit_loss for window in report.windows if window.fit_loss is not None]
    if not losses:
        return (
            "No window of vectors was compared in this period. The first ones are, when some thousand "
            "vectors were written."
        )
    if losses[-1] >= report.loss_limit:
        said = (
            f"The codes do not fit the newest data: their error is {losses[-1]:.2f} times what it could be."
        )
    elif losses[-1] >= (1 + report.loss_limit) / 2:
        said = f"The codes fit the newest data, though not as well as they could: fit loss {losses[-1]:.2f}."
    else:
        said = f"The codes fit the newest data well: fit loss {losses[-1]:.2f}, and 1 is the best there is."
    alarms = report.alarms
    if not alarms:
        said += " The data did not change noticeably in this period."
    else:
        times = "once" if len(alarms) == 1 else f"{len(alarms)} times"
        last = clock(alarms[-1].time_ms, "%d %b at %H:%M:%S")
        said += f" The data changed {times}, noticed last on {last}."
    if report.recalls:
        newest = report.recalls[-1]
        interval = f"{newest.low:.1%} to {newest.high:.1%}"
        said += f" Searches find {newest.recall:.1%} of the true neighbours ({interval})."
    return said


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Figure, name, what else."""
    tiles: list[tuple[str, str, str]] = []
    losses = [window.fit_loss for window in report.windows if window.fit_loss is not None]
    if losses:
        tiles.append((f"{losses[-1]:.2f}", "fit loss, newest window", f"highest {number(max(losses))}"))
    if report.recalls:
        newest = report.recalls[-1]
        interval = f"{newest.low:.4f} to {newest.high:.4f}"
        tiles.append((f"{newest.recall:.4f}", f"recall@{newest.k}, newest batch", interval))
    opened = sum(happening.event == "frame.opened" for happening in report.happenings)
    noticed = "change noticed" if len(report.alarms) == 1 else "changes noticed"
    tiles.append((str(len(report.alarms)), noticed, f"frames taken into use: {opened}"))
    alive = sum(not band.retired for band in report.bands)
    if alive:
        tiles.append(
            (
                str(alive),
                "frame alive" if alive == 1 else "frames alive",
                f"of {len(report.bands)} in this period",
            )
        )
    rates = [span.per_second for span in report.ingest]
    if rates:
        tiles.append((number(statistics.median(rates)), "vectors written a second", "median"))
    if report.now is not None:
        ready = "the service runs" if report.now["ready"] else "the service catches up"
        tiles.append((f"{report.now['live']:,}", "vectors live", ready))
    return tiles


def _tile(figure: str, name: str, more: str) -> str:
    return tag(
        "div", tag("b", text(figure)) + tag("span", text(name)) + tag("span", text(more)), class_="tile"
    )


def _figures(report: Report, axis: TimeAxis) -> list[str]:
    crowded = max(len(report.windows), len(report.recalls)) > POINTS
    worst = f" Of more than {POINTS} points the worst are drawn." if crowded else ""
    return [
        _figure(
            "Fit loss",
            "How many times larger the error of the codes is than it could be (1 is the best there is; "
            "the scale is logarithmic)." + worst,
            fit_loss_plot(report, axis),
            "No window was compared in this period, so there is no fit loss to draw.",
            (_swatch("dot", "loss"), "a window of vectors"),
            (_swatch("dot", "differs"), "a window that differs from what came before"),
            (_swatch("line", "limit"), "limit that should not be passed for long"),
            (
                _swatch("line", "alarm"),
                "a change of the data was noticed: the numbers are those of the list below",
            ),
        ),
        _figure(
            "Recall",
            "The share of the truly nearest vectors that searches found: a sample of live queries, "
            "answered again exactly in the background." + worst,
            recall_plot(report, axis),
            "Recall was not measured in this period: no sample of live queries was answered again (no "
            "canary.window event). That needs searches, and a service that checks a sample of them.",
            (_swatch("dot", "recall"), "a batch of queries"),
            (_swatch("rect", "interval"), "what it may truly be (95 % interval)"),
        ),
        _figure(
            "Frames",
            "Sets of code parameters over time, each in a colour of its own.",
            frame_plot(report, axis),
            "Nothing is told of frames in this period; the first one opens when some thousand vectors came.",
            (_swatch("thick", "frame-1"), "new vectors are coded in it"),
            (_swatch("thin", "frame-1"), "it still codes older vectors"),
            (_swatch("thin", "reencode"), "vectors were moving to another frame"),
        ),
        _figure(
            "Drifted dimensions",
            _dimensions_caption(report),
            dimension_plot(report, axis),
            "No dimension is named in this period: windows are compared once a reference is learned.",
            *_heat_legend(),
            *([] if report.dimensions.all_told else [(_swatch("rect", "compared"), "not among the named")]),
            (_swatch("rect", "learning"), "a reference is learned, nothing is compared"),
        ),
        _figure(
            "Ingest rate",
            "Vectors written a second, between the moments at which windows were full.",
            ingest_plot(report, axis),
            "A rate needs two full windows in this period.",
        ),
    ]


def _figure(name: str, caption: str, plot: str, empty: str, *legend: tuple[str, str]) -> str:
    """A plot with its words; without a plot, why there is none."""
    head = tag("h2", name)
    if not plot:
        return tag("figure", head + tag("p", text(empty), class_="empty"))
    swatches = "".join(tag("span", swatch + text(words)) for swatch, words in legend)
    return tag(
        "figure",
        head
        + tag("figcaption", text(caption))
        + (tag("div", swatches, class_="legend") if swatches else "")
        + tag("div", plot, class_="wide"),
    )


def _dimensions_caption(report: Report) -> str:
    known = report.dimensions
    said = (
        "How far single dimensions of the vectors are from the reference, by PSI; those that drifted most in "
        "this period stand above. "
    )
    if known.all_told:
        return said + f"The first {len(known.drifted)} of {known.told:,} dimensions are drawn."
    return said + (
        f"A window may name its most significant dimensions only, {known.told:,} different ones in this "
        "period: an empty field says that a dimension was not among them, not that it stood still."
    )


def _heat_legend() -> list[tuple[str, str]]:
    names = [f"PSI below {HEAT[0]:g}", *(f"from {limit:g}" for limit in HEAT)]
    return [(_swatch("rect", f"heat-{shade}"), name) for shade, name in enumerate(names)]


def _swatch(shape: str, class_: str) -> str:
    drawn = {
        "dot": tag("circle", class_=f"dot {class_}", cx=11, cy=6, r=4),
        "line": tag("line", class_=class_, x1=0, x2=22, y1=6, y2=6),
        "rect": tag("rect", class_=class_, x=2, y=0, width=18, height=12),
        "thick": tag("rect", class_=class_, x=0, y=0, width=22, height=12, rx=3),
        "thin": tag("rect", class_=class_, x=0, y=4, width=22, height=4, rx=1),
    }[shape]
    return tag("svg", drawn, viewBox="0 0 22 12", aria_hidden="true")


def _happenings(report: Report) -> str:
    numbers = {id(alarm): str(index) for index, alarm in enumerate(report.alarms, 1)}
    rows = [
        tag(
            "tr",
            tag("td", clock(happening.time_ms))
            + tag(
                "td", tag("span", numbers[id(happening)], class_="badge") if id(happening) in numbers else ""
            )
            + tag("td", text(happening.text)),
        )
        for happening in report.happenings
    ]
    if not rows:
        return tag("section", tag("h2", "What happened") + tag("p", "Nothing but windows.", class_="soft"))
    left_out, rows = rows[:-MOST_LISTED], rows[-MOST_LISTED:]
    earlier, newest = rows[:-LISTED], rows[-LISTED:]
    folded = ""
    if left_out:
        folded = tag("p", f"{len(left_out):,} that happened before are not listed.", class_="soft")
    if earlier:
        folded += tag("details", tag("summary", f"{len(earlier):,} earlier") + _table(earlier))
    return tag("section", tag("h2", "What happened") + folded + _table(newest))


def _table(rows: Sequence[str]) -> str:
    return tag("table", "".join(rows))


def _glossary() -> str:
    words = "".join(tag("dt", text(word)) + tag("dd", text(meaning)) for word, meaning in WORDS)
    return tag("section", tag("h2", "Words") + tag("dl", words))
