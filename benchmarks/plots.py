"""Plain SVG plots for docs/: panels side by side, dots, lines and areas, dark on a white ground.

A cloud of dots is one path and coordinates are rounded to tenths, so that a thousand dots take ten kilobytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from driftline.stream.report_plots import number, tag, text

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "Panel", "draw"]

BLUE, ORANGE, GREEN = "#0b62a4", "#c2410c", "#15803d"
GREY = "#d4d4d8"
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40  # around what is plotted
LEGEND = 22  # units high, a row
FONT = "font-family:system-ui,sans-serif;font-size:11px;fill:#18181b"

Points = Sequence[tuple[float, float]]


@dataclass
class Panel:
    """Axes from the least to the most of what is put in; `add` in the order of drawing."""

    title: str
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    width: int = 300
    height: int = 230
    marks: list[tuple[str, Points, str, bool]] = field(default_factory=list)

    def dots(self, points: Points, colour: str) -> None:
        self.marks.append(("dots", points, colour, False))

    def line(self, points: Points, colour: str, *, dashed: bool = False) -> None:
        self.marks.append(("line", points, colour, dashed))

    def area(self, points: Points) -> None:
        """Down to the foot of the panel, in grey."""
        self.marks.append(("area", points, GREY, False))

    def _reach(self, axis: int, given: tuple[float, float] | None) -> tuple[float, float]:
        if given is not None:
            return given
        values = [point[axis] for _, points, _, _ in self.marks for point in points]
        low, high = min(values), max(values)
        if axis == 0 and self.log_x:
            return low / 1.15, high * 1.15
        air = 0.04 * (high - low)
        return low - air, high + air

    def drawn(self, left: int, top: int) -> str:
        """SVG of the panel, its corner moved there."""
        (x0, x1), (y0, y1) = self._reach(0, self.x_range), self._reach(1, self.y_range)
        foot, wide, high = self.height - BOTTOM, self.width - LEFT - RIGHT, self.height - BOTTOM - TOP

        def x(value: float) -> float:
            share = math.log(value / x0) / math.log(x1 / x0) if self.log_x else (value - x0) / (x1 - x0)
            return LEFT + wide * share

        def y(value: float) -> float:
            return foot - high * (value - y0) / (y1 - y0)

        parts = [tag("text", text(self.title), x=LEFT, y=TOP - 9, style="font-weight:600")]
        for value in ticks(x0, x1, self.log_x):
            parts.append(tag("line", x1=x(value), x2=x(value), y1=TOP, y2=foot, stroke="#e4e4e7"))
            label = text(number(value))
            parts.append(tag("text", label, x=x(value), y=foot + 14, text_anchor="middle"))
        for value in ticks(y0, y1, False):
            parts.append(tag("line", x1=LEFT, x2=LEFT + wide, y1=y(value), y2=y(value), stroke="#e4e4e7"))
            parts.append(tag("text", text(number(value)), x=LEFT - 5, y=y(value) + 4, text_anchor="end"))
        for kind, points, colour, dashed in self.marks:
            inside = [(x(a), y(b)) for a, b in points if x0 <= a <= x1 and y0 <= b <= y1]
            parts.append(mark(kind, inside, colour, dashed, foot))
        frame = tag("path", d=f"M{LEFT} {TOP}V{foot}H{LEFT + wide}", fill="none", stroke="#3f3f46")
        x_label = tag("text", text(self.x_label), x=LEFT + wide / 2, y=foot + 32, text_anchor="middle")
        turned = f"rotate(-90) translate({-(TOP + high / 2)} 11)"
        y_label = tag("text", text(self.y_label), transform=turned, text_anchor="middle")
        return tag("g", "".join([*parts, frame, x_label, y_label]), transform=f"translate({left} {top})")


def mark(kind: str, points: Points, colour: str, dashed: bool, foot: float) -> str:
    """SVG of points in units of the drawing."""
    places = [f"{round(a, 1):g} {round(b, 1):g}" for a, b in points]
    if kind == "dots":  # lines of no length with round ends
        path = "".join(f"M{place}h0" for place in places)
        return tag("path", d=path, stroke=colour, stroke_width="2.2", stroke_linecap="round", fill="none")
    path = "M" + "L".join(places)
    if kind == "area":
        return tag("path", d=f"{path}V{foot}H{round(points[0][0], 1):g}Z", fill=colour)
    dashes = {"stroke_dasharray": "4 3"} if dashed else {}
    return tag("path", d=path, stroke=colour, stroke_width="1.6", fill="none", **dashes)


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round values, about five."""
    if logarithmic and high / low > 3:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if high / low < 300 else (1,)
        values = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in values if low <= value <= high]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def draw(
    rows: Sequence[Sequence[Panel]], legend: Sequence[tuple[str, str, bool]], title: str, path: Path
) -> None:
    """Rows of panels, and under them what the colours stand for: name, colour, dashed."""
    parts: list[str] = []
    top, wide = 0, 0
    for row in rows:
        left = 0
        for panel in row:
            parts.append(panel.drawn(left, top))
            left += panel.width
        wide = max(wide, left)
        top += max(panel.height for panel in row)
    left = LEFT
    for name, colour, dashed in legend:
        line = mark("line", [(left, top + 7), (left + 22, top + 7)], colour, dashed, top)
        parts += [line, tag("text", text(name), x=left + 28, y=top + 11)]
        left += 50 + 6 * len(name)
        wide = max(wide, left)
    high = top + LEGEND if legend else top
    ground = tag("rect", width="100%", height="100%", fill="#ffffff")
    svg = tag("svg", tag("title", text(title)) + ground + tag("g", "".join(parts), style=FONT),
              xmlns="http://www.w3.org/2000/svg", role="img",
              viewBox=f"0 0 {wide} {high}", width=wide, height=high)  # fmt: skip
    path.write_text(svg + "\n")
