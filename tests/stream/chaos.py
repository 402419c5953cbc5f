"""A service on a cluster, under load, to which things happen; and whether it holds what the topic says.

A topic of four partitions gets inserts, updates, deletes and transactions, some of them aborted, from plain
aiokafka producers; every key always goes to the same partition. Meanwhile the service is killed while it
ingests, takes a snapshot, re-encodes or replays; its connections, which lead through proxies, are cut, reset,
delayed and interrupted; the brokers that lead a partition or coordinate a group are killed. After everything
that happens writing pauses, the service's digest must be that of the fold, and its check of itself must find
nothing; now and then its live set is also read offline, from a snapshot it took, and compared key by key.
"""

import asyncio
import contextlib
import random
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from driftline import Row
from driftline.errors import DriftlineError, LogError, SearchFailed
from driftline.stream.clients import SearchClient
from driftline.stream.control import ask
from driftline.stream.log import open_log

from ..kafka.cluster import KafkaCluster
from ..kafka.link import LossyLink
from .oracle import Fold, Live, digest
from .running import Place, differences, eventually

__all__ = ["Chaos", "Found", "Plan"]

DIM, PARTITIONS = 16, 4
KEYS = 4000
LONG_S = 180.0  # for the service to be ready again, for a broker to be whole again
SETTINGS: dict[str, object] = {
    "index__dim": DIM, "index__compress_after": 1000, "index__ef_construction": 40,
    "topics__partitions": PARTITIONS, "snapshots__every_seconds": 1.0,
}  # fmt: skip
PHASES = ("ingest", "snapshot", "re-encode", "replay")  # what the service is killed in
FAULTS = ("cut", "reset", "delay", "drop")  # what happens to connections
FAULT_S = 1.5  # how long a connection is slow, or dead
TRANSACTION_MS = 10_000  # after which the cluster gives up one whose writer is gone
SEARCH_EVERY_S = 0.05
DEADLINE_S = 5.0  # of a search


@dataclass(frozen=True, slots=True)
class Plan:
    """How often what happens, in an order drawn from the seed."""

    seed: int
    kills: int
    cuts: int
    leaders: int
    coordinators: int
    verify_every: int  # kills of the service

    def events(self, draw: random.Random) -> list[str]:
        kills = [PHASES[number % len(PHASES)] for number in range(self.kills)]
        cuts = [FAULTS[number % len(FAULTS)] for number in range(self.cuts)]
        events = [*kills, *cuts, *["leader"] * self.leaders, *["coordinator"] * self.coordinators]
        draw.shuffle(events)
        return events


@dataclass(slots=True)
class Found:
    """What came of it."""

    happened: Counter[str] = field(default_factory=Counter[str])
    compared: int = 0  # digests
    verified: int = 0  # snapshots, key by key
    live: int = 0  # keys, when last verified
    records: int = 0  # that the fold has read
    written: Counter[str] = field(default_factory=Counter[str])  # by the writer: transactions, by their end
    searches: Counter[str] = field(default_factory=Counter[str])  # by what became of them
    wrong: list[str] = field(default_factory=list[str])


class Writer:
    """Writes until stopped, whatever happens to the brokers; `pause` waits for what is under way."""

    def __init__(self, bootstrap: str, topic: str, seed: int, rate: float) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._draw = random.Random(seed)
        self._vectors = np.random.default_rng(seed)
        self._rate = rate
        self._turn = asyncio.Lock()
        self.done: Counter[str] = Counter()
        self.wrote = 0

    @asynccontextmanager
    async def pause(self) -> AsyncGenerator[None]:
        async with self._turn:
            yield

    async def run(self) -> None:
        while True:
            try:
                await self._produce()
            except (KafkaError, TimeoutError, ValueError) as error:
                # A new producer of the same name fences this one off, and what it left open is aborted.
                self.done[type(error).__name__] += 1

    async def _produce(self) -> None:
        async with AsyncExitStack() as stack:
            producers: list[Any] = []
            for name in ("chaos", None):
                producer: Any = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap, transactional_id=name, enable_idempotence=True,
                    transaction_timeout_ms=TRANSACTION_MS, request_timeout_ms=5000,
                )  # fmt: skip
                async with asyncio.timeout(LONG_S):
                    await producer.start()
                stack.push_async_callback(stopped, producer)
                producers.append(producer)
            transactional, plain = producers
            while True:
                count = self._draw.randrange(1, 40)
                async with self._turn, asyncio.timeout(LONG_S):
                    how = self._draw.choice(["plain", "committed", "committed", "aborted"])
                    if how == "plain":
                        await self._send(plain, count)
                    else:
                        await transactional.begin_transaction()
                        await self._send(transactional, count)
                        await (
                            transactional.commit_transaction()
                            if how == "committed"
                            else transactional.abort_transaction()
                        )
                    self.done[how] += 1
                await asyncio.sleep(count / self._rate)

    async def _send(self, producer: Any, count: int) -> None:
        sent = [await producer.send(self._topic, **self._record()) for _ in range(count)]
        await asyncio.gather(*sent)
        self.wrote += count

    def _record(self) -> dict[str, Any]:
        key = b"k%d" % self._draw.randrange(KEYS)
        record: dict[str, Any] = {"key": key, "partition": zlib.crc32(key) % PARTITIONS, "value": None}
        if self._draw.random() < 0.2:
            return record
        scale = 1 + self.wrote / 20_000  # the data drifts, so that frames change by themselves too
        vector = (scale * self._vectors.normal(size=DIM)).astype("<f4").tobytes()
        if self._draw.random() < 0.5:
            return record | {"value": vector, "headers": [("content-type", b"application/octet-stream")]}
        document = {"attributes": {"n": self._draw.randrange(10), "a": "text"}, "vector": vector}
        return record | {
            "value": msgpack.packb(document),
            "headers": [("content-type", b"application/msgpack")],
        }


async def stopped(producer: Any) -> None:
    """Stop a producer, which waits for brokers for ever."""
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(5):
            await producer.stop()


class Chaos:
    """One run on a cluster whose clients come through `links`."""

    def __init__(
        self,
        cluster: KafkaCluster,
        links: list[LossyLink],
        directory: Path,
        plan: Plan,
        tell: Callable[[str], None],
        *,
        rate: float = 1000.0,
    ) -> None:
        self._cluster = cluster
        self._links = links
        self._plan = plan
        self._tell = tell
        self._draw = random.Random(plan.seed)
        self._name = f"chaos-{plan.seed}"
        self._place = Place(cluster.url, self._name, directory, **SETTINGS)
        self._service = self._place.service
        self._writer = Writer(cluster.bootstrap, self._place.vectors, plan.seed, rate)
        self._fold = Fold(cluster.bootstrap, self._place.vectors, PARTITIONS)
        self._mending: asyncio.Task[None] | None = None
        self._out_of_order = 0  # things under way of which searches may be lost
        self._disturbed = 0.0  # by the loop's clock: when the last of them ended
        self.found = Found()

    async def run(self) -> Found:
        """Everything of the plan; `Found.wrong` says what is not as it must be."""
        with self._service:
            await asyncio.to_thread(self._service.start)
            await self._play()
        self.found.records = self._fold.records
        self.found.written = self._writer.done
        return self.found

    async def _play(self) -> None:
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._writer.run()), group.create_task(self._search())]
            await eventually(lambda: self._writer.wrote > KEYS, "a first load", LONG_S)
            kills = 0
            for event in self._plan.events(self._draw):
                self._tell(event)
                await self._happen(event)
                self.found.happened[event] += 1
                await self._compare()
                kills += event in PHASES
                if event in PHASES and kills % self._plan.verify_every == 0:
                    await self._verify()
            await self._verify()
            for task in beside:
                task.cancel()

    async def _happen(self, event: str) -> None:
        with self._disturbing():
            if event in PHASES:
                await self._kill(event)
            elif event in FAULTS:
                await self._fail(event)
            else:
                await self._kill_broker(event)
        await asyncio.sleep(self._draw.uniform(0, 1))

    @contextlib.contextmanager
    def _disturbing(self) -> Generator[None]:
        self._out_of_order += 1
        try:
            yield
        finally:
            self._out_of_order -= 1
            self._disturbed = asyncio.get_running_loop().time()

    async def _kill(self, phase: str) -> None:
        """Kill the service in this phase of its life, and wait until it is ready again."""
        asked: asyncio.Task[None] | None = None
        if phase == "replay":
            before = self._replays()
            await self._restart(ready=False)
            await eventually(lambda: self._replays() > before, "replaying", LONG_S)
        elif phase == "snapshot":
            asked = asyncio.create_task(self._ask("snapshot"))
        elif phase == "re-encode":
            asked = asyncio.create_task(self._ask("reencode", {"action": "now"}))
        await asyncio.sleep(self._draw.uniform(0, 0.3 if phase in ("snapshot", "replay") else 1.0))
        await self._restart(ready=True)
        if asked is not None:
            await asked

    def _replays(self) -> int:
        """How often the service has begun to replay; its log is long, so it is not parsed."""
        return self._service.output.read_bytes().count(b'"event": "ingest.catching_up"')

    async def _restart(self, *, ready: bool) -> None:
        await asyncio.to_thread(self._service.kill)
        await asyncio.to_thread(self._service.start, ready=False)
        if ready:
            await eventually(self._service.ready, "ready again", LONG_S)

    async def _ask(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        with contextlib.suppress(DriftlineError):  # it is killed while it answers, or has nothing to do
            await asyncio.to_thread(ask, self._place.service.data_dir, command, arguments)

    async def _fail(self, fault: str) -> None:
        link = self._draw.choice(self._links)
        if fault == "cut":
            link.cut()
        elif fault == "reset":
            link.cut(reset=True)
        elif fault == "delay":
            link.delay_s = 0.2
            await asyncio.sleep(FAULT_S)
            link.delay_s = 0.0
        else:
            link.drop()
            await asyncio.sleep(FAULT_S)
            link.mend()

    async def _kill_broker(self, whose: str) -> None:
        """Kill a broker; it comes back in the background, and the next one waits for that."""
        await self._mended()
        if whose == "leader":
            node = await self._cluster.leader(self._place.vectors, self._draw.randrange(PARTITIONS))
        else:
            node = await self._cluster.coordinator(self._name)
        broker, away_s = self._cluster.brokers[node], self._draw.uniform(0.5, 4)
        await asyncio.to_thread(broker.kill)

        async def mend() -> None:
            with self._disturbing():
                await asyncio.sleep(away_s)
                await asyncio.to_thread(broker.start)
                await self._cluster.whole([self._place.vectors, "__consumer_offsets", "__transaction_state"])

        self._mending = asyncio.create_task(mend())

    async def _mended(self) -> None:
        if self._mending is not None:
            await self._mending
            self._mending = None

    async def _compare(self) -> None:
        """Compare the digest of the running service with that of the fold, and have it check its index."""
        async with self._writer.pause():
            status, live = await self._settled()
        data_dir = self._place.service.data_dir
        checked = await asyncio.to_thread(ask, data_dir, "check", timeout_s=LONG_S)
        if status["digest"] != digest(live):
            self._tell_wrong(f"digest {status['digest']}, of the fold {digest(live)}")
        if checked["problem"] is not None:
            self._tell_wrong(checked["problem"])
        self.found.compared += 1

    async def _settled(self) -> tuple[dict[str, Any], Live]:
        """The status at the end of the topic, where nobody writes now, and the live set of the fold there."""
        live = await self._fold.live()

        def there() -> dict[str, Any] | None:
            status = self._service.caught_up()
            return status if status is not None and status["applied"] == self._fold.offsets else None

        return await eventually(there, f"at {self._fold.offsets}", LONG_S), live

    def _tell_wrong(self, what: str) -> None:
        self.found.wrong.append(f"after {self.found.happened.total()} events: {what}")

    async def _verify(self) -> None:
        """Compare with the fold what a snapshot of now holds; the service is killed once more for it."""
        await self._mended()
        async with self._writer.pause():
            _, live = await self._settled()
            await asyncio.to_thread(ask, self._service.data_dir, "snapshot", timeout_s=LONG_S)
            with self._disturbing():
                await asyncio.to_thread(self._service.kill)
                wrong = await asyncio.to_thread(self._offline, live)
                await asyncio.to_thread(self._service.start, ready=False)
                await eventually(self._service.ready, "ready again", LONG_S)
        for what in wrong:
            self._tell_wrong(what)
        self.found.verified += 1
        self.found.live = len(live)

    def _offline(self, folded: Live) -> list[str]:
        def same(row: Row, held: tuple[bytes, bytes]) -> bool:
            return (row.vector.astype("<f4").tobytes(), row.attributes or b"") == held

        return differences(self._service, folded, same, dim=DIM, metric="l2")

    async def _search(self) -> None:
        """Ask evenly, and count what becomes of it: unanswered at rest is another thing than in a crash."""
        draw = np.random.default_rng(self._plan.seed)
        clock = asyncio.get_running_loop().time

        async def one(client: SearchClient) -> None:
            began = clock()
            try:
                await client.search(
                    draw.normal(size=DIM).astype(np.float32), deadline_ms=int(1000 * DEADLINE_S)
                )
                self.found.searches["answered"] += 1
            except SearchFailed as failed:
                rest = not self._out_of_order and self._disturbed < began
                self.found.searches[f"{failed.code}{', at rest' if rest else ''}"] += 1
            except LogError:
                self.found.searches["not asked"] += 1

        async with (
            open_log(f"kafka:{self._cluster.bootstrap}") as log,
            SearchClient(log, self._place.search, self._place.replies) as client,
            asyncio.TaskGroup() as group,
        ):
            while True:
                group.create_task(one(client))
                await asyncio.sleep(SEARCH_EVERY_S)
