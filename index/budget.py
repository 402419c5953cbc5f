"""How much of a processor re-encoding takes: a share of one core, less under load, never nothing."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ..errors import InvalidInput

__all__ = ["Budget"]

MEMORY = 0.9  # weight of what the steps before the last one say of the load: ten steps
CREDIT_S = 0.1  # of pauses that lasted too long is made up for


class Budget:
    """Says when the next step of background work may begin. One thread at a time.

    share: of one core that the work takes while nothing else wants it, up to 1. floor: what it takes under
    any load. Load is what the steps feel of it: the processor time that they got / the time that they took.
    Where others (searches, the interpreter's lock, another process) leave it half of what it could use, it
    uses half of its share. A load average of the machine would say so later, and nothing of that lock.

    InvalidInput unless 0 < floor <= share <= 1.
    """

    def __init__(
        self,
        share: float = 0.25,
        floor: float = 0.05,
        *,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        if not 0 < floor <= share <= 1:
            raise InvalidInput(f"a budget needs 0 < floor <= share <= 1, not floor {floor} and share {share}")
        self._share = share
        self._floor = floor
        self._clock = clock
        self._processor = processor
        self._got = self._took = 0.0  # seconds of processor and of time, of the last steps
        self._next = clock()

    @property
    def share(self) -> float:
        """Of one core, that it takes now; any thread may ask."""
        left = self._got / self._took if self._took > 0 else 1.0
        return max(self._floor, self._share * min(1.0, left))

    @property
    def due(self) -> bool:
        """Whether a step may begin."""
        return self._clock() >= self._next

    def wait_s(self, most: float) -> float:
        """Seconds until one may; `most` where that is longer, and where one may now and did not."""
        left = self._next - self._clock()
        return min(left, most) if left > 0 else most

    @contextmanager
    def step(self) -> Generator[None]:
        """Around a step, in the thread that does it; its calls into the core count."""
        began, processor = self._clock(), self._processor()
        try:
            yield
        finally:
            got = self._processor() - processor
            self._got = MEMORY * self._got + got
            self._took = MEMORY * self._took + self._clock() - began
            self._next = max(self._next, began - CREDIT_S) + got / self.share
