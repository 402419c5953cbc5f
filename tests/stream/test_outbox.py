"""The outbox and what waits for it: acknowledgements, retries, bounds, and snapshots that stay behind dead
letters."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from driftline.errors import BrokerUnavailable, TopicNotFound
from driftline.stream.config import Logging, Settings
from driftline.stream.drift_events import DriftEvents
from driftline.stream.events import Logger, make_logger
from driftline.stream.log import Draft, Log, Position, Record, Topic, open_log, record_bytes
from driftline.stream.messages import Rejection
from driftline.stream.outbox import Outbox, fitting_letter
from driftline.stream.shard import Shard
from driftline.stream.snapshotting import Snapshotting

from .running import read_all

TOPIC = "letters"
DEADLINE_S = 10.0


class Unsteady:
    """A log whose appends wait for a door, and fail as often as asked."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.door = asyncio.Event()
        self.failures: list[Exception] = []

    async def append(self, drafts: Sequence[Draft]) -> list[Position]:
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


async def test_flushed_means_acknowledged(log: Any, logger: Logger) -> None:
    """Not before the append returned, and only what was put before."""
    outbox = Outbox(log, logger, 100)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(outbox.run())
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
        running.cancel()


async def test_a_full_outbox_makes_the_caller_wait(log: Any, logger: Logger) -> None:
    """The bound is met by waiting, not by dropping."""
    outbox = Outbox(log, logger, 2)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(outbox.run())
        await outbox.put(drafts(1, 2))
        third = group.create_task(outbox.put(drafts(3)))
        await asyncio.sleep(0)
        assert not third.done()
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            await third
            await outbox.flushed()
        assert await sent(log) == [b"1", b"2", b"3"]
        running.cancel()


async def test_a_broker_that_is_away_is_tried_again(log: Any, logger: Logger) -> None:
    """As long as it takes; nothing is lost."""
    log.failures = [BrokerUnavailable("away")]
    log.door.set()
    outbox = Outbox(log, logger, 10)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(outbox.run())
        await outbox.put(drafts(1))
        async with asyncio.timeout(DEADLINE_S):
            await outbox.flushed()
        assert await sent(log) == [b"1"]
        running.cancel()


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
    async with asyncio.TaskGroup() as group:
        running = group.create_task(outbox.run())
        await outbox.put(drafts(1))
        await shard.apply(None, {0: 7}, 7)
        taking = group.create_task(snapshots.take("asked"))
        later = group.create_task(asyncio.to_thread(lambda: None))
        await later
        assert not taking.done()
        assert shard.snapshot is None
        log.door.set()
        async with asyncio.timeout(DEADLINE_S):
            assert (await taking) == shard.snapshot
        assert shard.snapshot is not None
        assert shard.records_since_snapshot == 0
        running.cancel()
    assert await log.committed("driftline", settings.topics.vectors) == {0: 7}
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
