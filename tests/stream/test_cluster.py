"""A cluster of three brokers, of which one at a time is killed: the log on it, and a service, to which more
happens (chaos.py; `make chaos` is the long form)."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from driftline.errors import LogError
from driftline.stream.log import Draft, Log, open_log

from ..kafka.cluster import KafkaCluster
from .chaos import Chaos, Plan
from .running import eventually

pytestmark = pytest.mark.kafka

DEADLINE_S = 120.0
TOPIC, GROUP = "t", "g"
PARTITIONS = 4
PAUSE_S = 0.005  # between appends: the brokers start beside them


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Its clients come through the links that each test opens."""
    with KafkaCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def appending(log: Log, written: list[tuple[int, bytes]], stop: asyncio.Event) -> dict[int, int]:
    """Append to every partition until told to stop; `written` gets what is acknowledged, in order. What was
    committed last.

    A value whose outcome is not known is not tried again, so that each may be there once at most.
    """
    offsets: dict[int, int] = {}
    for number in itertools.count():
        if stop.is_set():
            break
        drafts = [Draft(TOPIC, b"k", b"%d" % (4 * number + p), partition=p) for p in range(PARTITIONS)]
        await asyncio.sleep(PAUSE_S)
        try:
            positions = await log.append(drafts)
        except LogError as error:
            if not error.retriable:
                raise
            continue
        written += [(draft.partition or 0, draft.value or b"") for draft in drafts]
        offsets = {place.partition: place.offset + 1 for place in positions}
        await log.commit(GROUP, TOPIC, offsets)
    return offsets


async def reading(log: Log, seen: list[tuple[int, bytes]]) -> None:
    """Follow the topic from its beginning until cancelled."""
    reader = await log.reader({(TOPIC, p): 0 for p in range(PARTITIONS)})
    while True:
        seen += [(record.partition, record.value or b"") for record in await reader.fetch()]


def by_partition(entries: list[tuple[int, bytes]]) -> list[list[bytes]]:
    return [[value for partition, value in entries if partition == p] for p in range(PARTITIONS)]


async def more(entries: list[tuple[int, bytes]], count: int) -> None:
    """Wait until so many more are there."""
    wanted = len(entries) + count
    await eventually(lambda: len(entries) >= wanted, f"{count} more", DEADLINE_S)


async def test_leaders_and_coordinators_are_killed(cluster: KafkaCluster) -> None:
    """Under load, the leader of a partition and the group's coordinator: what was acknowledged is read once,
    in order, by a reader that was there all along; the group's offsets are those of the last commit."""
    written: list[tuple[int, bytes]] = []
    seen: list[tuple[int, bytes]] = []
    async with open_log(f"kafka:{cluster.bootstrap}") as log:
        await log.create_topic(TOPIC, partitions=PARTITIONS)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(appending(log, written, stop))
            following = group.create_task(reading(log, seen))
            for victim in ("leader", "coordinator"):
                await more(written, 100)
                node = await (cluster.leader(TOPIC, 1) if victim == "leader" else cluster.coordinator(GROUP))
                await asyncio.to_thread(cluster.brokers[node].kill)
                await more(written, 100)  # two of three go on
                await asyncio.to_thread(cluster.brokers[node].start)
                await cluster.whole([TOPIC])
            await more(written, 100)
            stop.set()
            offsets = await feeding
            last = [Draft(TOPIC, b"k", b"last", partition=p) for p in range(PARTITIONS)]
            await log.append(last)
            ended = {(p, b"last") for p in range(PARTITIONS)}
            await eventually(lambda: ended <= set(seen[-1000:]), "all read", DEADLINE_S)
            following.cancel()
        assert await log.committed(GROUP, TOPIC) == offsets
    assert max(Counter(value for _, value in seen if value != b"last").values()) == 1
    acknowledged = set(written)
    kept = [entry for entry in seen if entry in acknowledged]
    assert by_partition(kept) == by_partition(written)


async def test_chaos(cluster: KafkaCluster, tmp_path: Path) -> None:
    """The service killed in every phase, its connections failing in every way, a leader and a coordinator
    killed: in the end its live set is that of a plain fold, and its index is sound."""
    plan = Plan(seed=1, kills=4, cuts=4, leaders=1, coordinators=1, verify_every=8)
    async with cluster.links() as links:
        found = await Chaos(cluster, links, tmp_path, plan, print, rate=3000).run()
    print(found)  # pytest shows it when something is wrong
    assert found.wrong == []
    assert (found.compared, found.verified) == (10, 1)
    assert found.live > 1000
    assert found.searches["answered"] > 0
