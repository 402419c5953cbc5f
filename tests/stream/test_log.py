"""The log: what every implementation must do alike. The same tests run on the local log and on a real Kafka
broker.
"""

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator

import pytest
from driftline.errors import InvalidInput, LogError, TopicNotFound
from driftline.stream.log import Draft, Log, Position, Reader, Record, open_log
from driftline.stream.partitioner import murmur2, partition_of

DEADLINE_S = 30.0


@pytest.fixture(params=["local", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "kafka":
        return f"kafka:{request.getfixturevalue('kafka').bootstrap}"
    return f"local:{request.getfixturevalue('tmp_path')}/log"


@pytest.fixture
async def log(url: str) -> AsyncIterator[Log]:
    async with open_log(url) as log:
        yield log


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", request.node.name)


async def read(reader: Reader, count: int, most: int = 1000) -> list[Record]:
    """The next `count` records; fails when they do not come, or more do."""
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(records) < count:
            fetched = await reader.fetch(most)
            assert len(fetched) <= most
            records += fetched
    assert len(records) == count
    return records


async def test_what_is_appended_is_read(log: Log, topic: str) -> None:
    """Keys, values, headers, timestamps: null, empty, repeated, not ASCII, any byte."""
    await log.create_topic(topic)
    drafts = [
        Draft(
            topic, b"key", b"value", (("content-type", b"application/json"),), timestamp_ms=1_700_000_000_000
        ),
        Draft(topic, b"key", None),
        Draft(topic, b"key", b""),
        Draft(topic, None, b"value"),
        Draft(topic, b"", b"value"),
        Draft(topic, None, None),
        Draft(
            topic,
            b"\x00\xff",
            bytes(range(256)),
            (("", b""), ("a", b"\x00"), ("a", b"\xff" * 300), ("größe", b"1")),
        ),
    ]
    before = time.time_ns() // 1_000_000
    positions = await log.append(drafts)
    after = time.time_ns() // 1_000_000
    assert positions == [Position(topic, 0, offset) for offset in range(len(drafts))]

    records = await read(await log.reader({(topic, 0): 0}), len(drafts))
    for draft, position, record in zip(drafts, positions, records, strict=True):
        assert (record.topic, record.partition, record.offset) == (topic, 0, position.offset)
        assert (record.key, record.value, record.headers) == (draft.key, draft.value, draft.headers)
        if draft.timestamp_ms is None:
            assert before <= record.timestamp_ms <= after
        else:
            assert record.timestamp_ms == draft.timestamp_ms


async def test_a_large_append_keeps_its_order(log: Log, topic: str) -> None:
    """One call that needs several batches: positions in order, records in order."""
    await log.create_topic(topic)
    drafts = [Draft(topic, b"%d" % index, b"%d" % index * 700) for index in range(3000)]
    positions = await log.append(drafts)
    assert [position.offset for position in positions] == list(range(3000))
    records = await read(await log.reader({(topic, 0): 0}), 3000, most=777)
    assert [(record.key, record.value) for record in records] == [
        (draft.key, draft.value) for draft in drafts
    ]


async def test_partitions(log: Log, topic: str) -> None:
    """A named partition is obeyed, offsets count per partition, one reader reads them all."""
    await log.create_topic(topic, partitions=3)
    assert await log.partitions(topic) == (0, 1, 2)
    drafts = [Draft(topic, b"k", b"%d" % index, partition=index % 3) for index in range(30)]
    positions = await log.append(drafts)
    assert [(position.partition, position.offset) for position in positions] == [
        (index % 3, index // 3) for index in range(30)
    ]
    reader = await log.reader({(topic, partition): 0 for partition in range(3)})
    records = await read(reader, 30, most=4)
    for partition in range(3):
        own = [record for record in records if record.partition == partition]
        assert [record.offset for record in own] == list(range(10))
        assert [record.value for record in own] == [b"%d" % index for index in range(partition, 30, 3)]
        assert reader.position(topic, partition) == 10


async def test_a_key_decides_the_partition(log: Log, topic: str) -> None:
    """As Kafka's default partitioner: hashes published with Kafka's own tests, and where the log put them."""
    hashes = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    assert {key: murmur2(key) for key in hashes} == {key: value & 0xFFFFFFFF for key, value in hashes.items()}
    await log.create_topic(topic, partitions=7)
    positions = await log.append([Draft(topic, key, b"") for key in hashes])
    assert [position.partition for position in positions] == [
        (value & 0x7FFFFFFF) % 7 for value in hashes.values()
    ]
    assert [partition_of(key, 7) for key in hashes] == [position.partition for position in positions]


async def test_drafts_without_a_key_take_turns(log: Log, topic: str) -> None:
    """All of one call go to one partition, the next call's to the next."""
    await log.create_topic(topic, partitions=3)
    calls = [await log.append([Draft(topic, None, b""), Draft(topic, None, b"")]) for _ in range(3)]
    assert all(first.partition == second.partition for first, second in calls)
    assert {first.partition for first, _ in calls} == {0, 1, 2}


async def test_a_reader_starts_anywhere(log: Log, topic: str) -> None:
    """At the begin, within, at the end; outside is an error that says what the log holds."""
    await log.create_topic(topic)
    await log.append([Draft(topic, b"k", b"%d" % index) for index in range(10)])
    for start in (0, 3, 9):
        reader = await log.reader({(topic, 0): start})
        assert reader.position(topic, 0) == start
        assert [record.offset for record in await read(reader, 10 - start)] == list(range(start, 10))
    reader = await log.reader({(topic, 0): 10})
    assert await reader.fetch(timeout_s=0) == []
    await log.append([Draft(topic, b"k", b"new")])
    assert [record.offset for record in await read(reader, 1)] == [10]
    reader = await log.reader({(topic, 0): 12})
    with pytest.raises(LogError, match=r"offset 12 of .* is outside the log, which holds 0 to 11"):
        await reader.fetch(timeout_s=DEADLINE_S)


async def test_a_waiting_reader_wakes(log: Log, topic: str) -> None:
    """A fetch that waits returns when something comes: within 50 ms (median) of the append being
    acknowledged.
    """
    await log.create_topic(topic, partitions=2)
    reader = await log.reader({(topic, 0): 0, (topic, 1): 0})
    delays: list[float] = []
    for index in range(21):
        waiting = asyncio.ensure_future(reader.fetch(timeout_s=DEADLINE_S))
        await log.append([Draft(topic, b"k", b"", partition=index % 2)])
        acknowledged = time.monotonic()
        assert len(await waiting) == 1
        delays.append(time.monotonic() - acknowledged)
    assert statistics.median(delays) < 0.050


async def test_a_fetch_ends_in_time(log: Log, topic: str) -> None:
    """[] when nothing came, neither early nor late."""
    await log.create_topic(topic)
    reader = await log.reader({(topic, 0): 0})
    before = time.monotonic()
    assert await reader.fetch(timeout_s=0.3) == []
    assert 0.3 <= time.monotonic() - before < 3.0


async def test_a_cancelled_fetch_loses_nothing(log: Log, topic: str) -> None:
    """Fetches cancelled at any point, before and while records come."""
    await log.create_topic(topic)
    reader = await log.reader({(topic, 0): 0})
    values: list[bytes | None] = []
    for index in range(30):
        fetching = asyncio.ensure_future(reader.fetch(timeout_s=DEADLINE_S))
        await log.append([Draft(topic, b"k", b"%d" % index)])
        for _ in range(index % 7):
            await asyncio.sleep(0)
        if fetching.cancel():
            await asyncio.wait([fetching])
        if not fetching.cancelled():
            values += [record.value for record in fetching.result()]
    values += [record.value for record in await read(reader, 30 - len(values))]
    assert values == [b"%d" % index for index in range(30)]


async def test_offsets(log: Log, topic: str) -> None:
    """Where partitions begin and end: next offsets, empty partitions included."""
    await log.create_topic(topic, partitions=2)
    assert await log.begin_offsets(topic) == await log.end_offsets(topic) == {0: 0, 1: 0}
    await log.append([Draft(topic, b"k", b"", partition=1)] * 5)
    assert await log.begin_offsets(topic) == {0: 0, 1: 0}
    assert await log.end_offsets(topic) == {0: 0, 1: 5}


async def test_committed_offsets(log: Log, topic: str) -> None:
    """Kept per group and partition; the last one counts, a smaller one too."""
    await log.create_topic(topic, partitions=2)
    assert await log.committed("one", topic) == {}
    await log.commit("one", topic, {0: 7})
    await log.commit("two", topic, {0: 1, 1: 2})
    assert await log.committed("one", topic) == {0: 7}
    await log.commit("one", topic, {0: 3, 1: 9})
    assert await log.committed("one", topic) == {0: 3, 1: 9}
    assert await log.committed("two", topic) == {0: 1, 1: 2}


async def test_topics(log: Log, topic: str) -> None:
    """Created once, listed, described; a name that Kafka refuses is refused."""
    assert topic not in await log.topics()
    assert await log.create_topic(topic, partitions=2, compacted=True)
    assert not await log.create_topic(topic, partitions=5)
    assert topic in await log.topics()
    described = await log.describe(topic)
    assert (described.name, described.partitions, described.cleanup) == (
        topic,
        (0, 1),
        frozenset({"compact"}),
    )
    assert described.max_record_bytes == 1_048_588
    for name in ("", ".", "..", "a b", "a/b", "ä", "a" * 250):
        with pytest.raises(InvalidInput):
            await log.create_topic(name)


async def test_a_topic_that_does_not_exist(log: Log, topic: str) -> None:
    """TopicNotFound from every call, at once, also for names that cannot exist; nothing is created."""
    before = time.monotonic()
    for name in (topic, "", "no such topic", "x" * 40_000):
        for call in (log.describe(name), log.partitions(name), log.begin_offsets(name), log.end_offsets(name),
                     log.committed("g", name), log.commit("g", name, {0: 1}), log.reader({(name, 0): 0}),
                     log.append([Draft(name, b"k", b"v")])):  # fmt: skip
            with pytest.raises(TopicNotFound, match="does not exist"):
                await call
    assert time.monotonic() - before < 5.0
    assert topic not in await log.topics()


async def test_concurrent_writers(log: Log, topic: str) -> None:
    """Many appends at once: nothing lost or doubled, each writer's order kept, positions true."""
    await log.create_topic(topic, partitions=2)
    written: dict[tuple[int, int], bytes | None] = {}

    async def writer(name: int) -> None:
        for index in range(20):
            drafts = [Draft(topic, b"%d" % part, b"%d %d" % (name, 3 * index + part)) for part in range(3)]
            for draft, position in zip(drafts, await log.append(drafts), strict=True):
                written[position.partition, position.offset] = draft.value

    async with asyncio.TaskGroup() as tasks:
        for name in range(20):
            tasks.create_task(writer(name))
    assert len(written) == 1200
    records = await read(await log.reader({(topic, 0): 0, (topic, 1): 0}), 1200)
    assert {(record.partition, record.offset): record.value for record in records} == written
    for partition in range(2):
        own = [record for record in records if record.partition == partition]
        assert [record.offset for record in own] == list(range(len(own)))
        last: dict[bytes, int] = {}
        for record in own:
            name, index = (record.value or b"").split()
            assert last.get(name, -1) < int(index)
            last[name] = int(index)


async def test_a_draft_that_cannot_be_appended(log: Log, topic: str) -> None:
    """Too large, no key where compaction needs one, no such partition: InvalidInput, and nothing of the call
    is written.
    """
    compacted = topic + "-compacted"
    await log.create_topic(topic)
    await log.create_topic(compacted, compacted=True)
    good = Draft(topic, b"k", b"v")
    for bad, reason in (
        (Draft(topic, b"k", b"v" * 1_048_588), "bytes is more than the 1048588"),
        (Draft(topic, b"k", b"v", (("h", b"v" * 1_048_588),)), "bytes is more than the 1048588"),
        (Draft(compacted, None, b"v"), "is compacted, so a record needs a key"),
        (Draft(topic, b"k", b"v", partition=1), "has no partition 1"),
        (Draft(topic, b"k", b"v", partition=-1), "has no partition -1"),
        (Draft(topic, b"k", b"v", timestamp_ms=-1), "timestamp -1 is not"),
        (Draft(topic, b"k", b"v", (("\ud800", b""),)), "name cannot be written as UTF-8"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            await log.append([good, bad, good])
    assert await log.append([]) == []
    assert await log.end_offsets(topic) == {0: 0}
    largest = Draft(topic, b"k", b"v" * (1_048_588 - 200))
    assert await log.append([good, largest, good]) == [Position(topic, 0, offset) for offset in range(3)]
    records = await read(await log.reader({(topic, 0): 0}), 3)
    assert records[1].value == largest.value


async def test_readers_have_no_effect_on_each_other(log: Log, topic: str) -> None:
    """Two readers of one partition each see everything; a closed one does not disturb the other."""
    await log.create_topic(topic)
    one, two = await log.reader({(topic, 0): 0}), await log.reader({(topic, 0): 0})
    await log.append([Draft(topic, b"k", b"%d" % index) for index in range(10)])
    assert len(await read(one, 10)) == 10
    await one.close()
    with pytest.raises(LogError):
        await one.fetch()
    assert len(await read(two, 10)) == 10


async def test_a_reader_needs_partitions_that_exist(log: Log, topic: str) -> None:
    """No partition at all, or one that the topic does not have: InvalidInput."""
    await log.create_topic(topic)
    with pytest.raises(InvalidInput, match="at least one partition"):
        await log.reader({})
    with pytest.raises(InvalidInput, match="has no partition 1"):
        await log.reader({(topic, 1): 0})


async def test_a_closed_log(url: str, topic: str) -> None:
    """What was appended is there for the next one to open it; the closed one and its readers say that they
    are closed.
    """
    async with open_log(url) as log:
        await log.create_topic(topic)
        await log.append([Draft(topic, b"k", b"v")])
        reader = await log.reader({(topic, 0): 0})
    for call in (
        log.append([Draft(topic, b"k", b"v")]),
        log.end_offsets(topic),
        log.reader({(topic, 0): 0}),
        reader.fetch(),
    ):
        with pytest.raises(LogError):
            await call
    await log.close()
    async with open_log(url) as log:
        assert await log.end_offsets(topic) == {0: 1}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "local:",
        "kafka:",
        "redis:localhost",
        "/some/path",
        "kafka:host",
        "kafka:host:port",
        "kafka:a:1,:2",
        "kafka:a:0",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    """The message says what is expected."""
    with pytest.raises(InvalidInput, match=r"expected .*HOST:PORT"):
        open_log(url)
