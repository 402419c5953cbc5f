"""Sparse raw segments are rewritten: files stay in proportion, and nothing else changes."""

from pathlib import Path

import numpy as np
import pytest
from driftline.errors import SnapshotError
from driftline.index.online import OnlineIndex
from driftline.index.raw import MemoryRawVectors, RawVectors
from driftline.index.rewriting import SPARE
from driftline.snapshots.segments import FileRawVectors

DIM = 6
KEYS = 2000
SEGMENT = 250


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def raw_of(kind: str, path: Path) -> RawVectors:
    if kind == "file":
        return FileRawVectors(path, DIM, {}, segment_rows=SEGMENT)
    raw = MemoryRawVectors(DIM)
    raw._capacity = raw._used = SEGMENT
    return raw


def settle(index: OnlineIndex) -> None:
    while index.maintain(0.1):
        pass


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_is_kept_stays_in_proportion(tmp_path: Path, kind: str):
    """Rows replaced at random, ten times over: without rewriting nearly every segment would keep a row.
    Answers are those of an index that only ever had the rows that are left."""
    raw = raw_of(kind, tmp_path)
    index = OnlineIndex(DIM, m=4, ef_construction=20, raw=raw, compress_after=500)
    rows = rows_of(KEYS, 0)
    index.upsert(np.arange(KEYS), rows)
    rng = np.random.default_rng(1)
    for turn in range(40):
        keys = rng.choice(KEYS, KEYS // 4, replace=False)
        rows[keys] = rows_of(len(keys), turn + 2)
        index.upsert(keys, rows[keys])
        settle(index)
        kept = sum(raw.high_water().values())
        waiting = index.stats().dead  # their rows go when they are unlinked
        assert kept <= SPARE * (KEYS + waiting) + 2 * SEGMENT
    index.check()
    fresh = OnlineIndex(DIM)
    fresh.upsert(np.arange(KEYS), rows)
    assert index.digest == fresh.digest
    assert index.exact(rows[:20], 5).keys == fresh.exact(rows[:20], 5).keys


def test_a_segment_that_only_the_dead_refer_to_is_left_to_them(tmp_path: Path):
    """Fewer than a round takes are dead: upkeep ends all the same, and their rows stay readable."""
    index = OnlineIndex(DIM, m=4, ef_construction=20, raw=raw_of("file", tmp_path), compress_after=500)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    settle(index)
    index.delete(np.arange(KEYS - 100))
    settle(index)
    index.delete(np.arange(KEYS - 100, KEYS - 90))
    settle(index)
    index.check()
    assert len(index) == 90


def test_a_full_disk_is_no_error_of_upkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rows stay where they are, and are rewritten once there is room."""
    raw = raw_of("file", tmp_path)
    index = OnlineIndex(DIM, m=4, ef_construction=20, raw=raw, compress_after=500)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    settle(index)

    def full(*_: object) -> None:
        raise SnapshotError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(raw, "append", full)
        index.delete(np.arange(0, KEYS, 2))
        settle(index)
        segments = raw.segments()
    index.check()
    index.delete(np.arange(1, KEYS, 4))
    settle(index)
    index.check()
    assert len(raw.segments()) < len(segments)
    assert sum(raw.high_water().values()) <= SPARE * KEYS / 4 + 2 * SEGMENT + 200


def test_a_restored_index_rewrites_what_it_was_restored_with(tmp_path: Path):
    """Upkeep looks at once, not only after deletes of its own."""
    raw = raw_of("file", tmp_path)
    index = OnlineIndex(DIM, m=4, ef_construction=20, raw=raw, compress_after=500)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    index.delete(np.flatnonzero(np.arange(KEYS) % 5))
    while index._core.upkeep(eager=True):  # no look at the segments yet
        pass
    other = OnlineIndex.restore(index.cut(), raw)
    settle(other)
    other.check()
    assert sum(raw.high_water().values()) <= SPARE * KEYS / 5 + 2 * SEGMENT
