"""Does a service grow, though what it holds does not?

For an hour, on a real Kafka, keys are updated, deleted and inserted at an even rate, the live set being as
large at every moment; searches are asked beside, a snapshot is taken every half minute, and the whole index
is encoded anew every few minutes. Vectors come from the base by turns, so that the data drifts to and fro.
Memory (anonymous: raw vectors are mapped files) and the bytes of the data directory are read every few
seconds. After --settle minutes a line is fitted to the memory's means by the minute: its slope and the 95 %
interval, which takes the minutes as independent. At the end the live set must be as large as said, and no
event an error.
"""

import argparse
import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from driftline.errors import DriftlineError
from driftline.stream.clients import SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import Draft, Log, open_log
from driftline.stream.messages import encode_delete, encode_vector
from report import milliseconds, parser, report
from rivals import TOPIC, Load, create_topics
from running import LONG_S, Service, place, until
from scipy.stats import t as student
from vectors import Vectors, load_vectors

TICK_S = 0.02
LOOK_S = 5.0
DELETED = 0.3  # share of changes that delete a key and insert another; the others update one
DRIFT_S = 300.0  # of a whole turn through the base


@dataclass(frozen=True, slots=True)
class Sample:
    minutes: float
    anonymous: int
    resident: int
    files: int
    live: int


class Changes:
    """Keys that live, keys that do not, and what becomes of them; the same at the same seed and moments."""

    def __init__(self, base: Vectors, live: int, seed: int) -> None:
        self.base = base
        self.draw = random.Random(seed)
        keys = [b"key-%d" % number for number in range(2 * live)]
        self.live, self.gone = keys[:live], keys[live:]

    def first(self) -> list[Draft]:
        return [self.upsert(key, row / len(self.live)) for row, key in enumerate(self.live)]

    def next(self, turn: float) -> list[Draft]:
        """One change, at a place of the turn through the base from 0 to 1."""
        at = self.draw.randrange(len(self.live))
        if self.draw.random() >= DELETED:
            return [self.upsert(self.live[at], turn)]
        other = self.draw.randrange(len(self.gone))
        self.live[at], self.gone[other] = self.gone[other], self.live[at]
        return [encode_delete(TOPIC, self.gone[other]), self.upsert(self.live[at], turn)]

    def upsert(self, key: bytes, turn: float) -> Draft:
        """A row from the tenth of the base that begins there, with noise: no two are the same."""
        count = len(self.base)
        row = (int(turn * count) + self.draw.randrange(max(1, count // 10))) % count
        vector = self.base[row] * np.float32(self.draw.uniform(0.99, 1.01))
        return encode_vector(TOPIC, key, vector)


async def change(log: Log, changes: Changes, rate: float, seconds: float) -> int:
    """Changes at an even rate; how many."""
    began, done = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        drafts = [d for _ in range(int(now * rate) - done) for d in changes.next(now % DRIFT_S / DRIFT_S)]
        done = int(now * rate)
        if drafts:
            await log.append(drafts)
        await asyncio.sleep(TICK_S)
    return done


async def watch(service: Service, samples: list[Sample], seconds: float) -> None:
    began = time.monotonic()
    with progress_bar() as progress:
        bar = progress.add_task("soaking", total=round(seconds), note="s")
        while (now := time.monotonic() - began) < seconds:
            status = await asyncio.to_thread(service.status)
            if status is not None:
                memory = status["memory"]
                files = await asyncio.to_thread(disk_bytes, service.data_dir)
                samples.append(
                    Sample(now / 60, memory["anonymous"], memory["resident"], files, status["live"])
                )
            progress.update(bar, completed=round(now))
            await asyncio.sleep(LOOK_S)


async def encode_anew(service: Service, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        with contextlib.suppress(DriftlineError):  # one may be under way
            await asyncio.to_thread(service.ask, "reencode", action="now")


def disk_bytes(directory: Path) -> int:
    """What the files take on the disk; one that goes meanwhile takes nothing."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def slope(minutes: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Of a line through the means by the minute, a minute; and the ends of its 95 % interval."""
    whole = np.floor(minutes).astype(int)
    x = np.unique(whole).astype(float)
    y = np.array([np.mean(np.asarray(values)[whole == minute]) for minute in x])
    if len(x) < 3:
        return float("nan"), float("nan"), float("nan")
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    left = y - y.mean() - slope * (x - x.mean())
    half = student.ppf(0.975, len(x) - 2) * np.sqrt((left**2).sum() / (len(x) - 2) / spread)
    return float(slope), float(slope - half), float(slope + half)


async def soak(
    url: str, service: Service, changes: Changes, queries: Vectors, options: argparse.Namespace
) -> Any:
    samples: list[Sample] = []
    seconds = 60 * options.minutes
    async with open_log(url) as log, SearchClient(log) as client:
        drafts = changes.first()
        for first in range(0, len(drafts), 1000):
            await log.append(drafts[first : first + 1000])
        await asyncio.to_thread(until, service.caught_up, "the live set is there", LONG_S)
        load = Load(client, queries, options.searches)
        async with asyncio.TaskGroup() as group:
            again = group.create_task(encode_anew(service, 60 * options.encode_minutes))
            async with load.running():
                watching = group.create_task(watch(service, samples, seconds))
                done = await change(log, changes, options.rate, seconds)
                await watching
            again.cancel()
        await asyncio.to_thread(until, service.caught_up, "everything applied", LONG_S)
    return samples, load, done


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--minutes", type=float, default=60, help="how long (default: %(default)s)")
    flags.add_argument("--settle", type=float, default=10, help="minutes left out (default: %(default)s)")
    flags.add_argument("--live", type=int, default=5000, help="keys that live (default: %(default)s)")
    flags.add_argument("--rate", type=float, default=500, help="changes a second (default: %(default)s)")
    flags.add_argument("--searches", type=float, default=50, help="a second (default: %(default)s)")
    flags.add_argument("--encode-minutes", type=float, default=5, metavar="M",
                       help="between re-encodes of all (default: %(default)s)")  # fmt: skip
    flags.add_argument("--seed", type=int, default=0)
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries)
    with (
        place(None) as (directory, url),
        Service(directory, log=url, snapshots__every_seconds=30) as service,
    ):
        asyncio.run(create_topics(url))
        service.start()
        changes = Changes(base, options.live, options.seed)
        samples, load, done = asyncio.run(soak(url, service, changes, queries, options))
        status = service.status()
        assert status is not None
        stopped = service.stop()
        counts = Counter(event["event"] for event in service.events())
        errors = [event for event in service.events() if event["level"] in ("error", "critical")]
    kept = [sample for sample in samples if sample.minutes >= options.settle]
    at = kept[0]
    grown = {
        part: [
            10 * value / 1e6 for value in slope([s.minutes for s in kept], [getattr(s, part) for s in kept])
        ]
        for part in ("anonymous", "resident")
    }
    files = max(sample.files for sample in kept) / at.files
    rows: list[list[object]] = [
        [f"{part} memory, MB in 10 minutes", f"{mid:+.2f} ({low:+.2f} to {high:+.2f})"]
        for part, (mid, low, high) in grown.items()
    ]
    rows += [
        [
            "anonymous memory at first, at last, MB",
            f"{at.anonymous / 1e6:.1f}, {kept[-1].anonymous / 1e6:.1f}",
        ],
        ["files, most / at first", f"{files:.2f} ({at.files / 1e6:.0f} MB)"],
        ["changes, searches, lost", f"{done:,}, {len(load.seconds):,}, {load.lost}"],
        ["search median, p99, ms", ", ".join(map(str, list(milliseconds(load.seconds).values())[:2]))],
        ["snapshots, re-encodes", f"{counts['snapshot.committed']}, {counts['reencode.finished']}"],
        ["live keys", f"{status['live']:,} of {options.live:,}"],
        ["error events", ", ".join(sorted({event["event"] for event in errors})) or "none"],
    ]
    figures = {
        "samples": [asdict(sample) for sample in samples], "slope_mb_per_10_minutes": grown, "files": files,
        "events": dict(counts), "errors": errors, "changes": done, "lost": load.lost,
    }  # fmt: skip
    title = (
        f"{options.live:,} x {base.shape[1]} live, {options.minutes:g} minutes, {options.rate:g} changes/s"
    )
    report(title, ["", f"after minute {options.settle:g}"], rows, figures, options)
    if status["live"] != options.live or errors or stopped:
        raise DriftlineError("the live set is not what it must be, or an error was told: see above")


if __name__ == "__main__":
    main()
