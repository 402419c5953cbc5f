"""How do speed and cost grow with the number of rows?

Each system builds the first 1/30, 1/10, 1/3 and all of the rows, each in a process of its own; all are then
measured in turn. QPS at recall 0.95 (one call per query, and one for all), inserts per second while building,
and the exponent e of a fit by rate ~ rows^e: 0 is a rate that size does not touch, -1 one that halves when
the rows double.

    python benchmarks/growth.py --base sift128_base.npy --queries sift128_query.npy
"""

import argparse
from statistics import median
from typing import Any

import numpy as np
from driftline.stream.feeding import progress_bar
from peers import Shape, Unavailable
from peers.measured import GRID, Built, Data, K, at_recall
from peers.process import Process
from report import add_graph_flags, parser, report
from vectors import kth_distances, recall

SYSTEMS = ("driftline", "hnswlib")
PARTS = (30, 10, 3, 1)
RECALL = 0.95
BEYOND = 0.97  # a recall at which the curve need not be followed further


def measure(name: str, sizes: list[int], options: argparse.Namespace) -> list[dict[str, float]]:
    """Of one system, by size. Raises Unavailable."""
    built: list[tuple[Process, dict[int, float]]] = []
    figures: list[dict[str, float]] = []
    with progress_bar() as progress:
        for size in sizes:
            data = Data(options.base, options.queries, size, options.ask)
            base, queries = data.load()
            shape = Shape(base.shape[1], size, "l2", options.m, options.ef_construction, options.threads)
            bar = progress.add_task(f"{name}, {size:,} rows", total=size, note="")
            process = Process(Built, name, shape, data, threads=options.threads)
            seconds, added = process.call(
                "build", done=lambda rows, bar=bar: progress.update(bar, completed=rows)
            )
            kth = kth_distances(base, queries, K)
            recalls: dict[int, float] = {}
            for ef in GRID:
                recalls[ef] = recall(base, queries, kth, process.call("answers", ef), K)
                if recalls[ef] >= BEYOND:
                    break
            built.append((process, recalls))
            figures.append(
                {"rows": size, "inserts_per_s": size / seconds, "bytes_per_row": added.anonymous / size}
            )
        for kind in ("qps", "qps_batch"):
            rates: list[list[float | None]] = [[] for _ in sizes]
            for _ in progress.track(range(options.rounds), description=f"{name}, {kind}"):
                for (process, recalls), of in zip(built, rates, strict=True):
                    of.append(at_recall([(at, process.call(kind, ef)) for ef, at in recalls.items()], RECALL))
            for entry, of in zip(figures, rates, strict=True):
                entry[kind] = float("nan") if None in of else median(of)
    for process, _ in built:
        process.close()
    return figures


def exponent(figures: list[dict[str, float]], what: str) -> float:
    """Slope of the logarithm of a rate over that of the rows, by least squares."""
    return float(np.polyfit(*(np.log([of[name] for of in figures]) for name in ("rows", what)), 1)[0])


def main() -> None:
    flags = parser(__doc__, ask=1000)
    flags.add_argument("--sizes", metavar="ROWS,...", help="(default: 1/30, 1/10, 1/3 and all of the rows)")
    flags.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    add_graph_flags(flags)
    flags.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    flags.add_argument("--systems", default=",".join(SYSTEMS), help="(default: %(default)s)")
    options = flags.parse_args()
    base, _ = Data(options.base, options.queries, options.limit, options.ask).load()
    sizes = (
        [int(size) for size in options.sizes.split(",")] if options.sizes else [len(base) // p for p in PARTS]
    )
    kinds = ("qps", "qps_batch", "inserts_per_s")
    figures: dict[str, Any] = {}
    rows = []
    for name in options.systems.split(","):
        try:
            by_size = measure(name, sizes, options)
        except Unavailable as error:
            print(f"{name} is left out: {error}")
            continue
        exponents = {kind: exponent(by_size, kind) for kind in kinds}
        figures[name] = {"sizes": by_size, "exponents": exponents}
        for of in by_size:
            rows.append([name, f"{of['rows']:,}", *(f"{of[kind]:,.0f}" for kind in kinds)])
        rows.append([name, "exponent", *(f"{exponents[kind]:.2f}" for kind in kinds)])
    title = f"{base.shape[1]} dimensions, rates at recall@{K} {RECALL}"
    header = ["", "rows", "QPS, one by one", "QPS, batch", "inserts/s"]
    report(title, header, rows, figures, options)


if __name__ == "__main__":
    main()
