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
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from driftline.stream.feeding import progress_bar
from peers import Keys, Shape, Unavailable
from peers.measured import Changed, Data, K
from peers.process import Process
from report import add_graph_flags, parser, report
from vectors import kth_distances, recall

SYSTEMS = ("driftline", "hnswlib", "usearch-f16")
TURNS = 5  # measurements of speed, the two in turn
LEFT = 0.1  # live rows that are not deleted at the end
WAIT_S = 60.0  # for memory to come back


class Churn:
    """The systems, and what is live in each of them."""

    def __init__(self, names: list[str], shape: Shape, data: Data, *, ef: int, duplicates: float) -> None:
        self.shape, self.data, self.ef, self.duplicates = shape, data, ef, duplicates
        self.base, self.queries = data.load()
        self.live: Keys = np.arange(shape.rows)
        self.systems: dict[str, Process] = {}
        for name in names:
            try:
                self.systems[name] = Process(Changed, name, shape, data)
            except Unavailable as error:
                print(f"{name} is left out: {error}")

    def rows(self, keys: Keys) -> Keys:
        """Which row of the base each key has: keys count up for ever, rows come round again if they must."""
        rows = keys % len(self.base)
        rows[keys * 2654435761 % 2**32 < self.duplicates * 2**32] = 0  # spread evenly over the keys
        return rows

    def build(self) -> None:
        with progress_bar() as progress:
            for name, process in self.systems.items():
                bar = progress.add_task(f"building {name}", total=len(self.live), note="")

                def show(rows: int, bar: Any = bar) -> None:
                    progress.update(bar, completed=rows)

                process.call("upsert", self.live, self.rows(self.live), done=show)
                process.call("settle")

    def replace_oldest(self, count: int) -> dict[str, float]:
        """One round; changes per second, by system."""
        gone, new = self.live[:count], np.arange(count) + self.live[-1] + 1
        self.live = np.concatenate([self.live[count:], new])
        speeds: dict[str, float] = {}
        for name, process in self.systems.items():
            began = time.monotonic()
            process.call("delete", gone)
            process.call("upsert", new, self.rows(new))
            process.call("settle")
            speeds[name] = 2 * count / (time.monotonic() - began)
        return speeds

    def delete_at_random(self) -> dict[str, float]:
        """Most of it; how many seconds the upkeep takes, by system."""
        keep = np.random.default_rng(0).random(len(self.live)) < LEFT
        gone, self.live = self.live[~keep], self.live[keep]
        for process in self.systems.values():
            process.call("delete", gone)
        return {name: process.call("settle", WAIT_S) for name, process in self.systems.items()}

    def judge(self, processes: dict[str, Process]) -> dict[str, dict[str, float]]:
        """Recall, memory, and two things that must not happen, of processes that hold what is live."""
        rows = self.base[self.rows(self.live)]
        kth = kth_distances(rows, self.queries, K)
        place = {key: row for row, key in enumerate(self.live.tolist())}
        figures: dict[str, dict[str, float]] = {}
        for name, process in processes.items():
            answers = process.call("answers", self.ef)
            hits = [[place[key] for key in keys if key in place] for keys in answers]
            figures[name] = {
                "recall": recall(rows, self.queries, kth, hits, K),
                "bytes_per_row": process.call("memory").anonymous / len(self.live),
                "keys_twice": sum(len(keys) - len(set(keys)) for keys in answers),
                "keys_not_live": sum(key not in place for keys in answers for key in keys),
            }
        return figures

    def compare(self) -> dict[str, dict[str, Any]]:
        """Every system beside a fresh build of what is live."""
        figures: dict[str, dict[str, Any]] = {}
        for name, process in self.systems.items():
            fresh = Process(Changed, name, replace(self.shape, rows=len(self.live)), self.data)
            fresh.call("upsert", self.live, self.rows(self.live))
            fresh.call("settle")
            both = {"churned": process, "fresh": fresh}
            speeds: dict[str, list[float]] = {which: [] for which in both}
            for _ in range(TURNS):
                for which, asked in both.items():
                    speeds[which].append(asked.call("qps_batch", self.ef))
            figures[name] = {
                which: {**of, "qps_batch": median(speeds[which])} for which, of in self.judge(both).items()
            }
            fresh.close()
        return figures


def run(churn: Churn, options: argparse.Namespace) -> dict[str, Any]:
    """By system: figures of every round, and of every checkpoint."""
    figures: dict[str, Any] = {name: {"rounds": [], "checkpoints": []} for name in churn.systems}
    step = max(1, round(len(churn.live) * options.share))

    def checkpoint(number: int | str, more: dict[str, Any]) -> None:
        for name, of in churn.compare().items():
            figures[name]["checkpoints"].append({"round": number, **of, **more.get(name, {})})

    churn.build()
    checkpoint(0, {})
    with progress_bar() as progress:
        bar = progress.add_task("rounds", total=options.rounds, note="")
        for number in range(1, options.rounds + 1):
            speeds = churn.replace_oldest(step)
            judged = churn.judge(churn.systems) if number % options.every == 0 else {}
            for name, process in churn.systems.items():
                size = process.call("memory").anonymous / len(churn.live)
                entry = {"round": number, "changes_per_s": speeds[name], "bytes_per_row": size}
                figures[name]["rounds"].append({**entry, **judged.get(name, {})})
            if number % options.fresh_every == 0 or number == options.rounds:
                checkpoint(number, {})
            progress.advance(bar)
    for name, process in churn.systems.items():
        figures[name]["check"] = process.call("check")
    settled = churn.delete_at_random()
    checkpoint(f"{1 - LEFT:.0%} deleted", {name: {"settled_s": of} for name, of in settled.items()})
    return figures


def main() -> None:
    flags = parser(__doc__, ask=1000)
    flags.add_argument("--live", type=int, default=75_000, metavar="ROWS",
                       help="at most three quarters of them (default: %(default)s)")  # fmt: skip
    flags.add_argument("--share", type=float, default=0.05, help="replaced per round (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=60, help="(default: %(default)s)")
    flags.add_argument("--duplicates", type=float, default=0.0, metavar="SHARE",
                       help="so many rows are one and the same (default: %(default)s)")  # fmt: skip
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    flags.add_argument("--every", type=int, default=5, metavar="ROUNDS",
                       help="between recalls (default: %(default)s)")  # fmt: skip
    flags.add_argument("--fresh-every", type=int, default=20, metavar="ROUNDS",
                       help="between fresh builds (default: %(default)s)")  # fmt: skip
    add_graph_flags(flags)
    flags.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    flags.add_argument("--systems", default=",".join(SYSTEMS), help="(default: %(default)s)")
    options = flags.parse_args()
    data = Data(options.base, options.queries, options.limit, options.ask)
    base, _ = data.load()
    live = min(options.live, len(base) * 3 // 4)
    shape = Shape(base.shape[1], live, "l2", options.m, options.ef_construction, options.threads)
    churn = Churn(options.systems.split(","), shape, data, ef=options.ef, duplicates=options.duplicates)
    figures = run(churn, options)
    rows = []
    for name, of in figures.items():
        for at in of["checkpoints"]:
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
        speed = median(entry["changes_per_s"] for entry in of["rounds"])
        worst = min((entry["recall"] for entry in of["rounds"] if "recall" in entry), default=float("nan"))
        settled = of["checkpoints"][-1]["settled_s"]
        print(
            f"{name}: {speed:,.0f} changes/s, least recall {worst:.4f}, {of['check']}; "
            f"upkeep after the deletes {settled:.1f} s"
        )
    title = (
        f"{live:,} live x {shape.dim}, {options.share:.0%} replaced per round, "
        f"{options.duplicates:.0%} identical, ef={options.ef}"
    )
    header = ["", "round", "recall", "fresh", "QPS", "x fresh", "bytes/row", "fresh"]
    report(title, header, rows, figures, options)


if __name__ == "__main__":
    main()
