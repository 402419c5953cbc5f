"""`driftline drift watch`: what it shows, on a real terminal and elsewhere, and how it ends."""

import asyncio
import io
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from driftline.index.events import ReencodeProgress, ReencodeStarted
from driftline.stream.config import Settings
from driftline.stream.log import Draft, open_log
from driftline.stream.watch import Watched, view
from rich.console import Console

from .drift_history import COLLECTION, canary, story, told, window
from .running import DEADLINE_S, DRIFTLINE, environment

STATUS: dict[str, Any] = {
    "live": 41_000, "ready": True, "records": 5000,
    "frames": [{"frame": 1, "kind": "tile", "rows": 20_000}, {"frame": 2, "kind": "tile", "rows": 21_000}],
}  # fmt: skip


def shown(watched: Watched, height: int = 40, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(view(watched, height))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_shown() -> None:
    """Vectors, rate, fit loss, recall, frames, re-encoding, dimensions; what happened, the newest first."""
    watched = Watched(COLLECTION, 1.25)
    for event in story():
        watched.add(event)
    watched.add(told(ReencodeStarted("drift", 2, 10, 9000, 1.4), 2000))
    watched.add(told(ReencodeProgress(3, 10, 3000), 2001))
    watched.add(window(2002, 50_000, 4.0, differs="fit_loss", worst={17: 0.8}))
    watched.saw(STATUS, 10.0)
    watched.saw({**STATUS, "records": 5500}, 12.0)
    text = shown(watched)
    for words in (
        "41,000 vectors", "250 records/s", "4.000", "0.9800", "recall@10", "frame 2", "21,000 rows",
        "3 of 10 slabs", "dim 17", "PSI 0.800",
    ):  # fmt: skip
        assert words in text
    happened = text[text.index("dim 17") :]
    assert happened.index("10 slabs (9,000 rows) to move") < happened.index(
        "the data changed after row 20,000"
    )
    (curve,) = [line for line in text.splitlines() if line.startswith("fit loss")]
    assert curve.index("█") > curve.index("▁")


def test_with_nothing_to_show() -> None:
    """No service and no event: sentences, no curves."""
    text = shown(Watched(COLLECTION, 1.25))
    assert "no service answers" in text
    assert "no window was compared yet" in text
    assert "not measured" in text
    assert "nothing happened yet" in text


def test_a_restart_has_no_rate() -> None:
    """Counters that begin again, or a service that was away, give no rate."""
    watched = Watched(COLLECTION, 1.25)
    watched.saw(STATUS, 1.0)
    watched.saw({**STATUS, "records": 10}, 2.0)
    assert watched.records_per_second is None
    watched.saw(None, 3.0)
    watched.saw(STATUS, 4.0)
    assert watched.records_per_second is None


async def _append(data_dir: Path, events: list[dict[str, Any]]) -> None:
    settings = Settings(data_dir=data_dir)
    async with open_log(settings.log_url) as log:
        await log.create_topic(settings.topics.drift)
        await log.append([Draft(settings.topics.drift, None, json.dumps(event).encode()) for event in events])


def append(data_dir: Path, *events: dict[str, Any]) -> None:
    asyncio.run(_append(data_dir, list(events)))


@contextmanager
def watching(data_dir: Path, output: int) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [DRIFTLINE, "drift", "watch"], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE,
        env=environment(data_dir=data_dir) | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )  # fmt: skip
    with child:
        try:
            yield child
        finally:
            child.kill()


def reads(source: int) -> Callable[[str], str]:
    """Waits for words on a terminal or pipe; what was read since the last words."""
    held = ""

    def until(words: str) -> str:
        nonlocal held
        end = time.monotonic() + DEADLINE_S
        while words not in held:
            assert time.monotonic() < end, f"{words!r} did not come: {held[-2000:]}"
            if select.select([source], [], [], 0.2)[0]:
                held += os.read(source, 65536).decode(errors="replace")
        before, _, held = held.partition(words)
        return before

    return until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal(tmp_path: Path, number: signal.Signals) -> None:
    """Draws what there is, then what comes, and leaves the terminal as it was, with exit code 0."""
    append(tmp_path, *story())
    ours, theirs = pty.openpty()
    with watching(tmp_path, theirs) as child:
        os.close(theirs)
        until = reads(ours)
        until("\x1b[?1049h")  # the terminal's other screen
        until("0.9800")
        until("the data changed after row 20,000")
        append(tmp_path, canary(5000, 0.4321, 0.4, 0.5))
        until("0.4321")
        child.send_signal(number)
        until("\x1b[?1049l")
        assert child.wait(DEADLINE_S) == 0
    os.close(ours)


def test_elsewhere_it_is_a_line_for_each_event(tmp_path: Path) -> None:
    """Into a pipe: sentences in order of time, as they come, each once."""
    append(tmp_path, *reversed(story()), story()[5])
    ours, theirs = os.pipe()
    with watching(tmp_path, theirs) as child:
        os.close(theirs)
        until = reads(ours)
        assert "frame 1 from now on" in until("rows up to 2,000")
        printed = until("rows up to 41,000")
        assert printed.count("frame.opened") == 1
        assert printed.index("rows up to 19,000") < printed.index("rows up to 20,000")
        append(tmp_path, window(5000, 99_000))
        until("rows up to 99,000")
        child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr is not None
        assert child.stderr.read() == b""
    os.close(ours)
