"""What the plots of a drift report share: a time axis, scales with round ticks, and SVG text.

A plot is 960 units wide, whatever the window: the page scales it. Colours are classes; the page's style gives
them in light and dark.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

__all__ = [
    "LEFT",
    "RIGHT",
    "WIDTH",
    "Scale",
    "TimeAxis",
    "clock",
    "linear",
    "logarithmic",
    "number",
    "tag",
    "text",
]

WIDTH = 960
LEFT, RIGHT = 64, 944  # of the area that is plotted in
TOP = 22  # room for the numbers of alarms
BOTTOM = 26  # room for the labels of the time axis
TICKS = 8  # at most, on the time axis

MINUTE, HOUR, DAY = 60, 3_600, 86_400
STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(minutes * MINUTE for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * HOUR for hours in (1, 2, 3, 6, 12)),
    *(days * DAY for days in (1, 2, 7, 14, 30, 91, 182, 365, 1825)),
)  # seconds


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; `class_` is class, `text_anchor` is text-anchor, and numbers are rounded to a tenth."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(content: str) -> str:
    return html.escape(content, quote=True)


def _attribute(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else text(str(value))


def number(value: float) -> str:
    """A number for people: three significant digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """The time axis that a page's plots share; times in milliseconds since 1970, shown in local time."""

    from_ms: int
    to_ms: int

    @classmethod
    def over(cls, from_ms: int, to_ms: int) -> "TimeAxis":
        """With a little air at both ends."""
        air = max(500, (to_ms - from_ms) // 60)
        return cls(from_ms - air, to_ms + air)

    def x(self, time_ms: int) -> float:
        return LEFT + (RIGHT - LEFT) * (time_ms - self.from_ms) / (self.to_ms - self.from_ms)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels, at round local times."""
        seconds = (self.to_ms - self.from_ms) / 1000
        step = next((step for step in STEPS if seconds / step <= TICKS), 2 * STEPS[-1])
        offset = datetime.fromtimestamp(self.from_ms / 1000).astimezone().utcoffset()
        shift = 0 if offset is None else round(offset.total_seconds())
        form = "%H:%M:%S" if step < MINUTE else "%H:%M"
        if step >= 30 * DAY:
            form = "%b %Y"
        elif step >= DAY:
            form = "%d %b"
        elif seconds > DAY:
            form = "%d %b %H:%M"
        first = math.ceil((self.from_ms / 1000 + shift) / step) * step - shift
        times = [first + index * step for index in range(TICKS + 1)]
        return [
            (self.x(round(1000 * time)), datetime.fromtimestamp(time).strftime(form))
            for time in times
            if 1000 * time <= self.to_ms
        ]

    def plot(self, label: str, height: int, body: str, marks: str = "") -> str:
        """An SVG around what is drawn from TOP to `height`: time axis and grid beneath, marks above it."""
        grid: list[str] = []
        for x, name in self.ticks():
            grid.append(tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=height))
            grid.append(tag("text", name, class_="tick", x=x, y=height + 18, text_anchor="middle"))
        grid.append(tag("line", class_="axis", x1=LEFT, x2=RIGHT, y1=height, y2=height))
        return tag(
            "svg", "".join(grid) + body + marks,
            class_="plot", viewBox=f"0 0 {WIDTH} {height + BOTTOM}", role="img", aria_label=label,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to heights in a plot, with round values to label."""

    y: Callable[[float], float]
    ticks: Sequence[float]

    def drawn(self, form: Callable[[float], str] = number) -> str:
        lines = [
            tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=self.y(t), y2=self.y(t)) for t in self.ticks
        ]
        labels = [
            tag("text", text(form(t)), class_="tick", x=LEFT - 8, y=self.y(t) + 4, text_anchor="end")
            for t in self.ticks
        ]
        return "".join(lines + labels)


def linear(low: float, high: float, height: int) -> Scale:
    """Low and high themselves are the ends; ticks at multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    ticks = [
        index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]
    return Scale(lambda value: height - (height - TOP) * (value - low) / (high - low), ticks)


def logarithmic(low: float, high: float, height: int) -> Scale:
    """For ratios; ticks at 1, 1.5, 2, 3, 5 and 7 times powers of ten where there is room."""

    def y(value: float) -> float:
        return height - (height - TOP) * math.log(value / low) / math.log(high / low)

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = sorted(factor * 10.0**power for power in powers for factor in (1, 1.2, 1.5, 2, 3, 5, 7))
    ticks: list[float] = []
    for value in values:
        if low <= value <= high and (not ticks or y(ticks[-1]) - y(value) >= 24):
            ticks.append(value)
    return Scale(y, ticks)


def clock(time_ms: int, form: str = "%d %b %H:%M:%S") -> str:
    return datetime.fromtimestamp(time_ms / 1000).strftime(form)
