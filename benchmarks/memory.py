"""How much memory does a vector take in the running index, beside hnswlib's?

Each system builds the same vectors with the same M and ef_construction in a process of its own, with one
thread, in the file's order. Counted is anonymous memory (RssAnon: the heap, not files and not code) when it
is built, less what the process had before. driftline is as its service runs it: ids as byte strings, upkeep
after every batch, raw vectors in files. Recall@10 stands beside it, so that nobody is small by being wrong.
"""

import ctypes
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from driftline.stream.feeding import progress_bar
from report import add_graph_flags, parser, report
from vectors import Vectors, kth_distances, load_vectors, open_vectors, recall

K, EF = 10, 64
BATCH = 512  # as many as the service applies at once
STEP_S = 0.02  # of upkeep, as in the service
ASK = 500

Add = Callable[[int, Vectors], None]  # first row number, rows
Ask = Callable[[Vectors], list[list[int]]]


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def driftline(dim: int, rows: int, m: int, ef_construction: int) -> tuple[Add, Callable[[], None], Ask]:
    from driftline.index.online import OnlineIndex
    from driftline.snapshots.segments import FileRawVectors

    directory = tempfile.TemporaryDirectory(prefix="driftline-benchmark-")
    index = OnlineIndex(dim, "l2", m, ef_construction, raw=FileRawVectors(directory.name, dim, {}))

    def add(first: int, batch: Vectors) -> None:
        index.upsert([b"%d" % row for row in range(first, first + len(batch))], batch)
        index.maintain(STEP_S)
        index.take_events()

    def finish() -> None:
        while index.maintain(STEP_S):
            index.take_events()

    def ask(queries: Vectors) -> list[list[int]]:
        answers = [[int(key) for key in keys] for keys in index.search(queries, K, EF).keys]
        directory.cleanup()
        return answers

    return add, finish, ask


def hnswlib(dim: int, rows: int, m: int, ef_construction: int) -> tuple[Add, Callable[[], None], Ask]:
    import hnswlib

    index = hnswlib.Index("l2", dim)
    index.init_index(rows, M=m, ef_construction=ef_construction, random_seed=0)
    index.set_num_threads(1)
    index.set_ef(EF)

    def add(first: int, batch: Vectors) -> None:
        index.add_items(batch, np.arange(first, first + len(batch)))

    return add, lambda: None, lambda queries: index.knn_query(queries, K)[0].tolist()


SYSTEMS = {"driftline": driftline, "hnswlib": hnswlib}


def build(system: str, flags: Any, queries: Vectors, pipe: Connection) -> None:
    """In the child: sends rows done as numbers, then the figures and the rows of the answers."""
    base = open_vectors(flags.base)[: flags.limit]
    add, finish, ask = SYSTEMS[system](base.shape[1], len(base), flags.m, flags.ef_construction)
    gc.collect()
    before = anonymous()
    began = time.monotonic()
    for first in range(0, len(base), BATCH):
        add(first, np.ascontiguousarray(base[first : first + BATCH], np.float32))
        pipe.send(first)
    finish()
    seconds = time.monotonic() - began
    gc.collect()
    after = anonymous()
    ctypes.CDLL(None).malloc_trim(0)
    trimmed = anonymous()
    figures = {"before": before, "built": after, "trimmed": trimmed, "seconds": seconds}
    pipe.send((figures, ask(queries)))


def run(system: str, flags: Any, rows: int, queries: Vectors) -> tuple[dict[str, Any], list[list[int]]]:
    spawn = multiprocessing.get_context("spawn")  # nothing inherited: each begins with the same little
    here, there = spawn.Pipe()
    child = spawn.Process(target=build, args=(system, flags, queries, there), daemon=True)
    child.start()
    there.close()
    with progress_bar() as progress:
        bar = progress.add_task(system, total=rows, note="")
        while not isinstance(message := here.recv(), tuple):
            progress.update(bar, completed=message)
    child.join()
    return message


def main() -> None:
    flags = parser(__doc__)
    add_graph_flags(flags)
    options = flags.parse_args()
    base = load_vectors(options.base, options.limit)
    queries = load_vectors(options.queries, ASK)
    kth = kth_distances(base, queries, K)
    figures: dict[str, dict[str, Any]] = {}
    for system in SYSTEMS:
        result, answers = run(system, options, len(base), queries)
        figures[system] = {
            **result,
            "bytes_per_vector": (result["built"] - result["before"]) / len(base),
            "bytes_per_vector_trimmed": (result["trimmed"] - result["before"]) / len(base),
            "recall": recall(base, queries, kth, answers, K),
        }
    peer = figures["hnswlib"]
    rows = [
        [
            system,
            f"{of['bytes_per_vector']:,.0f}",
            f"{of['bytes_per_vector_trimmed']:,.0f}",
            f"{of['bytes_per_vector'] / peer['bytes_per_vector']:.2f}",
            f"{of['seconds']:,.1f}",
            f"{of['recall']:.4f}",
        ]
        for system, of in figures.items()
    ]
    title = f"{len(base):,} x {base.shape[1]}, M={options.m}, ef_construction={options.ef_construction}"
    header = ["", "bytes/vector", "after malloc_trim", "ratio", "build s", f"recall@{K}, ef={EF}"]
    report(title, header, rows, {"rows": len(base), **figures}, options)


if __name__ == "__main__":
    main()
