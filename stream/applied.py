"""How far the index has come in each partition, and who waits for it to come further."""

import asyncio
from collections.abc import Mapping

__all__ = ["Applied"]


class Applied:
    """Next offsets per partition, as the index holds them now. Belongs to the event loop."""

    def __init__(self, offsets: Mapping[int, int]) -> None:
        self._offsets = dict(offsets)
        self._waiting: dict[asyncio.Future[None], Mapping[int, int]] = {}

    @property
    def offsets(self) -> dict[int, int]:
        return dict(self._offsets)

    def covers(self, after: Mapping[int, int]) -> bool:
        """Whether every record below the next offsets `after` is applied. A partition not held here is not
        covered."""
        return all(self._offsets.get(partition, -1) >= offset for partition, offset in after.items())

    def advance(self, offsets: Mapping[int, int]) -> None:
        """Move to `offsets` and wake whoever waited for that."""
        self._offsets.update(offsets)
        for waiter, after in list(self._waiting.items()):
            if not waiter.done() and self.covers(after):
                waiter.set_result(None)

    async def reach(self, after: Mapping[int, int]) -> None:
        """Return when `after` is covered. Cancelling it has no effect on others."""
        if self.covers(after):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = after
        try:
            await waiter
        finally:
            del self._waiting[waiter]
