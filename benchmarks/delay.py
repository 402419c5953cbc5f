"""How long after it is produced can a vector be found?

Vectors are produced one by one, evenly, to a real Kafka, while the service follows. For a sample of them a
search for that very vector is sent in the same instant, with `after` set to the record's offset, so the
service answers as soon as it holds the record. From just before producing to that answer in hand is measured:
an upper bound of the delay, because the way of the request and of the reply is in it. How long that way is by
itself is measured beside it: the same search for nothing new, at other moments of the same run.
"""

import asyncio
import time
from dataclasses import dataclass, field

from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import Log, open_log
from driftline.stream.messages import encode_vector
from report import milliseconds, parser, report
from running import LONG_S, Service, add_log_flag, place, settled, until
from vectors import Vectors, load_vectors

TOPIC = "driftline.vectors"


@dataclass(slots=True)
class Times:
    """Seconds."""

    acknowledged: list[float] = field(default_factory=list)  # produce to acknowledgement
    found: list[float] = field(default_factory=list)  # produce to answer that holds it
    in_service: list[float] = field(default_factory=list)  # of those: request read to answered, as it says
    round_trip: list[float] = field(default_factory=list)  # a search for nothing new
    late: int = 0  # records sent over 10 ms after their turn: the producer itself was held up
    overtaken: int = 0  # samples left out: the log gave the record a later offset than its turn
    unfound: int = 0  # answers without the vector


class Producer:
    """One record each 1/rate s; a search for every `sample`-th, and half-way between one for nothing new."""

    def __init__(self, log: Log, client: SearchClient, rate: float, sample: int, next_offset: int) -> None:
        self._log = log
        self._client = client
        self._rate = rate
        self._sample = sample
        self._next = next_offset
        self.times = Times()

    async def run(self, first: int, base: Vectors, warm: int) -> None:
        """Produce `base` under the keys from `first` on; the first `warm` rows are not measured."""
        began = time.monotonic()
        with progress_bar() as progress:
            bar = progress.add_task("producing", total=len(base), note="")
            async with asyncio.TaskGroup() as group:
                for row, vector in enumerate(base):
                    due = began + row / self._rate
                    wait = due - time.monotonic()
                    if wait > 0:
                        await asyncio.sleep(wait)
                    self.times.late += time.monotonic() - due > 0.01
                    key, offset = b"%d" % (first + row), self._next
                    self._next += 1
                    measured = row >= warm
                    produced = group.create_task(self._produce(key, vector, measured))
                    if measured and row % self._sample == 0:
                        group.create_task(self._find(key, vector, offset, produced))
                    elif measured and row % self._sample == self._sample // 2:
                        group.create_task(self._ask(vector))
                    progress.advance(bar)

    async def _produce(self, key: bytes, vector: Vectors, measured: bool) -> int:
        began = time.monotonic()
        position = (await self._log.append([encode_vector(TOPIC, key, vector)]))[0]
        if measured:
            self.times.acknowledged.append(time.monotonic() - began)
        return position.offset

    async def _find(self, key: bytes, vector: Vectors, offset: int, produced: asyncio.Task[int]) -> None:
        began = time.monotonic()
        reply = await self._client.search(vector, k=10, after={TOPIC: {0: offset + 1}})
        took = time.monotonic() - began
        if await produced > offset:  # overtaken by a later record: what was waited for came before it
            self.times.overtaken += 1
            return
        self.times.found.append(took)
        self.times.in_service.append(reply.took_us / 1e6)
        # Of equal vectors, more than ten may be there already: one at no distance will do.
        self.times.unfound += not any(hit.id == key or hit.distance == 0 for hit in reply.hits)

    async def _ask(self, vector: Vectors) -> None:
        began = time.monotonic()
        await self._client.search(vector, k=10)
        self.times.round_trip.append(time.monotonic() - began)


def main() -> None:
    flags = parser(__doc__, queries=False)
    add_log_flag(flags)
    flags.add_argument("--dim", type=int, default=128, help="use the first so many components (default: 128)")
    flags.add_argument("--rate", type=float, default=500, help="vectors a second (default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=15, help="of measuring (default: %(default)s)")
    flags.add_argument("--warm", type=float, default=3, help="seconds before that (default: %(default)s)")
    flags.add_argument("--sample", type=int, default=25, metavar="N", help="measure every N-th (default: 25)")
    flags.add_argument("--held", type=int, default=1000, metavar="ROWS",
                       help="rows that the index holds before (default: %(default)s)")  # fmt: skip
    options = flags.parse_args()
    warm = round(options.warm * options.rate)
    wanted = options.held + warm + round(options.seconds * options.rate)
    base = load_vectors(options.base, min(wanted, options.limit or wanted), options.dim)
    if len(base) < options.held + warm + options.sample:
        raise SystemExit(f"{len(base)} rows are too few for these times and this rate")

    async def run(url: str, service: Service) -> Times:
        async with open_log(url) as log, SearchClient(log) as client, FeedClient(log) as feed:
            held = base[: options.held]
            await feed.upsert([b"%d" % row for row in range(len(held))], held)
            await asyncio.to_thread(settled, service)
            producer = Producer(log, client, options.rate, options.sample, len(held))
            await producer.run(len(held), base[len(held) :], warm)
            await asyncio.to_thread(until, service.caught_up, "everything applied", LONG_S)
            return producer.times

    with (
        place(options.log) as (directory, url),
        Service(directory, log=url, topics__create=True) as service,
    ):
        service.start()
        times = asyncio.run(run(url, service))
    measures = {
        "produce to acknowledged": times.acknowledged,
        "search for nothing new, round trip": times.round_trip,
        "produce to found (upper bound)": times.found,
        "  of that inside the service, waiting included": times.in_service,
    }
    figures = {name.strip(): {"n": len(taken), **milliseconds(taken)} for name, taken in measures.items()}
    rows = [[name, *figures[name.strip()].values()] for name in measures]
    sent = len(base) - options.held
    title = f"{sent:,} x {base.shape[1]} at {options.rate:g}/s beside {options.held:,} held; ms"
    aside = {name: getattr(times, name) for name in ("late", "overtaken", "unfound")}
    title += "".join(f"; {count} {name}" for name, count in aside.items() if count)
    figures |= {**aside, "sent": sent}
    report(title, ["", "n", "median", "p99", "max"], rows, figures, options)


if __name__ == "__main__":
    main()
