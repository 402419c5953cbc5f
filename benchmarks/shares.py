"""What do a full-speed ingest and searches without a pause leave of each other?

A topic on a real Kafka is filled beforehand. `driftline serve` catches up with it alone, then answers clients
that ask again as soon as they are answered; a second one, from an empty directory, does both at once. Rates
of ingestion are of the last three quarters of the rows. The clients and the broker want the same cores: the
shares hold for a machine that does everything.
"""

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path

from driftline.stream.clients import FeedClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import open_log
from report import parser, report
from running import LONG_S, add_log_flag, place, until
from vectors import Vectors, load_vectors

from tests.stream.running import Place
from tests.stream.shares import Rates, catching_up, searching

APPEND = 1000  # rows


async def fill(url: str, names: Place, base: Vectors) -> None:
    async with open_log(url) as log:
        await log.create_topic(names.vectors, compacted=True)
        for topic in (names.search, names.replies):
            await log.create_topic(topic)
        async with FeedClient(log, names.vectors) as feed:
            with progress_bar() as progress:
                bar = progress.add_task("filling the topic", total=len(base), note="")
                for first in range(0, len(base), APPEND):
                    rows = base[first : first + APPEND]
                    await feed.upsert([b"%d" % row for row in range(first, first + len(rows))], rows)
                    progress.advance(bar, len(rows))


def main() -> None:
    flags = parser(__doc__)
    add_log_flag(flags)
    flags.add_argument("--clients", type=int, default=32, help="that ask at once (default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=5, help="of searches alone (default: %(default)s)")
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries)
    first, last = len(base) // 4, len(base)

    async def measure(url: str, served: Place, clients: int) -> Rates:
        async with open_log(url) as log:
            return await catching_up(log, served, queries, clients, first, last)

    async def ask(url: str, served: Place) -> float:
        async with open_log(url) as log:
            return await searching(log, served, queries, options.clients, options.seconds)

    with place(options.log) as (_, url), tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as name:
        alone, beside = (
            Place(url, "shares", Path(name) / kind, logging__level="warning") for kind in ("alone", "beside")
        )
        for served in (alone, beside):
            served.service.data_dir.parent.mkdir()
        asyncio.run(fill(url, alone, base))
        with alone.service.start(ready=False):
            ingesting = asyncio.run(measure(url, alone, 0))
            until(alone.service.caught_up, "everything applied", LONG_S)
            searches = asyncio.run(ask(url, alone))
        with beside.service.start(ready=False):
            both = asyncio.run(measure(url, beside, options.clients))
    rows = [
        ["records/s", round(ingesting.rows), round(both.rows), f"{both.rows / ingesting.rows:.2f}"],
        ["searches/s", round(searches), round(both.searches), f"{both.searches / searches:.2f}"],
    ]
    figures = {"ingest_alone": ingesting.rows, "searches_alone": searches, "both": asdict(both)}
    title = f"{last:,} x {base.shape[1]}, {options.clients} clients"
    report(title, ["", "alone", "both at once", "share"], rows, figures, options)


if __name__ == "__main__":
    main()
