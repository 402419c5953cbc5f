"""What does a snapshot cost: bytes, seconds, a pause of the writer, memory, slower searches; and a restart?

The rows of --base, as often as --rows needs them and each time with other noise, are built and snapshotted
whole, raw vectors too, with nothing beside. Then, --rounds times: --share of them, drawn at random, are
replaced by other noise, upkeep runs till it has nothing to do, and what the next snapshot writes is compared
with the first: its chunks, and the raw vectors that were appended for it. Then searches and updates run at a
fixed rate, open loop, first alone and then beside snapshots of all of it, one after the other (cuts that know
of no earlier one: the worst), with upkeep in steps as in the service. The pause is what the thread that
writes spends in the cut; memory is anonymous memory above its median before. At last a process of its own
opens the directory, verifies the newest snapshot, restores it and answers a search.

--directory keeps what was built, and takes it from there the next time.
"""

import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from driftline.index.cut import Cut
from driftline.index.online import OnlineIndex
from driftline.snapshots.store import SnapshotStore
from driftline.stream.feeding import progress_bar
from memory import anonymous
from report import milliseconds, parser, report
from vectors import Vectors, load_vectors

BATCH = 512  # as many as the service applies at once
STEP_S, IDLE_S = 0.02, 0.1  # of upkeep, as in the service
K, EF = 10, 64
NOISE = 0.3  # of a component, in standard deviations of all
LOOK_S = 0.002
HASH_BYTES = 16  # beside each raw vector


class Rows:
    """As many rows as wanted from a few: noise makes each another."""

    def __init__(self, base: Vectors, seed: list[int]) -> None:
        self._base = base
        self._noise = NOISE * float(base[:1000].std())
        self._rng = np.random.default_rng(seed)

    def __call__(self, keys: np.ndarray) -> Vectors:
        few = self._base[keys % len(self._base)]
        return few + self._noise * self._rng.standard_normal(few.shape, np.float32)


def settle(index: OnlineIndex) -> None:
    while index.maintain(1.0):
        index.take_events()


def build(store: SnapshotStore, rows: Rows, dim: int, flags: Any) -> tuple[OnlineIndex, dict[str, Any]]:
    """The index, and what a whole snapshot of it costs; of one that was kept, without its raw vectors."""
    snapshot = store.newest()
    if snapshot is not None:
        index = OnlineIndex.restore(snapshot.cut, store.open_raw())
        return index, timed(store, index, whole=True)
    raw = store.open_raw(dim)
    index = OnlineIndex(dim, m=flags.m, ef_construction=flags.ef_construction, raw=raw, sources=True)
    with progress_bar() as progress:
        bar = progress.add_task("building", total=flags.rows, note="")
        for first in range(0, flags.rows, BATCH):
            keys = np.arange(first, min(first + BATCH, flags.rows))
            index.upsert(keys, rows(keys), threads=flags.threads, sources=sources_of(keys))
            index.maintain(STEP_S)
            index.take_events()
            progress.update(bar, completed=int(keys[-1]) + 1)
    settle(index)
    return index, timed(store, index, whole=True)


def sources_of(keys: np.ndarray) -> np.ndarray:
    stamp = time.time_ns() // 1_000_000
    return np.stack([keys.astype(np.uint64), np.full(len(keys), stamp, np.uint64)], axis=1)


def appended(store: SnapshotStore) -> int:
    return sum(store.open_raw().high_water().values())


def timed(store: SnapshotStore, index: OnlineIndex, *, whole: bool = False) -> dict[str, Any]:
    """One snapshot with nothing beside."""
    began, processor = time.monotonic(), time.process_time()
    cut = index.cut({} if whole else store.known())
    cut_s = time.monotonic() - began
    info = store.commit(cut, {})
    took, processor = time.monotonic() - began, time.process_time() - processor
    return {"cut_s": cut_s, "seconds": took, "processor_s": processor, "chunk_bytes": info.bytes_written}


def deltas(store: SnapshotStore, index: OnlineIndex, full: dict[str, Any], rows: Rows, flags: Any) -> Any:
    """What follows on updates at random, beside the whole."""
    row_bytes = 4 * index.dim + HASH_BYTES
    full["bytes"] = full["chunk_bytes"] + len(index) * row_bytes
    rng = np.random.default_rng(flags.seed)
    rounds: list[dict[str, Any]] = []
    with progress_bar() as progress:
        for _ in progress.track(range(flags.rounds), description="updating"):
            before = appended(store)
            keys = rng.choice(flags.rows, round(flags.share * flags.rows), replace=False)
            for first in range(0, len(keys), BATCH):
                part = keys[first : first + BATCH]
                index.upsert(part, rows(part), sources=sources_of(part))
            settle(index)
            found = timed(store, index)
            found["bytes"] = found["chunk_bytes"] + (appended(store) - before) * row_bytes
            rounds.append(found)
    return {
        "full": full,
        "rounds": rounds,
        "bytes_share": [found["bytes"] / full["bytes"] for found in rounds],
        "seconds_share": [found["seconds"] / full["seconds"] for found in rounds],
        "processor_share": [found["processor_s"] / full["processor_s"] for found in rounds],
    }


# ---- beside searches and updates


@contextmanager
def running(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each in a thread of its own, until the block ends; what one of them raised is raised then."""
    stop, failures = threading.Event(), list[BaseException]()

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(stop)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def at_rate(per_s: float, work: Callable[[], None], times: list[float]) -> Callable[[threading.Event], None]:
    """Open loop: each call is due at its time, and its latency counts from then."""

    def run(stop: threading.Event) -> None:
        due = time.monotonic()
        while not stop.is_set():
            due += 1 / per_s
            stop.wait(max(0.0, due - time.monotonic()))
            work()
            times.append(time.monotonic() - due)

    return run


class Load:
    """Searches and updates at a rate; cuts are taken by the thread that writes."""

    def __init__(self, index: OnlineIndex, rows: Rows, queries: Vectors, flags: Any) -> None:
        self.index, self.rows, self.queries, self.flags = index, rows, queries, flags
        self.searches: list[float] = []
        self.writes: list[float] = []
        self.pauses: list[float] = []
        self.processor: list[float] = []  # of the pauses
        self.memory: list[int] = []
        self._rng = np.random.default_rng(flags.seed + 1)
        self._wanted = threading.Event()
        self._cut: list[Cut] = []
        self._taken = threading.Event()

    def search(self) -> None:
        at = int(self._rng.integers(len(self.queries)))
        self.index.search(self.queries[at : at + 1], K, EF)

    def write(self) -> None:
        if self._wanted.is_set():
            self._wanted.clear()
            began, processor = time.monotonic(), time.thread_time()
            self._cut.append(self.index.cut())
            self.pauses.append(time.monotonic() - began)
            self.processor.append(time.thread_time() - processor)
            self._taken.set()
        keys = self._rng.choice(self.flags.rows, self.flags.batch, replace=False)
        self.index.upsert(keys, self.rows(keys), sources=sources_of(keys))

    def cut(self) -> Cut:
        """One that the writing thread takes."""
        self._taken.clear()
        self._wanted.set()
        self._taken.wait()
        return self._cut.pop()

    def keep_up(self, stop: threading.Event) -> None:
        while not stop.is_set():
            more = self.index.maintain(STEP_S)
            self.index.take_events()
            stop.wait(0 if more else IDLE_S)

    def look(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_S):
            self.memory.append(anonymous())

    def during(self, work: Callable[[], None]) -> dict[str, Any]:
        for times in (self.searches, self.writes, self.memory, self.pauses, self.processor):
            times.clear()
        writer = at_rate(self.flags.writes / self.flags.batch, self.write, self.writes)
        with running(at_rate(self.flags.asked, self.search, self.searches), writer, self.keep_up, self.look):
            work()
        return {
            "searches": milliseconds(self.searches),
            "writes": milliseconds(self.writes),
            "pauses_ms": [round(1e3 * pause, 2) for pause in self.pauses],
            "pauses_processor_ms": [round(1e3 * pause, 2) for pause in self.processor],
            "memory_median": float(np.median(self.memory)),
            "memory_most": max(self.memory),
        }


def beside(store: SnapshotStore, index: OnlineIndex, rows: Rows, queries: Vectors, flags: Any) -> Any:
    load = Load(index, rows, queries, flags)
    before = load.during(lambda: time.sleep(flags.seconds))
    took: list[float] = []

    def snapshots() -> None:
        end = time.monotonic() + flags.seconds
        while time.monotonic() < end or not took:
            began = time.monotonic()
            store.commit(load.cut(), {})
            took.append(time.monotonic() - began)

    during = load.during(snapshots)
    index.check()
    return {
        "before": before,
        "during": during,
        "snapshots_s": took,
        "p99_ratio": during["searches"]["p99_ms"] / before["searches"]["p99_ms"],
        "memory_share": (during["memory_most"] - before["memory_median"]) / before["memory_median"],
        "memory_share_idle": (before["memory_most"] - before["memory_median"]) / before["memory_median"],
    }


def restart(directory: str, query: Vectors, began: float, pipe: Connection) -> None:
    """In a process of its own, whose start and imports count from `began`."""
    opened = time.monotonic()
    with SnapshotStore.open(directory, dim=None, metric="l2") as store:
        snapshot = store.newest()
        assert snapshot is not None
        verified = time.monotonic()
        index = OnlineIndex.restore(snapshot.cut, store.open_raw())
        index.search(query, K, EF)
        ready = time.monotonic()
        pipe.send({"process_s": opened - began, "verify_s": verified - opened, "restore_s": ready - verified,
                   "ready_s": ready - opened, "live": len(index)})  # fmt: skip


def restarted(directory: str, query: Vectors, times: int) -> list[dict[str, float]]:
    spawn = multiprocessing.get_context("spawn")
    found: list[dict[str, float]] = []
    for _ in range(times):
        here, there = spawn.Pipe()
        child = spawn.Process(target=restart, args=(directory, query, time.monotonic(), there))
        child.start()
        found.append(here.recv())
        child.join()
    return found


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=20_000, help="(default: %(default)s)")
    flags.add_argument("--dim", type=int, metavar="D", help="use only so many components")
    flags.add_argument("--share", type=float, default=0.01, help="updated a round (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=10.0, metavar="S",
                       help="of load, alone and beside snapshots (default: %(default)s)")  # fmt: skip
    flags.add_argument("--asked", type=float, default=200, metavar="N",
                       help="searches a second (default: %(default)s)")  # fmt: skip
    flags.add_argument("--writes", type=float, default=500, metavar="N",
                       help="updates a second (default: %(default)s)")  # fmt: skip
    flags.add_argument("--batch", type=int, default=50, help="updates a call (default: %(default)s)")
    flags.add_argument("--threads", type=int, default=2, help="that build the index (default: %(default)s)")
    flags.add_argument("--m", type=int, default=16, help="links per node (default: %(default)s)")
    flags.add_argument("--ef-construction", type=int, default=200, help="(default: %(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    flags.add_argument("--directory", metavar="DIR", help="to keep, or to take what was built from")
    options = flags.parse_args()
    base = load_vectors(options.base, options.limit, options.dim)
    queries = load_vectors(options.queries, dim=options.dim)
    place = options.directory or tempfile.mkdtemp(prefix="driftline-benchmark-")
    try:
        with SnapshotStore.open(place, dim=base.shape[1], metric="l2", keep=2) as store:
            run = max((info.id for info in store.list()), default=0)  # other noise than the last time
            rows = Rows(base, [options.seed, run])
            index, full = build(store, rows, base.shape[1], options)
            figures: dict[str, Any] = deltas(store, index, full, rows, options)
            figures |= beside(store, index, rows, queries, options)
            figures["stats_bytes"] = index.stats().bytes
            store.commit(index.cut(store.known()), {})
            del index
        figures["restarts"] = restarted(place, queries[:1], 3)
    finally:
        if options.directory is None:
            shutil.rmtree(place)
    show(figures, base.shape[1], options)


def show(figures: dict[str, Any], dim: int, options: Any) -> None:
    full, during, before = figures["full"], figures["during"], figures["before"]
    restarts = [found["ready_s"] for found in figures["restarts"]]
    rows: list[list[object]] = [
        ["whole snapshot", f"{full['bytes'] / 1e6:,.1f} MB in {full['seconds']:.2f} s", ""],
        ["bytes after updates", shares(figures["bytes_share"]), "5 %"],
        ["seconds after updates", shares(figures["seconds_share"]), "10 %"],
        ["processor time after updates", shares(figures["processor_share"]), ""],
        ["longest pause", f"{max(during['pauses_ms']):.1f} ms of {len(during['pauses_ms'])}", "50 ms"],
        ["its processor time", f"{max(during['pauses_processor_ms']):.1f} ms", ""],
        [
            "p99 of writes",
            f"{before['writes']['p99_ms']} ms, {during['writes']['p99_ms']} beside",
            "",
        ],
        [
            "extra memory",
            f"{figures['memory_share']:.1%} {figures['memory_share_idle']:.1%} alone",
            "15 %",
        ],
        ["p99 of searches", f"{before['searches']['p99_ms']} ms, {during['searches']['p99_ms']} beside", ""],
        ["its ratio", f"{figures['p99_ratio']:.2f}", "1.5"],
        ["restart", ", ".join(f"{ready:.2f} s" for ready in restarts), "3 s"],
    ]
    title = f"snapshots of {options.rows:,} x {dim}, {options.share:.1%} updated"
    report(title, ["", "seen", "at most"], rows, figures, options)


def shares(values: list[float]) -> str:
    return ", ".join(f"{value:.1%}" for value in values)


if __name__ == "__main__":
    main()
