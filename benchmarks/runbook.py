"""How good are answers along a runbook of changes, and how long does it take?

Runs the runbooks of big-ann-benchmarks' streaming track (NeurIPS 2023; its neurips23/runbooks) on any
vectors: YAML with, per data set, numbered steps:

    insert   start, end            rows start to end - 1, each under its own number
    delete   start, end            those numbers
    replace  tags_start, tags_end  numbers that are live, and the rows that they have from now on
             ids_start, ids_end
    search                         all queries; recall@10 against what is live, if anything is

A runbook made for more rows than there are is shrunk to fit: every number times the same factor. What is
counted is insertions, deletions, replacements with their upkeep, and searches; not the exact answers that
recall is measured by.

    python benchmarks/runbook.py --runbook msturing-10M_slidingwindow_runbook.yaml \\
        --base sift128_base.npy --queries sift128_query.npy
"""

import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from driftline.stream.feeding import progress_bar
from peers import Shape, Unavailable
from peers.measured import Changed, Data, K
from peers.process import Process
from report import add_graph_flags, parser, report
from vectors import kth_distances, recall

SMALL = Path(__file__).parent / "runbooks" / "small.yaml"
NUMBERS = ("start", "end", "tags_start", "tags_end", "ids_start", "ids_end")
NEEDED = {"insert": NUMBERS[:2], "delete": NUMBERS[:2], "replace": NUMBERS[2:], "search": ()}

Step = dict[str, Any]


def load_runbook(file: Path, dataset: str | None) -> tuple[str, list[Step]]:
    """The data set (the first, if none is named) and its steps. ValueError for what is not a runbook."""
    sets = yaml.safe_load(file.read_text())
    name = next(iter(sets)) if dataset is None else dataset
    if name not in sets:
        raise ValueError(f"{file} has no {name}, but {', '.join(sets)}")
    steps = [sets[name][number] for number in sorted(key for key in sets[name] if isinstance(key, int))]
    for number, step in enumerate(steps, 1):
        missing = [word for word in NEEDED.get(step["operation"], ("a known operation",)) if word not in step]
        if missing:
            raise ValueError(f"step {number} of {name} lacks {', '.join(missing)}: {step}")
    return name, steps


def shrunk(steps: list[Step], rows: int) -> tuple[list[Step], float]:
    """The steps for so many rows, and the factor."""
    most = max(step[word] for step in steps for word in NUMBERS if word in step)
    factor = min(1.0, rows / most)
    return [
        {word: int(value * factor) if word in NUMBERS else value for word, value in step.items()}
        for step in steps
    ], factor


def run(process: Process, steps: list[Step], base: Any, queries: Any, ef: int) -> dict[str, Any]:
    """Do the steps. In `rows`: which row every live number has."""
    rows: dict[int, int] = {}
    seconds: Counter[str] = Counter()
    searches: list[dict[str, float]] = []

    def timed(what: str, method: str, *args: object) -> Any:
        began = time.perf_counter()
        answer = process.call(method, *args)
        seconds[what] += time.perf_counter() - began
        return answer

    with progress_bar() as progress:
        for number, step in enumerate(progress.track(steps, description="steps"), 1):
            match step["operation"]:
                case "insert":
                    new = np.arange(step["start"], step["end"])
                    timed("insert", "upsert", new, new)
                    rows.update(zip(new.tolist(), new.tolist(), strict=True))
                case "delete":
                    gone = [tag for tag in range(step["start"], step["end"]) if tag in rows]
                    for tag in gone:
                        del rows[tag]
                    timed("delete", "delete", np.array(gone, np.int64))
                case "replace":
                    tags = np.arange(step["tags_start"], step["tags_end"])
                    ids = np.arange(step["ids_start"], step["ids_end"])
                    both = min(len(tags), len(ids))  # shrunk, they may differ by one
                    timed("replace", "upsert", tags[:both], ids[:both])
                    rows.update(zip(tags[:both].tolist(), ids[:both].tolist(), strict=True))
                case _:
                    answers = timed("search", "answers", ef)
                    if not rows:
                        continue
                    live = base[list(rows.values())]
                    place = {tag: at for at, tag in enumerate(rows)}
                    found = [[place[tag] for tag in hits if tag in place] for hits in answers]
                    k = min(K, len(rows))
                    kth = kth_distances(live, queries, k)
                    searches.append(
                        {
                            "step": number,
                            "live": len(rows),
                            "recall": recall(live, queries, kth, found, k),
                            "bytes_per_row": process.call("memory").anonymous / len(rows),
                        }
                    )
        timed("upkeep that was left", "settle")
    return {"searches": searches, "seconds": dict(seconds), "total_s": seconds.total()}


def main() -> None:
    flags = parser(__doc__, ask=1000)
    flags.add_argument("--runbook", type=Path, default=SMALL, metavar="FILE", help="(default: %(default)s)")
    flags.add_argument("--dataset", metavar="NAME", help="in the runbook (default: the first)")
    flags.add_argument("--ef", type=int, default=64, help="(default: %(default)s)")
    add_graph_flags(flags)
    flags.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    flags.add_argument("--systems", default="driftline,usearch-f16", help="(default: %(default)s)")
    options = flags.parse_args()
    data = Data(options.base, options.queries, options.limit, options.ask)
    base, queries = data.load()
    name, steps = load_runbook(options.runbook, options.dataset)
    steps, factor = shrunk(steps, len(base))
    shape = Shape(base.shape[1], len(base), "l2", options.m, options.ef_construction, options.threads)
    figures: dict[str, Any] = {}
    for system in options.systems.split(","):
        try:
            process = Process(Changed, system, shape, data, threads=options.threads)
            figures[system] = run(process, steps, base, queries, options.ef)
            process.close()
        except Unavailable as error:
            print(f"{system} is left out: {error}")
    rows = [
        [system, str(at["step"]), f"{at['live']:,}", f"{at['recall']:.4f}", f"{at['bytes_per_row']:,.0f}"]
        for system, of in figures.items()
        for at in of["searches"]
    ]
    size = "" if factor == 1.0 else f", times {factor:.4g}"
    title = f"{options.runbook.name}, {name}{size}: {len(steps)} steps on {len(base):,} x {base.shape[1]}"
    report(title, ["", "step", "live", f"recall@{K}, ef={options.ef}", "bytes/row"], rows, figures, options)
    for system, of in figures.items():
        parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in of["seconds"].items())
        print(
            f"{system}: {of['total_s']:.1f} s ({parts}), "
            f"mean recall {mean(at['recall'] for at in of['searches']):.4f}"
        )


if __name__ == "__main__":
    main()
