"""What does it cost to compress while indexing, after a fifth of the rows or after all of them?

As in figures 4 to 9 of the article on the tile encoder (Weaviate, 2023): rows are linked as floats, at some
point all of them become codes, and what comes later is linked by codes. driftline (compress_after, its own
upkeep) is beside an HNSW of faiss with the same M over k-means codes, one dimension a segment and 8 bits
(--codes tile kmeans), fitted to the rows there are by then, to --fit-rows of them at most: by default to
faiss's own 65,536, which takes minutes. It is fitted once for each number of rows; later builds (the other
values of ef_construction) are charged for it, but meanwhile answer searches only while rows are encoded.

All work of building is done by one thread, in processor seconds. A second thread searches without pause from
the moment that floats are to become codes until they are; each answer is checked: k distinct keys, nearest
first, at their true distances. faiss answers from its floats until all codes are there.
Then recall@10 along ef: by codes alone, and with the best 20 measured again on raw vectors, at one call per
query, in processor microseconds; all curves in turn, round after round, the median of the rounds.

    python benchmarks/compress.py --base sift128_base.npy --queries sift128_query.npy --codes tile kmeans
"""

import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import faiss
import numpy as np
from driftline import OnlineIndex
from driftline.stream.feeding import progress_bar
from peers.measured import at_recall
from reencode import Asker
from report import milliseconds, parser, report, show
from vectors import Vectors, kth_distances, load_vectors, recall

K, M = 10, 16
EF = 64  # of the recall beside each indexing time
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
RECALLS = (0.90, 0.95, 0.99)
PIECE = 1000  # rows
STEP_S = 0.02  # of upkeep, as in the service
BEGINS = {"20 %": 0.2, "all": 1.0}  # share of the rows that are there when floats become codes


class Tile:
    """driftline, its upkeep done by the thread that writes."""

    paid_s = 0.0  # by an earlier build, for work that this one has not done again

    def __init__(self, dim: int, ef_construction: int, begin: int) -> None:
        self.index = OnlineIndex(dim, m=M, ef_construction=ef_construction, compress_after=begin)
        self.begin = begin
        self.search = self.index.search

    def add(self, rows: Vectors) -> None:
        first = len(self.index)
        self.index.upsert(np.arange(first, first + len(rows)), rows)
        if first >= self.begin:
            self.compress()

    def compress(self) -> None:
        while self.index.maintain(STEP_S):
            pass

    def check(self) -> None:
        assert all(frame.kind == "tile" or not frame.rows for frame in self.index.stats().frames)


class Found(NamedTuple):
    keys: list[list[int]]
    distances: Vectors


class Fits:
    """K-means of the first rows, once for each number of them: it takes minutes, and no graph changes it."""

    def __init__(self, most: int | None) -> None:
        self.most = most  # rows that it sees; None: as many as faiss takes
        self.known: dict[int, tuple[Any, float]] = {}

    def codes(self, rows: Vectors) -> tuple[Any, float]:
        """An empty faiss.IndexPQ, and the processor seconds of a fit that was done earlier."""
        if len(rows) in self.known:
            empty, seconds = self.known[len(rows)]
            return faiss.clone_index(empty), seconds
        began = time.thread_time()
        empty = faiss.IndexPQ(rows.shape[1], rows.shape[1], 8)
        if self.most is not None:
            empty.pq.cp.max_points_per_centroid = max(1, self.most // 256)
        empty.train(rows)
        empty.pq.compute_sdc_table()  # neighbours are chosen by distances between codes
        self.known[len(rows)] = empty, time.thread_time() - began
        return faiss.clone_index(empty), 0.0


class KMeans:
    """faiss: an HNSW whose rows are floats until `compress`, and codes from then on."""

    def __init__(self, fits: Fits, dim: int, ef_construction: int, begin: int) -> None:
        faiss.omp_set_num_threads(1)
        self.fits, self.begin = fits, begin
        self.floats = faiss.IndexFlatL2(dim)  # once there are codes: the raw rows to measure again on
        self.index: Any = faiss.IndexHNSW(self.floats, M)
        self.index.hnsw.efConstruction = ef_construction
        self.rescored: Any = faiss.IndexRefine(self.index, self.floats)
        self.rescored.k_factor = 2
        self.codes: Any = None
        self.paid_s = 0.0

    def add(self, rows: Vectors) -> None:
        self.index.add(rows)
        if self.codes is not None:
            self.floats.add(rows)
        self.rescored.ntotal = self.floats.ntotal

    def compress(self) -> None:
        rows = self.floats.reconstruct_n(0, self.begin)
        codes, self.paid_s = self.fits.codes(rows)
        codes.add(rows)
        self.index.storage = self.codes = codes

    def search(self, queries: Vectors, k: int, ef: int, *, rescore: bool = True) -> Found:
        self.index.hnsw.efSearch = ef
        distances, keys = (self.rescored if rescore else self.index).search(queries, k)
        return Found(keys.tolist(), distances)

    def check(self) -> None:
        assert self.codes.ntotal == self.floats.ntotal


def build(
    make: Callable[[int, int, int], Any],
    name: str,
    begins: str,
    ef_construction: int,
    base: Vectors,
    queries: Vectors,
) -> tuple[Any, dict[str, Any]]:
    """A system that holds all rows, and what that took."""
    begin = round(BEGINS[begins] * len(base))
    system = make(base.shape[1], ef_construction, begin)
    asker = Asker(system, base[:begin], queries)
    with progress_bar() as progress:
        bar = progress.add_task(f"{name}, {begins}, {ef_construction}", total=len(base), note="")

        def add(first: int, end: int) -> float:
            began = time.thread_time()
            for at in range(first, end, PIECE):
                system.add(base[at : min(at + PIECE, end)])
                progress.update(bar, completed=at + PIECE)
            return time.thread_time() - began

        before_s = add(0, begin)
        progress.update(bar, note="compressing")
        asker.start()
        began, since = time.thread_time(), time.monotonic()
        system.compress()
        compress_s, wall_s = time.thread_time() - began + system.paid_s, time.monotonic() - since
        asker.over()
        progress.update(bar, note="")
        after_s = add(begin, len(base))
    system.check()
    return system, {
        "system": name,
        "begins": begins,
        "ef_construction": ef_construction,
        "index_s": before_s + compress_s + after_s,
        "compress_s": compress_s,
        "compress_wall_s": wall_s,
        "searches": asker.searches,
        "wrong": dict(asker.wrong),
        "latency": milliseconds(asker.seconds) if asker.searches else None,
    }


def latencies(systems: dict[tuple[str, str], Any], queries: Vectors, rounds: int) -> dict[Any, Any]:
    """By system, begin and rescore: the processor microseconds of a query at each ef."""
    single = [queries[i : i + 1] for i in range(len(queries))]
    found = {(*of, rescore): {ef: [] for ef in EFS} for of in systems for rescore in (False, True)}
    with progress_bar() as progress:
        bar = progress.add_task("searching", total=rounds * len(EFS) * len(found), note="")
        for _ in range(rounds):
            for ef in EFS:
                for (name, begins, rescore), times in found.items():
                    search = systems[name, begins].search
                    gc.disable()
                    began = time.thread_time()
                    for query in single:
                        search(query, K, ef, rescore=rescore)
                    times[ef].append(1e6 * (time.thread_time() - began) / len(single))
                    gc.enable()
                    progress.advance(bar)
    return {of: {ef: median(times) for ef, times in by_ef.items()} for of, by_ef in found.items()}


def main() -> None:
    flags = parser(__doc__, ask=500)
    flags.add_argument("--codes", nargs="+", choices=["tile", "kmeans"], default=["tile"], metavar="CODE",
                       help="of %(choices)s (default: tile)")  # fmt: skip
    flags.add_argument("--ef-construction", nargs="+", type=int, default=[100, 50, 25], metavar="N",
                       help="builds; searched along ef: the first (default: %(default)s)")  # fmt: skip
    flags.add_argument("--fit-rows", type=int, metavar="N", help="that k-means sees (default: faiss's own)")
    flags.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options = flags.parse_args()
    makers = {"tile": Tile, "kmeans": partial(KMeans, Fits(options.fit_rows))}
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.ask)
    kth = kth_distances(base, queries, K)

    def recall_of(system: Any, ef: int, rescore: bool) -> float:
        return recall(base, queries, kth, system.search(queries, K, ef, rescore=rescore).keys, K)

    builds: list[dict[str, Any]] = []
    systems: dict[tuple[str, str], Any] = {}
    for ef_construction in options.ef_construction:
        for begins in BEGINS:
            for name in options.codes:
                system, figures = build(makers[name], name, begins, ef_construction, base, queries)
                builds.append(
                    figures
                    | {"recall": recall_of(system, EF, False), "rescored": recall_of(system, EF, True)}
                )
                systems.setdefault((name, begins), system)
    found = latencies(systems, queries, options.rounds)
    curves = [
        {
            "system": name,
            "begins": begins,
            "rescored": rescore,
            "curve": [
                {"ef": ef, "recall": recall_of(systems[name, begins], ef, rescore), "us": us}
                for ef, us in by_ef.items()
            ],
        }
        for (name, begins, rescore), by_ef in found.items()
    ]
    show_builds(builds, f"{len(base):,} x {base.shape[1]}, M={M}: building, in processor seconds")
    rows = []
    for of in curves:
        points = [(point["recall"], 1e6 / point["us"]) for point in of["curve"]]
        rates = [at_recall(points, target) for target in RECALLS]
        code = f"{of['system']}, {of['begins']}" + (", rescored" if of["rescored"] else "")
        rows.append(
            [code, of["curve"][-1]["recall"], *("-" if r is None else f"{1e6 / r:.0f}" for r in rates)]
        )
    header = ["code, begins after", f"recall at ef {EFS[-1]}", *(f"us at {target:.2f}" for target in RECALLS)]
    title = f"Searching, ef_construction={options.ef_construction[0]}: processor time of a query"
    report(title, header, rows, {"rows": base.shape, "builds": builds, "curves": curves}, options)


def show_builds(builds: list[dict[str, Any]], title: str) -> None:
    header = ["code, begins after", "ef_c", "indexing, s", "compressing, s", "searches meanwhile",
              "wrong", "p99 ms", f"recall at ef {EF}", "rescored"]  # fmt: skip
    rows = [
        [
            f"{of['system']}, {of['begins']}",
            of["ef_construction"],
            of["index_s"],
            of["compress_s"],
            f"{of['searches']:,}",
            sum(of["wrong"].values()),
            "-" if of["latency"] is None else of["latency"]["p99_ms"],
            of["recall"],
            of["rescored"],
        ]
        for of in builds
    ]
    show(title, header, rows)


if __name__ == "__main__":
    main()
