"""What the index tells of drift and re-encoding, to the log and to the drift topic.

A record of the drift topic is a JSON object: `event` (its name), `time_ms`, `topic` (the collection's), and
the event's fields, which docs/drift.md lists. Delivery is at least once.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence

from ..index.events import Event, ReencodeCancelled, ReencodeDeclined, ReencodeFinished
from .documents import CONTENT_TYPE_HEADER, Form
from .events import Logger
from .log import Draft
from .outbox import Outbox

__all__ = ["DriftEvents"]

OF_EVERY_DIMENSION = ("scores", "shifts", "psis")  # kilobytes of base64: on the topic, not in the log


class DriftEvents:
    """Where the index's events go."""

    def __init__(self, topic: str, collection: str, outbox: Outbox, logger: Logger) -> None:
        self._topic = topic
        self._collection = collection
        self._outbox = outbox
        self._logger = logger
        self.last_reencode: Mapping[str, object] | None = None
        """The newest record that said how a re-encode ended, or why none began."""

    async def emit(self, events: Sequence[Event]) -> None:
        """Log events and queue them for the drift topic."""
        drafts: list[Draft] = []
        for event in events:
            # JSON has no infinity: a gain over codes that make no error is as good as none to tell.
            fields = {name: _finite(value) for name, value in event.to_fields().items()}
            told = {name: value for name, value in fields.items() if name not in OF_EVERY_DIMENSION}
            self._logger.info(event.name, **told)
            now_ms = time.time_ns() // 1_000_000
            document = {"event": event.name, "time_ms": now_ms, "topic": self._collection, **fields}
            if isinstance(event, ReencodeCancelled | ReencodeDeclined | ReencodeFinished):
                self.last_reencode = document
            value = json.dumps(document).encode()
            drafts.append(Draft(self._topic, None, value, ((CONTENT_TYPE_HEADER, Form.JSON.encode()),)))
        await self._outbox.put(drafts)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
