"""Reading the drift topic: order, repeats, other people's records, points in time."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from driftline.errors import ConfigError
from driftline.stream.config import Settings
from driftline.stream.history import drift, history, start_of
from driftline.stream.log import Draft, open_log

from .drift_history import START_MS, alarm, canary, story, window


async def written(tmp_path: Path, events: Sequence[Any], partitions: int = 1) -> Settings:
    """A data directory whose drift topic holds these, spread over partitions in turn."""
    settings = Settings(data_dir=tmp_path)
    topic = settings.topics.drift
    async with open_log(settings.log_url) as log:
        await log.create_topic(topic, partitions=partitions)
        for index, event in enumerate(events):
            value = event if isinstance(event, bytes) else json.dumps(event).encode()
            await log.append([Draft(topic, None, value, partition=index % partitions)])
    return settings


async def test_events_come_by_time_whatever_the_partition(tmp_path: Path) -> None:
    """Covers a topic of three partitions: each is in order, together they are not; so is the newest few."""
    settings = await written(tmp_path, story(), partitions=3)
    times = [event["time_ms"] for event in await history(settings, 0)]
    assert times == sorted(event["time_ms"] for event in story())
    newest = (await drift(settings, 5))["events"]
    assert [event["time_ms"] for event in newest] == times[-5:]


async def test_what_is_told_twice_counts_once(tmp_path: Path) -> None:
    """Covers delivery at least once, and rows that are replayed after a crash: told of again, later."""
    first = [window(30, 1000), window(60, 2000), alarm(60, 2000, 1000, {}), canary(61, 1.0, 0.98, 1.0)]
    replayed = [window(90, 2000), alarm(90, 2000, 1000, {})]
    later = [canary(91, 1.0, 0.98, 1.0), window(120, 3000)]
    settings = await written(tmp_path, [*first, *first, *replayed, *later])
    assert await history(settings, 0) == [*first, *later]


async def test_other_records_are_passed_over(tmp_path: Path) -> None:
    """Covers a drift topic that another collection shares, and records that are no events."""
    other = {**window(10, 5000), "topic": "others"}
    lacking = {name: value for name, value in window(5, 500).items() if name != "fit_loss"}
    noise: list[Any] = [
        lacking,
        b"not json",
        [1],
        {"event": 3},
        {"event": "drift.window", "topic": "driftline.vectors"},
    ]
    settings = await written(tmp_path, [other, *noise, window(30, 1000)])
    assert await history(settings, 0) == [window(30, 1000)]
    assert (await drift(settings, 30))["events"] == [other, window(30, 1000)]


async def test_since_keeps_what_was_told_of_frames_before(tmp_path: Path) -> None:
    """Covers frames that were opened before the period and are alive in it."""
    settings = await written(tmp_path, story())
    since = START_MS + 1_000_000
    found = await history(settings, since)
    assert {event["event"] for event in found if event["time_ms"] < since} == {
        "frame.opened",
        "frame.retired",
    }
    assert [e for e in found if e["time_ms"] >= since] == [e for e in story() if e["time_ms"] >= since]


@pytest.mark.parametrize(
    ("text", "seconds_ago"),
    [("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), (" 1h ", 3600)],
)
def test_how_long_ago(text: str, seconds_ago: int) -> None:
    """Each unit, counted back from now."""
    assert start_of(text, 2e9) == round(1000 * (2e9 - seconds_ago))


def test_points_in_time() -> None:
    """Dates and times are local unless they name a zone; without any, all there is."""
    assert start_of("2026-11-21T18:30:00+01:00") == 1_795_282_200_000
    assert start_of("2026-11-21") == 1000 * datetime(2026, 11, 21).timestamp()
    assert start_of(None) == 0
    assert start_of("9999999999999d", 2e9) == 0


@pytest.mark.parametrize("text", ["yesterday", "", "12", "-3h", "1.5h", "2026-13-01", "h"])
def test_what_is_no_time(text: str) -> None:
    """One sentence that says what is."""
    with pytest.raises(ConfigError, match="7d"):
        start_of(text)
