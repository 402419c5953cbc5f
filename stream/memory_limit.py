"""The memory ceiling: above it ingestion pauses, and searches go on.

What counts is the anonymous memory of the process (RssAnon of /proc/self/status): raw vectors are mapped
files, which the system takes back when it wants room, and are no reason to stop. Upkeep goes on in the pause,
so that what was deleted before it still gives its room back; records that wait may delete more, but nobody
can know without reading them, and what they bring first may not fit.
"""

import asyncio
import time

from .events import Logger

__all__ = ["MemoryLimit", "anonymous_bytes"]

LOOK_S = 0.25  # between looks: a look costs 30 us, and ingestion adds a few MB in this time
RESUME = 0.9  # of the limit: below it ingestion goes on, so that it does not stop again at once


class MemoryLimit:
    """Holds up who asks while the process is above `limit` bytes; None never does."""

    def __init__(self, limit: int | None, logger: Logger) -> None:
        self._limit = limit
        self._logger = logger
        self._looked = float("-inf")
        self.paused = False

    async def room(self) -> None:
        """Return when there is room for more."""
        limit = self._limit
        if limit is None or time.monotonic() - self._looked < LOOK_S:
            return
        began = self._looked = time.monotonic()
        held = anonymous_bytes()
        if held <= limit:
            return
        self.paused = True
        self._logger.warning("ingest.paused", reason="memory_limit", memory_limit=limit, anonymous_bytes=held)
        try:
            while held > RESUME * limit:
                await asyncio.sleep(LOOK_S)
                held = anonymous_bytes()
        finally:
            self.paused = False
        seconds = round(time.monotonic() - began, 3)
        self._logger.info("ingest.resumed", paused_s=seconds, anonymous_bytes=held)


def anonymous_bytes() -> int:
    """What the process holds in RAM apart from mapped files."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon: Linux 4.5 and newer have it")
