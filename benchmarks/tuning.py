"""What does each parameter cost?

driftline alone, built on the same rows with several m, ef_construction and route_bits, each in a process of
its own; then recall@10 and QPS (one call for all queries) along ef. Drawn as curves: QPS over recall, a line
per setting.

    python benchmarks/tuning.py --base sift128_base.npy --queries sift128_query.npy --svg docs/tuning.svg
"""

from typing import Any, Literal

from driftline.stream.feeding import progress_bar
from peers import Shape
from peers.measured import Built, Data, K, at_recall
from peers.process import Process
from report import parser, report
from vectors import kth_distances, recall

# m, ef_construction, route_bits
SETTINGS: tuple[tuple[int, int, Literal[3, 5]], ...] = (
    (8, 200, 3), (16, 200, 3), (32, 200, 3), (16, 100, 3), (16, 400, 3), (16, 200, 5),
)  # fmt: skip
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROUNDS = 3


def curve(m: int, ef_construction: int, route_bits: Literal[3, 5], options: Any) -> dict[str, Any]:
    data = Data(options.base, options.queries, options.limit, options.ask)
    base, queries = data.load()
    shape = Shape(base.shape[1], len(base), "l2", m, ef_construction, 1, route_bits)
    name = f"m={m}, ef_construction={ef_construction}, route_bits={route_bits}"
    with progress_bar() as progress:
        bar = progress.add_task(name, total=len(base), note="")
        process = Process(Built, "driftline", shape, data, threads=1)
        seconds, added = process.call("build", done=lambda rows: progress.update(bar, completed=rows))
    kth = kth_distances(base, queries, K)
    points: list[dict[str, float]] = []
    for ef in EFS:
        rate = max(process.call("qps_batch", ef) for _ in range(ROUNDS))
        points.append(
            {"ef": ef, "recall": recall(base, queries, kth, process.call("answers", ef), K), "qps": rate}
        )
    process.close()
    rows = len(base)
    return {
        "name": name,
        "inserts_per_s": rows / seconds,
        "bytes_per_row": added.anonymous / rows,
        "curve": points,
    }


def draw(figures: list[dict[str, Any]], title: str, path: str) -> None:
    """Log of QPS over log of what recall misses, so that 0.9, 0.99 and 0.999 lie a step apart."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "driftline"  # the same figures give the same file
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for of in figures:
        points = [point for point in of["curve"] if point["recall"] < 1]
        axes.plot(
            [1 - point["recall"] for point in points],
            [point["qps"] for point in points],
            "o-",
            label=of["name"],
        )
    axes.set(
        xscale="log", yscale="log", xlabel="recall@10", ylabel="queries per second, one thread", title=title
    )
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda miss, _: f"{1 - miss:g}"))
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    flags = parser(__doc__, ask=1000)
    flags.add_argument("--svg", metavar="FILE", help="draw the curves here")
    options = flags.parse_args()
    figures = [curve(*setting, options) for setting in SETTINGS]
    rows: list[list[str]] = []
    for of in figures:
        points = [(point["recall"], point["qps"]) for point in of["curve"]]
        rates = [at_recall(points, target) for target in (0.9, 0.95, 0.99)]
        rows.append(
            [of["name"], f"{of['inserts_per_s']:,.0f}", f"{of['bytes_per_row']:,.0f}"]
            + ["-" if rate is None else f"{rate:,.0f}" for rate in rates]
        )
    title = f"{options.base.split('/')[-1]}, one thread"
    header = ["", "inserts/s", "bytes/row", "QPS at 0.90", "0.95", "0.99"]
    report(title, header, rows, {"settings": figures}, options)
    if options.svg:
        draw(figures, title, options.svg)


if __name__ == "__main__":
    main()
