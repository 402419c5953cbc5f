"""Does the recall canary tell the truth, and what does it cost?

The recall@10 of every query is measured once at each ef, against a pass over all raw vectors; their mean is
the truth. Then 400 windows of 200 queries are drawn from them (with replacement), and each window's interval
is made as the canary makes it, from the pass over codes: how many hold the truth (nominal 95 %), and how wide
are they? Student's interval stands beside it.

Then the canary itself runs in a thread beside another that searches without pause and offers it every query;
rounds with and without it take turns. Its CPU share is all that its thread computed, over the time that
passed.

    python benchmarks/canary.py --base sift128_base.npy --queries sift128_query.npy
"""

import threading
import time
from typing import Any

import numpy as np
from driftline import OnlineIndex
from driftline.index.canary import Canary, CanarySettings, Z, interval
from driftline.index.events import CanaryWindow
from report import machine, milliseconds, parser, show, write
from vectors import Vectors, load_vectors

WINDOWS, SAMPLE, K = 400, 200, 10
BATCH = 1000
POLL_S = 0.05  # between looks at whether the canary is due
ROUND_S = 5.0
ROUNDS = {False: "without", True: "with"}


def build(base: Vectors, threads: int) -> OnlineIndex:
    index = OnlineIndex(base.shape[1])
    for start in range(0, len(base), BATCH):
        index.upsert(
            np.arange(start, min(start + BATCH, len(base))), base[start : start + BATCH], threads=threads
        )
        index.maintain(0.1)
    while index.maintain(1):
        pass
    return index


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> tuple[float, float]:
    """The share of intervals that hold the truth, and their median width."""
    return float(((low <= truth) & (truth <= high)).mean()), float(np.median(high - low))


def at(index: OnlineIndex, queries: Vectors, ef: int, rng: np.random.Generator) -> dict[str, Any]:
    witnessed = index.witness(queries, K, ef, raw=True)
    recalls, true = witnessed.recalls(), witnessed.recalls(exact=True)
    windows = rng.choice(recalls, (WINDOWS, min(SAMPLE, len(recalls))))
    low, high = np.array([interval(window) for window in windows]).T
    coverage, width = covered(low, high, float(true.mean()))
    half = Z * windows.std(axis=1, ddof=1) / np.sqrt(windows.shape[1])
    mean = windows.mean(axis=1)
    plain_coverage, plain_width = covered(mean - half, mean + half, float(true.mean()))
    return {
        "ef": ef, "recall": float(true.mean()), "by_codes": float(recalls.mean()),
        "queries_that_differ": int((recalls != true).sum()), "coverage": coverage, "width": width,
        "student_coverage": plain_coverage, "student_width": plain_width,
    }  # fmt: skip


class Checking(threading.Thread):
    """The canary in its thread, as the service runs it."""

    def __init__(self, index: OnlineIndex, canary: Canary, ef: int) -> None:
        super().__init__()
        self.index, self.canary, self.ef = index, canary, ef
        self.stop = threading.Event()
        self.windows: list[CanaryWindow] = []
        self.cpu_s = 0.0

    def run(self) -> None:
        while not self.stop.wait(POLL_S):
            if window := self.canary.step(self.index, self.ef):
                self.windows.append(window)
        self.cpu_s = time.thread_time()


def live(index: OnlineIndex, queries: Vectors, ef: int, budget: float, rounds: int) -> dict[str, Any]:
    """Searches one by one, in rounds of ROUND_S without the canary, whose clock stands still, and with it."""
    passed = began = 0.0
    settings = CanarySettings(sample=min(SAMPLE, len(queries)), k=K, budget=budget, every_seconds=0)
    canary = Canary(settings, clock=lambda: passed + time.perf_counter() - began)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    windows: list[CanaryWindow] = []
    cpu_s = 0.0
    number = 0
    for checking in (False, True) * rounds:
        thread = Checking(index, canary, ef)
        began = time.perf_counter()
        if checking:
            thread.start()
        while time.perf_counter() - began < ROUND_S:
            query = queries[number % len(queries)]
            number += 1
            start = time.perf_counter()
            index.search(query[None], K, ef)
            if checking:
                canary.offer(query)
            seconds[checking].append(time.perf_counter() - start)
        if checking:
            thread.stop.set()
            thread.join()
            windows += thread.windows
            cpu_s += thread.cpu_s
            passed += time.perf_counter() - began
    covered_s = max(passed, canary.free_at)  # what the last batch took is spread over the wait that follows
    return {
        "ef": ef, "budget": budget, "seconds": covered_s, "cpu_share": cpu_s / covered_s,
        "windows": len(windows),
        "window_recalls": [(w.recall, w.low, w.high, w.raw_recall, w.cpu_share) for w in windows],
        "searches_per_s": {ROUNDS[on]: len(took) / sum(took) for on, took in seconds.items()},
        "latency": {ROUNDS[on]: milliseconds(took) for on, took in seconds.items()},
    }  # fmt: skip


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--ef", type=int, nargs="+", default=[16, 24, 32, 64, 128], help="(default: %(default)s)"
    )
    flags.add_argument("--live-ef", type=int, default=64, help="of the searches beside the canary")
    flags.add_argument(
        "--budget", type=float, default=CanarySettings().budget, help="share of a core (default: %(default)s)"
    )
    flags.add_argument("--rounds", type=int, default=6, help=f"of {ROUND_S:g} s, without and with the canary")
    flags.add_argument("--threads", type=int, default=1, help="that build the index")
    flags.add_argument("--seed", type=int, default=0, help="of the windows drawn")
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries)
    index = build(base, options.threads)
    rng = np.random.default_rng(options.seed)
    intervals = [at(index, queries, ef, rng) for ef in options.ef]
    show(
        f"recall@{K} of {len(queries):,} queries over {len(base):,} x {base.shape[1]}; "
        f"{WINDOWS} windows of {min(SAMPLE, len(queries))}, nominal 95 %",
        ["ef", "recall", "by codes", "queries that differ", "coverage", "median width", "Student", "width"],
        [[str(one["ef"]), *list(one.values())[1:]] for one in intervals],
    )
    beside = live(index, queries, options.live_ef, options.budget, options.rounds)
    show(
        f"beside searches at ef {beside['ef']}, budget {beside['budget']:.0%} of a core",
        ["", "searches/s", "median ms", "p99 ms"],
        [
            [name, beside["searches_per_s"][name], *list(beside["latency"][name].values())[:2]]
            for name in ROUNDS.values()
        ],
    )
    print(f"{beside['windows']} windows in {beside['seconds']:.0f} s; CPU share {beside['cpu_share']:.2%}")
    write({"flags": vars(options), "machine": machine(), "intervals": intervals, "live": beside}, options)


if __name__ == "__main__":
    main()
