"""How fast are answers while others write, and are they right?

One searcher asks one query per call, in the process of the writers: idle, beside one writer at full speed,
and beside two. A writer replaces its keys in turn, batch by batch, each key by the vector of another row;
every eighth batch is deleted instead, and comes back with the next turn. Upkeep runs after every batch, as in
the service.

Afterwards every hit is checked: its distance must be that of a version of its key that was live at some
moment of the search; no answer names a key twice. On a small index beside it, keys that nobody touches must
never be missed by searches with k and ef of all keys.

    python benchmarks/load.py --base sift128_base.npy --queries sift128_query.npy
"""

import argparse
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from driftline import OnlineIndex
from driftline.stream.feeding import progress_bar
from numpy.typing import NDArray
from report import milliseconds, parser, report
from vectors import Vectors, load_vectors

K = 10
BATCH = 512  # as many as the service applies at once
STEP_S = 0.02  # of upkeep, as in the service
DELETED_EVERY = 8  # batches
SMALL = 1000  # keys that are left alone in the small index, and as many that are not
PRECISION = 1e-5  # of a distance, relative to the squared lengths it is made from: float32 sums
GONE = -1  # the row of a deleted key


@dataclass(frozen=True, slots=True)
class Write:
    """One call: from `began` on its keys may have these rows, from `ended` on they have no others."""

    began: float
    ended: float
    keys: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answer:
    began: float
    ended: float
    query: int
    keys: list[int]
    distances: NDArray[np.float32]


@dataclass(slots=True)
class Writer:
    """Gives the keys that are its own one version after the other."""

    index: OnlineIndex
    base: Vectors
    keys: NDArray[np.int64]
    rng: np.random.Generator
    writes: list[Write] = field(default_factory=list)
    at: int = 0

    def write(self, rows: NDArray[np.int64] | None = None) -> None:
        """The next batch, with these rows or any."""
        batch = self.keys[self.at : self.at + BATCH]
        if rows is None:
            rows = self.rng.integers(0, len(self.base), len(batch))
            if len(self.writes) % DELETED_EVERY == DELETED_EVERY - 1:
                rows[:] = GONE
        began = time.perf_counter()
        if rows[0] == GONE:
            self.index.delete(batch)
        else:
            self.index.upsert(batch, self.base[rows])
        self.writes.append(Write(began, time.perf_counter(), batch, rows))
        self.index.maintain(STEP_S)
        self.index.take_events()
        self.at = self.at + BATCH if self.at + BATCH < len(self.keys) else 0


@contextmanager
def repeated(step: Callable[[], None]) -> Iterator[None]:
    """Calls it again and again in a thread, meanwhile; raises what it raised."""
    stop, errors = threading.Event(), list[Exception]()

    def loop() -> None:
        try:
            while not stop.is_set():
                step()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def search(index: OnlineIndex, queries: Vectors, ef: int, done: Callable[[int, float], bool]) -> list[Answer]:
    """One query per call, until `done` says so of the number of hits and the seconds."""
    answers: list[Answer] = []
    start = time.perf_counter()
    hits = 0
    while not done(hits, time.perf_counter() - start):
        query = len(answers) % len(queries)
        began = time.perf_counter()
        found = index.search(queries[query : query + 1], K, ef)
        answers.append(Answer(began, time.perf_counter(), query, found.keys[0], found.distances[0]))
        hits += len(found.keys[0])
    return answers


def wrong_hits(answers: list[Answer], writes: list[Write], base: Vectors, queries: Vectors) -> int:
    """How many hits have a distance that no version of their key, live during the search, has."""
    versions: dict[int, list[tuple[float, float, int]]] = defaultdict(list)  # began, ended, row
    for write in sorted(writes, key=lambda write: write.began):
        for key, row in zip(write.keys.tolist(), write.rows.tolist(), strict=True):
            versions[key].append((write.began, write.ended, row))
    squares = np.einsum("ij,ij->i", base, base), np.einsum("ij,ij->i", queries, queries)
    wrong = 0
    for answer in answers:
        for key, distance in zip(answer.keys, answer.distances.tolist(), strict=False):
            of = versions[key]
            rows = {
                row
                for (began, _, row), (_, replaced, _) in zip(of, [*of[1:], (0.0, np.inf, GONE)], strict=True)
                if row != GONE and began <= answer.ended and replaced >= answer.began
            }
            wrong += not any(
                abs(float(((base[row] - queries[answer.query]) ** 2).sum()) - distance)
                <= PRECISION * (squares[0][row] + squares[1][answer.query])
                for row in rows
            )
    return wrong


def missed_keys(base: Vectors, queries: Vectors, seconds: float) -> dict[str, int]:
    """On a small index with a writer: untouched keys that searches for everything did not name."""
    index = OnlineIndex(base.shape[1])
    index.upsert(np.arange(SMALL), base[:SMALL])
    writer = Writer(index, base, np.arange(SMALL, 2 * SMALL), np.random.default_rng(1))
    untouched = set(range(SMALL))
    figures = {"searches": 0, "missed": 0, "twice": 0}
    deadline = time.perf_counter() + seconds
    with repeated(writer.write):
        while time.perf_counter() < deadline:
            query = figures["searches"] % len(queries)
            keys = index.search(queries[query : query + 1], 2 * SMALL, 2 * SMALL).keys[0]
            figures["searches"] += 1
            figures["missed"] += len(untouched.difference(keys))
            figures["twice"] += len(keys) - len(set(keys))
    return figures


def run(base: Vectors, queries: Vectors, options: argparse.Namespace) -> dict[str, Any]:
    live = min(options.live, len(base))
    index = OnlineIndex(base.shape[1], m=options.m, ef_construction=options.ef_construction)
    writers = [
        Writer(index, base, np.arange(first, live, 2), np.random.default_rng(first)) for first in (0, 1)
    ]
    phases: dict[str, Any] = {}
    everything: list[Answer] = []
    with progress_bar() as progress:
        bar = progress.add_task("building", total=live, note="")
        for writer in writers:
            for first in range(0, len(writer.keys), BATCH):
                writer.write(writer.keys[first : first + BATCH])
                progress.advance(bar, BATCH)
        while index.maintain(STEP_S):
            pass
        enough = {
            "idle": lambda hits, seconds: seconds > options.seconds,
            "one writer": lambda hits, seconds: hits >= options.hits and seconds > options.seconds,
            "two writers": lambda hits, seconds: hits >= options.hits and seconds > options.seconds,
        }
        for writing, (name, done) in enumerate(enough.items()):
            progress.update(bar, description=f"searching, {name}", total=None)
            before = sum(len(writer.writes) for writer in writers)
            with ExitStack() as stack:
                for writer in writers[:writing]:
                    stack.enter_context(repeated(writer.write))
                began = time.perf_counter()
                answers = search(index, queries, options.ef, done)
                seconds = time.perf_counter() - began
                written = sum(len(writer.writes) for writer in writers) - before
            everything += answers
            times = milliseconds([answer.ended - answer.began for answer in answers])
            rates = {"searches_per_s": len(answers) / seconds, "writes_per_s": written * BATCH / seconds}
            phases[name] = {**rates, **times}
        progress.update(bar, description="checking")
        writes = [write for writer in writers for write in writer.writes]
        wrong = wrong_hits(everything, writes, base, queries)
        index.check()
        progress.update(bar, description="searching a small index for everything")
        small = missed_keys(base, queries, options.seconds)
    return {
        "phases": phases,
        "hits": sum(len(answer.keys) for answer in everything),
        "wrong": wrong,
        "twice": sum(len(answer.keys) - len(set(answer.keys)) for answer in everything) + small["twice"],
        "short_answers": sum(len(answer.keys) < K for answer in everything),
        "small": small,
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--live", type=int, default=75_000, metavar="ROWS", help="(default: %(default)s)")
    flags.add_argument(
        "--seconds", type=float, default=10.0, help="per phase, at least (default: %(default)s)"
    )
    flags.add_argument("--hits", type=int, default=100_000, metavar="N",
                       help="to check, per phase with writers, at least (default: %(default)s)")  # fmt: skip
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    flags.add_argument("--ask", type=int, default=1000, metavar="N", help="queries (default: %(default)s)")
    flags.add_argument("--m", type=int, default=16, help="links per node (default: %(default)s)")
    flags.add_argument("--ef-construction", type=int, default=200, help="(default: %(default)s)")
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.ask)
    figures = run(base, queries, options)
    small = figures["small"]
    print(
        f"{figures['hits']:,} hits: {figures['wrong']} wrong distances, {figures['twice']} keys twice, "
        f"{figures['short_answers']} answers with fewer than {K}; of {SMALL:,} untouched keys "
        f"{small['missed']} missed in {small['searches']:,} searches for everything"
    )
    rows = [
        [
            name,
            f"{of['searches_per_s']:,.0f}",
            *(f"{of[what]:.2f}" for what in ("median_ms", "p99_ms", "max_ms")),
            f"{of['writes_per_s']:,.0f}",
        ]
        for name, of in figures["phases"].items()
    ]
    title = f"{min(options.live, len(base)):,} x {base.shape[1]}, ef={options.ef}"
    header = ["", "searches/s", "median ms", "p99 ms", "max ms", "rows written/s"]
    report(title, header, rows, figures, options)


if __name__ == "__main__":
    main()
