"""Does anyone notice a re-encode: a searcher at full load, the memory, a kill -9 in the middle?

A collection is coded in a frame that was fitted to other rows (the first thousand, half as long), then all of
it is encoded anew, by hand, within a budget (a share of one core) as in the service. One thread searches
without pause, before, during and after; every answer is checked: k distinct keys, nearest first, each at its
true distance. Latencies are given twice: as they were, and "running", without the time that the searching
thread was ready and had no processor (Linux's schedstat), which is other people's doing on a shared machine.
Memory is the process's anonymous memory (RssAnon), looked at from outside every few milliseconds, and the
core's own count of code blocks.

Then the same again in a process that also takes snapshots, killed (SIGKILL) at random moments of the
re-encode; at the end the newest snapshot must finish it, `check` must pass with every code compared with its
raw vector, and every row must be there. A killed process leaves what it wrote in the page cache: this is a
crash of the service, not of the machine.
"""

import argparse
import math
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from driftline import DriftSettings, OnlineIndex
from driftline.index.budget import Budget
from driftline.index.events import ReencodeDeclined, ReencodeFinished, ReencodeStarted
from driftline.native import SLAB
from driftline.snapshots.store import SnapshotStore
from driftline.stream.feeding import progress_bar
from report import milliseconds, parser, report
from vectors import DEMO, Vectors, kth_distances, load_vectors, recall

K, EF = 10, 64
OLD = 1000  # rows that the first frame is fitted to
STEP_S, IDLE_S = 0.02, 0.1  # of upkeep, as in the service
BATCH = 2000
ASK = 500
MOST = 4_000_000  # searches of one phase
LOOK_S = 0.005  # between looks at the memory
COMMIT_S = 0.2  # between snapshots of the process that is killed
DEAF = DriftSettings(alpha=1e-12, loss_limit=math.inf)  # no alarm: only the hand begins
SPAWN = multiprocessing.get_context("spawn")


class Asker(threading.Thread):
    """Searches without pause, one query at a time, and checks the answers between two searches."""

    def __init__(self, index: OnlineIndex, base: Vectors, queries: Vectors) -> None:
        super().__init__()
        self.index, self.base, self.queries = index, base, queries
        self.stop = threading.Event()
        self.times = np.full(MOST, np.nan)  # in memory from the start: what it takes is not the index's
        self.queued = np.full(MOST, np.nan)  # of it, ready to run and without a processor
        self.searches = 0
        self.wrong: Counter[str] = Counter()

    def run(self) -> None:
        with Path("/proc/thread-self/schedstat").open("rb", buffering=0) as scheduled:
            self._ask(scheduled)

    def _ask(self, scheduled: BinaryIO) -> None:
        at = 0
        while not self.stop.is_set():
            query = self.queries[at : at + 1]
            queued = queued_s(scheduled)
            began = time.perf_counter()
            try:
                hits = self.index.search(query, K, EF)
                keys = hits.keys[0]
            except Exception as error:
                self.wrong[repr(error)] += 1
                continue
            self.times[self.searches] = time.perf_counter() - began
            self.queued[self.searches] = queued_s(scheduled) - queued
            self.searches += 1
            rows = np.array(keys)
            true = np.square(self.base[rows] - query).sum(axis=1)
            if len(set(keys)) != K:
                self.wrong[f"{len(set(keys))} keys"] += 1
            elif not np.allclose(true, hits.distances[0], rtol=1e-4, atol=1e-5):
                self.wrong["distances that are not the true ones"] += 1
            elif (np.diff(hits.distances[0]) < 0).any():
                self.wrong["not nearest first"] += 1
            at = (at + 1) % len(self.queries)

    def over(self) -> None:
        self.stop.set()
        self.join()

    @property
    def seconds(self) -> Any:
        """float64 [n], of the searches."""
        return self.times[: self.searches]

    @property
    def running(self) -> Any:
        """The same without what was spent waiting for a processor."""
        return np.maximum(self.times - self.queued, 0)[: self.searches]


def queued_s(scheduled: BinaryIO) -> float:
    """How long the thread of this schedstat has been ready and had no processor."""
    scheduled.seek(0)
    return int(scheduled.read().split()[1]) / 1e9


def keep_up(index: OnlineIndex, budget: Budget) -> bool:
    """One round of upkeep as the service does it, with its pause; whether more is waiting."""
    more = index.maintain(STEP_S, budget)
    time.sleep(0 if more else budget.wait_s(IDLE_S))
    return index.stats().reencoding


def ask_for(seconds: float, asker: Asker, index: OnlineIndex, budget: Budget) -> None:
    """Search for so long, beside upkeep that has nothing to do."""
    asker.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        keep_up(index, budget)
    asker.over()


def watch_memory(pid: int, most: "Synchronized[int]") -> None:
    """In a process of its own, until it is killed: the most anonymous memory that `pid` ever had."""
    while True:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                most.value = max(most.value, int(line.split()[1]) * 1024)
        time.sleep(LOOK_S)


def stale(base: Vectors, store: SnapshotStore, threads: int) -> OnlineIndex:
    """All rows, each coded in a frame that was fitted to rows half as long."""
    index = OnlineIndex(base.shape[1], raw=store.open_raw(base.shape[1]), compress_after=OLD, drift=DEAF)
    index.upsert(np.arange(OLD), base[:OLD] / 2)
    while index.maintain(1.0):
        pass
    with progress_bar() as progress:
        bar = progress.add_task("building", total=len(base), note="")
        for first in range(0, len(base), BATCH):
            rows = np.arange(first, min(first + BATCH, len(base)))
            index.upsert(rows, base[first : first + BATCH], threads=threads)
            progress.advance(bar, BATCH)
    while index.maintain(1.0):
        pass
    assert [frame.frame for frame in index.stats().frames] == [1]
    index.take_events()
    return index


def unnoticed(index: OnlineIndex, base: Vectors, queries: Vectors, flags: Any) -> dict[str, Any]:
    """Re-encode all of it beside the searcher."""
    budget = Budget(flags.budget, flags.floor)
    kth = kth_distances(base, queries[:ASK], K)

    def recall_now(rescore: bool) -> float:
        hits = index.search(queries[:ASK], K, EF, rescore=rescore).keys
        return round(recall(base, queries[:ASK], kth, hits, K), 4)

    recalls = {"before": (recall_now(True), recall_now(False))}
    most = SPAWN.Value("q", 0)
    looking = SPAWN.Process(target=watch_memory, args=(multiprocessing.current_process().pid, most))
    looking.start()
    while not most.value:  # a process takes its time to start
        time.sleep(LOOK_S)
    askers = {when: Asker(index, base, queries) for when in ("before", "during", "after")}
    ask_for(flags.seconds, askers["before"], index, budget)
    anonymous_before, codes_before = most.value, index.stats().bytes["codes"]
    most.value = 0
    askers["during"].start()
    shares: list[float] = []
    codes_most = codes_before
    index.reencode(now=True)
    began, processor = time.monotonic(), time.thread_time()
    with progress_bar() as progress:
        bar = progress.add_task("re-encoding", total=None, note="")
        while keep_up(index, budget):
            at = index.reencode_progress()
            shares.append(budget.share)
            codes_most = max(codes_most, index.stats().bytes["codes"])
            progress.update(bar, completed=at.slabs_done, total=at.slabs or None, note=at.state)
    took, used = time.monotonic() - began, time.thread_time() - processor
    askers["during"].over()
    anonymous_most = most.value
    looking.kill()
    looking.join()
    ask_for(flags.seconds, askers["after"], index, budget)
    recalls["after"] = (recall_now(True), recall_now(False))
    index.check()
    slab = codes_before / (index.stats().slots / SLAB)
    kinds = ReencodeStarted | ReencodeFinished | ReencodeDeclined
    told = [event for event in index.take_events() if isinstance(event, kinds)]
    p99 = {name: float(np.quantile(asker.seconds, 0.99)) for name, asker in askers.items()}
    running = {name: float(np.quantile(asker.running, 0.99)) for name, asker in askers.items()}
    return {
        "rows": len(base),
        "took_s": round(took, 2),
        "processor_s": round(used, 2),
        "share": round(used / took, 4),
        "share_allowed": round(float(np.mean(shares)), 4),
        "searches": {name: asker.searches for name, asker in askers.items()},
        "wrong": {name: dict(asker.wrong) for name, asker in askers.items()},
        "latency": {name: milliseconds(asker.seconds) for name, asker in askers.items()},
        "latency_running": {name: milliseconds(asker.running) for name, asker in askers.items()},
        "p999_ms": {name: round(1e3 * float(np.quantile(a.seconds, 0.999)), 2) for name, a in askers.items()},
        "p99_ratio": round(p99["during"] / p99["before"], 3),
        "p99_ratio_running": round(running["during"] / running["before"], 3),
        "recall": {name: {"rescored": both[0], "codes": both[1]} for name, both in recalls.items()},
        "slab_bytes": round(slab),
        "extra_code_slabs": round((codes_most - codes_before) / slab, 2),
        "extra_anonymous_bytes": anonymous_most - anonymous_before,
        "events": [{"event": event.name, **event.to_fields()} for event in told],
        "frames": [asdict(frame) for frame in index.stats().frames],
    }


def reencode_until_killed(directory: str, flags: Any, pipe: Connection) -> None:
    """In the child: restore, go on (or begin), search and commit meanwhile; tells how many slabs have moved
    and how many were to."""
    base, queries = loaded(flags)
    budget = Budget(flags.budget, flags.floor)
    with SnapshotStore.open(directory, dim=base.shape[1], metric="l2") as store:
        index = restored(store)
        if not index.stats().reencoding:
            index.reencode(now=True)
        Asker(index, base, queries).start()
        committed = time.monotonic()
        while keep_up(index, budget):
            at = index.reencode_progress()
            if at.state == "moving":
                pipe.send((at.slabs_done, at.slabs))
            if time.monotonic() - committed > COMMIT_S:
                store.commit(index.cut(store.known()), {})
                committed = time.monotonic()
        pipe.send(None)
        threading.Event().wait()


def restored(store: SnapshotStore) -> OnlineIndex:
    snapshot = store.newest()
    assert snapshot is not None, "the stale index was committed"
    return OnlineIndex.restore(snapshot.cut, store.open_raw(), DEAF)


def killed(directory: str, base: Vectors, flags: Any) -> dict[str, Any]:
    """Kill it again and again, when a random part of what was left has moved; then let it finish."""
    draw = np.random.default_rng(flags.seed)
    killed_at: list[str] = []
    for _ in range(flags.kills):
        ours, theirs = SPAWN.Pipe()
        child = SPAWN.Process(target=reencode_until_killed, args=(directory, flags, theirs))
        child.start()
        part = draw.uniform(0.1, 0.7)
        while (moved := ours.recv()) is not None and moved[0] < part * moved[1]:
            pass
        child.kill()
        child.join()
        killed_at.append("the end" if moved is None else f"{moved[0]} of {moved[1]} slabs")
    with SnapshotStore.open(directory, dim=base.shape[1], metric="l2") as store:
        index = restored(store)
        going_on = index.stats().reencoding
        while index.maintain(1.0):
            pass
        told = index.take_events()
        started = [event.slabs for event in told if isinstance(event, ReencodeStarted)]
        index.check()  # raises CorruptIndex
        held = index.get(np.arange(len(base)))
        same = [row is not None and np.array_equal(row.vector, x) for row, x in zip(held, base, strict=True)]
        return {
            "killed_at": killed_at,
            "was_under_way": going_on,
            "left_to_move": started,
            "finished": any(isinstance(event, ReencodeFinished) for event in told),
            "frames": [asdict(frame) for frame in index.stats().frames],
            "live": len(index),
            "missing_or_other": same.count(False),
            "check": "passed",
        }


def loaded(flags: Any) -> tuple[Vectors, Vectors]:
    return load_vectors(flags.base, flags.limit), load_vectors(flags.queries)


def main() -> None:
    flags = parser(__doc__)
    flags.set_defaults(queries=f"{DEMO}:base")  # the 40 questions are few to search at full load
    flags.add_argument("--budget", type=float, default=0.25, help="share of one core (default: %(default)s)")
    flags.add_argument("--floor", type=float, default=0.05, help="under any load (default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=10.0, metavar="S",
                       help="of searching before and after (default: %(default)s)")  # fmt: skip
    flags.add_argument("--threads", type=int, default=2, help="that build the index (default: %(default)s)")
    flags.add_argument("--kills", type=int, default=3, metavar="N", help="how often (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = flags.parse_args()
    base, queries = loaded(options)
    with tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as directory:
        with SnapshotStore.open(directory, dim=base.shape[1], metric="l2") as store:
            index = stale(base, store, options.threads)
            store.commit(index.cut(), {})
            figures = unnoticed(index, base, queries, options)
            del index
        if options.kills:
            figures["killed"] = killed(directory, base, options)
    show_all(figures, options)


def show_all(figures: dict[str, Any], options: argparse.Namespace) -> None:
    latency, recalls = figures["latency"], figures["recall"]
    took, processor = figures["took_s"], figures["processor_s"]
    rows: list[list[object]] = [
        ["re-encoded", f"{figures['rows']:,} rows in {took} s, {processor} s of processor"],
        ["searches before, during, after", ", ".join(f"{n:,}" for n in figures["searches"].values())],
        ["failed or wrong", sum(sum(wrong.values()) for wrong in figures["wrong"].values())],
        *(
            [f"ms {when}", ", ".join(f"{name.removesuffix('_ms')} {value:.2f}" for name, value in ms.items())]
            for when, ms in latency.items()
        ),
        *(
            [f"ms {when}, running", ", ".join(f"{name[:-3]} {value:.2f}" for name, value in ms.items())]
            for when, ms in figures["latency_running"].items()
        ),
        ["p99 during / before", figures["p99_ratio"]],
        ["p99 during / before, running", figures["p99_ratio_running"]],
        *([f"recall@{K} {when}", str(both)] for when, both in recalls.items()),
        ["a slab's codes", f"{figures['slab_bytes']:,} bytes"],
        ["extra code blocks", figures["extra_code_slabs"]],
        ["extra anonymous memory", f"{figures['extra_anonymous_bytes']:,} bytes"],
        *([event["event"], str(event)] for event in figures["events"]),
        *([f"killed: {name}", str(value)] for name, value in figures.get("killed", {}).items()),
    ]  # fmt: skip
    report("Re-encoding under load", ["what", "figure"], rows, figures, options)


if __name__ == "__main__":
    main()
