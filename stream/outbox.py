"""Records that must arrive but that nobody waits for: dead letters and drift events.

They are queued (bounded: a full queue makes the caller wait) and appended in order, in batches, again and
again while the broker is away. `flushed` tells when everything put so far is acknowledged: a snapshot waits
for it, so that its offsets never pass a record whose dead letter could still be lost. Delivery is at least
once.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ..errors import LogError
from .events import Logger
from .log import Draft, Log, Topic, record_bytes
from .messages import Rejection, dead_letter

__all__ = ["Outbox", "fitting_letter"]

BATCH = 500  # drafts appended at once
RETRY_S = 0.5  # first pause after a failed append; doubles
RETRY_MAX_S = 5.0


class Outbox:
    """A bounded queue with acknowledgements in front of a log. Nothing is sent unless `run` is running."""

    def __init__(self, log: Log, logger: Logger, capacity: int) -> None:
        self._log = log
        self._logger = logger
        self._capacity = capacity
        self._waiting: deque[Draft] = deque()
        self._put = 0
        self._acknowledged = 0
        self._changed = asyncio.Condition()

    @property
    def pending(self) -> int:
        """Drafts not acknowledged yet."""
        return self._put - self._acknowledged

    async def put(self, drafts: Sequence[Draft]) -> None:
        """Queue drafts; waits while the queue is full."""
        if not drafts:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self.pending < self._capacity)
            self._waiting.extend(drafts)
            self._put += len(drafts)
            self._changed.notify_all()

    async def flushed(self) -> None:
        """Return when every draft put before this call is acknowledged."""
        async with self._changed:
            target = self._put
            await self._changed.wait_for(lambda: self._acknowledged >= target)

    async def run(self) -> None:
        """Send until cancelled. Raises LogError when the log refuses for good (a topic that was deleted)."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._waiting) > 0)
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            await self._send(batch)
            async with self._changed:
                self._acknowledged += len(batch)
                self._changed.notify_all()

    async def _send(self, drafts: Sequence[Draft]) -> None:
        pause = RETRY_S
        while True:
            try:
                await self._log.append(drafts)
                return
            except LogError as error:
                if not error.retriable:
                    raise
                self._logger.warning("outbox.retry", records=len(drafts), retry_s=pause, reason=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)


def fitting_letter(rejection: Rejection, topic: Topic, instance: str) -> Draft:
    """The dead letter of a rejection, without the record's value, then headers too, where the topic takes
    no more."""
    letter = dead_letter(rejection, topic.name, instance=instance)
    if record_bytes(letter) > topic.max_record_bytes:
        letter = dead_letter(rejection, topic.name, instance=instance, keep_value=False)
    if record_bytes(letter) > topic.max_record_bytes:
        bare = replace(rejection, record=replace(rejection.record, headers=(), key=None))
        letter = dead_letter(bare, topic.name, instance=instance, keep_value=False)
    return letter
