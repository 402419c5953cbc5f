"""When a snapshot is due: after records, and without any after work and wishes of re-encoding."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from driftline.index.sources import pack_sources
from driftline.snapshots import segments
from driftline.stream.config import Logging, Settings
from driftline.stream.drift_events import DriftEvents
from driftline.stream.events import make_logger
from driftline.stream.log import open_log
from driftline.stream.messages import VectorBatch
from driftline.stream.outbox import Outbox
from driftline.stream.shard import Shard
from driftline.stream.snapshotting import Snapshotting

from .running import eventually, gaussian

DIM = 8
OLD = 200  # rows that the first frame is fitted to
ROWS = 3000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Snapshots as soon as one is due; no alarm, so that only a hand starts anything."""
    return Settings.model_validate(
        {
            "data_dir": tmp_path / "data",
            "index": {"dim": DIM, "m": 4, "ef_construction": 20, "compress_after": OLD},
            "drift": {"alpha": 1e-12, "loss_limit": 1e12},
            "snapshots": {"every_seconds": 0.01},
        }
    )


@pytest.fixture
async def shard(settings: Settings) -> AsyncIterator[Shard]:
    """Narrow rows, then wide ones in their frame; a snapshot holds all of it."""
    shard = await asyncio.to_thread(Shard.open, settings, make_logger(Logging()))
    for first, last, scale in ((0, OLD, 1.0), (OLD, ROWS, 3.0)):
        keys = [b"%d" % row for row in range(first, last)]
        x = np.float32(scale) * gaussian(last - first, DIM, first)
        offsets = range(first, last)
        sources = pack_sources([0] * len(keys), offsets, [0] * len(keys))
        none = pack_sources([], [], [])
        batch = VectorBatch(keys, x, [None] * len(keys), sources, [], none, {0: 0}, [], None, None)
        await shard.apply(batch, {0: last}, last - first, {})
        await upkeep(shard)
    pending = await shard.cut()
    assert pending is not None
    await shard.commit(pending)
    assert not shard.unsaved
    yield shard
    await asyncio.to_thread(shard.close)


async def upkeep(shard: Shard) -> None:
    assert shard.index is not None
    while await shard.beside(shard.index.maintain, 1.0):
        pass


async def snapshot_taken(settings: Settings, shard: Shard, tmp_path: Path) -> None:
    """Run the snapshots until nothing is left to save."""
    logger = make_logger(Logging())
    async with open_log(f"local:{tmp_path / 'log'}") as log, asyncio.TaskGroup() as group:
        await log.create_topic(settings.topics.vectors, compacted=True)
        await log.create_topic(settings.topics.drift, compacted=False)
        outbox = Outbox(log, logger, 10, 1 << 20)
        drift = DriftEvents(settings.topics.drift, settings.topics.vectors, shard, outbox, logger)
        snapshots = Snapshotting(settings, log, shard, drift, outbox, logger)
        tasks = [group.create_task(work) for work in (outbox.run(), snapshots.run())]
        await eventually(lambda: not shard.unsaved, "a snapshot holds it")
        for task in tasks:
            task.cancel()


async def test_a_pause_is_kept_without_records(settings: Settings, shard: Shard, tmp_path: Path) -> None:
    """A service that starts from the snapshot is paused, and goes on when it is resumed."""
    assert shard.index is not None
    shard.index.pause_reencode()
    assert shard.unsaved
    assert not shard.records_since_snapshot
    await snapshot_taken(settings, shard, tmp_path)
    await asyncio.to_thread(shard.close)
    again = await asyncio.to_thread(Shard.open, settings, make_logger(Logging()))
    assert again.index is not None
    assert again.index.reencode_progress().paused
    again.index.resume_reencode()
    assert again.unsaved
    await asyncio.to_thread(again.close)


async def test_slabs_that_moved_are_kept_without_records(
    settings: Settings, shard: Shard, tmp_path: Path
) -> None:
    """All rows are in the new frame after a restart, and upkeep that finds nothing to do asks for no more."""
    assert shard.index is not None
    shard.index.reencode(now=True)
    await upkeep(shard)
    assert shard.unsaved
    await snapshot_taken(settings, shard, tmp_path)
    await upkeep(shard)
    assert not shard.unsaved
    await asyncio.to_thread(shard.close)
    again = await asyncio.to_thread(Shard.open, settings, make_logger(Logging()))
    assert again.index is not None
    assert [(frame.frame, frame.rows) for frame in again.index.stats().frames] == [(2, ROWS)]
    await asyncio.to_thread(again.close)


async def test_files_stay_in_proportion(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows replaced at random between snapshots: raw files hold a small multiple of what is live, where
    without rewriting old ones would keep a row or two; a restart finds what was applied."""
    one = settings.snapshots.model_copy(update={"keep": 1})
    settings = settings.model_copy(update={"snapshots": one})
    monkeypatch.setattr(segments, "MIN_ROWS", 100)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    shard = await asyncio.to_thread(Shard.open, settings, make_logger(Logging()))
    rng = np.random.default_rng(0)
    none = pack_sources([], [], [])
    for turn in range(30):
        keys = [b"%d" % key for key in (range(1000) if not turn else rng.choice(1000, 300, replace=False))]
        x = gaussian(len(keys), DIM, turn)
        sources = pack_sources([0] * len(keys), [turn] * len(keys), [turn] * len(keys))
        batch = VectorBatch(keys, x, [None] * len(keys), sources, [], none, {0: turn}, [], None, None)
        await shard.apply(batch, {0: turn + 1}, len(keys), {})
        await upkeep(shard)
        pending = await shard.cut()
        assert pending is not None
        await shard.commit(pending)
    assert shard.index is not None
    digest = shard.index.digest
    files = list((tmp_path / "data" / "segments").iterdir())
    assert len(files) < 2.2 * 1000 / 100  # 1.3 times what is live, the dead, and what the snapshot names
    await asyncio.to_thread(shard.close)
    again = await asyncio.to_thread(Shard.open, settings, make_logger(Logging()))
    assert again.index is not None
    assert again.index.digest == digest
    again.index.check()
    await asyncio.to_thread(again.close)
