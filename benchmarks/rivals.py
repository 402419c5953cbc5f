"""What is measured over topics side by side: `driftline serve`, and the plain consumer that does its work."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from driftline.errors import SearchFailed
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import Log, open_log
from running import LONG_S, Service, until
from vectors import Vectors, kth_distances, recall

__all__ = ["Load", "Plain", "Rival", "begun", "cpu_s", "create_topics", "fill", "hits_recall", "rivals"]

TOPIC = "driftline.vectors"
K, EF = 10, 64
LOST_MS = 30_000  # a search without an answer for so long is lost


class Rival(Protocol):
    """A process that follows the vectors topic and answers the search topic."""

    @property
    def pid(self) -> int: ...

    def events(self, name: str) -> list[dict[str, Any]]: ...


class Plain:
    """peers/plain_consumer.py in a process of its own."""

    def __init__(self, directory: Path, url: str, dim: int, rows: int) -> None:
        self._output = directory / "plain.jsonl"
        self._words = [url.removeprefix("kafka:"), str(dim), str(rows)]

    def __enter__(self) -> Self:
        script = Path(__file__).parent / "peers" / "plain_consumer.py"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(script), *self._words], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def events(self, name: str) -> list[dict[str, Any]]:
        assert self._process.poll() is None, f"the plain consumer ended: {self._output.read_text()[-3000:]}"
        lines = [line for line in self._output.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]


@contextmanager
def serving(directory: Path, url: str) -> Generator[Service]:
    with Service(directory, log=url) as service:
        yield service.start(ready=False)
        service.stop()


def rivals(directory: Path, url: str, dim: int, rows: int) -> dict[str, Callable[[], Any]]:
    """Name -> how to begin one, from nothing; a context manager."""

    def place(name: str) -> Path:
        path = directory / f"{name}-{time.monotonic_ns()}"
        path.mkdir()
        return path

    return {
        "driftline serve": lambda: serving(place("driftline"), url),
        "plain consumer": lambda: Plain(place("plain"), url, dim, rows),
    }


def begun(rival: Rival) -> float:
    """When it began to read the topic, by time.monotonic()."""
    until(lambda: rival.events("ingest.catching_up"), "reading the topic", LONG_S)
    return time.monotonic()


async def create_topics(url: str) -> None:
    async with open_log(url) as log:
        await log.create_topic(TOPIC, compacted=True)
        for name in ("search", "replies", "dead-letters", "drift"):
            await log.create_topic(f"driftline.{name}")


async def fill(url: str, base: Vectors) -> dict[str, Mapping[int, int]]:
    """Write the rows under their numbers; the token of the last."""
    async with open_log(url) as log, FeedClient(log) as feed:
        token: Any = {}
        with progress_bar() as progress:
            bar = progress.add_task("filling the topic", total=len(base), note="")
            for first in range(0, len(base), 1000):
                rows = base[first : first + 1000]
                token = await feed.upsert([b"%d" % row for row in range(first, first + len(rows))], rows)
                progress.advance(bar, len(rows))
    return token


@dataclass(slots=True)
class Load:
    """Searches at an even rate, whatever becomes of the ones before."""

    client: SearchClient
    queries: Vectors
    rate: float
    done: Callable[[int], None] = lambda _: None  # told the offset that an answer saw
    seconds: list[float] = field(default_factory=list)
    lost: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._run())
            try:
                yield
            finally:
                task.cancel()

    async def _run(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            number = 0
            while True:
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                group.create_task(self._ask(self.queries[number % len(self.queries)]))
                number += 1

    async def _ask(self, query: Any) -> None:
        asked = time.monotonic()
        try:
            reply = await self.client.search(query, k=K, ef=EF, deadline_ms=LOST_MS)
        except SearchFailed:
            self.lost += 1
            return
        self.seconds.append(time.monotonic() - asked)
        self.done(sum(reply.applied.get(TOPIC, {}).values()))


async def hits_recall(log: Log, base: Vectors, queries: Vectors) -> float:
    """recall@10 of the answers at EF."""
    kth = kth_distances(base, queries, K)
    rows: list[list[int]] = []
    async with SearchClient(log) as client:
        for query in queries:
            reply = await client.search(query, k=K, ef=EF, deadline_ms=LOST_MS)
            rows.append([int(hit.id) for hit in reply.hits])
    return recall(base, queries, kth, rows, K)


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken, its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
