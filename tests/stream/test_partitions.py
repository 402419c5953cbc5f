"""Keys with records in two partitions: the live set is a function of the log, however its partitions are
interleaved, cut into batches, and interrupted by restarts."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
from driftline.stream.config import Settings
from driftline.stream.log import Record
from driftline.stream.messages import decode_vectors
from driftline.stream.shard import LATE_MS, Shard
from hypothesis import given, settings
from hypothesis import strategies as st

from .oracle import digest

DIM = 2
HOUR_MS = 3_600_000
HEADERS = (("content-type", b"application/octet-stream"),)
Log = list[list[Record]]  # by partition


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Three partitions, few keys; timestamps mostly rise, and now and then fall or are equal elsewhere."""
    log: Log = []
    for partition in range(3):
        records: list[Record] = []
        for offset in range(draw(st.integers(0, 8))):
            key = draw(st.sampled_from([b"a", b"b", b"c"]))
            time_ms = draw(st.one_of(st.integers(0, 6), st.just(offset), st.just(-1)))
            vector = np.full(DIM, draw(st.integers(1, 3)), "<f4").tobytes()
            value = None if draw(st.booleans()) else vector
            records.append(Record("t", partition, offset, time_ms, key, value, HEADERS))
        log.append(records)
    return log


def live_of(log: Log) -> dict[bytes, bytes]:
    """Per key the last record of the partition with the highest (highest timestamp, partition)."""
    best: dict[bytes, tuple[int, int, bytes | None]] = {}
    for partition, records in enumerate(log):
        highest: dict[bytes, int] = {}
        for record in records:
            assert record.key is not None
            highest[record.key] = max(record.timestamp_ms, highest.get(record.key, 0))
        for key, time_ms in highest.items():
            value = next(record.value for record in reversed(records) if record.key == key)
            if key not in best or best[key][:2] < (time_ms, partition):
                best[key] = time_ms, partition, value
    return {key: value for key, (_, _, value) in best.items() if value is not None}


def opened(path: Path) -> Shard:
    configured = Settings.model_validate({"data_dir": path, "index": {"dim": DIM, "m": 4}})
    return Shard.open(configured, structlog.get_logger())


async def apply(shard: Shard, records: Sequence[Record], positions: dict[int, int]) -> int:
    batch = decode_vectors(records, dim=DIM, metric="l2", model=None)
    return (await shard.apply(batch, positions, len(records))).contested


async def replayed(log: Log, order: Sequence[int], ends: Sequence[bool], restart_at: int, path: Path) -> str:
    """The digest after records in an order of partitions, in batches that end where `ends` says so, with a
    snapshot and a restart after one of them."""
    shard = opened(path)
    positions = dict.fromkeys(range(3), 0)
    waiting: list[Record] = []
    for place, partition in enumerate(order):
        waiting.append(log[partition][positions[partition]])
        positions[partition] += 1
        if ends[place % len(ends)] or place + 1 == len(order):
            await apply(shard, waiting, dict(positions))
            waiting = []
        if place == restart_at and not waiting:
            pending = await shard.cut()
            assert pending is not None
            await shard.commit(pending)
            shard.close()
            shard = opened(path)
    assert shard.index is not None
    shard.index.check()
    digest = shard.digest
    shard.close()
    assert digest is not None
    return digest


@settings(max_examples=40, deadline=None)
@given(data=st.data(), log=logs())
def test_any_interleaving_gives_the_same_live_set(data: st.DataObject, log: Log) -> None:
    """Whatever order partitions are read in, however batches are cut, with a restart on the way: the live set
    is the one that the whole log says."""
    remaining = [partition for partition, records in enumerate(log) for _ in records]
    expected = digest({key: (vector, b"") for key, vector in live_of(log).items()})
    order = data.draw(st.permutations(remaining))
    ends = data.draw(st.lists(st.booleans(), min_size=1, max_size=5))
    restart_at = data.draw(st.integers(0, 20))
    with tempfile.TemporaryDirectory() as directory:
        assert asyncio.run(replayed(log, order, ends, restart_at, Path(directory))) == expected


def record(partition: int, offset: int, time_ms: int, value: float | None) -> Record:
    vector = None if value is None else np.full(DIM, value, "<f4").tobytes()
    return Record("t", partition, offset, time_ms, b"key", vector, HEADERS)


async def test_a_delete_is_remembered_until_all_partitions_are_read_beyond_it(tmp_path: Path) -> None:
    """An older value elsewhere does not come back while it may still come; two minutes beyond the delete, by
    the timestamps of every partition or by when the log was caught up with, nothing is remembered."""
    shard = opened(tmp_path)
    assert shard.index is not None
    deletes = shard.index._origins
    assert deletes is not None
    assert await apply(shard, [record(0, 0, HOUR_MS, None)], {0: 1, 1: 0}) == 0
    assert await apply(shard, [record(1, 0, HOUR_MS - 1, 1.0)], {0: 1, 1: 1}) == 1
    assert shard.live == 0
    late = [record(partition, 1, HOUR_MS + LATE_MS + 1, None) for partition in (0, 1)]
    others = [Record("t", r.partition, r.offset, r.timestamp_ms, b"other", r.value, HEADERS) for r in late]
    await apply(shard, others[:1], {0: 2, 1: 1})
    assert len(deletes.tombstones) == 2
    shard.caught_up_ms = HOUR_MS + LATE_MS + 1
    await apply(shard, [], {0: 2, 1: 1})
    assert [key for key, *_ in deletes.tombstones.state()] == [b"other"]
    await apply(shard, others[1:], {0: 2, 1: 2})
    await apply(shard, [record(1, 2, HOUR_MS - 1, 1.0)], {0: 2, 1: 3})
    assert shard.live == 1
    shard.close()


async def test_one_partition_remembers_no_delete(tmp_path: Path) -> None:
    """There is nobody to contest it."""
    shard = opened(tmp_path)
    await apply(shard, [record(0, 0, 5, 1.0)], {0: 1})
    await apply(shard, [record(0, 1, 3, None)], {0: 2})
    assert shard.live == 0
    assert shard.index is not None
    assert shard.index._origins is not None
    assert len(shard.index._origins.tombstones) == 0
    assert await apply(shard, [record(0, 2, 1, 2.0)], {0: 3}) == 0
    assert shard.live == 1
    shard.close()
