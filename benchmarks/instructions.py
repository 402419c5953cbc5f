"""How many instructions do a search and an insert take?

A record that no other load on the machine disturbs: instructions counted by valgrind's callgrind, the same on
every run but for about one in a hundred. An index is built without valgrind. A program that only restores it
is run, and the same program with many searches (or inserts) after it; the difference, per search, is what is
shown: interpreter, imports and set-up cancel.

Valgrind knows no AVX-512: the core, which picks its kernels by cpuid, takes the AVX2 ones there. So the
counts compare versions of driftline with each other, on any x86-64 machine; they are not those of a faster
machine's kernels, and say nothing of caches.

    python benchmarks/instructions.py --base sift128_base.npy --queries sift128_query.npy
"""

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from driftline import OnlineIndex
from driftline.index.cut import Cut
from driftline.index.raw import MemoryRawVectors
from driftline.stream.feeding import progress_bar
from report import add_graph_flags, parser, report
from vectors import Vectors, load_vectors

K = 10
BATCH = 512
SETUP = "set-up"
TASKS = {
    SETUP: "",
    "search, one call for all": "index.search(queries, k, ef)",
    "search, one call per query": "for i in range(len(queries)): index.search(queries[i : i + 1], k, ef)",
    "insert, one call for all": "index.upsert(range(len(index), len(index) + len(more)), more)",
}

# What runs under valgrind. A first search and insert are part of the set-up: they make what later ones find.
PROGRAM = """
import pickle, sys
from driftline import OnlineIndex
file, k, ef = sys.argv[1], *map(int, sys.argv[2:])
with open(file, "rb") as stream:
    cut, raw, queries, more = pickle.load(stream)
index = OnlineIndex.restore(cut, raw)
index.search(queries[:1], k, ef)
index.upsert([len(index)], more[:1])
more = more[1:]
{task}
"""


def built(base: Vectors, m: int, ef_construction: int) -> tuple[Cut, MemoryRawVectors]:
    """An index as one of some age is, compressed and with nothing left to do; and its raw vectors."""
    raw = MemoryRawVectors(base.shape[1])
    index = OnlineIndex(
        base.shape[1], m=m, ef_construction=ef_construction, raw=raw, compress_after=len(base) // 2
    )
    for first in range(0, len(base), BATCH):
        batch = base[first : first + BATCH]
        index.upsert(range(first, first + len(batch)), batch)
    while index.maintain(1e9):
        pass
    return index.cut(), raw


def count(program: str, words: list[str]) -> int:
    """Instructions that the program executes under valgrind. Raises RuntimeError with what it printed."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run(
        [*valgrind, sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    counted = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or counted is None:
        raise RuntimeError(f"valgrind: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return int(counted[1])


def measure(file: Path, calls: int, options: argparse.Namespace) -> dict[str, float]:
    """Instructions per call of each task; all that the set-up takes under its own name."""
    words = [str(file), str(K), str(options.ef)]

    def job(task: str) -> int:
        return count(PROGRAM.format(task=task), words)

    with ThreadPoolExecutor(options.jobs) as pool, progress_bar() as progress:
        bar = progress.add_task("counting", total=len(TASKS), note="")
        counts: dict[str, int] = {}
        for name, counted in zip(TASKS, pool.map(job, TASKS.values()), strict=True):
            counts[name] = counted
            progress.advance(bar)
    return {name: of if name == SETUP else (of - counts[SETUP]) / calls for name, of in counts.items()}


def main() -> None:
    flags = parser(__doc__)
    flags.set_defaults(limit=2000)
    flags.add_argument("--calls", type=int, default=250, metavar="N",
                       help="searches, and inserts (default: %(default)s)")  # fmt: skip
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    add_graph_flags(flags)
    flags.add_argument("--jobs", type=int, default=2, help="valgrinds at once (default: %(default)s)")
    options = flags.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian's package is valgrind): nothing can be counted")
    rows = load_vectors(options.base, options.limit + 1 + options.calls)
    queries = load_vectors(options.queries)
    base, more = rows[: -1 - options.calls], rows[-1 - options.calls :]
    with tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as directory:
        file = Path(directory) / "index.pickle"
        asked = np.resize(queries, (options.calls, queries.shape[1]))
        file.write_bytes(pickle.dumps((*built(base, options.m, options.ef_construction), asked, more)))
        figures = measure(file, options.calls, options)
    table = [[name, f"{of:,.0f}"] for name, of in figures.items() if name != SETUP]
    shape = f"M={options.m}, ef_construction={options.ef_construction}, ef={options.ef}"
    title = f"{len(base):,} x {base.shape[1]}, {shape}"
    report(title, ["each", "instructions"], table, figures, options)


if __name__ == "__main__":
    main()
