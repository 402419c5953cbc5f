"""What the index tells of drift and re-encoding, to the log and to the drift topic.

A record of the drift topic is a JSON object: `event` (its name), `time_ms`, `topic` (the collection's),
`offsets` (partition -> next offset that was applied when it was told), and the event's fields, which
docs/drift.md lists. Delivery is at least once: a snapshot holds an index that has spoken, so that it waits
until what was said is acknowledged (snapshotting.py).
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence

from ..index.events import Event, ReencodeCancelled, ReencodeDeclined, ReencodeFinished
from .documents import CONTENT_TYPE_HEADER, Form
from .events import Logger
from .log import Draft
from .outbox import Outbox
from .shard import Shard

__all__ = ["DriftEvents"]

NOT_LOGGED = frozenset({
    "scores", "shifts", "psis",  # of every dimension, kilobytes of base64
    "event", "time_ms", "topic", "offsets",  # of every event
})  # fmt: skip


class DriftEvents:
    """Where the index's events go."""

    def __init__(self, topic: str, collection: str, shard: Shard, outbox: Outbox, logger: Logger) -> None:
        self._topic = topic
        self._collection = collection
        self._shard = shard
        self._outbox = outbox
        self._logger = logger
        self._untold: list[Event] = []  # taken from the index, and not in the outbox yet
        self._one_at_a_time = asyncio.Lock()
        self.last_reencode: Mapping[str, object] | None = None
        """The newest record that said how a re-encode ended, or why none began."""

    async def emit(self, events: Sequence[Event] = ()) -> None:
        """Log and queue for the drift topic what the index has to tell, then `events`.

        When it returns, nothing is left that the index said before the call. Cancelled, it is said by the
        next call.
        """
        async with self._one_at_a_time:
            self._untold += [*self._shard.take_events(), *events]
            if not self._untold:
                return
            documents = [self._document(event) for event in self._untold]
            headers = ((CONTENT_TYPE_HEADER, Form.JSON.encode()),)
            await self._outbox.put(
                [Draft(self._topic, None, json.dumps(document).encode(), headers) for document in documents]
            )
            for event, document in zip(self._untold, documents, strict=True):
                if isinstance(event, ReencodeCancelled | ReencodeDeclined | ReencodeFinished):
                    self.last_reencode = document
                told = {name: value for name, value in document.items() if name not in NOT_LOGGED}
                self._logger.info(event.name, **told)
            self._untold.clear()

    def _document(self, event: Event) -> dict[str, object]:
        # JSON has no infinity: a gain over codes that make no error is as good as none to tell.
        fields = {name: _finite(value) for name, value in event.to_fields().items()}
        return {
            "event": event.name,
            "time_ms": time.time_ns() // 1_000_000,
            "topic": self._collection,
            "offsets": self._shard.offsets,
            **fields,
        }


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
