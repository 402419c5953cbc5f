"""Does anything get lost when `driftline serve` is killed, again and again, while it ingests?

A feeder writes a seeded stream of inserts, updates and deletes to a real Kafka. The service is killed
(SIGKILL) at random moments of the feed and started again each time; it takes a snapshot every second. At the
end, its newest snapshot, opened offline, must hold the keys and vectors that a plain fold of the topic by a
separate consumer holds, `check` must pass, and recall must be within 0.005 of a service never killed.

A killed process leaves what it wrote in the page cache: this is a crash of the service, not of the machine.
"""

import asyncio
import time
from collections import Counter
from typing import Any

import numpy as np
from driftline.index.online import OnlineIndex
from driftline.snapshots.store import SnapshotStore
from driftline.stream.feeding import progress_bar
from driftline.stream.log import Draft, open_log
from driftline.stream.messages import encode_delete, encode_vector
from report import parser, report
from running import LONG_S, Service, add_log_flag, fold, place, settled, until
from vectors import DEMO, Vectors, kth_distances, load_vectors, recall

K = 10
TOPIC = "driftline.vectors"
SETTINGS = {"topics__create": True, "snapshots__every_seconds": 1.0}
UPDATES, DELETES = 0.25, 0.15  # beside each insert, the chance that an older key is written again, or deleted
APPEND_S = 0.05  # of the feed in one append
AT_LEAST_S = 0.2  # a kill comes so long after the service began to ingest
SAME = 0.005  # of recall
ASK = 1000


def operations(base: Vectors, seed: int) -> list[Draft]:
    """Each row inserted in its order, older keys updated (to another row's vector) and deleted in between."""
    draw = np.random.default_rng(seed)
    drafts: list[Draft] = []
    for row in range(len(base)):
        drafts.append(encode_vector(TOPIC, b"%d" % row, base[row]))
        if draw.random() < UPDATES:
            other = base[draw.integers(len(base))]
            drafts.append(encode_vector(TOPIC, b"%d" % draw.integers(row + 1), other))
        if draw.random() < DELETES:
            drafts.append(encode_delete(TOPIC, b"%d" % draw.integers(row + 1)))
    return drafts


async def feed(url: str, drafts: list[Draft], rate: float) -> None:
    """Append in order, evenly."""
    most = max(1, round(rate * APPEND_S))
    async with open_log(url) as log:
        with progress_bar() as progress:
            bar = progress.add_task("feeding", total=len(drafts), note="")
            began = time.monotonic()
            for first in range(0, len(drafts), most):
                await log.append(drafts[first : first + most])
                progress.advance(bar, most)
                await asyncio.sleep(max(0.0, began + (first + most) / rate - time.monotonic()))


async def feed_and_kill(
    url: str, drafts: list[Draft], rate: float, service: Service, moments: list[float]
) -> list[str]:
    """Kill and restart the service at these moments of the feed; the event that was its last each time."""
    last: list[str] = []

    def ingesting() -> bool:
        return len(service.events("ingest.catching_up")) > len(last)

    async def kill() -> None:
        began = time.monotonic()
        for moment in moments:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            await asyncio.to_thread(until, ingesting, "the service begins to ingest", LONG_S)
            await asyncio.sleep(AT_LEAST_S)
            await asyncio.to_thread(service.kill)
            last.append(service.events()[-1]["event"])
            service.start(ready=False)

    async with asyncio.TaskGroup() as group:
        group.create_task(feed(url, drafts, rate))
        group.create_task(kill())
    return last


def offline(
    service: Service, ends: dict[int, int], live: dict[bytes, bytes], queries: Vectors
) -> dict[str, Any]:
    """What the newest snapshot of a stopped service holds, compared with the fold."""
    with SnapshotStore.open(service.data_dir, dim=queries.shape[1], metric="l2") as store:
        snapshot = store.newest()
        assert snapshot is not None, "a service that stops in order leaves a snapshot"
        index = OnlineIndex.restore(snapshot.cut, store.open_raw())
        index.check()  # raises CorruptIndex
        keys = list(live)
        row_of = {key: row for row, key in enumerate(keys)}
        base = np.frombuffer(b"".join(live.values()), "<f4").reshape(len(live), -1)
        held = index.get(keys)
        same = [
            row is not None and row.vector.tobytes() == live[key] for key, row in zip(keys, held, strict=True)
        ]
        kth = kth_distances(base, queries, K)
        found = [index.search(queries, K, rescore=rescore).keys for rescore in (True, False)]
        rows = [[[row_of[key] for key in hits] for hits in answers] for answers in found]
        return {
            "whole_topic": snapshot.info.offsets == {TOPIC: ends},
            "live": len(index),
            "missing": sum(row is None for row in held),
            "other_vectors": same.count(False) - sum(row is None for row in held),
            "surplus": len(set(index.keys()) - live.keys()),
            "recall": recall(base, queries, kth, rows[0], K),
            "recall_codes": recall(base, queries, kth, rows[1], K),
        }


async def read_back(url: str) -> tuple[dict[int, int], dict[bytes, bytes]]:
    async with open_log(url) as log:
        return await log.end_offsets(TOPIC), await fold(log, TOPIC)


def main() -> None:
    flags = parser(__doc__)
    add_log_flag(flags)
    flags.set_defaults(queries=f"{DEMO}:base")  # the 40 questions are too few to tell 0.005
    flags.add_argument("--kills", type=int, default=10, metavar="N", help="how often (default: %(default)s)")
    flags.add_argument("--rate", type=float, default=1000, metavar="N",
                       help="records fed a second (default: %(default)s)")  # fmt: skip
    flags.add_argument("--seed", type=int, default=0, help="of the records and the moments (default: 0)")
    options = flags.parse_args()
    base = load_vectors(options.base, options.limit)
    queries = load_vectors(options.queries, ASK)
    drafts = operations(base, options.seed)
    lasts = len(drafts) / options.rate
    moments = sorted(np.random.default_rng(options.seed + 1).uniform(0, lasts, options.kills).tolist())

    with place(options.log) as (directory, url):
        with Service(directory / "killed", log=url, **SETTINGS) as service:
            service.output.parent.mkdir()
            service.start()
            last = asyncio.run(feed_and_kill(url, drafts, options.rate, service, moments))
            settled(service)
            assert service.stop() == 0, "a clean stop"
            loaded = len(service.events("snapshot.loaded"))
            ends, live = asyncio.run(read_back(url))
            killed = offline(service, ends, live, queries)
        with Service(directory / "undisturbed", log=url, broker__group="undisturbed", **SETTINGS) as service:
            service.output.parent.mkdir()
            service.start()
            settled(service)
            assert service.stop() == 0, "a clean stop"
            undisturbed = offline(service, ends, live, queries)

    passed = all(
        run["whole_topic"] and not run["missing"] + run["other_vectors"] + run["surplus"]
        for run in (killed, undisturbed)
    ) and all(abs(killed[name] - undisturbed[name]) <= SAME for name in ("recall", "recall_codes"))
    figures = {
        "records": len(drafts), "folded": len(live), "moments_s": moments, "last_events": last,
        "snapshots_loaded": loaded, "killed": killed, "undisturbed": undisturbed,
        "passed": passed,
    }  # fmt: skip
    rows = [
        ["snapshot holds the whole topic", *(run["whole_topic"] for run in (killed, undisturbed))],
        [f"live (fold: {len(live):,})", *(f"{run['live']:,}" for run in (killed, undisturbed))],
        ["keys missing", killed["missing"], undisturbed["missing"]],
        ["keys too many", killed["surplus"], undisturbed["surplus"]],
        ["other vectors", killed["other_vectors"], undisturbed["other_vectors"]],
        ["check", "passed", "passed"],
        [f"recall@{K}, rescored", f"{killed['recall']:.4f}", f"{undisturbed['recall']:.4f}"],
        [f"recall@{K}, codes only", f"{killed['recall_codes']:.4f}", f"{undisturbed['recall_codes']:.4f}"],
        ["starts from a snapshot", loaded, ""],
        ["killed after", ", ".join(f"{n} {name}" for name, n in Counter(last).most_common()), ""],
    ]
    title = f"{len(drafts):,} records of {len(base):,} keys x {base.shape[1]}, {options.kills} kills: " + (
        "nothing lost" if passed else "NOT the same"
    )
    report(title, ["", "killed", "undisturbed"], rows, figures, options)
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
