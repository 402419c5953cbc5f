"""How fast does a topic become an index, and what of that is the index's own work?

A topic on a real Kafka is filled beforehand. Then, one after the other and under the same load of searches,
it is read to its end by `driftline serve` and by a plain consumer with aiokafka and hnswlib
(peers/plain_consumer.py); and the same rows are put into an index in a process without Kafka, in the same
batches by one thread, with upkeep beside it as in the service. M, ef_construction and ef are the same.
Measured from the first record asked for to an answer that saw the last. Recall is asked for at the end.
"""

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from driftline.index.budget import Budget
from driftline.index.online import OnlineIndex
from driftline.snapshots.segments import FileRawVectors
from driftline.stream.clients import SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import open_log
from peers.process import Process
from report import milliseconds, parser, report
from rivals import EF, K, Load, Rival, begun, cpu_s, create_topics, fill, hits_recall, rivals
from running import place
from vectors import Vectors, kth_distances, load_vectors, recall

BATCH = 512  # as the service applies at once
LIBRARY = "the index alone"
WAIT_MS = 600_000


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float  # until the last row can be found
    cpu_s: float  # processor time of the process meanwhile
    searches: list[float]  # seconds each
    lost: int
    recall: float


class Library:
    """The index in a process of its own, without topics."""

    def __init__(self, base: str, limit: int | None, queries: str, ask: int) -> None:
        self.base = load_vectors(base, limit)
        self.queries = load_vectors(queries, ask)

    def fill(self, rate: float) -> Generator[int, None, dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as directory:
            dim = self.base.shape[1]
            self.index = OnlineIndex(dim, raw=FileRawVectors(directory, dim, {}))
            self.stop = threading.Event()
            times: list[float] = []
            threads = [
                threading.Thread(target=self.ask, args=(rate, times)), threading.Thread(target=self.upkeep)
            ]  # fmt: skip
            for thread in threads:
                thread.start()
            began, cpu = time.monotonic(), time.process_time()
            for first in range(0, len(self.base), BATCH):
                rows = self.base[first : first + BATCH]
                self.index.upsert([b"%d" % row for row in range(first, first + len(rows))], rows)
                self.index.take_events()
                yield first + len(rows)
            took, cpu = time.monotonic() - began, time.process_time() - cpu
            self.stop.set()
            for thread in threads:
                thread.join()
            kth = kth_distances(self.base, self.queries, K)
            found = [[int(key) for key in keys] for keys in self.index.search(self.queries, K, EF).keys]
            truth = recall(self.base, self.queries, kth, found, K)
            return {"seconds": took, "cpu_s": cpu, "searches": times, "lost": 0, "recall": truth}

    def ask(self, rate: float, times: list[float]) -> None:
        began = time.monotonic()
        number = 0
        while not self.stop.wait(max(0.0, began + number / rate - time.monotonic())):
            asked = time.monotonic()
            self.index.search(self.queries[number % len(self.queries)][None], K, EF)
            times.append(time.monotonic() - asked)
            number += 1

    def upkeep(self) -> None:
        budget = Budget()
        while not self.stop.is_set():
            more = self.index.maintain(0.02, budget)
            self.stop.wait(0 if more else budget.wait_s(0.1))


async def follow(
    url: str, rival: Rival, base: Vectors, queries: Vectors, after: Mapping[str, Any], rate: float, name: str
) -> Run:
    """From a rival that was just started to one that has applied everything."""
    async with open_log(url) as log, SearchClient(log) as client:
        with progress_bar() as progress:
            bar = progress.add_task(name, total=len(base), note="")
            began = await asyncio.to_thread(begun, rival)
            cpu = cpu_s(rival.pid)
            load = Load(client, queries, rate, lambda offset: progress.update(bar, completed=offset))
            async with load.running():
                await client.search(queries[0], k=1, after=after, deadline_ms=WAIT_MS)
                took, cpu = time.monotonic() - began, cpu_s(rival.pid) - cpu
        found = await hits_recall(log, base, queries)
        return Run(took, cpu, load.seconds, load.lost, found)


def main() -> None:
    flags = parser(__doc__, ask=200)
    flags.add_argument("--rate", type=float, default=50, help="searches a second (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=1, help="ratios are medians of so many (default: 1)")
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.ask)
    runs: dict[str, list[Run]] = {}
    with place(None) as (directory, url):
        asyncio.run(create_topics(url))
        token = asyncio.run(fill(url, base))
        for _ in range(options.rounds):
            for system, start in rivals(directory, url, base.shape[1], len(base)).items():
                with start() as rival:
                    runs.setdefault(system, []).append(
                        asyncio.run(follow(url, rival, base, queries, token, options.rate, system))
                    )
            runs.setdefault(LIBRARY, []).append(alone(options, len(base)))
    tell(runs, len(base), f"{len(base):,} x {base.shape[1]}, {options.rate:g} searches/s", options)


def alone(options: argparse.Namespace, rows: int) -> Run:
    with progress_bar() as progress:
        bar = progress.add_task(LIBRARY, total=rows, note="")
        process = Process(Library, options.base, options.limit, options.queries, options.ask)
        done = process.call("fill", options.rate, done=lambda rows: progress.update(bar, completed=rows))
        return Run(**done)


def tell(runs: dict[str, list[Run]], rows: int, title: str, options: argparse.Namespace) -> None:
    def ratio(of: str, to: str) -> float:
        return median(b.seconds / a.seconds for a, b in zip(runs[of], runs[to], strict=True))

    served, *_ = runs
    header = [
        "",
        "rows/s",
        "CPU us a row",
        "to the index",
        "to the plain",
        f"recall@{K}",
        "ms",
        "p99",
        "lost",
    ]
    table: list[list[object]] = []
    for system, those in runs.items():
        searches = milliseconds([seconds for run in those for seconds in run.searches])
        table.append([
            system,
            round(rows / median(run.seconds for run in those)),
            round(median(run.cpu_s for run in those) / rows * 1e6),
            f"{ratio(system, LIBRARY):.2f}",
            f"{ratio(system, 'plain consumer'):.2f}",
            f"{median(run.recall for run in those):.4f}",
            searches["median_ms"],
            searches["p99_ms"],
            sum(run.lost for run in those),
        ])  # fmt: skip
    figures = {
        "runs": {system: [asdict(run) for run in those] for system, those in runs.items()},
        "to_index_alone": ratio(served, LIBRARY),
        "to_plain_consumer": ratio(served, "plain consumer"),
    }
    report(title, header, table, figures, options)


if __name__ == "__main__":
    main()
