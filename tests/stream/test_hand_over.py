"""How ingestion hands batches to the shard: one ahead of the one that is applied, and no more."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from driftline.stream.applied import Applied
from driftline.stream.config import Logging, Settings
from driftline.stream.drift_events import DriftEvents
from driftline.stream.events import make_logger
from driftline.stream.ingest import Ingest
from driftline.stream.log import open_log
from driftline.stream.measures import Measures
from driftline.stream.memory_limit import MemoryLimit
from driftline.stream.outbox import Outbox
from driftline.stream.shard import Changes, Shard
from driftline.stream.status import Counters

from .running import DEADLINE_S, bare, eventually, gaussian

ROWS, BATCH = 100, 10


async def test_one_batch_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are handed over while none is done, in order; the next when one is; offsets move with what is done;
    what has not begun when ingestion ends is taken back."""
    logger = make_logger(Logging(level="error"))
    settings = Settings.model_validate(
        {"data_dir": tmp_path / "data", "index": {"dim": 4}, "ingest": {"batch_records": BATCH}}
    )
    shard = await asyncio.to_thread(Shard.open, settings, logger)
    handed: list[tuple[int, asyncio.Future[Changes]]] = []

    def apply(_: Any, positions: dict[int, int], *__: object) -> asyncio.Future[Changes]:
        handed.append((positions[0], asyncio.get_running_loop().create_future()))
        return handed[-1][1]

    monkeypatch.setattr(shard, "apply", apply)
    async with open_log(f"local:{tmp_path / 'log'}") as log:
        names = settings.topics
        await log.create_topic(names.vectors, compacted=True)
        await log.create_topic(names.dead_letters)
        rows = gaussian(ROWS, 4, 0)
        await log.append([bare(names.vectors, b"%d" % row, rows[row]) for row in range(ROWS)])
        vectors, letters = await log.describe(names.vectors), await log.describe(names.dead_letters)
        outbox, applied = Outbox(log, logger, 10), Applied({0: 0})
        drift = DriftEvents(names.drift, names.vectors, shard, outbox, logger)
        ingest = Ingest(
            settings, log, shard, applied, outbox, drift, vectors, letters, Counters(), Measures(),
            MemoryLimit(None, logger), logger,
        )  # fmt: skip
        running = asyncio.create_task(ingest.run())
        for done in range(3):
            await eventually(lambda done=done: len(handed) >= done + 2, "handed over")
            for _ in range(100):  # time for one too many
                await asyncio.sleep(0)
            assert [end for end, _ in handed] == [BATCH * number for number in range(1, done + 3)]
            assert applied.offsets == {0: BATCH * done}
            handed[done][1].set_result(Changes(BATCH, 0, 0, 0.0))
            async with asyncio.timeout(DEADLINE_S):
                await applied.reach({0: BATCH * (done + 1)})
        await eventually(lambda: len(handed) >= 5, "handed over")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [future.cancelled() for _, future in handed] == [False] * 3 + [True] * 2
    await asyncio.to_thread(shard.close)
