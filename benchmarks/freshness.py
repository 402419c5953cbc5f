"""How long until what is produced can be found, while half of what can be ingested comes in?

On a real Kafka, for `driftline serve` and for the plain consumer (peers/plain_consumer.py): the first rows
fill the topic and are read as fast as it goes, which is the system's largest rate. Then rows are produced at
half that rate (or at --rows-per-s), and searches are asked at an even rate. Most ask for nothing new: their
round trip is measured. One in five asks for a record produced in the same instant, with `after` at its
offset: from just before producing it to the answer that saw it is measured, an upper bound, since the way of
request and reply is in it. What processor time the system, the broker and this script take stands beside.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from driftline.errors import SearchFailed
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import open_log
from report import milliseconds, parser, report
from rivals import EF, K, Load, Rival, begun, cpu_s, create_topics, fill, rivals
from vectors import Vectors, load_vectors

from tests.kafka.broker import KafkaBroker

TICK_S = 0.005  # rows due in so long are produced together: one call for each would measure this script
PROBES = 5  # every so many searches asks for what was just produced
WAIT_MS = 600_000
LOST_MS = 30_000


@dataclass(slots=True)
class Times:
    rate: float  # rows a second, at the most
    produced: float = 0.0  # rows a second, while measured
    found: list[float] = field(default_factory=list)  # seconds: produce to an answer that saw it
    round_trip: list[float] = field(default_factory=list)  # seconds
    lost: int = 0
    cpu: dict[str, float] = field(default_factory=dict)  # of a core


class Producer:
    """Rows in even ticks; a probe hangs itself on the next tick."""

    def __init__(self, feed: FeedClient, client: SearchClient, rows: Vectors, first: int) -> None:
        self.feed = feed
        self.client = client
        self.rows = rows
        self.first = first
        self.sent = 0
        self.times: list[float] = []
        self.lost = 0
        self.probe = False

    async def run(self, rate: float, seconds: float) -> None:
        began = time.monotonic()
        with progress_bar() as progress:
            bar = progress.add_task("producing", total=len(self.rows), note="")
            async with asyncio.TaskGroup() as group:
                while (now := time.monotonic() - began) < seconds:
                    due = min(len(self.rows), round(now * rate))
                    if due > self.sent:
                        group.create_task(self.produce(self.sent, due, self.probe))
                        self.sent, self.probe = due, False
                        progress.update(bar, completed=due)
                    await asyncio.sleep(TICK_S)

    async def produce(self, start: int, stop: int, probe: bool) -> None:
        keys = [b"%d" % (self.first + row) for row in range(start, stop)]
        began = time.monotonic()
        token = await self.feed.upsert(keys, self.rows[start:stop])
        if not probe:
            return
        try:
            await self.client.search(self.rows[stop - 1], k=K, ef=EF, after=token, deadline_ms=LOST_MS)
        except SearchFailed:
            self.lost += 1
        else:
            self.times.append(time.monotonic() - began)


async def measure(
    url: str, rival: Rival, broker: KafkaBroker, base: Vectors, queries: Vectors,
    token: Mapping[str, Any], options: argparse.Namespace,
) -> Times:  # fmt: skip
    held = options.held
    async with open_log(url) as log, SearchClient(log) as client, FeedClient(log) as feed:
        began = await asyncio.to_thread(begun, rival)
        await client.search(queries[0], k=1, after=token, deadline_ms=WAIT_MS)
        times = Times(rate=held / (time.monotonic() - began))
        rate = options.rows_per_s or times.rate / 2
        rows = base[held : held + round(rate * (options.warm + options.seconds))]
        producer = Producer(feed, client, rows, held)
        load = Load(client, queries, options.searches * (1 - 1 / PROBES))
        pids = {"system": rival.pid, "broker": broker.pid, "script": os.getpid()}
        async with asyncio.TaskGroup() as group:
            seconds = min(options.warm + options.seconds, len(rows) / rate)
            producing = group.create_task(producer.run(rate, seconds))
            async with load.running():
                await asyncio.sleep(options.warm)
                before = {what: cpu_s(pid) for what, pid in pids.items()}
                at, sent = time.monotonic(), producer.sent
                load.seconds.clear()
                producer.times.clear()
                probes = group.create_task(ask_for_probes(producer, options.searches / PROBES))
                await producing
                probes.cancel()
                span = time.monotonic() - at
                times.produced = (producer.sent - sent) / span
                times.cpu = {what: (cpu_s(pid) - before[what]) / span for what, pid in pids.items()}
        times.found, times.round_trip = producer.times, load.seconds
        times.lost = producer.lost + load.lost
    return times


async def ask_for_probes(producer: Producer, rate: float) -> None:
    while True:
        producer.probe = True
        await asyncio.sleep(1 / rate)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rows-per-s", type=float, metavar="N", help="produce at this rate for all systems")
    flags.add_argument("--searches", type=float, default=100, help="a second (default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=3, help="of measuring (default: %(default)s)")
    flags.add_argument("--warm", type=float, default=1, help="seconds before that (default: %(default)s)")
    flags.add_argument("--held", type=int, default=2000, metavar="ROWS",
                       help="rows read first, as fast as it goes (default: %(default)s)")  # fmt: skip
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries)
    runs: dict[str, Times] = {}
    for system in ("driftline serve", "plain consumer"):
        with (
            tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as name,
            KafkaBroker(Path(name) / "kafka") as broker,
        ):
            url = f"kafka:{broker.bootstrap}"
            asyncio.run(create_topics(url))
            token = asyncio.run(fill(url, base[: options.held]))
            with rivals(Path(name), url, base.shape[1], len(base))[system]() as rival:
                runs[system] = asyncio.run(measure(url, rival, broker, base, queries, token, options))
    rows = [
        [
            system,
            round(times.rate),
            round(times.produced),
            *list(milliseconds(times.found).values())[:2],
            *list(milliseconds(times.round_trip).values())[:2],
            times.lost,
            *(f"{share:.2f}" for share in times.cpu.values()),
        ]
        for system, times in runs.items()
    ]
    header = [
        "",
        "most/s",
        "rows/s",
        "found ms",
        "p99",
        "search ms",
        "p99",
        "lost",
        "CPU",
        "broker",
        "script",
    ]
    title = f"{options.held:,} x {base.shape[1]} held, {options.searches:g} searches/s; CPU in cores"
    report(title, header, rows, {name: asdict(times) for name, times in runs.items()}, options)


if __name__ == "__main__":
    main()
