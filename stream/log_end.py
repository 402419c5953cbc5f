"""Where the vectors topic ends, asked of the log no oftener than somebody needs to know."""

import asyncio
import time

from ..errors import LogError
from .applied import Applied
from .log import Log

__all__ = ["LogEnd"]

LIMIT_S = 2.0  # for the log's answer


class LogEnd:
    """One question at a time; who asks beside others gets their answer, if it is fresh enough."""

    def __init__(self, log: Log, topic: str, applied: Applied, *, whole: bool = True) -> None:
        """`whole`: all partitions are followed, new ones too as soon as they are seen."""
        self._log = log
        self._topic = topic
        self._applied = applied
        self._whole = whole
        self._asking = asyncio.Lock()
        self._asked = float("-inf")
        self._ends: dict[int, int] | None = None

    async def offsets(self, age_s: float = 0.0) -> dict[int, int] | None:
        """End offsets per partition as they were at most `age_s` before this call, or later; None where the
        log does not answer within two seconds."""
        since = time.monotonic() - age_s
        async with self._asking:
            if self._asked < since:
                asked = time.monotonic()
                try:
                    async with asyncio.timeout(LIMIT_S):
                        self._ends = await self._log.end_offsets(self._topic)
                except (TimeoutError, LogError):
                    self._ends = None
                self._asked = asked
            return self._ends

    async def lag(self, age_s: float = 0.0) -> dict[int, int] | None:
        """Offsets from the next to apply up to the end, per partition; None as above."""
        ends = await self.offsets(age_s)
        if ends is None:
            return None
        applied = self._applied.offsets
        return {
            partition: max(0, end - applied.get(partition, 0))
            for partition, end in ends.items()
            if partition in applied or self._whole
        }
