"""`driftline drift watch`: drift, frames and re-encoding as they are now, in the terminal."""

import asyncio
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .config import Settings
from .drift_words import sentence, time_of_day
from .history import MEASUREMENTS, DriftEvent, follow, status_of

__all__ = ["Watched", "view", "watch"]

HISTORY = 300  # events that are read at the start
EVERY_S = 1.0  # between two looks at the service
CURVE = 48  # windows in a curve, one character each
BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 24  # characters
LEAST_RANGE = 0.02  # of recall, from the bottom of its curve to 1


class Watched:
    """What is known so far, from the drift topic and from the service."""

    def __init__(self, collection: str, loss_limit: float) -> None:
        self.collection = collection
        self.loss_limit = loss_limit
        self.windows: deque[DriftEvent] = deque(maxlen=CURVE)
        self.recalls: deque[DriftEvent] = deque(maxlen=CURVE)
        self.happenings: deque[DriftEvent] = deque(maxlen=HISTORY)
        self.moving: tuple[int, int] | None = None  # slabs done, of how many; None while nothing moves
        self.status: Mapping[str, Any] | None = None  # None while no service answers
        self.records_per_second: float | None = None
        self._asked_s = 0.0

    def add(self, event: DriftEvent) -> None:
        """One more event of the drift topic."""
        match event["event"]:
            case "drift.window":
                self.windows.append(event)
            case "canary.window":
                self.recalls.append(event)
            case "reencode.started":
                self.moving = (0, event["slabs"])
            case "reencode.progress":
                self.moving = (event["slabs_done"], event["slabs"])
            case "reencode.finished" | "reencode.cancelled":
                self.moving = None
            case _:
                pass
        if event["event"] not in MEASUREMENTS:
            self.happenings.append(event)

    def saw(self, status: Mapping[str, Any] | None, at_s: float) -> None:
        """What the service said of itself at a time, in seconds of any clock."""
        before, self.status = self.status, status
        self.records_per_second = None
        if before is not None and status is not None and at_s > self._asked_s:
            records = status["records"] - before["records"]
            if records >= 0:  # else it was started again
                self.records_per_second = records / (at_s - self._asked_s)
        self._asked_s = at_s


async def watch(settings: Settings) -> None:
    """Show it until SIGINT or SIGTERM: live on a terminal, elsewhere a line for each event.

    Raises DriftlineError where the log or the topic cannot be read.
    """
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):  # that is how it is ended
        await (_watch_live(settings) if sys.stdout.isatty() else _print_events(settings))


async def _watch_live(settings: Settings) -> None:
    watched = Watched(settings.topics.vectors, settings.drift.loss_limit)
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        async for events in follow(settings, HISTORY, EVERY_S):
            for event in events:
                watched.add(event)
            watched.saw(await asyncio.to_thread(status_of, settings), time.monotonic())
            live.update(view(watched, console.size.height), refresh=True)


async def _print_events(settings: Settings) -> None:
    async for events in follow(settings, HISTORY, EVERY_S):
        for event in events:
            print(f"{time_of_day(event)} {event['event']:<18} {sentence(event)}", flush=True)


def view(watched: Watched, height: int) -> RenderableType:
    """All of it, and of what happened as much as may fit into `height` lines, the newest first."""
    parts: list[RenderableType] = [_head(watched), Text(), _curves(watched)]
    if watched.status is not None:
        parts += [Text(), _frames(watched.status)]
    if watched.moving is not None:
        done, slabs = watched.moving
        row = Table.grid(padding=(0, 2))
        bar = _bar(done, max(slabs, 1))
        row.add_row(Text("re-encoding", style="cyan"), bar, Text(f"{done} of {slabs} slabs moved"))
        parts += [Text(), row]
    if watched.windows and watched.windows[-1]["worst"]:
        parts += [Text(), _dimensions(watched.windows[-1]["worst"])]
    parts += [Text(), _happenings(list(watched.happenings)[: -height - 1 : -1])]
    return Group(*parts)


def _head(watched: Watched) -> Text:
    head = Text(watched.collection, style="bold")
    status = watched.status
    if status is None:
        return head.append(
            "  no service answers here; this is what the drift topic holds", style="not bold yellow"
        )
    head.append(f"  {status['live']:,} vectors", style="not bold")
    if watched.records_per_second is not None:
        head.append(f"  {watched.records_per_second:,.0f} records/s", style="not bold")
    if not status["ready"]:
        head.append("  catching up", style="not bold yellow")
    return head.append("    Ctrl-C ends this", style="not bold dim")


def _curves(watched: Watched) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    losses = [window["fit_loss"] for window in watched.windows if window["fit_loss"] is not None]
    if losses:
        style = "red" if losses[-1] >= watched.loss_limit else "green"
        top = math.log(max(1.5, *losses))
        curve = _curve([math.log(max(1.0, loss)) / top for loss in losses])
        note = f"1 is best; limit {watched.loss_limit:g}"
        table.add_row("fit loss", Text(f"{losses[-1]:.3f}", style=style), Text(curve, style=style), note)
        drifted = [window["drifted_share"] for window in watched.windows]
        table.add_row(
            "drifted", f"{drifted[-1]:.0%}", Text(_curve(drifted), style="blue"), "share of dimensions"
        )
    else:
        table.add_row("fit loss", "", "no window was compared yet")
    if watched.recalls:
        newest = watched.recalls[-1]
        recalls = [each["recall"] for each in watched.recalls]
        bottom = min(1 - LEAST_RANGE, *recalls)
        curve = _curve([(recall - bottom) / (1 - bottom) for recall in recalls])
        note = f"between {newest['low']:.4f} and {newest['high']:.4f}, {newest['queries']} queries"
        name = f"recall@{newest['k']}"
        table.add_row(name, f"{newest['recall']:.4f}", Text(curve, style="green"), note)
    else:
        table.add_row("recall", "", "not measured")
    return table


def _curve(shares: Sequence[float]) -> str:
    """A character for each number from 0 to 1."""
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))] for share in shares)


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total, done, width=BAR, complete_style="blue", finished_style="blue")


def _frames(status: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = max(1, sum(frame["rows"] for frame in status["frames"]))
    for frame in status["frames"]:
        table.add_row(
            Text(f"frame {frame['frame']}", style="cyan"),
            _bar(frame["rows"], rows),
            Text(f"{frame['rows']:,} rows", justify="right"),
            Text(frame["kind"], style="dim"),
        )
    return table


def _dimensions(worst: Sequence[Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for each in worst:
        table.add_row(
            Text(f"dim {each['dimension']}", style="cyan"),
            _bar(min(1.0, each["psi"]), 1.0),
            Text(f"PSI {each['psi']:.3f}"),
            Text(f"mean {each['shift_sigmas']:+.2f} sigma", style="dim"),
        )
    return table


def _happenings(events: Sequence[DriftEvent]) -> RenderableType:
    if not events:
        return Text("nothing happened yet", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for event in events:
        style = "bold red" if event["event"] == "drift.detected" else ""
        table.add_row(time_of_day(event), Text(sentence(event), style=style))
    return table
