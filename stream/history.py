"""`driftline drift`: what the drift topic holds, and how the running service stands now."""

import asyncio
import json
from collections import deque
from typing import Any

from .config import Settings
from .control import ServiceUnreachable, ask
from .log import open_log

__all__ = ["drift"]


async def drift(settings: Settings, limit: int) -> dict[str, Any]:
    """The newest `limit` drift events, oldest first, and frames and fit loss of the service if one
    answers."""
    topic = settings.topics.drift
    events: deque[dict[str, Any]] = deque(maxlen=limit)
    async with open_log(settings.log_url, ready_within_s=settings.broker.deadline_s) as log:
        begins, ends = await log.begin_offsets(topic), await log.end_offsets(topic)
        # At most `limit` of them are shown, so that no more than so many of each partition need be read.
        starts = {
            (topic, partition): max(begin, ends[partition] - limit) for partition, begin in begins.items()
        }
        reader = await log.reader(starts)
        while any(reader.position(topic, partition) < end for partition, end in ends.items()):
            for record in await reader.fetch():
                if record.value is not None:
                    events.append(json.loads(record.value))
    now: dict[str, Any] | None = None
    try:
        status = await asyncio.to_thread(ask, settings.data_dir, "status")
        now = {name: status[name] for name in ("live", "fit_loss", "frames", "ready")}
    except ServiceUnreachable:
        pass
    return {"events": sorted(events, key=lambda event: event["time_ms"]), "now": now}
