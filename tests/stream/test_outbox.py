"""The outbox and what waits for it: acknowledgements, retries, bounds, and snapshots that stay behind dead
letters."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from driftline.errors import BrokerUnavailable, RecordRefused, TopicNotFound
from driftline.index.budget import Budget
from driftline.stream.config import Logging, Settings
from driftline.stream.drift_events import DriftEvents
from driftline.stream.events import Logger, make_logger
from driftline.stream.log import Draft, Log, Position, Record, Topic, open_log, record_bytes
from driftline.stream.messages import Rejection, decode_vectors
from driftline.stream.outbox import Outbox, fitting_letter
from driftline.stream.shard import Shard
from driftline.stream.snapshotting import Snapshotting

from .running import gaussian, read_all, reasons

TOPIC = "letters"
DEADLINE_S = 10.0
BARE = (("content-type", b"application/octet-stream"),)


class Unsteady:
    """A log whose appends wait for a door, and fail as often as asked."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.door = asyncio.Event()
        self.asked = asyncio.Event()
        self.failures: list[Exception] = []

    async def append(self, drafts: Sequence[Draft]) -> list[Position]:
        self.asked.set()
        await self.door.wait()
        if self.failures:
            raise self.failures.pop(0)
        return await self._log.append(drafts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Any]:
    async with open_log(f"local:{tmp_path / 'log'}") as log:
        await log.create_topic(TOPIC)
        yield Unsteady(log)


@pytest.fixture
def logger() -> Logger:
    return make_logger(Logging())


def drafts(*values: int) -> list[Draft]:
    return [Draft(TOPIC, None, b"%d" % value) for value in values]


async def sent(log: Any) -> list[bytes | None]:
    return [record.value for record in await read_all(log, TOPIC)]


@asynccontextmanager
async def sending(outbox: Outbox) -> AsyncIterator[asyncio.TaskGroup]:
    """The outbox sends while the block runs; a group for what is to run beside it."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(outbox.run())
        yield group
        running.cancel()


async def test_flushed_means_acknowledged(log: Any, logger: Logger) -> None:
    """Not before the append returned, and only what was put before."""
    outbox = Outbox(log, logger, 100)
    async with sending(outbox) as group:
        await outbox.flushed()  # nothing was put: at once
        await outbox.put(drafts(1, 2))
        waiting = group.create_task(outbox.flushed())
        await outbox.put(drafts(3))
        assert not waiting.done()
        assert outbox.pending == 3
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            await waiting
            await outbox.flushed()
        assert await sent(log) == [b"1", b"2", b"3"]


async def test_a_full_outbox_makes_the_caller_wait(log: Any, logger: Logger) -> None:
    """The bound is met by waiting, not by dropping."""
    outbox = Outbox(log, logger, 2)
    async with sending(outbox) as group:
        await outbox.put(drafts(1, 2))
        third = group.create_task(outbox.put(drafts(3)))
        await asyncio.sleep(0)
        assert not third.done()
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            await third
            await outbox.flushed()
        assert await sent(log) == [b"1", b"2", b"3"]


async def test_a_broker_that_is_away_is_tried_again(log: Any, logger: Logger) -> None:
    """As long as it takes; nothing is lost."""
    log.failures = [BrokerUnavailable("away")]
    log.door.set()
    outbox = Outbox(log, logger, 10)
    async with sending(outbox):
        await outbox.put(drafts(1))
        async with asyncio.timeout(DEADLINE_S):
            await outbox.flushed()
        assert await sent(log) == [b"1"]


async def test_a_full_outbox_counts_bytes(log: Any, logger: Logger) -> None:
    """The bound holds within one call, too; what is larger than all room passes alone."""
    outbox = Outbox(log, logger, 100, capacity_bytes=1000)
    async with sending(outbox) as group:
        large = [Draft(TOPIC, None, bytes(size)) for size in (300, 300, 300, 5000, 300)]
        putting = group.create_task(outbox.put(large))
        await asyncio.sleep(0)
        assert not putting.done()
        assert outbox.pending == 2
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            await putting
            await outbox.flushed()
        assert await sent(log) == [draft.value for draft in large]


async def test_what_is_refused_ends_nothing(log: Any, logger: Logger) -> None:
    """Among letters that are taken: one without a key for a compacted topic is sent bare, one that a broker
    refuses as well, an event that is refused twice is given up and counted; the others arrive."""
    await log.create_topic("compacted", compacted=True)
    log.door.set()
    outbox = Outbox(log, logger, 100)
    keyless = Rejection(Record("t", 1, 7, 0, None, b"v", (("own", b"h"),)), "empty_key", "no key")
    letter = fitting_letter(keyless, await log.describe("compacted"), "0")
    await outbox.put([Draft("compacted", b"a", b"1"), letter, Draft("compacted", None, b"event")])
    async with sending(outbox):
        async with asyncio.timeout(DEADLINE_S):
            await outbox.flushed()
            first, bare = await read_all(log, "compacted")
            assert (first.key, bare.key, bare.value) == (b"a", b"t/1/7", b"")
            assert reasons(bare)["exception.class.name"] == "driftline.empty_key"
            assert "own" not in dict(bare.headers)
            assert outbox.refused == 1

            log.failures = [RecordRefused("too old")]
            await outbox.put([fitting_letter(keyless, await log.describe(TOPIC), "0")])
            await outbox.flushed()
            (record,) = await read_all(log, TOPIC)
            assert record.key == b"t/1/7"
            assert outbox.refused == 1


async def test_a_topic_that_is_gone_ends_it(log: Any, logger: Logger) -> None:
    """Trying again would not help: the error is the service's to explain."""
    log.door.set()
    outbox = Outbox(log, logger, 10)
    await outbox.put([Draft("gone", None, b"x")])
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(TopicNotFound, match="gone"):
            await outbox.run()


async def test_a_snapshot_stays_behind_its_dead_letters(log: Any, logger: Logger, tmp_path: Path) -> None:
    """While a letter is not acknowledged no manifest is written; once it is, the snapshot follows."""
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "index": {"dim": 4}})
    await log.create_topic(settings.topics.vectors, compacted=True)
    shard = await asyncio.to_thread(Shard.open, settings, logger)
    outbox = Outbox(log, logger, 10)
    drift = DriftEvents(TOPIC, settings.topics.vectors, shard, outbox, logger)
    snapshots = Snapshotting(settings, log, shard, drift, outbox, logger)
    async with sending(outbox) as group:
        await outbox.put(drafts(1))
        await shard.apply(None, {0: 7}, 7)
        taking = group.create_task(snapshots.take("asked"))
        later = group.create_task(asyncio.to_thread(lambda: None))
        await later
        assert not taking.done()
        assert shard.snapshot is None
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            taken = await taking
        assert taken is not None
        assert shard.snapshot is not None
        assert taken.id == shard.snapshot.id  # they differ in age
        assert shard.records_since_snapshot == 0
    assert await log.committed("driftline", settings.topics.vectors) == {0: 7}
    await asyncio.to_thread(shard.close)


async def test_a_snapshot_stays_behind_what_its_index_said(log: Any, logger: Logger, tmp_path: Path) -> None:
    """An index that is saved has spoken and will not again: its events are acknowledged before the snapshot
    counts, with the topic and the offsets they were said at."""
    settings = Settings.model_validate(
        {"data_dir": tmp_path / "data", "index": {"dim": 4, "compress_after": 500}}
    )
    await log.create_topic(settings.topics.vectors, compacted=True)
    shard = await asyncio.to_thread(Shard.open, settings, logger)
    outbox = Outbox(log, logger, 10)
    drift = DriftEvents(TOPIC, settings.topics.vectors, shard, outbox, logger)
    snapshots = Snapshotting(settings, log, shard, drift, outbox, logger)
    records = [
        Record(settings.topics.vectors, 0, row, 0, b"%d" % row, vector.tobytes(), BARE)
        for row, vector in enumerate(gaussian(1500, 4, 1))
    ]
    batch = decode_vectors(records, dim=4, metric="l2", model=None)
    await shard.apply(batch, {0: 1500}, 1500)
    while await shard.maintain(1.0, Budget(1.0, 1.0)):
        pass
    async with sending(outbox) as group:
        taking = group.create_task(snapshots.take("asked"))
        async with asyncio.timeout(DEADLINE_S):
            await log.asked.wait()
        assert not taking.done()
        assert shard.snapshot is None
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            await taking
        told = [json.loads(record.value or b"") for record in await read_all(log, TOPIC)]
    assert told
    assert shard.take_events() == []
    for event in told:
        assert (event["topic"], event["offsets"]) == (settings.topics.vectors, {"0": 1500})
    await asyncio.to_thread(shard.close)


@pytest.mark.parametrize("size", [10, 900, 10_000])
def test_a_letter_fits_its_topic(size: int) -> None:
    """Without the value, then without the record's own headers and key, where the topic takes no more."""
    topic = Topic("letters", (0,), frozenset({"delete"}), 1500)
    record = Record("t", 0, 5, 0, b"key", b"v" * size, (("own", b"h" * (size if size > 5000 else 10)),))
    letter = fitting_letter(Rejection(record, "bad_vector", "it is bad"), topic, "0")
    assert record_bytes(letter) <= topic.max_record_bytes
    headers = dict(letter.headers)
    assert headers["__connect.errors.offset"] == b"5"
    assert (letter.value == record.value) == (size < 500)
