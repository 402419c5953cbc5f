"""When the data drift, are the codes made better, as predicted, and does anyone notice?

A stream is written into an index that keeps itself up beside it (as the service does) while searches run.
Afterwards: what was reported, what was encoded anew or declined, the gain that was predicted and the gain
that was measured, and the flat recall@10 of four-bit codes over the rows written after the change: all coded
in the frame of the old world, and each in the frame it has at the end. A hit counts if its true distance is
at most the true tenth's.

    python benchmarks/reencode.py --base commits384.npz:base --queries commits384.npz:query
    python benchmarks/reencode.py --base fashion_mnist784.npz:base --queries fashion_mnist784.npz:query \\
        --order-by fashion_mnist784.npz:base_label
    python benchmarks/reencode.py --base commits384.npz:base --queries commits384.npz:query
    --shift-from-middle 4,1
"""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from driftline import OnlineIndex
from driftline.index.events import DriftDetected, DriftWindow, FrameOpened, ReencodeDeclined, ReencodeFinished
from driftline.index.tile import TileParameters
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from vectors import load_vectors

BATCH = 500
K = 10
DEMO = Path(__file__).parent.parent / "stream" / "demo_data" / "demo384.npz"


class Asker(threading.Thread):
    """Searches without pause; counts answers, failures and how long they took."""

    def __init__(self, index: OnlineIndex, queries: np.ndarray) -> None:
        super().__init__()
        self.index, self.queries = index, queries
        self.stop = threading.Event()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        at = 0
        while not self.stop.is_set():
            began = time.perf_counter()
            try:
                hits = self.index.search(self.queries[at : at + 1], K)
                if len(hits.keys[0]) < min(K, len(self.index)):
                    self.failures.append(f"{len(hits.keys[0])} hits")
            except Exception as error:
                self.failures.append(repr(error))
            self.seconds.append(time.perf_counter() - began)
            at = (at + 1) % len(self.queries)
            time.sleep(0.002)


class Keeper(threading.Thread):
    """Upkeep in small steps, as the service does it."""

    def __init__(self, index: OnlineIndex) -> None:
        super().__init__()
        self.index = index
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            if not self.index.maintain(0.02):
                self.stop.wait(0.02)


def shifted(x: np.ndarray, first: int, factor: float, sigmas: float) -> np.ndarray:
    """x, from row `first` on times `factor` plus `sigmas` of each dimension's standard deviation."""
    out = x.copy()
    out[first:] = x[first:] * factor + sigmas * x.std(axis=0)
    return out


def flat_recall(decoded: np.ndarray, base: np.ndarray, queries: np.ndarray) -> float:
    """recall@10 of exact search over decoded vectors."""
    squares, decoded_squares = (base**2).sum(axis=1), (decoded**2).sum(axis=1)
    good = 0
    for query in queries:
        true = squares - 2 * (base @ query)
        bound = np.partition(true, K - 1)[K - 1] + 1e-4
        found = np.argpartition(decoded_squares - 2 * (decoded @ query), K - 1)[:K]
        good += int((true[found] <= bound).sum())
    return good / (K * len(queries))


def decoded_in(parameters: TileParameters, x: np.ndarray) -> np.ndarray:
    return parameters.decode(parameters.encode(x), bits=4)


def stream(
    index: OnlineIndex, base: np.ndarray, queries: np.ndarray, first: int
) -> tuple[TileParameters | None, dict[str, Any]]:
    """Write the stream; the code of before row `first`, where the world becomes new, and what happened."""
    keeper, asker = Keeper(index), Asker(index, queries)
    index.upsert(np.arange(BATCH), base[:BATCH])
    keeper.start()
    asker.start()
    began = time.perf_counter()
    frame_before: int | None = None
    parameters_before: TileParameters | None = None  # kept: the frame may be gone at the end
    with Progress(transient=True) as progress:
        task = progress.add_task("writing", total=len(base))
        for start in range(BATCH, len(base), BATCH):
            if start >= first and frame_before is None:
                frame_before = index.stats().frames[-1].frame
                parameters_before = index.parameters(frame_before)
            index.upsert(np.arange(start, min(start + BATCH, len(base))), base[start : start + BATCH])
            progress.update(task, completed=start)
        seconds = time.perf_counter() - began
        while index.stats().reencoding:
            time.sleep(0.05)
        time.sleep(0.2)  # a decision that the last rows call for is taken by the next step of upkeep
        while index.stats().reencoding:
            time.sleep(0.05)
    for thread in (keeper, asker):
        thread.stop.set()
        thread.join()
    return parameters_before, {
        "rows": len(base),
        "rows_per_s": round(len(base) / seconds),
        "frame_before": frame_before,
        "searches": len(asker.seconds),
        "failed": dict(Counter(asker.failures)),
        "search_p50_ms": round(float(np.percentile(asker.seconds, 50)) * 1e3, 2),
        "search_p99_ms": round(float(np.percentile(asker.seconds, 99)) * 1e3, 2),
        "search_max_ms": round(float(np.max(asker.seconds)) * 1e3, 2),
    }


def main(
    base: Annotated[str, typer.Option(help="FILE.npy or FILE.npz:key")] = f"{DEMO}:base",
    queries: Annotated[str, typer.Option(help="FILE.npy or FILE.npz:key")] = f"{DEMO}:query",
    order_by: Annotated[str | None, typer.Option(help="FILE.npz:key to sort the stream by, stably")] = None,
    shift_from_middle: Annotated[str | None, typer.Option(help="FACTOR,SIGMAS for the second half")] = None,
    change_at: Annotated[int | None, typer.Option(help="row where the world changes; default: half")] = None,
    limit: Annotated[int | None, typer.Option(help="rows of the base")] = None,
    asked: Annotated[int, typer.Option(help="queries for the flat recall")] = 300,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    x, q = load_vectors(base)[:limit], load_vectors(queries)
    if order_by is not None:
        x = x[np.argsort(load_vectors(order_by)[:limit], kind="stable")]
    first = len(x) // 2 if change_at is None else change_at
    if shift_from_middle is not None:
        factor, sigmas = map(float, shift_from_middle.split(","))
        q = q * factor + sigmas * x.std(axis=0)
        x = shifted(x, first, factor, sigmas)
    index = OnlineIndex(x.shape[1])
    old, result = stream(index, x, q, first)
    if old is None:
        raise typer.BadParameter("the rows before the change were still held as floats when it came")
    index.check()
    events = index.take_events()
    windows = [event for event in events if isinstance(event, DriftWindow)]
    rows = index.get(np.arange(first, len(x)))
    frames = np.array([row.frame for row in rows if row is not None])
    new_world, flat = x[first:], np.empty_like(x[first:])
    for number in np.unique(frames):
        parameters = index.parameters(int(number))
        here = frames == number
        flat[here] = new_world[here] if parameters is None else decoded_in(parameters, new_world[here])
    result |= {
        "windows": len(windows),
        "largest_fit_loss": max((window.fit_loss for window in windows), default=None),
        "detected_at": [event.rows_seen for event in events if isinstance(event, DriftDetected)],
        "frames_opened": [event.to_fields() for event in events if isinstance(event, FrameOpened)],
        "finished": [event.to_fields() for event in events if isinstance(event, ReencodeFinished)],
        "declined": [event.to_fields() for event in events if isinstance(event, ReencodeDeclined)],
        "flat4_old_frame": flat_recall(decoded_in(old, new_world), new_world, q[:asked]),
        "flat4_now": flat_recall(flat, new_world, q[:asked]),
    }
    table = Table(title=f"{Path(base).name}: {len(x):,} rows", show_header=False)
    for name, value in result.items():
        table.add_row(name, json.dumps(value, default=str))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
