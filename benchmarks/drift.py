"""How good do the codes stay while the data drifts?

Rows are written in order, as fast as one core can, into an index at its default settings. Upkeep has the
service's budget, a quarter of what the writer takes, in processor time: so a loaded machine finds the same.
At every step (a twentieth of the stream) flat recall@10 is measured over all rows so far: exact search over
decoded codes, with no graph and no raw vectors, at 8 bits and at the 4 bits that are the same codes' prefix.
Each row is decoded in the frame that the index holds it in at that moment, whatever upkeep has still to move;
at the end `check` compares every code of the index with what its frame makes of the raw row.

Beside it, on the same rows and queries:
oracle     the same code in one frame, fitted anew at every step to all rows so far, all of them coded anew
never      the same code, fitted once to the first tenth of the stream
SQ         faiss's scalar quantizers (8 and 4 bits), trained once on the first tenth

Without --queries the queries of a step are drawn from the rows so far, or, with --newest, from those of the
step alone; a query's own row is no neighbour of it.

    python benchmarks/drift.py --base commits384.npz:base --order commits384.npz:project --plot commits.svg
    python benchmarks/drift.py --base fashion_mnist784.npz:base --order fashion_mnist784.npz:base_label
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from driftline import OnlineIndex
from driftline.index.budget import Budget
from driftline.index.encoder import TileEncoder
from driftline.index.events import DriftDetected, FrameOpened, ReencodeFinished
from driftline.stream.feeding import progress_bar
from report import parser, report
from tile import Faiss
from vectors import Vectors, kth_distances, load_vectors, open_vectors, recall

K = 10
BITS = (8, 4)
BATCH = 250  # rows of one write
STEP_S = 0.02  # of upkeep at once, as the service's
GET_ROWS = 4096  # asked for their frames at once
FLOOR = 0.05  # of a core, as the service's
CODES = ("driftline", "oracle", "never", "SQ")
TOLD = (DriftDetected, FrameOpened, ReencodeFinished)

Decoded = Callable[[int], Vectors]


@dataclass(frozen=True, slots=True)
class Step:
    """What was found after so many rows: recall by code and bits, None where the code is not trained yet."""

    rows: int
    frames: int  # alive
    as_floats: int  # rows that have no code yet
    recall: dict[str, dict[int, float | None]]

    def below(self, bits: int) -> float:
        """How far driftline lies below the oracle."""
        ours, oracle = self.recall["driftline"][bits], self.recall["oracle"][bits]
        assert ours is not None, "rows are always held in some way"
        assert oracle is not None, "it has always been fitted"
        return oracle - ours


class Follower:
    """An index that is written to as it comes, and what its codes stand for."""

    def __init__(self, dim: int, seed: int, share: float) -> None:
        self.index = OnlineIndex(dim, seed=seed)
        self.events: list[dict[str, Any]] = []
        self.rows = 0
        self._seconds = 0.0  # of processor, that the writer took
        self._budget = Budget(share, FLOOR, clock=lambda: self._seconds)

    def write(self, rows: Vectors) -> None:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            began = time.thread_time()
            self.index.upsert(np.arange(self.rows, self.rows + len(batch)), batch)
            self._seconds += time.thread_time() - began
            self.rows += len(batch)
            while self.index.maintain(STEP_S, self._budget):
                pass
            for event in self.index.take_events():
                if isinstance(event, TOLD):
                    self.events.append({"event": event.name, "rows": self.rows, **event.to_fields()})

    def frames(self) -> Any:
        """int64 [rows]: the frame of each."""
        found: list[int] = []
        for start in range(0, self.rows, GET_ROWS):
            keys = np.arange(start, min(start + GET_ROWS, self.rows))
            found.extend(row.frame for row in self.index.get(keys) if row is not None)
        return np.array(found)

    def decoded(self, rows: Vectors) -> tuple[Decoded, int]:
        """The rows as the index has coded them, by bits; and how many it holds as floats."""
        frames = self.frames()
        parts: list[tuple[Any, Decoded]] = []
        as_floats = 0
        for frame in np.unique(frames).tolist():
            own = np.flatnonzero(frames == frame)
            parameters = self.index.parameters(frame)
            if parameters is None:
                as_floats = len(own)
            else:
                codes = parameters.encode(rows[own])
                parts.append((own, lambda bits, of=parameters, codes=codes: of.decode(codes, bits)))

        def together(bits: int) -> Vectors:
            found = rows.copy()
            for own, decode in parts:
                found[own] = decode(bits)
            return found

        return together, as_floats


def fitted(rows: Vectors, seed: int) -> TileEncoder:
    """The code that an index uses."""
    encoder = TileEncoder(rows.shape[1], "normal", rotation="random", seed=seed)
    encoder.update(rows)
    encoder.fit()
    return encoder


def ours(encoder: TileEncoder, rows: Vectors) -> Decoded:
    codes = encoder.encode(rows)
    return lambda bits: encoder.decode(codes, bits)


class Scalar:
    """faiss's scalar quantizers."""

    def __init__(self, rows: Vectors) -> None:
        self._of = {bits: Faiss(f"sq{bits}", rows.shape[1]) for bits in BITS}
        for codec in self._of.values():
            codec.learn(rows)

    def decoded(self, rows: Vectors) -> Decoded:
        return lambda bits: self._of[bits].decode(self._of[bits].encode(rows), bits)


def stream(options: argparse.Namespace) -> Vectors:
    """The rows in the order they are written."""
    rows = load_vectors(options.base, options.limit)
    if options.order:
        rows = rows[np.argsort(open_vectors(options.order)[: len(rows)], kind="stable")]
    return rows


class Questions:
    """The queries of one step, and what share of their K nearest is among the K nearest of decoded rows."""

    def __init__(self, queries: Vectors, own: Sequence[int], live: Vectors) -> None:
        """own: the row that each query is, which is not to be found; -1 for none."""
        self._queries, self._own, self._live = queries, own, live
        self._more = K + (own[0] >= 0)
        self._kth = kth_distances(live, queries, self._more)

    def recall(self, decoded: Vectors) -> float:
        found = faiss.knn(self._queries, decoded, self._more)[1].tolist()
        hits = [[row for row in rows if row != own][:K] for rows, own in zip(found, self._own, strict=True)]
        return recall(self._live, self._queries, self._kth, hits, K)


def questions(live: Vectors, before: int, given: Vectors | None, options: argparse.Namespace) -> Questions:
    draw = np.random.default_rng(options.seed)
    if given is not None:
        return Questions(given[: options.ask], [-1] * len(given[: options.ask]), live)
    own = draw.permutation(np.arange(before if options.newest else 0, len(live)))[: options.ask]
    return Questions(live[own], own.tolist(), live)


def steps(follower: Follower, rows: Vectors, options: argparse.Namespace) -> Iterator[Step]:
    """Write the rows and measure at every step."""
    given = load_vectors(options.queries) if options.queries else None
    tenth = len(rows) // 10
    never, scalar = fitted(rows[:tenth], options.seed), Scalar(rows[:tenth])
    for step in range(1, options.steps + 1):
        live = rows[: step * len(rows) // options.steps]
        asked = questions(live, follower.rows, given, options)
        follower.write(live[follower.rows :])
        codes: dict[str, Decoded | None] = dict.fromkeys(CODES)
        codes["driftline"], as_floats = follower.decoded(live)
        codes["oracle"] = ours(fitted(live, options.seed), live)
        if len(live) >= tenth:
            codes["never"], codes["SQ"] = ours(never, live), scalar.decoded(live)
        found: dict[str, dict[int, float | None]] = {}
        for name, decoded in codes.items():
            found[name] = {bits: decoded and asked.recall(decoded(bits)) for bits in BITS}
        yield Step(len(live), len(follower.index.stats().frames), as_floats, found)


def draw(done: Sequence[Step], events: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Recall over rows, from where there are codes; a panel for 8 bits and one for 4, alarms as dotted
    lines."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "driftline"  # the same figures give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a third of the bytes
    from matplotlib import pyplot

    coded = [step for step in done if not step.as_floats]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, bits in zip(panels, BITS, strict=True):
        for name, line in zip(CODES, ("-", "k--", "-.", ":"), strict=True):
            panel.plot(
                [step.rows for step in coded],
                [step.recall[name][bits] for step in coded],
                line,
                linewidth=1.4,
                label={"SQ": f"faiss SQ{bits}", "never": "never refitted"}.get(name, name),
            )
        for event in events:
            if event["event"] == "drift.detected":
                panel.axvline(event["rows"], linestyle=":", color="grey", linewidth=0.8)
        panel.set(xlabel="rows so far", ylabel=f"flat recall@{K}", title=f"{title}, {bits} bits")
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    flags = parser(__doc__, queries=False)
    flags.add_argument("--order", metavar="FILE", help="write rows in the stable order of these values")
    flags.add_argument("--queries", metavar="FILE", help="ask these at every step")
    flags.add_argument("--newest", action="store_true", help="draw queries from the rows of the step alone")
    flags.add_argument(
        "--ask", type=int, default=500, metavar="N", help="queries at most (default: %(default)s)"
    )
    flags.add_argument("--budget", type=float, default=0.25, help="share of one core (default: %(default)s)")
    flags.add_argument("--steps", type=int, default=20, help="of the stream (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of rotation and queries (default: %(default)s)")
    flags.add_argument("--title", help="of the plot (default: the file's name)")
    flags.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw recall over rows here")
    options = flags.parse_args()

    rows = stream(options)
    follower = Follower(rows.shape[1], options.seed, options.budget)
    done: list[Step] = []
    with progress_bar() as progress:
        bar = progress.add_task("writing and asking", total=len(rows), note="")
        for step in steps(follower, rows, options):
            done.append(step)
            progress.update(bar, completed=step.rows)
    while follower.index.maintain(1.0):
        pass
    follower.index.check()

    lines = [
        [
            f"{step.rows:,}",
            *(_three(step.recall[name][bits]) for bits in BITS for name in CODES),
            *(f"{step.below(bits):+.4f}" for bits in BITS),
        ]
        for step in done
    ]
    worst = {bits: max(step.below(bits) for step in done) for bits in BITS}
    most = ", ".join(f"{worst[bits]:.4f} at {bits} bits" for bits in BITS)
    title = f"flat recall@{K}; driftline is at most so far below the oracle: {most}"
    header = ["rows", *(f"{bits}: {name}" for bits in BITS for name in CODES), "below: 8", "4"]
    document = {"steps": [asdict(step) for step in done], "below": worst, "events": follower.events}
    report(title, header, lines, document, options)
    if options.plot:
        draw(done, follower.events, options.title or Path(options.base).name, options.plot)


if __name__ == "__main__":
    main()
