"""What a real Kafka does to a topic behind a service's back: compaction that forgets tombstones, topics that
are deleted and created again, partitions that are added."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.protocol.admin import DescribeConfigsRequest
from driftline.stream.config import Settings
from driftline.stream.kafka_client import KafkaClient
from driftline.stream.log import Draft, Log, Record, open_log
from driftline.stream.topics import check_retention

from ..kafka.broker import KafkaBroker
from .running import Place, bare, eventually, fold, gaussian, read_all, until

pytestmark = pytest.mark.kafka

DIM = 4
DEADLINE_S = 60.0
QUICK = (
    "cleanup.policy=compact",
    "segment.ms=100",
    "min.cleanable.dirty.ratio=0.01",
    "delete.retention.ms=100",
)


@pytest.fixture
async def log(kafka: KafkaBroker) -> AsyncIterator[Log]:
    async with open_log(f"kafka:{kafka.bootstrap}") as log:
        yield log


@pytest.fixture
async def admin(kafka: KafkaBroker) -> AsyncIterator[Any]:
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@pytest.fixture
def place(kafka: KafkaBroker, tmp_path: Path) -> Place:
    return Place(f"kafka:{kafka.bootstrap}", f"truth-{uuid.uuid4().hex[:8]}", tmp_path, index__dim=DIM)


def rows(place: Place, prefix: bytes, count: int, seed: int) -> list[Draft]:
    vectors = gaussian(count, DIM, seed)
    return [bare(place.vectors, prefix + b"%d" % row, vector) for row, vector in enumerate(vectors)]


async def live_after(log: Log, place: Place) -> int:
    status = await eventually(place.service.caught_up, "caught up")
    assert status["live"] == len(await fold(log, place.vectors))
    return int(status["live"])


async def test_tombstones_that_were_forgotten(kafka: KafkaBroker, log: Log, place: Place) -> None:
    """Keys are deleted and compaction is forced past the horizon while the service is down: they are gone
    when it is ready again, and it says how many."""
    await asyncio.to_thread(kafka.create_topic, place.vectors, config=QUICK)
    with place.service.start():
        await log.append(rows(place, b"k", 50, 1))
        assert await live_after(log, place) == 50
        assert place.service.stop() == 0
        await log.append([Draft(place.vectors, b"k%d" % row, None) for row in range(20)])
        gone = {b"k%d" % row for row in range(20)}
        filler = 0
        async with asyncio.timeout(DEADLINE_S):
            while any(record.key in gone for record in await read_all(log, place.vectors)):
                # Rolls the segment: the active one is never cleaned.
                await log.append(rows(place, b"filler", 5, filler))
                filler += 1
        place.service.start()
        (finished,) = place.service.events("reconcile.finished")
        assert finished["dropped"] == 20
        assert await live_after(log, place) == 35


async def test_a_topic_that_was_created_again(log: Log, admin: Any, place: Place) -> None:
    """Missing: not ready, and still there. Created again and grown past the offsets that were applied: the
    service ends and says why."""
    with place.service.start():
        await log.append(rows(place, b"k", 30, 1))
        await live_after(log, place)
        await admin.delete_topics([place.vectors])
        until(lambda: place.service.events("topic.missing"), "missing")
        status = place.service.status()
        assert status is not None
        assert (status["ready"], status["live"]) == (False, 30)
        async with asyncio.timeout(DEADLINE_S):
            while not await log.create_topic(place.vectors, compacted=True):
                pass  # the broker deletes in its own time
        async with open_log(place.url) as fresh:  # what the other one knows of the topic is of the old one
            await fresh.append(rows(place, b"other", 60, 2))
        assert await asyncio.to_thread(place.service.wait) == 1
        (failed,) = place.service.events("service.failed")
        assert (
            "holds another record at offset" in failed["reason"] or "is outside the log" in failed["reason"]
        )


async def test_a_topic_that_was_created_again_while_down(log: Log, admin: Any, place: Place) -> None:
    """Grown past the snapshot's offsets, which nothing but its records shows."""
    with place.service.start():
        await log.append(rows(place, b"k", 30, 1))
        await live_after(log, place)
        assert place.service.stop() == 0
        await admin.delete_topics([place.vectors])
        async with asyncio.timeout(DEADLINE_S):
            while not await log.create_topic(place.vectors, compacted=True):
                pass
        async with open_log(place.url) as fresh:
            await fresh.append(rows(place, b"k", 60, 2))
        place.service.start(ready=False)
        assert await asyncio.to_thread(place.service.wait) == 1
        (failed,) = place.service.events("service.failed")
        assert f"partition 0 of {place.vectors} holds another record at offset" in failed["reason"]


async def test_partitions_that_are_added(log: Log, admin: Any, place: Place) -> None:
    """Said, with what it means, and read: while it runs, and when they came while it was down."""
    with place.service.start():
        await log.append(rows(place, b"k", 20, 1))
        await live_after(log, place)
        await admin.create_partitions({place.vectors: NewPartitions(2)})
        (changed,) = until(lambda: place.service.events("topic.partitions_changed"), "noticed")
        assert (changed["before"], changed["now"]) == (1, 2)
        async with open_log(place.url) as fresh:
            await fresh.append(
                [Draft(d.topic, d.key, d.value, d.headers, 1) for d in rows(place, b"p", 9, 2)]
            )
            status = await eventually(
                lambda: (s := place.service.caught_up()) and s["live"] == 29 and s, "read"
            )
            assert set(status["applied"]) == {"0", "1"}
            assert place.service.stop() == 0
            await admin.create_partitions({place.vectors: NewPartitions(3)})
            place.service.start()
            assert [event["now"] for event in place.service.events("topic.partitions_changed")] == [2, 3]


async def test_letters_of_old_records(kafka: KafkaBroker, log: Log, place: Place) -> None:
    """A dead-letter topic that takes no record dated long ago takes the letter of one; its time is kept."""
    await asyncio.to_thread(
        kafka.create_topic, place.letters, config=["message.timestamp.before.max.ms=60000"]
    )
    long_ago = 1_600_000_000_000
    with place.service.start():
        await log.append([Draft(place.vectors, b"bad", b"no vector", timestamp_ms=long_ago)])
        (letter,) = await eventually_letters(log, place, 1)
        assert dict(letter.headers)["driftline-timestamp-ms"] == b"%d" % long_ago
        assert letter.timestamp_ms > long_ago
        assert not place.service.events("outbox.refused")
        assert place.service.stop() == 0


async def eventually_letters(log: Log, place: Place, count: int) -> list[Record]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            letters = await read_all(log, place.letters)
            if len(letters) >= count:
                return letters


async def test_a_topic_whose_settings_may_not_be_read(
    log: Log, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to DescribeConfigs a topic is what Kafka's defaults are, and its policy unknown."""
    await log.create_topic(place.vectors, compacted=True)
    send = KafkaClient.send

    async def forbidden(self: KafkaClient, request: Any, *arguments: Any, **named: Any) -> Any:
        response = await send(self, request, *arguments, **named)
        if isinstance(request, DescribeConfigsRequest):
            (_, _, kind, name, _), *_ = response.resources
            denied = errors.TopicAuthorizationFailedError.errno
            response.resources = [(denied, "denied", kind, name, [])]
        return response

    monkeypatch.setattr(KafkaClient, "send", forbidden)
    described = await log.describe(place.vectors, max_age_s=0.0)
    assert (described.cleanup, described.partitions) == (None, (0,))
    assert (described.max_record_bytes, described.tombstones_ms) == (1_048_588, 86_400_000)
    assert described.compacted
    await log.append([Draft(place.vectors, b"k", b"v")])
    check_retention(described, Settings())


async def test_a_topic_that_deletes_by_age(kafka: KafkaBroker, place: Place) -> None:
    """Refused with the way out, and served when the configuration says that nothing is ever deleted."""
    await asyncio.to_thread(kafka.create_topic, place.vectors, config=["cleanup.policy=compact,delete"])
    with place.service.start(ready=False):
        assert await asyncio.to_thread(place.service.wait) == 1
        (failed,) = place.service.events("service.failed")
        assert 'topics.retention = "keep"' in failed["reason"]
        place.service.start("--set", "topics.retention=keep")
        assert place.service.stop() == 0
