"""What the drift topic holds, and how the running service stands now."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, cast

from ..errors import ConfigError
from .config import Settings
from .control import ServiceUnreachable, ask
from .log import Log, Record
from .opening import open_configured

__all__ = ["MEASUREMENTS", "DriftEvent", "drift", "follow", "history", "now_of", "start_of", "status_of"]

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

# What is drawn of an event; one that lacks it is of another version, or of somebody else.
NEEDED: Mapping[str, frozenset[str]] = {
    "drift.window": frozenset(
        {"rows_seen", "fit_loss", "drifted_share", "reference_rows", "differs", "worst"}
    ),
    "canary.window": frozenset({"queries", "k", "ef", "recall", "low", "high"}),
    "frame.opened": frozenset({"frame", "fitted_rows", "expected_gain"}),
    "frame.retired": frozenset({"frame"}),
    "reencode.started": frozenset({"slabs"}),
    "reencode.progress": frozenset({"slabs", "slabs_done"}),
}

MEASUREMENTS = frozenset({"drift.window", "canary.window", "reencode.progress"})  # drawn, not listed

DriftEvent = Mapping[str, Any]


async def drift(settings: Settings, limit: int) -> dict[str, Any]:
    """The newest `limit` drift events, oldest first, and frames and fit loss of the service if one
    answers."""
    async with open_configured(settings) as log:
        # At most `limit` of them are shown, so that no more than so many of each partition need be read.
        events = [event async for event in _events(log, settings.topics.drift, limit)]
    events.sort(key=lambda event: event["time_ms"])
    return {"events": events[-limit:], "now": await asyncio.to_thread(now_of, settings)}


async def history(settings: Settings, since_ms: int) -> list[DriftEvent]:
    """Drift events of the collection since then, by time, each once; and what was told of frames before.

    Reads the topic from its beginning: a frame that was opened long ago may code vectors today.
    """
    kept: dict[bytes, DriftEvent] = {}
    async with open_configured(settings) as log:
        async for event in _events(log, settings.topics.drift, None):
            of_frames = event["event"].startswith("frame.")
            if event["topic"] == settings.topics.vectors and (event["time_ms"] >= since_ms or of_frames):
                kept.setdefault(_identity(event), event)
    return sorted(kept.values(), key=lambda event: event["time_ms"])


async def follow(settings: Settings, limit: int, every_s: float) -> AsyncIterator[list[DriftEvent]]:
    """The newest `limit` drift events of the collection, oldest first; then what comes, and [] after every
    `every_s` in which nothing came. Never ends."""
    topic, collection = settings.topics.drift, settings.topics.vectors
    known: dict[bytes, None] = {}
    async with open_configured(settings) as log:
        begins, ends = await log.begin_offsets(topic), await log.end_offsets(topic)
        starts = {(topic, partition): max(begins[partition], end - limit) for partition, end in ends.items()}
        reader = await log.reader(starts)
        first: list[DriftEvent] | None = []
        while True:
            events: list[DriftEvent] = []
            for record in await reader.fetch(timeout_s=every_s):
                event = _as_event(record)
                if event is None or event["topic"] != collection or _identity(event) in known:
                    continue
                known[_identity(event)] = None
                events.append(event)
            if first is not None:
                first += events
                if any(reader.position(topic, partition) < end for partition, end in ends.items()):
                    continue
                events, first = sorted(first, key=lambda event: event["time_ms"])[-limit:], None
            yield events
            for old in list(known)[: -2 * limit]:
                del known[old]


def _identity(event: DriftEvent) -> bytes:
    """What two deliveries of one event have in common.

    Delivery is at least once, and rows replayed after a crash are told of again, at another time and pace.
    Only events that say which row they were at are known again then: two canary windows may well be equal.
    """
    when = ("time_ms", "seconds", "offsets") if "rows_seen" in event else ()
    known = {name: value for name, value in event.items() if name not in when}
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).digest()


def now_of(settings: Settings) -> dict[str, Any] | None:
    """How the service stands, in short; None where none answers."""
    status = status_of(settings)
    return status and {name: status[name] for name in ("live", "fit_loss", "frames", "ready")}


def status_of(settings: Settings) -> dict[str, Any] | None:
    """All that the service says of itself; None where none answers."""
    try:
        return ask(settings.data_dir, "status")
    except ServiceUnreachable:
        return None


def _as_event(record: Record) -> DriftEvent | None:
    """The drift event in a record; None for what is none, since anybody may write to a topic."""
    try:
        found: Any = json.loads(record.value or b"")
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    event = cast("dict[str, Any]", found)
    kinds = (("event", str), ("topic", str), ("time_ms", int))
    if not all(isinstance(event.get(name), kind) for name, kind in kinds):
        return None
    return event if NEEDED.get(event["event"], frozenset()) <= event.keys() else None


async def _events(log: Log, topic: str, limit: int | None) -> AsyncIterator[DriftEvent]:
    """Events from the topic's beginning, or the newest `limit` records of each partition, up to its end."""
    begins, ends = await log.begin_offsets(topic), await log.end_offsets(topic)
    starts = {
        (topic, partition): begin if limit is None else max(begin, ends[partition] - limit)
        for partition, begin in begins.items()
    }
    reader = await log.reader(starts)
    while any(reader.position(topic, partition) < end for partition, end in ends.items()):
        for record in await reader.fetch():
            event = _as_event(record)
            if event is not None:
                yield event


def start_of(since: str | None, now_s: float | None = None) -> int:
    """Milliseconds since 1970 of a point in time as people write it; 0 for None. Raises ConfigError.

    A date or time of ISO 8601 (local where it names no zone), or how long ago: 90s, 30m, 12h, 7d, 2w.
    """
    if since is None:
        return 0
    text = since.strip()
    if text and text[-1] in SECONDS and text[:-1].isdecimal():
        now_s = time.time() if now_s is None else now_s
        return max(0, int(1000 * (now_s - int(text[:-1]) * SECONDS[text[-1]])))
    try:
        return max(0, int(1000 * datetime.fromisoformat(text).timestamp()))
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--since {since}: expected a date or time as 2026-11-21 or 2026-11-21T18:30, or how long ago: "
            "90s, 30m, 12h, 7d, 2w"
        ) from None
