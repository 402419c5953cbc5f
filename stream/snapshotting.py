"""Snapshots of a running service: when, and what must have happened before one counts.

A snapshot is cut between two batches and written in the background. Before it is committed every dead
letter of the records it covers is acknowledged: after a crash those records will not be read again. The
consumer group's offsets follow the snapshot's, for Kafka's lag tools; the snapshot's are the truth.

One is due after so many records, or after so long if there is anything that a crash would undo: records, or
what was done or asked of a re-encode.
"""

import asyncio
import time

from ..errors import LogError, SnapshotError
from .config import Settings
from .events import Logger
from .log import Log
from .outbox import Outbox
from .shard import Shard
from .status import SnapshotStatus

__all__ = ["Snapshotting"]

LOOK_S = 0.05  # between looks at whether a snapshot is due
RETRY_S = 30.0  # after one that failed: a full disk is not emptied sooner


class Snapshotting:
    """Takes snapshots, one at a time: periodically, and when asked."""

    def __init__(self, settings: Settings, log: Log, shard: Shard, outbox: Outbox, logger: Logger) -> None:
        self._settings = settings
        self._log = log
        self._shard = shard
        self._outbox = outbox
        self._logger = logger
        self._one_at_a_time = asyncio.Lock()
        self._last = time.monotonic()

    async def run(self) -> None:
        """Take a snapshot whenever one is due, until cancelled. One that fails is told and tried again
        later."""
        due = self._settings.snapshots
        not_before = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            if not self._shard.unsaved or now < not_before:
                continue
            by_records = self._shard.records_since_snapshot >= due.every_records
            if not by_records and now - self._last < due.every_seconds:
                continue
            try:
                await self.take("records" if by_records else "seconds")
            except SnapshotError as error:
                self._logger.error("snapshot.failed", reason=str(error), retry_s=RETRY_S)
                not_before = now + RETRY_S

    async def take(self, reason: str) -> SnapshotStatus | None:
        """Take one now; None where there is nothing to keep yet. Raises SnapshotError."""
        async with self._one_at_a_time:
            began = time.monotonic()
            pending = await self._shard.cut()
            if pending is None:
                return None
            paused_ms = round(1000 * (time.monotonic() - began), 1)
            await self._outbox.flushed()
            info = await self._shard.commit(pending)
            self._last = time.monotonic()
            self._logger.info(
                "snapshot.committed",
                id=info.id,
                reason=reason,
                live=info.live,
                bytes=info.bytes,
                bytes_written=info.bytes_written,
                chunks_written=info.chunks_written,
                chunks_shared=info.chunks_shared,
                cut_ms=paused_ms,
                took_s=round(self._last - began, 3),
                offsets=pending.offsets,
            )
        topic = self._settings.topics.vectors
        try:
            await self._log.commit(self._settings.broker.group, topic, pending.offsets)
        except LogError as error:
            self._logger.warning("snapshot.offsets_not_committed", id=info.id, reason=str(error))
        return self._shard.snapshot
