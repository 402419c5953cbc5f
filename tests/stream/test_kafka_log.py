"""The log on Kafka: what only a real broker shows: transactions, compaction, limits, outages, other
clients.
"""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from driftline.errors import BrokerUnavailable, InvalidInput, LogError
from driftline.stream.log import Compression, Draft, Log, Reader, Record, open_log
from driftline.stream.partitioner import partition_of

from ..kafka.broker import KafkaBroker, free_ports, single_node_properties
from ..kafka.link import LossyLink

pytestmark = pytest.mark.kafka

DEADLINE_S = 60.0


@pytest.fixture
async def log(kafka: KafkaBroker) -> AsyncIterator[Log]:
    async with open_log(f"kafka:{kafka.bootstrap}") as log:
        yield log


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker that a test may stop."""
    with KafkaBroker(tmp_path / "broker", heap_mb=256) as broker:
        yield broker


async def read_to_end(log: Log, reader: Reader, topic: str) -> list[Record]:
    """Every record up to the end offsets; fails when the position never gets there."""
    ends = await log.end_offsets(topic)
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while any(reader.position(topic, partition) < end for partition, end in ends.items()):
            records += await reader.fetch(timeout_s=DEADLINE_S)
    return records


async def ends_at(log: Log, topic: str, offset: int) -> None:
    """Wait for the end of partition 0: the broker writes the markers of a transaction in its own time."""
    async with asyncio.timeout(DEADLINE_S):
        while (await log.end_offsets(topic))[0] != offset:
            pass


async def test_transactions_of_others(kafka: KafkaBroker, log: Log) -> None:
    """Aborted records are not seen, markers do not stop the position, an open transaction bounds the end
    offset.
    """
    topic = "transactions"
    await log.create_topic(topic)
    producer: Any = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="transactions")
    async with producer:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed")
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()

        await ends_at(log, topic, 4)  # two records, two markers
        reader = await log.reader({(topic, 0): 0})
        records = await read_to_end(log, reader, topic)
        assert [record.value for record in records] == [b"committed"]
        assert reader.position(topic, 0) == 4

        # Nothing but an aborted record and its marker: the fetch comes back early, empty, with the position
        # moved.
        fetching = asyncio.ensure_future(reader.fetch(timeout_s=DEADLINE_S))
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        async with asyncio.timeout(DEADLINE_S / 2):
            assert await fetching == []
        assert reader.position(topic, 0) > 4
        await ends_at(log, topic, 6)
        assert await read_to_end(log, reader, topic) == []
        assert reader.position(topic, 0) == 6

        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"open")
        assert await log.end_offsets(topic) == {0: 6}
        await producer.commit_transaction()
        await ends_at(log, topic, 8)
        assert [record.value for record in await read_to_end(log, reader, topic)] == [b"open"]


async def test_compaction_by_kafka(kafka: KafkaBroker, log: Log) -> None:
    """What Kafka's cleaner removes leaves gaps: positions still reach the end, and the fold of the topic
    stays the same.
    """
    topic = "compaction"
    kafka.create_topic(
        topic,
        config=[
            "cleanup.policy=compact",
            "segment.ms=100",
            "min.cleanable.dirty.ratio=0.01",
            "delete.retention.ms=100",
        ],
    )
    assert (await log.describe(topic)).cleanup == frozenset({"compact"})
    expected: dict[bytes | None, bytes | None] = {}
    sent = 0
    async with asyncio.timeout(DEADLINE_S):
        while True:
            drafts = [Draft(topic, b"%d" % key, b"%d" % (sent + key)) for key in range(20)]
            await log.append(drafts)  # also rolls the segment, which is what makes the older ones cleanable
            sent += len(drafts)
            expected |= {draft.key: draft.value for draft in drafts}
            reader = await log.reader({(topic, 0): 0})
            records = await read_to_end(log, reader, topic)
            await reader.close()
            folded = {record.key: record.value for record in records}
            assert folded == expected
            assert reader.position(topic, 0) == sent
            if len(records) < sent:
                break
    assert [record.offset for record in records] == sorted({record.offset for record in records})


async def test_a_java_producer_agrees_about_partitions(kafka: KafkaBroker, log: Log) -> None:
    """Kafka's own console producer puts each key where this log would."""
    topic = "java-keys"
    await log.create_topic(topic, partitions=7)
    keys = [f"key-{index}" * (index % 5 + 1) for index in range(100)]
    kafka.tool(
        "org.apache.kafka.tools.ConsoleProducer", "--topic", topic,
        "--reader-property", "parse.key=true", "--reader-property", "key.separator=:",
        stdin="".join(f"{key}:value\n" for key in keys),
    )  # fmt: skip
    reader = await log.reader({(topic, partition): 0 for partition in range(7)})
    records = await read_to_end(log, reader, topic)
    assert len(records) == 100
    assert {record.key: record.partition for record in records} == {
        key.encode(): partition_of(key.encode(), 7) for key in keys
    }


async def test_a_null_header_reads_as_empty(kafka: KafkaBroker, log: Log) -> None:
    """Kafka has headers without a value; a Record does not."""
    await log.create_topic("null-header")
    producer: Any = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    async with producer:
        await producer.send_and_wait("null-header", b"v", headers=[("a", None), ("b", b"1")])
    reader = await log.reader({("null-header", 0): 0})
    (record,) = await read_to_end(log, reader, "null-header")
    assert record.headers == (("a", b""), ("b", b"1"))


async def test_a_topic_with_a_small_limit(kafka: KafkaBroker, log: Log) -> None:
    """Batches respect max.message.bytes; one record above it is refused before anything is sent."""
    kafka.create_topic("small", config=["max.message.bytes=2000"])
    positions = await log.append([Draft("small", b"k", b"v" * 700)] * 50)
    assert [position.offset for position in positions] == list(range(50))
    with pytest.raises(InvalidInput, match="more than the 2000 that topic small takes"):
        await log.append([Draft("small", b"k", b"v" * 2000)])


async def test_a_refused_batch_does_not_stop_the_next(kafka: KafkaBroker, log: Log) -> None:
    """The broker refuses a record that this log thought would do; sequence numbers are in order again
    afterwards.
    """
    topic = "refused"
    await log.create_topic(topic)
    await log.append([Draft(topic, b"k", b"first")])
    kafka.tool("kafka.admin.ConfigCommand", "--alter",
               "--topic", topic, "--add-config", "max.message.bytes=500")  # fmt: skip
    with pytest.raises(LogError, match=f"append to {topic}/0") as refused:
        await log.append([Draft(topic, b"k", b"v" * 1000)])
    assert not refused.value.retriable
    for index in range(3):
        (position,) = await log.append([Draft(topic, b"k", b"%d" % index)])
        assert position.offset == index + 1


async def test_no_broker() -> None:
    """Opening tries until the stated deadline, then says what to look at."""
    (port,) = free_ports(1)
    before = time.monotonic()
    with pytest.raises(
        BrokerUnavailable, match=r"no Kafka broker could be used at 127\.0\.0\.1:\d+ within 1\.2 s: is it"
    ) as no:
        async with open_log(f"kafka:127.0.0.1:{port}", ready_within_s=1.2):
            pass
    assert 1.2 <= time.monotonic() - before < 5.0
    assert no.value.retriable


async def test_a_broker_that_comes_later(tmp_path: Path) -> None:
    """Opening waits for a broker that is still starting."""
    broker = KafkaBroker(tmp_path, heap_mb=256)
    opening = asyncio.ensure_future(
        open_log(f"kafka:{broker.bootstrap}", ready_within_s=DEADLINE_S).__aenter__()
    )
    try:
        await asyncio.to_thread(broker.start)
        log = await opening
        assert await log.topics() == frozenset()
        await log.close()
    finally:
        broker.stop()


async def test_a_killed_broker(own_broker: KafkaBroker) -> None:
    """While it is away: errors within the deadline. When it is back: the same log and reader go on, nothing
    acknowledged is lost, nothing is out of order.
    """
    acknowledged: list[bytes] = []
    async with open_log(f"kafka:{own_broker.bootstrap}", ready_within_s=2.0) as log:
        await log.create_topic("t")
        reader = await log.reader({("t", 0): 0})

        async def append(value: bytes) -> None:
            await log.append([Draft("t", b"k", value)])
            acknowledged.append(value)

        await append(b"before")
        assert [record.value for record in await reader.fetch(timeout_s=DEADLINE_S)] == [b"before"]
        own_broker.kill()
        before = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"no answer from Kafka at .* within 2 s"):
            await append(b"during")
        with pytest.raises(BrokerUnavailable):
            await log.end_offsets("t")
        assert time.monotonic() - before < 10.0
        assert await reader.fetch(timeout_s=0.2) == []
        await asyncio.to_thread(own_broker.start)
        attempts = itertools.count()  # every try writes a value of its own
        async with asyncio.timeout(DEADLINE_S):
            while len(acknowledged) < 20:
                try:
                    await append(b"after %d" % next(attempts))
                except LogError as error:
                    if not error.retriable:
                        raise
        values = [record.value for record in await read_to_end(log, reader, "t")]
    # What was not acknowledged may be written all the same ("during"), even twice; what was is there, in
    # order.
    assert [value for value in [b"before", *values] if value in acknowledged] == acknowledged


async def test_a_lost_acknowledgement(tmp_path: Path) -> None:
    """The broker has written a batch, the answer is lost: sent again, it is stored once, and its positions
    are true.
    """
    outside_port, inside_port, controller_port = free_ports(3)
    properties = single_node_properties(inside_port, controller_port) | {
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{outside_port}"
    }
    with KafkaBroker(tmp_path, properties, bootstrap=f"127.0.0.1:{outside_port}", heap_mb=256):
        async with (
            LossyLink(outside_port, inside_port) as link,
            open_log(f"kafka:127.0.0.1:{outside_port}") as log,
        ):
            await log.create_topic("t")
            expected: list[bytes] = []
            for index in range(10):
                values = [b"%d lose me %d" % (index, part) for part in range(3)]
                link.swallow = values[1]
                positions = await log.append([Draft("t", b"k", value) for value in values])
                assert [position.offset for position in positions] == [
                    3 * index,
                    3 * index + 1,
                    3 * index + 2,
                ]
                expected += values
            assert link.swallowed == 10
            reader = await log.reader({("t", 0): 0})
            assert [record.value for record in await read_to_end(log, reader, "t")] == expected


async def test_a_broker_that_does_not_answer(own_broker: KafkaBroker) -> None:
    """Connections open, no answers (a stopped process): every call ends within its deadline, and works again
    afterwards.
    """
    async with open_log(f"kafka:{own_broker.bootstrap}", ready_within_s=1.0) as log:
        await log.create_topic("t")
        await log.append([Draft("t", b"k", b"before")])
        own_broker.pause()
        before = time.monotonic()
        for call in (
            log.append([Draft("t", b"k", b"v")]),
            log.topics(),
            log.end_offsets("t"),
            log.committed("g", "t"),
        ):
            with pytest.raises(BrokerUnavailable):
                await call
        assert time.monotonic() - before < 8.0
        own_broker.resume()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await log.append([Draft("t", b"k", b"after")])
                    break
                except BrokerUnavailable:
                    continue
        assert (await log.end_offsets("t"))[0] >= 2


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_compression(kafka: KafkaBroker, log: Log, codec: Compression) -> None:
    """Every codec comes back as it went, also where it gains nothing; what shrinks takes less room."""
    topic = f"compressed-{codec}"
    await log.create_topic(topic)
    same, random = [b"the same again " * 100] * 50, [os.urandom(500) for _ in range(5)]
    async with open_log(f"kafka:{kafka.bootstrap}", compression=codec) as writer:
        for values in (same, random):
            await writer.append([Draft(topic, b"k", value, (("h", b"1"),)) for value in values])
    reader = await log.reader({(topic, 0): 0})
    assert [record.value for record in await read_to_end(log, reader, topic)] == same + random
    stored = sum(file.stat().st_size for file in kafka.directory.glob(f"data/{topic}-0/*.log"))
    assert (stored > 70_000) == (codec == "none")
