"""Records that must arrive but that nobody waits for: dead letters and drift events.

They are queued (bounded: a full queue makes the caller wait) and appended in order, in batches, again and
again while the broker is away. `flushed` tells when everything put so far is acknowledged: a snapshot waits
for it, so that its offsets never pass a record whose dead letter could still be lost. Delivery is at least
once. What its topic refuses for good is sent without the record, then given up and counted: a service that
ended there would end there again.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ..errors import InvalidInput, LogError, RecordRefused
from .dead_letters import bare_letter
from .events import Logger
from .log import Draft, Log, Topic, record_bytes
from .messages import Rejection, dead_letter

__all__ = ["Outbox", "fitting_letter"]

BATCH = 500  # drafts appended at once
BATCH_BYTES = 4 << 20
RETRY_S = 0.5  # first pause after a failed append; doubles
RETRY_MAX_S = 5.0


class Outbox:
    """A bounded queue with acknowledgements in front of a log. Nothing is sent unless `run` is running."""

    def __init__(self, log: Log, logger: Logger, capacity: int, capacity_bytes: int = 64 << 20) -> None:
        self.refused = 0
        """Drafts that their topic did not take in any form."""
        self._log = log
        self._logger = logger
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._bytes = 0  # of drafts not acknowledged yet
        self._waiting: deque[Draft] = deque()
        self._put = 0
        self._acknowledged = 0
        self._changed = asyncio.Condition()

    @property
    def pending(self) -> int:
        """Drafts not acknowledged yet."""
        return self._put - self._acknowledged

    async def put(self, drafts: Sequence[Draft]) -> None:
        """Queue drafts, waiting for room for each; one that is larger than all room, until it is alone."""
        if not drafts:
            return
        async with self._changed:
            for draft in drafts:
                size = record_bytes(draft)
                await self._changed.wait_for(lambda size=size: self._has_room(size))
                self._waiting.append(draft)
                self._put += 1
                self._bytes += size
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        if not self.pending:
            return True
        return self.pending < self._capacity and self._bytes + size <= self._capacity_bytes

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
                batch = self._next_batch()
            await self._send(batch)
            async with self._changed:
                self._acknowledged += len(batch)
                self._bytes -= sum(map(record_bytes, batch))
                self._changed.notify_all()

    def _next_batch(self) -> list[Draft]:
        batch = [self._waiting.popleft()]
        size = record_bytes(batch[0])
        while self._waiting and len(batch) < BATCH:
            size += record_bytes(self._waiting[0])
            if size > BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, drafts: Sequence[Draft]) -> None:
        pause = RETRY_S
        while True:
            try:
                await self._log.append(drafts)
                return
            except (InvalidInput, RecordRefused) as error:
                await self._part(drafts, error)
                return
            except LogError as error:
                if not error.retriable:
                    raise
                self._logger.warning("outbox.retry", records=len(drafts), retry_s=pause, reason=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def _part(self, drafts: Sequence[Draft], error: InvalidInput | RecordRefused) -> None:
        """Send those of a refused append that can be sent; others of it may have been written before."""
        if len(drafts) > 1:
            for draft in drafts:
                await self._send([draft])
            return
        bare = bare_letter(drafts[0])
        then = "given up" if bare is None else "sent without the record"
        self._logger.error("outbox.refused", topic=drafts[0].topic, reason=str(error), then=then)
        if bare is None:
            self.refused += 1
        else:
            await self._send([bare])


def fitting_letter(rejection: Rejection, topic: Topic, instance: str) -> Draft:
    """The dead letter of a rejection, without the record's value, then headers too, where the topic takes
    no more."""
    letter = dead_letter(rejection, topic.name, instance=instance)
    if record_bytes(letter) > topic.max_record_bytes:
        letter = dead_letter(rejection, topic.name, instance=instance, keep_value=False)
    if record_bytes(letter) > topic.max_record_bytes:
        bare = replace(rejection, record=rejection.record._replace(headers=(), key=None))
        letter = dead_letter(bare, topic.name, instance=instance, keep_value=False)
    return letter
