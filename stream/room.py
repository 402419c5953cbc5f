"""How much may be held at once, in items and in bytes."""

import asyncio

__all__ = ["Room"]


class Room:
    """A bound that callers keep to; belongs to the event loop.

    What is larger than all the bytes there are comes in when nothing else is there: it must get through
    somewhere, and one of it is bounded by what the log takes.
    """

    def __init__(self, most_items: int, most_bytes: int) -> None:
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._left = asyncio.Event()
        self.items = 0
        self.bytes = 0

    def try_enter(self, size: int) -> bool:
        """Come in with so many bytes, if there is room."""
        fits = self.items < self._most_items and self.bytes + size <= self._most_bytes
        if self.items and not fits:
            return False
        self.items += 1
        self.bytes += size
        return True

    async def enter(self, size: int) -> None:
        """Come in as soon as there is room."""
        while not self.try_enter(size):
            self._left.clear()
            await self._left.wait()

    def leave(self, size: int) -> None:
        """Go, with as many bytes as came in."""
        self.items -= 1
        self.bytes -= size
        self._left.set()
