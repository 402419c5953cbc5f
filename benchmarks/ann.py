"""How fast are answers at equal recall, beside the best peers?

Every system builds the same rows in a process of its own, with the same M (a Vamana graph's degree is 2 M),
ef_construction and threads, and stays alive. Then they are measured in turn, one at a time, round after
round, so that whatever else the machine does hits all alike: recall@10 and queries per second at each ef,
with one call per query (as a service asks) and with one call for all queries. QPS at a recall is interpolated
on each round's curve (logarithm of QPS, linear in recall); ratios are taken within a round. Shown: median
over the rounds, and least to most. A hit counts if it is as near as the true tenth.

Memory is what the process has more after the build than before it: anonymous, and mapped files apart.
driftline is as its service runs it: keys of 16 bytes, raw vectors in files, upkeep until none is left.

    python benchmarks/ann.py --base sift128_base.npy --queries sift128_query.npy
"""

from statistics import median
from typing import Any

from driftline.stream.feeding import progress_bar
from peers import SYSTEMS, Shape, Unavailable
from peers.measured import GRID, Built, Curve, Data, K, at_recall
from peers.process import Process
from report import add_graph_flags, machine, parser, show, write
from vectors import as_l2, kth_distances, recall

RECALLS = (0.90, 0.95, 0.99)
ENOUGH = 0.9995  # a recall beyond which larger ef tell nothing
OURS, USUAL = "driftline", "hnswlib"


def build(names: list[str], shape: Shape, data: Data) -> dict[str, tuple[Process, Any]]:
    """The systems that can be had, each built, one after the other."""
    built: dict[str, tuple[Process, Any]] = {}
    missing: dict[str, str] = {}
    with progress_bar() as progress:
        for name in names:
            bar = progress.add_task(f"building {name}", total=shape.rows, note="")
            try:
                process = Process(Built, name, shape, data, threads=shape.threads)
                figures = process.call(
                    "build", done=lambda rows, bar=bar: progress.update(bar, completed=rows)
                )
                built[name] = process, figures
            except (Unavailable, RuntimeError) as error:
                if name == OURS:
                    raise
                missing[name] = str(error).strip().splitlines()[-1]
                progress.update(bar, visible=False)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    return built


def measure(
    built: dict[str, tuple[Process, Any]], recalls: dict[str, dict[int, float]], rounds: int
) -> dict[str, dict[str, list[dict[int, float]]]]:
    """Of each system, for "qps" and "qps_batch": per round, the rate by ef."""
    rates = {name: {kind: [{} for _ in range(rounds)] for kind in ("qps", "qps_batch")} for name in built}
    with progress_bar() as progress:
        steps = sum(len(by_ef) for by_ef in recalls.values())
        bar = progress.add_task("measuring", total=rounds * steps, note="")
        for number in range(rounds):
            for ef in GRID:
                for name, (process, _) in built.items():
                    if ef in recalls[name]:
                        for kind, by_round in rates[name].items():
                            by_round[number][ef] = process.call(kind, ef)
                        progress.advance(bar)
    return rates


def spread(values: list[float], form: str) -> str:
    """Median, least and most."""
    low, middle, high = (format(f(values), form) for f in (min, median, max))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def show_rates(kind: str, title: str, curves: dict[str, dict[str, list[Curve]]]) -> dict[str, Any]:
    """QPS at equal recall, and how many times another's QPS ours is; also as figures."""
    at = {
        name: {target: [at_recall(curve, target) for curve in of[kind]] for target in RECALLS}
        for name, of in curves.items()
    }
    figures: dict[str, Any] = {}
    rows = []
    for name, by_recall in at.items():
        reached = {target: values for target, values in by_recall.items() if None not in values}
        figures[name] = {str(target): median(values) for target, values in reached.items()}
        rows.append([name, *(spread(reached[t], ",.0f") if t in reached else "-" for t in RECALLS)])

    def times(names: list[str], what: str) -> None:
        """Ours as a multiple of the fastest of these, round by round."""
        cells = []
        for target in RECALLS:
            theirs = [at[name][target] for name in names if None not in at[name][target]]
            if None in at[OURS][target] or not theirs:
                cells.append("-")
                continue
            ratios = [ours / max(others) for ours, *others in zip(at[OURS][target], *theirs, strict=True)]
            figures.setdefault(what, {})[str(target)] = median(ratios)
            cells.append(spread(ratios, ".2f"))
        rows.append([what, *cells])

    peers = [name for name in at if name != OURS]
    if OURS in at and peers:
        times(peers, "driftline / best peer")
    if OURS in at and USUAL in at:
        times([USUAL], "driftline / hnswlib")
    show(title, [f"recall@{K}", *(f"{target:.2f}" for target in RECALLS)], rows)
    return figures


def show_builds(entries: list[dict[str, Any]], shape: Shape) -> None:
    ours = next((entry for entry in entries if entry["system"] == OURS), None)
    rows = [
        [
            entry["system"],
            f"{entry['build_s']:,.1f}",
            f"{entry['inserts_per_s']:,.0f}",
            f"{entry['rss_bytes'] / shape.rows:,.0f}",
            f"{entry['file_bytes'] / shape.rows:,.0f}",
            *(
                f"{ours[what] / entry[what]:.2f}" if ours and entry[what] > 0 else "-"
                for what in ("inserts_per_s", "rss_bytes")
            ),
        ]
        for entry in entries
    ]
    header = ["", "build s", "inserts/s", "bytes/row", "in files", "driftline's inserts x", "memory x"]
    show("Building, and memory", header, rows)


def main() -> None:
    flags = parser(__doc__, ask=2000)
    flags.add_argument("--metric", choices=("l2", "ip", "cosine"), default="l2")
    flags.add_argument("--threads", type=int, default=1, help="for builds and batches (default: %(default)s)")
    add_graph_flags(flags)
    flags.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    flags.add_argument("--systems", default=",".join(SYSTEMS), help="(default: %(default)s)")
    options = flags.parse_args()
    data = Data(options.base, options.queries, options.limit, options.ask)
    base, queries = data.load()
    shape = Shape(
        base.shape[1], len(base), options.metric, options.m, options.ef_construction, options.threads
    )
    built = build(options.systems.split(","), shape, data)
    base, queries = as_l2(base, queries, options.metric)
    kth = kth_distances(base, queries, K)
    recalls: dict[str, dict[int, float]] = {}
    for name, (process, _) in built.items():
        recalls[name] = {}
        for ef in GRID:
            recalls[name][ef] = recall(base, queries, kth, process.call("answers", ef), K)
            if recalls[name][ef] >= ENOUGH:
                break
    rates = measure(built, recalls, options.rounds)
    curves = {
        name: {
            kind: [[(recalls[name][ef], of[ef]) for ef in recalls[name]] for of in by_round]
            for kind, by_round in kinds.items()
        }
        for name, kinds in rates.items()
    }
    print(
        f"{len(base):,} x {shape.dim}, {shape.metric}, M={shape.m}, ef_construction={shape.ef_construction}, "
        f"threads={shape.threads}, {len(queries):,} queries, {options.rounds} rounds"
    )
    one = show_rates("qps", "Queries per second, one call per query", curves)
    batch = show_rates("qps_batch", "Queries per second, one call for all", curves)
    entries = []
    for name, (process, (seconds, added)) in built.items():
        process.close()
        entries.append(
            {
                "system": name,
                "build_s": seconds,
                "inserts_per_s": shape.rows / seconds,
                "rss_bytes": added.anonymous,
                "file_bytes": added.files,
                "curve": [
                    {
                        "ef": ef,
                        "recall": at,
                        **{kind: median(of[ef] for of in rates[name][kind]) for kind in rates[name]},
                        **{f"{kind}_rounds": [of[ef] for of in rates[name][kind]] for kind in rates[name]},
                    }
                    for ef, at in recalls[name].items()
                ],
                "at_recall": {"qps": one[name], "qps_batch": batch[name]},
                "flags": vars(options),
                "machine": machine(),
            }
        )
    show_builds(entries, shape)
    write(entries, options)


if __name__ == "__main__":
    main()
