"""Is the live set what the topic says, whatever is killed or cut?

`driftline serve` runs on three real brokers (replication 3, min.insync 2), behind proxies, under a load of
inserts, updates, deletes and transactions, some of them aborted. In an order drawn from the seed it is killed
(SIGKILL) while it ingests, takes a snapshot, re-encodes or replays; its connections are cut, reset, delayed
and interrupted; the brokers that lead a partition or coordinate its group are killed. After each of these
its digest must be that of what a plain read_committed consumer folds the topic to, and its `check` must find
nothing; after every --every kills, and at the end, what a snapshot of it holds must be the same, key by key.
Searches run beside; those without a reply though nothing was out of order are counted as at rest.
"""

import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from driftline.stream.feeding import progress_bar
from report import parser, report

sys.path.append(str(Path(__file__).parent.parent))  # the tests' cluster, and what they do to it

from tests.kafka.cluster import KafkaCluster
from tests.stream.chaos import Chaos, Found, Plan


async def play(directory: Path, plan: Plan, rate: float) -> Found:
    with KafkaCluster(directory / "kafka") as cluster, progress_bar() as progress:
        total = plan.kills + plan.cuts + plan.leaders + plan.coordinators
        bar = progress.add_task("starting", total=total, note="")

        def tell(event: str) -> None:
            progress.update(bar, description=event, advance=1)

        async with cluster.links() as links:
            return await Chaos(cluster, links, directory, plan, tell, rate=rate).run()


def main() -> None:
    flags = parser(__doc__, base=False, queries=False)
    for name, count, what in (
        ("kills", 200, "of the service"),
        ("cuts", 20, "of its connections"),
        ("leaders", 20, "killed"),
        ("coordinators", 20, "killed"),
        ("every", 5, "kills between two comparisons"),
        ("rate", 1000, "records written a second"),
    ):
        flags.add_argument(f"--{name}", type=int, default=count, metavar="N",
                           help=f"{what} (default: %(default)s)")  # fmt: skip
    flags.add_argument("--seed", type=int, help="of records, moments and their order; else drawn and printed")
    options = flags.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**31)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it speaks of nothing but brokers away
    print(f"chaos     seed {options.seed}", flush=True)
    plan = Plan(
        options.seed, options.kills, options.cuts, options.leaders, options.coordinators, options.every
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="driftline-chaos-") as name:
        found = asyncio.run(play(Path(name), plan, options.rate))
    passed = not found.wrong
    rows = [
        ["happened", counted(found.happened)],
        ["digests compared", found.compared],
        ["snapshots compared key by key", found.verified],
        ["records read by the fold", f"{found.records:,}"],
        ["live keys at the end", f"{found.live:,}"],
        ["transactions and batches", counted(found.written)],
        ["searches", counted(found.searches)],
        ["wrong", "; ".join(found.wrong) or "nothing"],
        ["minutes", (time.monotonic() - began) / 60],
    ]
    figures = {field.name: getattr(found, field.name) for field in fields(found)}
    title = f"Seed {options.seed}: " + (
        "the live set is the topic's" if passed else "NOT the topic's live set"
    )
    report(title, ["", ""], rows, figures, options)
    raise SystemExit(not passed)


def counted(what: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(what.items()))


if __name__ == "__main__":
    main()
