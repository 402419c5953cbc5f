"""How fast are answers while others write, and are they right?

One searcher asks one query per call, in the process of the writers: idle, beside one writer at full speed,
and beside two. A writer replaces its keys in turn, batch by batch, each key by the vector of another row;
every eighth batch is deleted instead, and comes back with the next turn. Upkeep runs after every batch, as in
the service. What hits are still wanted beside the writers when the time is up are had by searches for more
neighbours at once, which are not timed.

Then a small index is searched for everything beside a writer, with k and ef of all keys: keys that nobody
touches must never be missed.

Afterwards every hit is checked: its distance must be that of a version of its key that was live at some
moment of the search; no answer names a key twice.

    python benchmarks/load.py --base sift128_base.npy --queries sift128_query.npy
"""

import argparse
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from driftline import OnlineIndex
from driftline.index.hits import Hits
from driftline.stream.feeding import progress_bar
from numpy.typing import NDArray
from report import add_graph_flags, milliseconds, parser, report
from vectors import Vectors, load_vectors

K = 10
WIDE = 100  # neighbours of a search that is not timed
BATCH = 512  # as many as the service applies at once
STEP_S = 0.02  # of upkeep, as in the service
DELETED_EVERY = 8  # batches
SMALL = 1000  # keys that are left alone in the small index, and as many that are not
PRECISION = 1e-5  # of a distance, relative to the squared lengths it is made from: float32 sums
GONE = -1  # the row of a deleted key
CHECKED = 1 << 16  # hits at once: their vectors take some tens of MB

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Write:
    """One call: from `began` on its keys may have these rows, from `ended` on they have no others."""

    began: int  # ns, as all moments here
    ended: int
    keys: Ints
    rows: Ints


class Answers:
    """What searches with one k were answered: of every search, and of all their hits one after the other."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.began = array("q")
        self.ended = array("q")
        self.queries = array("q")
        self.counts = array("q")  # of hits
        self.keys = array("q")
        self.distances = array("f")

    def add(self, began: int, ended: int, query: int, hits: Hits) -> None:
        """The hits of one query."""
        keys: Any = hits.keys[0]  # integers, as they were given
        self.began.append(began)
        self.ended.append(ended)
        self.queries.append(query)
        self.counts.append(len(keys))
        self.keys.extend(keys)
        self.distances.frombytes(hits.distances[0, : len(keys)].tobytes())

    @property
    def searches(self) -> int:
        return len(self.counts)

    @property
    def short(self) -> int:
        """How many hold fewer hits than were asked for."""
        return int((np.array(self.counts) < self.k).sum())

    def seconds(self) -> NDArray[np.float64]:
        return (np.array(self.ended) - np.array(self.began)) / 1e9

    def search_of(self) -> Ints:
        """Of every hit."""
        return np.repeat(np.arange(self.searches), np.array(self.counts))

    def different(self) -> tuple[Ints, Ints]:
        """Search and key of every hit, without those that name a key of their answer again."""
        searches, keys = self.search_of(), np.array(self.keys)
        order = np.lexsort((keys, searches))
        searches, keys = searches[order], keys[order]
        first = np.append(True, (np.diff(searches) != 0) | (np.diff(keys) != 0))[: len(keys)]
        return searches[first], keys[first]


class Versions:
    """Which row each key had, and when. Each key is written by one thread, so that one version ends after the
    other."""

    def __init__(self, writes: Sequence[Write]) -> None:
        sizes = [len(write.keys) for write in writes]
        keys = np.concatenate([write.keys for write in writes])
        began = np.repeat([write.began for write in writes], sizes)
        ended = np.repeat([write.ended for write in writes], sizes)
        order = np.lexsort((began, keys))
        keys, began, ended = keys[order], began[order], ended[order]
        self.rows = np.concatenate([write.rows for write in writes])[order]
        self.start = int(began.min())
        self.never = int(ended.max()) - self.start + 1
        last = np.append(np.diff(keys) != 0, True)
        replaced = np.where(last, self.never, np.roll(ended, -1) - self.start)
        self.came = self._place(keys, began - self.start)
        self.went = self._place(keys, replaced)

    def _place(self, keys: Ints, times: Ints) -> Ints:
        """One number for both, that sorts by key and then by time."""
        return keys * (self.never + 1) + times

    def live(self, keys: Ints, began: Ints, ended: Ints) -> tuple[Ints, Ints]:
        """First and last of the versions of a key that may have been live between two moments; the last is
        before the first where none may. No moment is before the first write."""
        began, ended = (np.minimum(times - self.start, self.never) for times in (began, ended))
        first = np.searchsorted(self.went, self._place(keys, began), "left")
        last = np.searchsorted(self.came, self._place(keys, ended), "right") - 1
        return first, last


@dataclass(slots=True)
class Writer:
    """Gives the keys that are its own one version after the other."""

    index: OnlineIndex
    base: Vectors
    keys: Ints
    rng: np.random.Generator
    writes: list[Write] = field(default_factory=list)
    at: int = 0

    def fill(self) -> Iterator[int]:
        """Every key for the first time, with the row of its number; yields how many after each batch."""
        for first in range(0, len(self.keys), BATCH):
            batch = self.keys[first : first + BATCH]
            self.write(batch)
            yield len(batch)

    def write(self, rows: Ints | None = None) -> None:
        """The next batch, with these rows or any."""
        batch = self.keys[self.at : self.at + BATCH]
        if rows is None:
            rows = self.rng.integers(0, len(self.base), len(batch))
            if len(self.writes) % DELETED_EVERY == DELETED_EVERY - 1:
                rows[:] = GONE
        began = time.perf_counter_ns()
        if rows[0] == GONE:
            self.index.delete(batch)
        else:
            self.index.upsert(batch, self.base[rows])
        self.writes.append(Write(began, time.perf_counter_ns(), batch, rows))
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


def search(
    index: OnlineIndex, queries: Vectors, k: int, ef: int, seconds: float = 0, hits: int = 0
) -> Answers:
    """One query per call, for so long and until there are so many hits."""
    answers = Answers(k)
    start = time.perf_counter()
    while len(answers.keys) < hits or time.perf_counter() - start < seconds:
        query = answers.searches % len(queries)
        began = time.perf_counter_ns()
        found = index.search(queries[query : query + 1], k, ef)
        answers.add(began, time.perf_counter_ns(), query, found)
    return answers


def wrong_hits(answers: Answers, versions: Versions, base: Vectors, queries: Vectors) -> int:
    """How many hits have a distance that no version of their key, live during the search, has."""
    squares = np.einsum("ij,ij->i", base, base), np.einsum("ij,ij->i", queries, queries)
    began, ended, query_of, keys, distances = (
        np.array(of)
        for of in (answers.began, answers.ended, answers.queries, answers.keys, answers.distances)
    )
    search_of = answers.search_of()
    wrong = 0
    for start in range(0, len(keys), CHECKED):
        of = search_of[start : start + CHECKED]
        version, last = versions.live(keys[start : start + CHECKED], began[of], ended[of])
        query, distance = query_of[of], distances[start : start + CHECKED]
        while len(version):  # what no version so far explains is compared with the next
            left = version <= last
            wrong += len(left) - int(left.sum())
            version, last, query, distance = (x[left] for x in (version, last, query, distance))
            row = versions.rows[version]
            apart = base[row] - queries[query]
            error = np.abs(np.einsum("ij,ij->i", apart, apart) - distance)
            left = (row == GONE) | ~(error <= PRECISION * (squares[0][row] + squares[1][query]))
            version, last, query, distance = (x[left] for x in (version + 1, last, query, distance))
    return wrong


def search_small(base: Vectors, queries: Vectors, seconds: float) -> tuple[Answers, list[Write]]:
    """A small index for everything, beside a writer that leaves the first keys alone."""
    index = OnlineIndex(base.shape[1])
    rng = np.random.default_rng(1)
    untouched, writer = (Writer(index, base, np.arange(first, first + SMALL), rng) for first in (0, SMALL))
    for _ in untouched.fill():
        pass
    with repeated(writer.write):
        answers = search(index, queries, 2 * SMALL, 2 * SMALL, seconds)
    return answers, untouched.writes + writer.writes


def run(base: Vectors, queries: Vectors, options: argparse.Namespace) -> dict[str, Any]:
    live = min(options.live, len(base))
    index = OnlineIndex(base.shape[1], m=options.m, ef_construction=options.ef_construction)
    writers = [
        Writer(index, base, np.arange(first, live, 2), np.random.default_rng(first)) for first in (0, 1)
    ]
    phases: dict[str, Any] = {}
    everything: list[Answers] = []
    with progress_bar() as progress:
        bar = progress.add_task("building", total=live, note="")
        for writer in writers:
            for rows in writer.fill():
                progress.advance(bar, rows)
        while index.maintain(STEP_S):
            pass
        for writing, name in enumerate(("idle", "one writer", "two writers")):
            progress.update(bar, description=f"searching, {name}", total=None)
            with ExitStack() as stack:
                for writer in writers[:writing]:
                    stack.enter_context(repeated(writer.write))
                before, began = sum(len(writer.writes) for writer in writers), time.perf_counter()
                timed = search(index, queries, K, options.ef, options.seconds)
                written = sum(len(writer.writes) for writer in writers) - before
                seconds = time.perf_counter() - began
                wanted = options.hits - len(timed.keys) if writing else 0
                more = search(index, queries, WIDE, options.ef, hits=wanted)
            everything += timed, more
            rates = {"searches_per_s": timed.searches / seconds, "writes_per_s": written * BATCH / seconds}
            phases[name] = {**rates, **milliseconds(timed.seconds())}
        index.check()
        progress.update(bar, description="searching a small index for everything")
        small, small_writes = search_small(base, queries, options.seconds)
        progress.update(bar, description="checking")
        versions = Versions([write for writer in writers for write in writer.writes])
        wrong = sum(wrong_hits(answers, versions, base, queries) for answers in everything)
        wrong += wrong_hits(small, Versions(small_writes), base, queries)
        found = small.different()[1]
    return {
        "phases": phases,
        "searches": sum(answers.searches for answers in everything),
        "hits": sum(len(answers.keys) for answers in everything),
        "small_searches": small.searches,
        "small_hits": len(small.keys),
        "wrong": wrong,
        "twice": sum(len(answers.keys) - len(answers.different()[1]) for answers in (*everything, small)),
        "short_answers": sum(answers.short for answers in everything),
        "missed": SMALL * small.searches - int((found < SMALL).sum()),
    }


def main() -> None:
    flags = parser(__doc__, ask=1000)
    flags.add_argument("--live", type=int, default=75_000, metavar="ROWS", help="(default: %(default)s)")
    flags.add_argument(
        "--seconds", type=float, default=10.0, help="of timed searches per phase (default: %(default)s)"
    )
    flags.add_argument("--hits", type=int, default=100_000, metavar="N",
                       help="to check, per phase with writers, at least (default: %(default)s)")  # fmt: skip
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    add_graph_flags(flags)
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.ask)
    figures = run(base, queries, options)
    print(
        f"{figures['hits']:,} hits of {figures['searches']:,} searches, and {figures['small_hits']:,} of "
        f"{figures['small_searches']:,} searches of a small index for everything: {figures['wrong']} wrong "
        f"distances, {figures['twice']} keys twice, {figures['short_answers']} answers with fewer hits than "
        f"asked for; of {SMALL:,} untouched keys {figures['missed']} missed"
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
