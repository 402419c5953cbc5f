"""What a shard does with batches that are handed to it one after the other."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.errors import SnapshotError
from driftline.stream.config import Logging, Settings
from driftline.stream.events import make_logger
from driftline.stream.log import Record
from driftline.stream.messages import VectorBatch, decode_vectors
from driftline.stream.shard import Shard

from .running import bare, gaussian

DIM = 4


@pytest.fixture
async def shard(tmp_path: Path) -> AsyncIterator[Shard]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "index": {"dim": DIM}})
    shard = await asyncio.to_thread(Shard.open, settings, make_logger(Logging()))
    yield shard
    await asyncio.to_thread(shard.close)


def batch(first: int, keys: list[bytes]) -> VectorBatch:
    """Records from an offset on; the row of each is that of its offset."""
    rows = gaussian(100, DIM, 0)
    records: list[Record] = []
    for offset, key in enumerate(keys, first):
        draft = bare("t", key, rows[offset])
        records.append(Record("t", 0, offset, 1, key, draft.value, draft.headers))
    return decode_vectors(records, dim=DIM, metric="l2", model=None)


async def test_batches_wait_for_each_other_and_not_for_their_caller(shard: Shard) -> None:
    """Handed over all at once, they are applied in order; a cut between them holds what came before it."""
    first = shard.apply(batch(0, [b"a", b"b"]), {0: 2}, 2)
    cut = asyncio.ensure_future(shard.cut())
    await asyncio.sleep(0)  # the cut has taken its turn
    second = shard.apply(batch(2, [b"a"]), {0: 3}, 1)
    third = shard.apply(batch(3, [b"a", b"c"]), {0: 5}, 2)
    await third
    assert first.done()
    assert second.done()
    assert [changes.result().upserted for changes in (first, second, third)] == [2, 1, 2]
    pending = await cut
    assert pending is not None
    assert pending.offsets == {0: 2}
    assert shard.offsets == {0: 5}
    assert shard.index is not None
    rows: list[Any] = shard.index.get([b"a", b"b", b"c"])
    assert np.array_equal([row.vector for row in rows], gaussian(100, DIM, 0)[[3, 1, 4]])


async def test_nothing_follows_a_batch_that_failed(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the next batch, which was handed over before anybody could know, and no snapshot: its offsets would
    pass records that are not applied."""
    await shard.apply(batch(0, [b"a"]), {0: 1}, 1)

    def fail(*_: object, **__: object) -> int:
        raise SnapshotError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shard.index, "upsert", fail)
        failed = shard.apply(batch(1, [b"b"]), {0: 2}, 1)
        after = shard.apply(batch(2, [b"c"]), {0: 3}, 1)
        with pytest.raises(SnapshotError, match="no space"):
            await failed
        with pytest.raises(SnapshotError, match="not applied to its end"):
            await after
    with pytest.raises(SnapshotError, match="not applied to its end"):
        await shard.cut()
    assert (shard.offsets, shard.live) == ({0: 1}, 1)
