"""What does a filter cost, and does it lose neighbours?

Every row carries attributes: for each share a field that is drawn at random, and a field that says which
place the row is in (the nearest of as many rows as the share asks for). A query asks for the rows drawn, for
its own place (rows near it), or for another place (rows far from it). --labels adds a field of the data's
own: a query's own label (that of its nearest row, unless --query-labels says it), and any other.

recall@10 is against an exact search of the allowed rows, and every hit must be allowed. Time is that of one
call per query, as a multiple of the same searches without a filter at the same ef, and of an exact scan of
the allowed rows; the three are measured in turn.

    python benchmarks/filters.py --base commits384.npz:base --queries commits384.npz:query \\
        --labels commits384.npz:project --query-labels commits384.npz:query_project
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgpack
import numpy as np
from driftline import OnlineIndex
from driftline.stream.feeding import progress_bar
from numpy.typing import NDArray
from report import add_graph_flags, parser, report
from vectors import Vectors, load_vectors, open_vectors

K = 10
SHARES = (0.5, 0.05, 0.005, 0.0005)
BATCH = 512
STEP_S = 0.02
TURNS = 3

Values = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Filter:
    """A kind of filter: the field, the value of every row, and the value that each query asks for."""

    kind: str
    field: str
    rows: Values
    asked: Values

    def of(self, query: int) -> dict[str, int]:
        return {self.field: int(self.asked[query])}

    def allowed(self, query: int) -> NDArray[np.bool_]:
        return self.rows == self.asked[query]


def nearest(x: Vectors, places: Vectors) -> NDArray[np.int64]:
    """Of each row: the places from near to far, by number."""
    return np.argsort(np.einsum("ij,ij->i", places, places) - 2 * x @ places.T, axis=1)


def filters(base: Vectors, queries: Vectors, options: argparse.Namespace) -> list[Filter]:
    rng = np.random.default_rng(0)
    made: list[Filter] = []
    for share in SHARES:
        drawn = (rng.random(len(base)) < share).astype(np.int64)
        made.append(Filter(f"random {share:.2%}", f"drawn_{share}", drawn, np.ones(len(queries), np.int64)))
    for share in SHARES:
        places = base[rng.choice(len(base), round(1 / share), replace=False)]
        rows = np.concatenate([nearest(part, places)[:, 0] for part in np.array_split(base, 64)])
        order = nearest(queries, places)
        made.append(Filter(f"own place of {len(places):,}", f"place_{share}", rows, order[:, 0]))
        far = order[:, len(places) // 2]
        made.append(Filter(f"another of {len(places):,}", f"place_{share}", rows, far))
    if options.labels is not None:
        labels = open_vectors(options.labels)[: len(base)].astype(np.int64)
        own = (
            labels[[np.argmin(((base - query) ** 2).sum(axis=1)) for query in queries]]
            if options.query_labels is None
            else open_vectors(options.query_labels)[: len(queries)].astype(np.int64)
        )
        made.append(Filter("own label", "label", labels, own))
        known = np.unique(labels)
        if len(known) > 1:
            steps = rng.integers(1, len(known), len(own))
            other = known[(np.searchsorted(known, own) + steps) % len(known)]
            made.append(Filter("another label", "label", labels, other))
    return made


def build(base: Vectors, made: list[Filter], options: argparse.Namespace) -> OnlineIndex:
    fields = {of.field: of.rows.tolist() for of in made}
    index = OnlineIndex(base.shape[1], m=options.m, ef_construction=options.ef_construction)
    with progress_bar() as progress:
        bar = progress.add_task("building", total=len(base), note="")
        for keys in np.array_split(np.arange(len(base)), -(-len(base) // BATCH)):
            maps = [{name: values[key] for name, values in fields.items()} for key in keys]
            index.upsert(keys, base[keys], [msgpack.packb(of) for of in maps])
            index.maintain(STEP_S)
            progress.advance(bar, len(keys))
        while index.maintain(STEP_S):
            pass
    return index


def judge(of: Filter, answers: list[list[int]], base: Vectors, queries: Vectors) -> dict[str, float]:
    """Recall against the exact answer among the allowed rows, and hits that are not allowed."""
    found = wanted = strange = 0
    for query, answer in enumerate(answers):
        hits, allowed = np.unique(np.array(answer, np.int64)), of.allowed(query)
        true = ((base[allowed].astype(np.float64) - queries[query]) ** 2).sum(axis=1)
        most = min(K, len(true))
        wanted += most
        strange += int((~allowed[hits]).sum())
        if most:
            near = ((base[hits].astype(np.float64) - queries[query]) ** 2).sum(axis=1)
            found += int((near <= np.partition(true, most - 1)[most - 1] * (1 + 1e-9)).sum())
    return {"recall": found / wanted if wanted else 1.0, "not_allowed": strange}


def measure(of: Filter, index: OnlineIndex, base: Vectors, queries: Vectors, ef: int) -> dict[str, float]:
    single = [queries[i : i + 1] for i in range(len(queries))]
    answers: list[list[Any]] = []
    calls: dict[str, Callable[[int], Any]] = {
        "unfiltered": lambda query: index.search(single[query], K, ef),
        "filtered": lambda query: index.search(single[query], K, ef, filter=of.of(query)),
        "exact": lambda query: index.exact(single[query], K, filter=of.of(query)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            began = time.perf_counter()
            hits = [call(query) for query in range(len(queries))]
            seconds[name].append((time.perf_counter() - began) / len(queries))
            if name == "filtered":
                answers = [hit.keys[0] for hit in hits]
    middle = {f"{name}_ms": median(of) * 1000 for name, of in seconds.items()}
    return {
        "share": float(np.mean([of.allowed(query).mean() for query in range(len(queries))])),
        **judge(of, answers, base, queries),
        **middle,
        "times_unfiltered": middle["filtered_ms"] / middle["unfiltered_ms"],
        "times_exact": middle["filtered_ms"] / middle["exact_ms"],
    }


def main() -> None:
    flags = parser(__doc__, ask=500)
    flags.add_argument("--labels", metavar="FILE", help="a whole number for each vector")
    flags.add_argument("--query-labels", metavar="FILE", help="and for each query")
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    add_graph_flags(flags)
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.ask)
    made = filters(base, queries, options)
    index = build(base, made, options)
    figures: dict[str, dict[str, float]] = {}
    with progress_bar() as progress:
        for of in progress.track(made, description="measuring"):
            figures[of.kind] = measure(of, index, base, queries, options.ef)
    rows = [
        [
            kind,
            f"{of['share']:.3%}",
            f"{of['recall']:.4f}",
            str(of["not_allowed"]),
            f"{of['filtered_ms']:.3f}",
            f"{of['times_unfiltered']:.2f}",
            f"{of['times_exact']:.2f}",
        ]
        for kind, of in figures.items()
    ]
    title = f"{len(base):,} x {base.shape[1]}, ef={options.ef}, {len(queries):,} queries"
    header = ["filter", "rows", f"recall@{K}", "not allowed", "ms", "x unfiltered", "x exact scan"]
    report(title, header, rows, figures, options)


if __name__ == "__main__":
    main()
