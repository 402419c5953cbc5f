"""Anchors: which records are kept, and by what a log that was replaced is told from the one applied."""

from itertools import pairwise
from pathlib import Path

import pytest
from driftline.errors import LogError
from driftline.snapshots.manifest import Anchor
from driftline.stream.anchors import Anchors, anchor_of, check_anchors, newest_records
from driftline.stream.log import Draft, Log, open_log

TOPIC = "t"


def test_old_ones_stay_and_new_ones_come() -> None:
    """Eight of any number, ever sparser with age: the first, the newest, and some of every age between."""
    anchors = Anchors()
    for offset in range(0, 100_000, 7):
        anchors.update(Anchor(offset, 0, b""))
    offsets = [anchor.offset for anchor in anchors.value()]
    assert len(offsets) == 8
    assert offsets == sorted(offsets)
    assert (offsets[0], offsets[-1]) == (0, 99_995)
    ages = [99_996 - offset for offset in offsets[:-1]]
    assert all(older < 30 * newer for older, newer in pairwise(ages))


async def written(log: Log, values: list[bytes]) -> None:
    await log.create_topic(TOPIC, partitions=2, compacted=True)
    for row, value in enumerate(values):
        draft = Draft(TOPIC, b"%d" % row, value, (("h", b"1"),), partition=row % 2, timestamp_ms=1000 + row)
        await log.append([draft])


async def anchors_in(log: Log) -> dict[int, list[Anchor]]:
    reader = await log.reader({(TOPIC, 0): 0, (TOPIC, 1): 0})
    anchors: dict[int, list[Anchor]] = {0: [], 1: []}
    for record in await reader.fetch():
        anchors[record.partition].append(anchor_of(record))
    return anchors


async def test_the_same_log_and_another(tmp_path: Path) -> None:
    """Every record of the log agrees; a key, a value, a time or a header that differs does not."""
    values = [b"%d" % row for row in range(6)]
    async with open_log(f"local:{tmp_path / 'one'}") as log:
        await written(log, values)
        anchors = await anchors_in(log)
        assert await check_anchors(log, TOPIC, anchors) == {0: 3, 1: 3}
        assert await check_anchors(log, TOPIC, {}) == {}
        records = await (await log.reader({(TOPIC, 0): 0, (TOPIC, 1): 0})).fetch()
        assert newest_records(records) == {partition: held[-1] for partition, held in anchors.items()}
    async with open_log(f"local:{tmp_path / 'two'}") as log:
        await written(log, [*values[:4], b"other", values[5]])
        with pytest.raises(LogError, match="partition 0 of t holds another record at offset 2") as refused:
            await check_anchors(log, TOPIC, anchors)
        assert "empty data directory" in str(refused.value)
        assert await check_anchors(log, TOPIC, {1: anchors[1]}) == {1: 3}


async def test_what_is_gone_proves_nothing(tmp_path: Path) -> None:
    """Records that compaction removed, and offsets beyond the end, are counted as not found."""
    async with open_log(f"local:{tmp_path / 'log'}") as log:
        await written(log, [b"a", b"b"])
        anchors = await anchors_in(log)
        await log.append([Draft(TOPIC, b"0", b"newer", partition=0)])
        await log.compact(TOPIC)  # pyright: ignore
        anchors[1].append(Anchor(99, 0, b""))
        assert await check_anchors(log, TOPIC, anchors) == {0: 0, 1: 1}
