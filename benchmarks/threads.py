"""How much faster do several threads insert than one, and is the graph as good?

An index for each number of threads takes the same rows, batch by batch and by turns, so that whatever else
the machine does disturbs all alike. Timed are the insertions; upkeep follows every batch, as in the service.
Afterwards the graphs are checked, and recall@10 is measured at equal ef.

*Faster* is the median over the batches of one thread's time over this one's, with the quartiles beside it: a
batch that had to share its cores is one of many. The machine must have a free core per thread.

    python benchmarks/threads.py --base sift128_base.npy --queries sift128_query.npy --limit 40000
"""

import argparse
import time
from typing import Any

import numpy as np
from driftline import OnlineIndex
from driftline.stream.feeding import progress_bar
from report import add_graph_flags, parser, report
from vectors import Vectors, kth_distances, load_vectors, recall

K = 10
BATCH = 512  # as many as the service applies at once
STEP_S = 0.02  # of upkeep, as in the service


def run(base: Vectors, queries: Vectors, threads: list[int], options: argparse.Namespace) -> list[Any]:
    """Figures of each number of threads."""
    indexes = [OnlineIndex(base.shape[1], "l2", options.m, options.ef_construction) for _ in threads]
    seconds = np.empty((len(threads), -(-len(base) // BATCH)))
    with progress_bar() as progress:
        for batch in progress.track(range(seconds.shape[1]), description="inserting"):
            rows = base[batch * BATCH : (batch + 1) * BATCH]
            keys = np.arange(len(rows)) + batch * BATCH
            for turn in np.roll(np.arange(len(threads)), batch):  # nobody always goes first
                began = time.perf_counter()
                indexes[turn].upsert(keys, rows, threads=threads[turn])
                seconds[turn, batch] = time.perf_counter() - began
                indexes[turn].maintain(STEP_S)
                indexes[turn].take_events()
    kth = kth_distances(base, queries, K)
    figures: list[Any] = []
    for index, count, took in zip(indexes, threads, seconds, strict=True):
        while index.maintain(STEP_S):
            pass
        index.check()
        low, middle, high = np.quantile(seconds[0] / took, [0.25, 0.5, 0.75])
        found: Any = index.search(queries, K, options.ef).keys
        figures.append(
            {
                "threads": count,
                "inserts_per_s": len(base) / took.sum(),
                "faster": middle,
                "quartiles": [low, high],
                "recall": recall(base, queries, kth, found, K),
            }
        )
    return figures


def main() -> None:
    flags = parser(__doc__, ask=1000)
    flags.add_argument("--threads", type=int, default=2, metavar="N", help="most (default: %(default)s)")
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    add_graph_flags(flags)
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.ask)
    figures = run(base, queries, list(range(1, options.threads + 1)), options)
    rows = [
        [
            str(of["threads"]),
            f"{of['inserts_per_s']:,.0f}",
            "{:.2f} ({:.2f}-{:.2f})".format(of["faster"], *of["quartiles"]),
            f"{of['recall']:.4f}",
        ]
        for of in figures
    ]
    title = f"{len(base):,} x {base.shape[1]}, batches of {BATCH}"
    header = ["threads", "inserts/s", "times as fast as one", f"recall@{K}, ef={options.ef}"]
    report(title, header, rows, {"threads": figures}, options)


if __name__ == "__main__":
    main()
