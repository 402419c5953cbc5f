"""How often does the drift monitor cry wolf, how late does it notice a change, and what do others do?

False alarms: independent runs of stationary streams, each of 4 windows that are learned and --run-windows
that are tested; of driftline a *window* is false that differs at alpha, an *alarm* what it raises of such.
The upper limit is the larger of two one-sided 95 % limits: of a binomial share (Clopper & Pearson), and of
the mean over runs (Student), since the windows of a run share a reference.

Delays: independent trials with a change at a row of which the monitor knows nothing, not at a window's
border. A trial finds it if the first alarm comes after the change and within --within rows. The sets of
--stored are fed once, in their order, with --changes-at where they change.

Beside it Page-Hinkley, ADWIN (river) and Kolmogorov-Smirnov, one for each dimension, on fewer rows since
they take a thousand times as long: benchmarks/peers/detectors.py. Without river they are left out.

    python benchmarks/alarms.py --windows 200 --trials 10                    # a look
    python benchmarks/alarms.py --sets sift128_base.npy commits384.npz:base fashion_mnist784.npz:base \
        --stored sift128_base.npy --windows 2400 --trials 200 --json alarms.json
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from driftline.index.drift import DriftMonitor, DriftSettings, expected_gain
from driftline.index.events import DriftDetected, DriftWindow
from driftline.index.tile import TileParameters
from peers.detectors import LEARNED, MAKERS
from report import parser, report
from rich import progress
from scipy.stats import beta, t
from streams import BLOCK, LAWS, Blocks, resampled, rows_of
from vectors import DEMO, Vectors, load_vectors

Rng = np.random.Generator

SYNTHETIC = [*(f"{law},{dim}" for law in ("normal", "laplace", "lognormal") for dim in (16, 128, 768))]
CORRELATED = [f"{law},{dim}" for law in ("bursts", "swell", "autoregressive") for dim in (16, 128)]
DEMO_CHANGE = 6000  # row of the demo's set at which its second half begins
CHANGE = 10_000  # row from which on a synthetic stream changes, plus up to a window
OURS = "driftline"
PEER_DIM = 128  # beyond it the peers are not asked


class Driftline:
    """The monitor, as the index uses it: a first frame after 1,000 rows, a new one at alarms that gain."""

    def __init__(self, dim: int, alpha: float) -> None:
        self._monitor = DriftMonitor(dim, DriftSettings(alpha=alpha), rotation_seed=0)
        self._frame: TileParameters | None = None
        self.windows: list[bool] = []  # tested: whether it differed
        self.kinds: list[str] = []  # of alarms
        self.opened = 0  # frames, by alarms

    def update(self, rows: Vectors) -> list[int]:
        """Rows at which alarms came."""
        alarms: list[int] = []
        for start in range(0, len(rows), 250):
            for event in self._monitor.update(rows[start : start + 250], self._frame):
                if isinstance(event, DriftWindow) and event.reference_rows:
                    self.windows.append(bool(event.differs))
                if isinstance(event, DriftDetected):
                    alarms.append(event.rows_seen)
                    self.kinds.append(event.kind)
                    self._follow()
            if self._frame is None and self._monitor.rows_seen >= 1000:
                self._frame = self._monitor.fit()
        return alarms

    def _follow(self) -> None:
        assert self._frame is not None
        fitted, recent = self._monitor.fit(), self._monitor.recent()
        if expected_gain(self._frame, fitted, recent) >= self._monitor.settings.min_gain:
            self._frame = fitted
            self.opened += 1


@dataclass(frozen=True, slots=True)
class Told:
    """What one detector said of one stream."""

    stream: str
    detector: str
    windows: int  # tested: of 1,000 rows
    false_share: float  # of them
    upper: float  # 95 % limit of it
    trials: int = 0
    found_share: float = math.nan
    delay_median: float = math.nan  # rows from the change to the alarm, of the trials that found it
    delay_95: float = math.nan
    delays: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()


def share(hits: Sequence[int], tested: Sequence[int]) -> tuple[float, float]:
    """Share of hits and its upper limit, from the counts of independent runs."""
    hit, all_ = sum(hits), sum(tested)
    if not all_:
        return math.nan, math.nan
    binomial = float(beta.ppf(0.95, hit + 1, all_ - hit)) if hit < all_ else 1.0
    if len(hits) < 2:
        return hit / all_, binomial
    rates = np.array(hits) / np.maximum(tested, 1)
    runs = float(rates.mean() + t.ppf(0.95, len(rates) - 1) * rates.std(ddof=1) / math.sqrt(len(rates)))
    return hit / all_, max(binomial, runs)


def false_alarms(
    name: str, blocks: Callable[[Rng], Blocks], options: argparse.Namespace, peers: Sequence[str]
) -> list[Told]:
    """Runs of a stationary stream."""
    runs = -(-options.windows // options.run_windows) if OURS in options.detectors else 0
    hits: dict[str, list[int]] = {}
    tested: dict[str, list[int]] = {}
    for run in progress.track(range(runs), description=name, transient=True):
        stream = blocks(np.random.default_rng([options.seed, run]))
        first = next(stream)
        monitor, alarms = Driftline(first.shape[1], options.alpha), 0
        for block in (first, *(next(stream) for _ in range(LEARNED // BLOCK + options.run_windows - 1))):
            alarms += len(monitor.update(block))
        for detector, count in ((f"{OURS}, windows", sum(monitor.windows)), (f"{OURS}, alarms", alarms)):
            hits.setdefault(detector, []).append(count)
            tested.setdefault(detector, []).append(len(monitor.windows))
    for detector in peers:
        for run in range(options.peer_runs):
            stream = blocks(np.random.default_rng([options.seed, run]))
            first = next(stream)
            if first.shape[1] > PEER_DIM:
                break
            peer = MAKERS[detector](first.shape[1], options.alpha)
            rows: list[int] = []
            for block in (first, *(next(stream) for _ in range(LEARNED // BLOCK + options.peer_windows - 1))):
                rows += peer.update(block)
            hits.setdefault(detector, []).append(len({(row - 1) // BLOCK for row in rows}))
            tested.setdefault(detector, []).append(options.peer_windows)
    return [Told(name, each, sum(tested[each]), *share(hits[each], tested[each])) for each in hits]


def delays(
    name: str,
    trial: Callable[[Rng], tuple[Vectors, int]],
    options: argparse.Namespace,
    peers: Sequence[str],
) -> list[Told]:
    """Trials of a stream that changes once; `trial` gives rows and the row of the change."""
    told: list[Told] = []
    asked = [(f"{OURS}, alarms", options.trials)] if OURS in options.detectors else []
    for detector, trials in (*asked, *((peer, options.peer_trials) for peer in peers)):
        if not trials:
            continue
        late: list[int] = []
        kinds: list[str] = []
        false, before = [], []
        for seed in progress.track(range(trials), description=f"{name}: {detector}", transient=True):
            rows, change = trial(np.random.default_rng([options.seed, seed]))
            make = MAKERS.get(detector, Driftline)
            watch = make(rows.shape[1], options.alpha)
            end = min(len(rows), change + options.within)
            alarms = [
                row
                for start in range(0, end, BLOCK)
                for row in watch.update(rows[start : min(start + BLOCK, end)])
            ]
            early = [row for row in alarms if row <= change]
            false.append(len({(row - 1) // BLOCK for row in early}))
            before.append(max(0, change - LEARNED) // BLOCK)
            after = [row - change for row in alarms if row > change]
            if after and not early:
                late.append(after[0])
                if isinstance(watch, Driftline):
                    kinds.append(watch.kinds[0])
        found = np.array(late or [math.nan])
        told.append(
            Told(
                name,
                detector,
                sum(before),
                *share(false, before),
                trials,
                len(late) / trials,
                float(np.median(found)),
                float(np.quantile(found, 0.95)),
                tuple(late),
                tuple(kinds),
            )
        )
    return told


def shifted(
    rng: Rng, law: str, dim: int, factor: float, sigmas: float, dims: float, rows: int
) -> tuple[Vectors, int]:
    """A stream of a law that changes in a share of its dimensions."""
    change = CHANGE + int(rng.integers(BLOCK))
    x = rows_of(LAWS[law](rng, dim), change + rows)
    moved = rng.permutation(dim)[: max(1, round(dims * dim))]
    x[change:, moved] = x[change:, moved] * factor + sigmas
    return x, change


def from_somewhere(rng: Rng, rows: Vectors, change: int) -> tuple[Vectors, int]:
    """A stored stream without some of its first rows, so that its change is not at a window's border."""
    start = int(rng.integers(BLOCK))
    return rows[start:], change - start


loaded = lru_cache(maxsize=1)(load_vectors)  # for all runs of a stream


def stationary(options: argparse.Namespace) -> dict[str, Callable[[Rng], Blocks]]:
    streams: dict[str, Callable[[Rng], Blocks]] = {}
    for name in (*SYNTHETIC, *CORRELATED):
        law, dim = name.split(",")
        streams[name] = partial(lambda rng, law, dim: LAWS[law](rng, dim), law=law, dim=int(dim))
    for place in options.sets:
        streams[f"{Path(place).stem}, resampled"] = partial(
            lambda rng, place: resampled(rng, loaded(place, options.limit)), place=place
        )
    return streams


def changing(options: argparse.Namespace) -> dict[str, Callable[[Rng], tuple[Vectors, int]]]:
    demo = load_vectors(f"{DEMO}:base")
    law = partial(shifted, law="normal", dim=128, rows=options.within)
    return {
        "normal,128: 0.25 sigma on 10 %": partial(law, factor=1.0, sigmas=0.25, dims=0.1),
        "normal,128: 15 % wider": partial(law, factor=1.15, sigmas=0.0, dims=1.0),
        "demo384, from its first row": lambda rng: (demo, DEMO_CHANGE),
        "demo384, from a random row": partial(from_somewhere, rows=demo, change=DEMO_CHANGE),
    }


def stored(place: str, options: argparse.Namespace) -> tuple[Told, int]:
    """A set in its order, of which nothing is known; frames that were opened."""
    rows = load_vectors(place, options.limit)
    watch = Driftline(rows.shape[1], options.alpha)
    alarms = [
        row for start in range(0, len(rows), BLOCK) for row in watch.update(rows[start : start + BLOCK])
    ]
    tested = [len(watch.windows)]
    told = Told(
        f"{Path(place).stem}, as stored", f"{OURS}, windows", *tested, *share([sum(watch.windows)], tested),
        kinds=tuple(f"{kind} at {row}" for kind, row in zip(watch.kinds, alarms, strict=True)),
    )  # fmt: skip
    return told, watch.opened


def main() -> None:
    flags = parser(__doc__, queries=False)
    flags.add_argument(
        "--sets", nargs="*", default=[f"{DEMO}:base"], metavar="FILE", help="resampled as streams"
    )
    flags.add_argument("--stored", nargs="*", default=[], metavar="FILE", help="fed once, in their order")
    flags.add_argument("--only", nargs="*", metavar="NAME", help="streams so named; * is anything")
    flags.add_argument("--detectors", nargs="*", choices=[OURS, *MAKERS], default=[OURS, *MAKERS])
    flags.add_argument("--windows", type=int, default=200, help="tested, of each stationary stream")
    flags.add_argument("--run-windows", type=int, default=100, help="of them in each independent run")
    flags.add_argument("--trials", type=int, default=20, help="of each change")
    flags.add_argument(
        "--within", type=int, default=5000, metavar="ROWS", help="a change is found, or it is not"
    )
    flags.add_argument("--peer-windows", type=int, default=20, help="of each run of the peers")
    flags.add_argument("--peer-runs", type=int, default=1)
    flags.add_argument("--peer-trials", type=int, default=2)
    flags.add_argument("--alpha", type=float, default=DriftSettings().alpha)
    flags.add_argument("--seed", type=int, default=0)
    options = flags.parse_args()

    def wanted(name: str) -> bool:
        return not options.only or any(fnmatch(name, pattern) for pattern in options.only)

    peers = [name for name in MAKERS if name in options.detectors and (name == "KS" or find_spec("river"))]
    told: list[Told] = []
    for name, blocks in stationary(options).items():
        if wanted(name):
            told += false_alarms(name, blocks, options, peers)
    for name, trial in changing(options).items():
        if wanted(name):
            told += delays(name, trial, options, peers)
    frames: dict[str, int] = {}
    for place in options.stored:
        if wanted(f"{Path(place).stem}, as stored"):
            one, frames[Path(place).stem] = stored(place, options)
            told.append(one)

    header = ["stream", "detector", "windows", "false", "at most", "trials", "found", "delay", "95 %"]
    lines = [
        [
            each.stream, each.detector, each.windows, percent(each.false_share), percent(each.upper),
            each.trials or "", percent(each.found_share),
            rows_late(each.delay_median), rows_late(each.delay_95),
        ]
        for each in told
    ]  # fmt: skip
    title = (
        f"false alarms a window of 1,000 rows, alpha {options.alpha:g}; found within {options.within:,} rows"
    )
    if frames:
        title += "; frames opened: " + ", ".join(f"{place} {opened}" for place, opened in frames.items())
    report(title, header, lines, {"told": [asdict(each) for each in told], "frames_opened": frames}, options)


def percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2%}"


def rows_late(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"


if __name__ == "__main__":
    main()
