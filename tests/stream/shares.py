"""How much a full-speed ingest and searches without a pause leave of each other."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from driftline.stream.clients import SearchClient
from driftline.stream.log import Log

from .running import Place, Service, Vectors, eventually

__all__ = ["Rates", "catching_up", "searching"]

LONG_S = 1800.0
WAIT_MS = 600_000
WARM_S = 0.5


@dataclass(frozen=True, slots=True)
class Rates:
    """A second."""

    rows: float
    searches: float


@dataclass(slots=True)
class Flood:
    """So many clients that each ask again as soon as they are answered."""

    client: SearchClient
    queries: Vectors
    answered: int = 0

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(number)) for number in range(clients)]
            yield
            for task in tasks:
                task.cancel()

    async def _ask(self, number: int) -> None:
        while True:
            number = (number + 1) % len(self.queries)
            await self.client.search(self.queries[number], deadline_ms=WAIT_MS)
            self.answered += 1


def applied(service: Service) -> int:
    status = service.status()
    return 0 if status is None else sum(status["applied"].values())


async def catching_up(log: Log, place: Place, queries: Vectors, clients: int, first: int, last: int) -> Rates:
    """Of a service that was just started, from one offset of its topic to another, beside so many clients."""
    async with SearchClient(log, place.search, place.replies) as client:
        flood = Flood(client, queries)
        async with flood.running(clients):
            await eventually(lambda: applied(place.service) >= first, "so much applied", LONG_S)
            began, answered, start = time.monotonic(), flood.answered, applied(place.service)
            await eventually(lambda: applied(place.service) >= last, "so much applied", LONG_S)
            took, end = time.monotonic() - began, applied(place.service)
            return Rates((end - start) / took, (flood.answered - answered) / took)


async def searching(log: Log, place: Place, queries: Vectors, clients: int, seconds: float) -> float:
    """Searches a second of a service that has nothing else to do."""
    async with SearchClient(log, place.search, place.replies) as client:
        flood = Flood(client, queries)
        async with flood.running(clients):
            await asyncio.sleep(WARM_S)
            began, answered = time.monotonic(), flood.answered
            await asyncio.sleep(seconds)
            return (flood.answered - answered) / (time.monotonic() - began)
