"""What does the drift monitor say on a stream of vectors?

Rows are fed in order, as the index feeds them. A first frame is fitted after --fit-after rows; at each alarm
a new one is fitted and, if it gains enough, used from then on. The table has a line for every alarm: what a
new frame gains is the mean squared error of the newest rows in the old frame / in the new one.

    python benchmarks/watch.py --base sift128_base.npy
    python benchmarks/watch.py --base fashion_mnist784.npz:base --order-by fashion_mnist784.npz:base_label
    python benchmarks/watch.py --base commits384.npz:base --shift-from-middle 4,1 --recall
    python benchmarks/watch.py --synthetic bursts,128,60000 --seed 3
"""

import argparse
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
from driftline.index.drift import DriftMonitor, DriftSettings, expected_gain
from driftline.index.events import DriftDetected, DriftWindow
from driftline.index.tile import TileParameters
from report import parser, report
from streams import LAWS, rows_of
from tile import nearest
from vectors import Vectors, kth_distances, load_vectors, open_vectors, recall

K = 10  # neighbours
ASKED = 300  # rows that are taken out as queries


def stream(options: argparse.Namespace) -> Vectors:
    """The rows in the order they are fed."""
    rng = np.random.default_rng(options.seed)
    if options.synthetic:
        law, dim, count = options.synthetic.split(",")
        rows = rows_of(LAWS[law](rng, int(dim)), int(count))
    else:
        rows = load_vectors(options.base, options.limit)
    if options.order_by:
        rows = rows[np.argsort(open_vectors(options.order_by)[: len(rows)], kind="stable")]
    if options.shuffle:
        rows = rows[rng.permutation(len(rows))]
    if options.shift_from_middle:
        factor, sigmas, share = [*map(float, options.shift_from_middle.split(",")), 1.0][:3]
        middle, dims = len(rows) // 2, max(1, round(share * rows.shape[1]))
        spread = rows[:middle, :dims].std(axis=0)
        rows[middle:, :dims] = rows[middle:, :dims] * factor + sigmas * spread
    return rows


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm, and what a new frame is worth: by bits of a code, error of the newest rows in the old frame /
    the new."""

    event: DriftDetected
    old: TileParameters
    new: TileParameters
    gains: dict[int, float]
    opened: bool


def watch(rows: Vectors, options: argparse.Namespace) -> tuple[list[DriftWindow], list[Alarm], float]:
    """Windows, alarms, and CPU seconds inside the monitor."""
    settings = DriftSettings(window_rows=options.window_rows, alpha=options.alpha)
    monitor = DriftMonitor(rows.shape[1], settings, rotation_seed=options.seed)
    windows: list[DriftWindow] = []
    alarms: list[Alarm] = []
    frame = None
    seconds = 0.0
    for start in range(0, len(rows), options.batch):
        began = time.thread_time()
        found = monitor.update(rows[start : start + options.batch], frame)
        seconds += time.thread_time() - began
        for event in found:
            if isinstance(event, DriftWindow):
                windows.append(event)
            elif frame is not None:
                fitted, recent = monitor.fit(), monitor.recent()
                gains = {bits: expected_gain(frame, fitted, recent, bits) for bits in (4, 8)}
                alarms.append(Alarm(event, frame, fitted, gains, gains[4] >= settings.min_gain))
                frame = fitted if alarms[-1].opened else frame
        if frame is None and monitor.rows_seen >= options.fit_after:
            frame = monitor.fit()
    return windows, alarms, seconds


def recalls(rows: Vectors, alarms: list[Alarm]) -> list[dict[str, float]]:
    """For each alarm, flat recall@10 of the rows from then to the next one, coded in the old and in the new
    frame."""
    results: list[dict[str, float]] = []
    ends = [alarm.event.since_rows_seen for alarm in alarms[1:]] + [len(rows)]
    for alarm, end in zip(alarms, ends, strict=True):
        part = rows[alarm.event.rows_seen : end]
        chosen = np.random.default_rng(0).permutation(len(part))
        queries, base = part[chosen[:ASKED]], part[chosen[ASKED:]]
        result: dict[str, float] = {}
        kth = kth_distances(base, queries, K) if len(base) > 2 * K else None
        for name, frame in (("old", alarm.old), ("new", alarm.new)):
            codes = frame.encode(base)
            for bits in (4, 8):
                found = nearest(frame.decode(codes, bits), queries) if kth is not None else []
                value = math.nan if kth is None else recall(base, queries, kth, found, K)
                result[f"recall_{bits}_bits_{name}"] = value
        results.append(result)
    return results


def main() -> None:
    flags = parser(__doc__, queries=False)
    flags.add_argument("--synthetic", metavar="LAW,DIM,ROWS", help=f"instead of --base: {', '.join(LAWS)}")
    flags.add_argument("--order-by", metavar="FILE", help="feed rows in the stable order of these values")
    flags.add_argument("--shuffle", action="store_true", help="feed rows in random order")
    flags.add_argument(
        "--shift-from-middle",
        metavar="FACTOR,SIGMAS[,SHARE]",
        help="the second half times FACTOR plus SIGMAS standard deviations, in this share of the dimensions",
    )
    flags.add_argument("--window-rows", type=int, default=DriftSettings().window_rows)
    flags.add_argument("--alpha", type=float, default=DriftSettings().alpha)
    flags.add_argument("--fit-after", type=int, default=1000, metavar="ROWS", help="rows of the first frame")
    flags.add_argument("--batch", type=int, default=250, metavar="ROWS", help="rows of one update")
    flags.add_argument("--recall", action="store_true", help="and what a new frame does for recall")
    flags.add_argument("--seed", type=int, default=0)
    options = flags.parse_args()

    rows = stream(options)
    windows, alarms, seconds = watch(rows, options)
    tested = [window for window in windows if window.reference_rows]
    losses = [window.fit_loss for window in windows]
    figures = {
        "rows": len(rows),
        "dim": rows.shape[1],
        "windows_tested": len(tested),
        "windows_below_alpha": sum(window.p_value < options.alpha for window in tested),
        "inflation_median": float(np.median([window.inflation for window in tested] or [1.0])),
        "fit_loss_median": float(np.median(losses or [1.0])),
        "fit_loss_max": max(losses, default=1.0),
        "cpu_ms_per_window": seconds * 1e3 * options.window_rows / len(rows),
    }
    header = [
        "row",
        "since",
        "differs",
        "kind",
        "p",
        "fit loss",
        "drifted",
        "shift",
        "gain 4 bit",
        "8 bit",
        "frame",
    ]
    lines = [
        [
            alarm.event.rows_seen,
            alarm.event.since_rows_seen,
            alarm.event.differs,
            alarm.event.kind,
            f"{alarm.event.p_value:.0e}",
            alarm.event.fit_loss,
            f"{alarm.event.drifted_share:.0%}",
            f"{alarm.event.mean_shift_sigmas:.2f}",
            *alarm.gains.values(),
            "new" if alarm.opened else "kept",
        ]
        for alarm in alarms
    ]
    told = [{**asdict(alarm.event), "gain": alarm.gains, "opened": alarm.opened} for alarm in alarms]
    if options.recall:
        header = [header[0], *header[8:], "4 bit recall: old", "new", "8 bit: old", "new"]
        for line, alarm, found in zip(lines, told, recalls(rows, alarms), strict=True):
            line[1:] = [*line[8:], *(found[f"recall_{b}_bits_{f}"] for b in (4, 8) for f in ("old", "new"))]
            alarm |= found
    title = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
    document = {**figures, "alarms": told, "windows": [asdict(window) for window in windows]}
    report(title, header, lines, document, options)


if __name__ == "__main__":
    main()
