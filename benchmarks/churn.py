"""Does an index stay as good, as fast and as small while its rows are replaced?

Rows are live in the order of the base; in every round the oldest are deleted and as many that were not used
yet are inserted under new keys. At checkpoints the same live rows are built afresh in another process, and
both are measured in turn: recall@10 at one ef, queries per second (one call for all), anonymous memory. At
the end every node must be reachable (driftline's own check); then 90 % are deleted at random, and memory
after at most a minute of upkeep stands beside that of a fresh build.

    python benchmarks/churn.py --base sift128_base.npy --queries sift128_query.npy
    python benchmarks/churn.py --base sift128_base.npy --queries sift128_query.npy --duplicates 0.2
"""

import argparse
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from driftline.stream.feeding import progress_bar
from peers import Keys, Shape, Unavailable, Vectors
from peers.measured import K, Measured
from peers.process import Process
from report import parser, report
from vectors import kth_distances, load_vectors, recall

SYSTEMS = ("driftline", "hnswlib", "usearch-f16")
TURNS = 5  # measurements of speed, the two in turn
PIECE = 1000  # rows written between two steps of the progress bar
LEFT = 0.1  # live rows that are not deleted at the end
WAIT_S = 60.0  # for memory to come back


@dataclass(frozen=True, slots=True)
class Data:
    """Which vector a key has. Keys count up for ever; rows come round again if the base is short."""

    base: str
    queries: str
    limit: int | None
    ask: int
    duplicates: float

    def load(self) -> tuple[Vectors, Vectors]:
        return load_vectors(self.base, self.limit), load_vectors(self.queries, self.ask)

    def rows(self, base: Vectors, keys: Keys) -> Vectors:
        rows = keys % len(base)
        rows[keys * 2654435761 % 2**32 < self.duplicates * 2**32] = 0  # spread evenly over the keys
        return base[rows]


class Churned(Measured):
    """In the child: one system whose rows change."""

    def __init__(self, name: str, data: Data, shape: Shape) -> None:
        self.data = data
        self.base, queries = data.load()
        super().__init__(name, shape, self.base, queries, changing=True)

    def upsert(self, keys: Keys) -> Generator[int]:
        for first in range(0, len(keys), PIECE):
            piece = keys[first : first + PIECE]
            self.system.upsert(piece, self.data.rows(self.base, piece))
            yield first + len(piece)
        self.system.settle()

    def delete(self, keys: Keys) -> None:
        self.system.delete(keys)

    def settle(self, limit_s: float) -> float:
        """Upkeep until none is left or the time is up; how many seconds that takes."""
        began = time.monotonic()
        self.system.settle(limit_s)
        return time.monotonic() - began

    def check(self) -> str:
        check = getattr(self.system, "check", None)
        if check is None:
            return "-"
        try:
            check()
        except Exception as error:
            return str(error)
        return "all reachable"


class Churn:
    """In the parent: the systems, and what is live."""

    def __init__(self, data: Data, shape: Shape, ef: int, systems: dict[str, Process]) -> None:
        self.data, self.shape, self.ef, self.systems = data, shape, ef, systems
        self.base, self.queries = data.load()
        self.live: Keys = np.arange(shape.rows)

    def truth(self) -> Any:
        """What recall is measured by: the live rows, and each query's distance to its tenth."""
        rows = self.data.rows(self.base, self.live)
        return rows, kth_distances(rows, self.queries, K)

    def compare(self, name: str, truth: Any) -> dict[str, dict[str, float]]:
        """The system beside a fresh build of what is live."""
        fresh = Process(Churned, name, self.data, replace(self.shape, rows=len(self.live)))
        fresh.call("upsert", self.live)
        both = {"churned": self.systems[name], "fresh": fresh}
        rows, kth = truth
        place = {key: row for row, key in enumerate(self.live.tolist())}
        figures: dict[str, dict[str, float]] = {}
        speeds: dict[str, list[float]] = {which: [] for which in both}
        for _ in range(TURNS):
            for which, process in both.items():
                speeds[which].append(process.call("qps_batch", self.ef))
        for which, process in both.items():
            answers = process.call("answers", self.ef)
            twice = sum(len(hits) - len(set(hits)) for hits in answers)
            strange = sum(key not in place for hits in answers for key in hits)
            hits = [[place[key] for key in hits if key in place] for hits in answers]
            figures[which] = {
                "recall": recall(rows, self.queries, kth, hits, K),
                "qps_batch": median(speeds[which]),
                "bytes_per_row": process.call("memory").anonymous / len(self.live),
                "keys_twice": twice,
                "keys_not_live": strange,
            }
        fresh.close()
        return figures


def start(names: list[str], data: Data, shape: Shape) -> dict[str, Process]:
    systems: dict[str, Process] = {}
    for name in names:
        try:
            systems[name] = Process(Churned, name, data, shape)
        except Unavailable as error:
            print(f"{name} is left out: {error}")
    return systems


def run(churn: Churn, options: argparse.Namespace) -> dict[str, Any]:
    """By system: figures of every round, and of every checkpoint."""
    figures: dict[str, Any] = {name: {"rounds": [], "checkpoints": []} for name in churn.systems}
    step = max(1, round(len(churn.live) * options.share))

    def checkpoint(number: int) -> None:
        truth = churn.truth()
        for name in churn.systems:
            figures[name]["checkpoints"].append({"round": number, **churn.compare(name, truth)})

    with progress_bar() as progress:
        for name, process in churn.systems.items():
            bar = progress.add_task(f"building {name}", total=len(churn.live), note="")
            process.call(
                "upsert", churn.live, done=lambda rows, bar=bar: progress.update(bar, completed=rows)
            )
        bar = progress.add_task("rounds", total=options.rounds, note="")
        checkpoint(0)
        for number in range(1, options.rounds + 1):
            gone, new = churn.live[:step], np.arange(churn.live[-1] + 1, churn.live[-1] + 1 + step)
            churn.live = np.concatenate([churn.live[step:], new])
            measured = number % options.every == 0 or number == options.rounds
            rows, kth = churn.truth() if measured else (None, None)
            for name, process in churn.systems.items():
                began = time.monotonic()
                process.call("delete", gone)
                process.call("upsert", new)
                entry: dict[str, Any] = {
                    "round": number,
                    "changes_per_s": 2 * step / (time.monotonic() - began),
                }
                entry["bytes_per_row"] = process.call("memory").anonymous / len(churn.live)
                if measured:
                    first = churn.live[0]
                    hits = [[key - first for key in keys if key >= first]
                            for keys in process.call("answers", churn.ef)]  # fmt: skip
                    entry["recall"] = recall(rows, churn.queries, kth, hits, K)
                figures[name]["rounds"].append(entry)
            if number % options.fresh_every == 0 or number == options.rounds:
                checkpoint(number)
            progress.advance(bar)
    return figures


def shrink(churn: Churn) -> dict[str, Any]:
    """Delete most of it, and see how much memory is left."""
    keep = np.random.default_rng(0).random(len(churn.live)) < LEFT
    gone, churn.live = churn.live[~keep], churn.live[keep]
    truth = churn.truth()
    figures: dict[str, Any] = {}
    for name, process in churn.systems.items():
        process.call("delete", gone)
        seconds = process.call("settle", WAIT_S)
        figures[name] = {"settled_s": seconds, **churn.compare(name, truth)}
    return figures


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--live", type=int, default=75_000, help="at most 3/4 of them (default: %(default)s)")
    flags.add_argument("--share", type=float, default=0.05, help="replaced per round (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=60, help="(default: %(default)s)")
    flags.add_argument("--duplicates", type=float, default=0.0, help="share of identical rows")
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    flags.add_argument("--every", type=int, default=5, help="rounds (default: %(default)s)")
    flags.add_argument("--fresh-every", type=int, default=20, help="rounds (default: %(default)s)")
    flags.add_argument("--ask", type=int, default=1000, metavar="N", help="queries (default: %(default)s)")
    flags.add_argument("--m", type=int, default=16, help="links per node (default: %(default)s)")
    flags.add_argument("--ef-construction", type=int, default=200, help="(default: %(default)s)")
    flags.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    flags.add_argument("--systems", default=",".join(SYSTEMS), help="(default: %(default)s)")
    options = flags.parse_args()
    data = Data(options.base, options.queries, options.limit, options.ask, options.duplicates)
    base, _ = data.load()
    live = min(options.live, len(base) * 3 // 4)
    shape = Shape(base.shape[1], live, "l2", options.m, options.ef_construction, options.threads)
    churn = Churn(data, shape, options.ef, start(options.systems.split(","), data, shape))
    figures = run(churn, options)
    checks = {name: process.call("check") for name, process in churn.systems.items()}
    left = shrink(churn)
    rows = []
    for name, of in figures.items():
        of |= {"check": checks[name], "shrunk": left[name]}
        for at in [*of["checkpoints"], {"round": f"{1 - LEFT:.0%} deleted", **left[name]}]:
            one, other = at["churned"], at["fresh"]
            rows.append(
                [
                    name,
                    at["round"],
                    f"{one['recall']:.4f}",
                    f"{other['recall']:.4f}",
                    f"{one['qps_batch']:,.0f}",
                    f"{one['qps_batch'] / other['qps_batch']:.2f}",
                    f"{one['bytes_per_row']:,.0f}",
                    f"{other['bytes_per_row']:,.0f}",
                ]
            )
    title = (
        f"{live:,} live x {shape.dim}, {options.share:.0%} replaced per round, "
        f"{options.duplicates:.0%} identical, ef={options.ef}"
    )
    header = ["", "round", "recall", "fresh", "QPS", "x fresh", "bytes/row", "fresh"]
    for name, of in figures.items():
        speeds = [entry["changes_per_s"] for entry in of["rounds"]]
        worst = min(entry["recall"] for entry in of["rounds"] if "recall" in entry)
        print(f"{name}: {median(speeds):,.0f} changes/s, least recall {worst:.4f}, {of['check']}; "
              f"settled {of['shrunk']['settled_s']:.1f} s after the deletes")  # fmt: skip
    report(title, header, rows, figures, options)


if __name__ == "__main__":
    main()
