"""The drift report as a reader sees it: a real browser draws the page, and the tests look at what it drew."""

import re
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.stream.report import make_report
from driftline.stream.report_charts import POINTS
from driftline.stream.report_page import page
from numpy.typing import NDArray

from .browser import Look, look
from .drift_history import COLLECTION, START_MS, canary, story, told, window

LOSS, RECALL, FRAMES, DIMENSIONS, INGEST = PLOTS = (
    "Fit loss over time",
    "Recall over time",
    "Frames over time",
    "Drifted dimensions over time",
    "Ingest rate over time",
)
NOW = {
    "live": 41_000, "fit_loss": 1.0, "ready": True,
    "frames": [{"frame": 1, "kind": "tile", "rows": 20_000}, {"frame": 2, "kind": "tile", "rows": 21_000}],
}  # fmt: skip
Events = list[dict[str, Any]]


def drawn(
    tmp_path: Path, events: Events, *, now: Any = NOW, scheme: str = "light", width: int = 1100
) -> Look:
    report = make_report(COLLECTION, events, now, 1.25, 0, START_MS + 2_000_000)
    file = tmp_path / f"report-{scheme}-{width}.html"
    file.write_text(page(report), "utf-8")
    return look(file, scheme, width, height=4000 if width > 500 else 6000)


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Look:
    return drawn(tmp_path_factory.mktemp("report"), story(), scheme=request.param)


@pytest.fixture
def scheme(request: pytest.FixtureRequest) -> str:
    return request.node.callspec.params["seen"]


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in re.findall(r"\d+", colour)[:3])
    return red, green, blue


def lightness(colour: tuple[int, int, int]) -> float:
    """Relative luminance as WCAG 2.1 defines it, 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """WCAG 2.1's contrast ratio, 1 to 21."""
    low, high = sorted((lightness(one), lightness(other)))
    return (high + 0.05) / (low + 0.05)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def at(seen: Look, seconds: float) -> float:
    """Where a time lies, by the two moments that are known: the first and the last window."""
    dots = seen.all(LOSS, "dot")
    first, last = dots[0].centre[0], dots[-1].centre[0]
    return first + (last - first) * (seconds - 30) / (1050 - 30)


def test_the_page_stands_alone(seen: Look) -> None:
    """Nothing is fetched, nothing could run, all five plots are there, in an order that tells a story."""
    assert seen.plots == PLOTS
    assert seen.fetched == 0
    assert seen.scripts == 0
    assert seen.width <= 1100


def test_it_opens_with_what_is_the_case(seen: Look) -> None:
    """A sentence for people: how the codes fit, what changed, what searches find."""
    (verdict,) = [each["text"] for each in seen.texts if "verdict" in each["classes"]]
    assert (
        "fit the newest data well: fit loss 1.00, and 1 is the best there is. The data changed once"
        in verdict
    )
    assert "Searches find 98.0% of the true neighbours (96.5% to 99.0%)." in verdict
    tiles = [each["text"] for each in seen.texts if each["text"] in ("1.00", "0.9800", "41,000", "33.3")]
    assert len(tiles) == 4


def test_both_schemes_can_be_read(seen: Look, scheme: str) -> None:
    """The paper is light or dark as the reader's system wants; all words stand out from it (WCAG AA)."""
    paper = lightness(seen.pixel(3, 3))
    assert paper > 0.85 if scheme == "light" else paper < 0.02
    assert len(seen.texts) > 80
    for text in seen.texts:
        if "flag-number" in text["classes"]:
            flag = next(each for each in seen.all(text["plot"], "flag") if overlap(each.box, text["box"]))
            assert contrast(rgb(text["ink"]), rgb(flag.fill)) >= 3
        else:
            assert contrast(rgb(text["ink"]), rgb(text["paper"])) >= 4.5, text


def test_labels_do_not_run_into_each_other(seen: Look) -> None:
    """No two texts of a plot overlap, none leaves the page, and the axes say numbers and times."""
    for plot in PLOTS:
        labels = [each for each in seen.all(plot) if each.tag == "text"]
        assert sum(bool(re.fullmatch(r"\d\d:\d\d", label.text)) for label in labels) >= 3, plot
        for index, label in enumerate(labels):
            assert label.box[0] >= 0
            assert label.box[2] <= seen.width
            for other in labels[index + 1 :]:
                assert not overlap(label.box, other.box), (plot, label.text, other.text)


def test_fit_loss(seen: Look) -> None:
    """One dot a window, higher for a larger loss, on a scale of ratios; differing ones in another colour."""
    dots = seen.all(LOSS, "dot")
    losses = [float(re.search(r"fit loss ([\d.]+)", dot.title)[1]) for dot in dots]  # type: ignore[index]
    assert losses == [event["fit_loss"] for event in story() if event["event"] == "drift.window"]
    assert all(dot.seen for dot in dots)
    heights = {loss: dot.centre[1] for loss, dot in zip(losses, dots, strict=True)}
    assert heights[4.0] - heights[8.0] == pytest.approx((heights[1.0] - heights[4.0]) / 2, abs=1)
    differing = [dot for dot in dots if "differs" in dot.classes]
    assert [dot.title.split("fit loss ")[1][:5] for dot in differing] == ["4.000", "8.000"]
    (limit,) = seen.all(LOSS, "limit")
    assert heights[4.0] < limit.centre[1] < heights[1.04]
    for dot in dots:
        assert seen.pixel(*dot.centre) == rgb(dot.fill)
    assert contrast(rgb(differing[0].fill), rgb(dots[0].fill)) > 1.01
    assert rgb(differing[0].fill) != rgb(dots[0].fill)
    # The curve joins them: half way between two dots there is its colour.
    before, after = dots[17].centre, dots[18].centre
    assert seen.pixel((before[0] + after[0]) / 2, (before[1] + after[1]) / 2) == rgb(dots[0].fill)


def test_recall_with_its_interval(seen: Look) -> None:
    """Dots at the recalls; the interval's colour lies around them and not beyond its ends."""
    dots = seen.all(RECALL, "dot")
    assert len(dots) == 10
    lowest = max(dots, key=lambda dot: dot.centre[1])
    assert "recall@10 0.9300, between 0.9150 and 0.9400" in lowest.title
    usual = dots[0]
    per_unit = (lowest.centre[1] - usual.centre[1]) / 0.05
    x, y = usual.centre
    inside = seen.pixel(x + 2, y + per_unit * 0.012)
    assert inside == seen.pixel(x + 2, y - per_unit * 0.008)
    assert inside != seen.pixel(x + 2, y + per_unit * 0.018)
    assert inside != seen.pixel(x + 2, y - per_unit * 0.013)


def test_frames_are_bands(seen: Look) -> None:
    """Frame 1 is thick until frame 2 opens, thin from then on; frame 2 lies on another row; rows are told."""
    writing = {each.title.split(":")[0]: each for each in seen.all(FRAMES, "writing")}
    lives = {each.title.split(":")[0]: each for each in seen.all(FRAMES, "life")}
    assert set(writing) == {"frame 1", "frame 2"}
    assert set(lives) == {"frame 0", "frame 1", "frame 2"}
    first, second = writing["frame 1"], writing["frame 2"]
    assert first.box[0] == pytest.approx(at(seen, 0), abs=1)
    assert first.box[2] == pytest.approx(at(seen, 630.2), abs=1)
    assert second.box[0] == pytest.approx(first.box[2], abs=1)
    assert lives["frame 1"].box[2] == pytest.approx(second.box[2], abs=1)
    assert not overlap(first.box, second.box)
    thin = lives["frame 1"].centre
    assert seen.pixel(at(seen, 800), thin[1]) == rgb(first.fill)
    assert seen.pixel(at(seen, 800), thin[1] - 7) != rgb(first.fill)
    assert seen.pixel(at(seen, 300), thin[1] - 7) == rgb(first.fill)
    assert rgb(first.fill) != rgb(second.fill)
    assert any("frame 2: 21,000 rows now" in each.text for each in seen.all(FRAMES, "label"))
    moving = seen.all(FRAMES, "reencode")[-1]
    assert moving.box[0] == pytest.approx(at(seen, 630.3), abs=1)
    assert moving.box[2] == pytest.approx(at(seen, 690.3), abs=1)


def test_dimensions_are_sorted_by_drift(seen: Look) -> None:
    """Those that drifted more stand above; a field lies in its dimension's row and its window's time."""
    names = [each for each in seen.all(DIMENSIONS, "tick") if each.text.startswith("dim ")]
    assert [name.text for name in sorted(names, key=lambda name: name.box[1])[:3]] == [
        "dim 7",
        "dim 12",
        "dim 300",
    ]
    strong = [each for each in seen.all(DIMENSIONS, "heat") if each.title.startswith("dimension 7,")]
    assert len(strong) == 2
    assert all(each.seen for each in strong)
    assert strong[0].box[1] < names[0].centre[1] < strong[0].box[3]
    assert strong[0].box[0] == pytest.approx(at(seen, 570), abs=1.5)
    assert strong[-1].box[2] == pytest.approx(at(seen, 630), abs=1.5)
    weak = next(each for each in seen.all(DIMENSIONS, "heat") if each.title.startswith("dimension 12,"))
    ground = seen.pixel(weak.centre[0], strong[0].centre[1])
    shades = {seen.pixel(*strong[0].centre), seen.pixel(*weak.centre), ground}
    assert len(shades) == 3
    assert seen.pixel(at(seen, 90), strong[0].centre[1]) not in shades  # a reference is being learned
    assert contrast(seen.pixel(*strong[0].centre), ground) > 2.5


def test_every_dimension_is_told(tmp_path: Path) -> None:
    """Windows that carry all dimensions fill the map; what drifted little over the period is not drawn."""
    rng = np.random.default_rng(3)
    events: Events = []
    for index in range(1, 200):
        psis = rng.uniform(0.01, 0.03, 300)
        psis[[205, 7]] = 2.0 if index > 150 else 0.02, 0.3
        arrays = {"psis": packed(psis), "shifts": packed(-psis)} if index > 4 else {"psis": "", "shifts": ""}
        events.append(window(30 * index, 1000 * index, compared=index > 4, worst={}, **arrays))
    seen = drawn(tmp_path, events)
    names = [each.text for each in seen.all(DIMENSIONS, "tick") if each.text.startswith("dim ")]
    assert names[:2] == ["dim 205", "dim 7"]
    assert len(names) == 24
    assert "The first 24 of 300 dimensions are drawn." in words(seen)
    assert "not among the named" not in words(seen)
    strong = [each for each in seen.all(DIMENSIONS, "heat") if each.title.startswith("dimension 205,")]
    columns = len(strong)
    assert len(seen.all(DIMENSIONS, "heat")) == 24 * columns
    assert 50 < columns < 120
    assert "PSI 2.000, mean -2.00 sigma" in strong[-1].title
    assert seen.pixel(*strong[-1].centre) == rgb(strong[-1].fill) != seen.pixel(*strong[0].centre)
    assert (tmp_path / "report-light-1100.html").stat().st_size < 1_000_000


def packed(values: NDArray[np.float64]) -> str:
    return b64encode(values.astype("<f2").tobytes()).decode()


@pytest.mark.parametrize("psis", ["%", "AAAA", "AAAAAA==", 3, None])
def test_arrays_that_are_none(psis: Any) -> None:
    """What cannot be read as an array of all dimensions counts as not told; the named ones are."""
    told_of = window(30, 1000, worst={5: 0.5}, psis=psis, shifts="AAA=")
    report = make_report(COLLECTION, [told_of], None, 1.25, 0, START_MS)
    assert report.dimensions.drifted == (5,)
    assert report.dimensions.all_told is False


def test_ingest_rate(seen: Look) -> None:
    """Bars whose height is the rate; it doubles in the end."""
    bars = seen.all(INGEST, "ingest")
    first, last = bars[0], bars[-1]
    assert "33.3 a second" in first.title
    assert "66.7 a second" in last.title
    tall, low = last.box[3] - last.box[1], first.box[3] - first.box[1]
    assert tall == pytest.approx(2 * low, rel=0.02)
    assert seen.pixel(*last.centre) == rgb(last.fill)
    assert seen.pixel(last.centre[0], last.box[1] - 4) != rgb(last.fill)
    assert seen.pixel(first.centre[0], first.box[1] - 4) != rgb(first.fill)


def test_an_alarm_is_marked_in_every_plot(seen: Look) -> None:
    """A line at its time, the number by which the list names it, and the words when pointed at."""
    for plot in PLOTS:
        (line,) = seen.all(plot, "alarm")
        assert line.centre[0] == pytest.approx(at(seen, 630.1), abs=1)
        (flag,) = seen.all(plot, "flag")
        assert "the data changed after row 20,000" in flag.title
        assert seen.pixel(flag.box[0] + 3, flag.centre[1]) == rgb(flag.fill)
    assert [each["text"] for each in seen.texts if "badge" in each["classes"]] == ["1"]


def test_a_narrow_window(tmp_path: Path) -> None:
    """On a telephone nothing is wider than the screen."""
    seen = drawn(tmp_path, story(), width=390)
    assert seen.width <= 390
    assert seen.plots == PLOTS


def words(seen: Look) -> str:
    return " ".join(each["text"] for each in seen.texts)


def test_nothing_happened_yet(tmp_path: Path) -> None:
    """No event: no plot, and for each a sentence that says why."""
    seen = drawn(tmp_path, [], now=None)
    assert not seen.plots
    assert sum("empty" in each["classes"] for each in seen.texts) == 5
    assert "No window of vectors was compared" in words(seen)
    assert all(each["box"][3] > each["box"][1] for each in seen.texts)


def test_without_a_canary(tmp_path: Path) -> None:
    """Recall is not measured: the page says so, and draws the rest."""
    seen = drawn(tmp_path, [event for event in story() if event["event"] != "canary.window"])
    assert seen.plots == tuple(plot for plot in PLOTS if plot != RECALL)
    assert "Recall was not measured" in words(seen)


def test_a_single_window(tmp_path: Path) -> None:
    """One moment is a period, too: a dot within the plot, and times beneath it."""
    seen = drawn(tmp_path, [window(0, 2000), canary(0, 1.0, 0.99, 1.0)])
    (dot,) = seen.all(LOSS, "dot")
    assert dot.seen
    assert 100 < dot.centre[0] < 1000
    (dot,) = seen.all(RECALL, "dot")
    assert dot.seen


def test_what_is_told_is_text(tmp_path: Path) -> None:
    """Markup in an event is drawn as letters: a topic is written by others."""
    evil = '<img src="x" onerror="alert(1)"></title></svg><script>alert(2)</script>'
    opened = {**told_opened(), "reason": evil}
    seen = drawn(tmp_path, [*story(), opened])
    assert seen.scripts == 0
    assert seen.plots == PLOTS
    assert evil in words(seen)


def told_opened() -> dict[str, Any]:
    return {
        **next(event for event in story() if event["event"] == "frame.opened"),
        "time_ms": START_MS + 1_060_000,
    }


def test_a_long_history_is_thinned(tmp_path: Path) -> None:
    """Thousands of windows become a page that a browser likes; the worst window is still drawn."""
    events = [
        window(30 * index, 1000 * index, 9.0 if index == 4321 else 1.01, worst={index % 50: 0.2, 99: 0.3})
        for index in range(1, 8001)
    ]
    seen = drawn(tmp_path, events)
    dots = seen.all(LOSS, "dot")
    assert POINTS * 0.9 <= len(dots) <= POINTS + 1
    assert sum("fit loss 9.000" in dot.title for dot in dots) == 1
    assert (tmp_path / "report-light-1100.html").stat().st_size < 1_000_000
    heat = seen.all(DIMENSIONS, "heat")
    assert all(each.box[2] - each.box[0] >= 5 for each in heat[:50])
    bars = seen.all(INGEST, "ingest")
    assert len(bars) <= POINTS + 1
    assert "33.3 a second" in bars[5].title


def test_a_new_index_ends_the_curves(tmp_path: Path) -> None:
    """Where rows are counted anew there is a line, no rate, and no curve from one index to the other."""
    events = [
        *(window(30 * i, 1000 * i) for i in range(1, 6)),
        *(window(300 + 30 * i, 1000 * i) for i in range(1, 6)),
    ]
    report = make_report(COLLECTION, events, None, 1.25, 0, START_MS)
    assert len(report.restarts_ms) == 1
    assert len(report.ingest) == 8
    seen = drawn(tmp_path, events)
    assert len(seen.all(LOSS, "line")) == 2
    (restart,) = seen.all(LOSS, "restart")
    assert "started again" in restart.title
    left, right = seen.all(LOSS, "line")
    assert left.box[2] < right.box[0]


def test_windows_of_one_batch_share_a_rate() -> None:
    """Windows that a fast stream fills in one batch are told of at once; their rows still count."""
    events = [window(0, 1000), window(1, 2000), window(1, 3000), window(1, 4000), window(3, 5000)]
    spans = make_report(COLLECTION, events, None, 1.25, 0, START_MS).ingest
    assert [(span.to_ms - span.from_ms, span.rows) for span in spans] == [(1000, 3000), (2000, 1000)]


def test_frames_before_the_period() -> None:
    """A frame that was opened before `since` is alive in the period; one that retired before it is not."""
    events = story()
    since = START_MS + 700_000
    report = make_report(COLLECTION, events, NOW, 1.25, since, START_MS + 2_000_000)
    assert [(band.frame, band.start_ms, band.retired) for band in report.bands] == [
        (1, since, False),
        (2, since, False),
    ]
    assert [band.writing for band in report.bands] == [(), ((since, report.to_ms),)]
    assert all(window.time_ms >= since for window in report.windows)
    assert [band.rows for band in report.bands] == [20_000, 21_000]


def test_a_frame_older_than_the_topics_records() -> None:
    """What opened it is gone from the topic; the service knows that it is alive."""
    report = make_report(COLLECTION, [window(0, 1000), window(30, 2000)], NOW, 1.25, 0, START_MS)
    bands = [(band.frame, band.start_ms, band.end_ms, band.rows) for band in report.bands]
    assert bands == [(1, START_MS, START_MS + 30_000, 20_000), (2, START_MS, START_MS + 30_000, 21_000)]
    assert make_report(COLLECTION, [], NOW, 1.25, 0, START_MS).bands == ()


def test_a_frame_that_is_used_again_keeps_its_band() -> None:
    """When the old data return, so does their frame: one band, written in twice."""
    from driftline.index.events import FrameOpened

    events = [
        *story(),
        told(FrameOpened(1, "an earlier frame fits again", 1000, 2.0), 1100),
        window(1200, 42_000),
    ]
    report = make_report(COLLECTION, events, None, 1.25, 0, START_MS)
    first = next(band for band in report.bands if band.frame == 1)
    assert [(a - START_MS, b - START_MS) for a, b in first.writing] == [(0, 630_200), (1_100_000, 1_200_000)]
    assert asdict(first)["retired"] is False
