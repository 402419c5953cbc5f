"""Cuts of an index that goes on: read later, they are of the moment when they were taken."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from driftline.errors import InvalidInput, SnapshotError
from driftline.index.cut import Chunk, Cut
from driftline.index.online import OnlineIndex
from driftline.native._core import lib
from driftline.snapshots.segments import FileRawVectors

DIM = 8
KEYS = 3000
CUTS = 6


def opened(path: Path) -> OnlineIndex:
    raw = FileRawVectors(path, DIM, {}, segment_rows=1000)
    return OnlineIndex(DIM, m=4, ef_construction=20, raw=raw, compress_after=1000)


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def whole(cut: Cut, before: dict[str, Chunk]) -> Cut:
    """With the bytes that `before` holds where the cut says that they are unchanged."""
    chunks = {name: chunk if chunk.data is not None else before[name] for name, chunk in cut.chunks.items()}
    return replace(cut, chunks=chunks)


def write_on(index: OnlineIndex, seed: int, stop: threading.Event, failures: list[BaseException]) -> None:
    rng = np.random.default_rng(seed)
    try:
        while not stop.is_set():
            keys = rng.choice(KEYS, 40, replace=False)
            index.upsert(keys, rows_of(40, int(rng.integers(1 << 30))))
            index.delete(rng.choice(KEYS, 10, replace=False))
            index.search(rows_of(3, seed))
            index.maintain(0.0)
    except BaseException as failure:
        failures.append(failure)


def test_cuts_beside_two_writers(tmp_path: Path):
    """Two threads write, delete, search and keep up while cuts are read, each with what the one before has;
    every one restores to rows of the digest that the index had when it was taken, and the oracle holds."""
    index = opened(tmp_path)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    stop, failures = threading.Event(), list[BaseException]()
    threads = [threading.Thread(target=write_on, args=(index, seed, stop, failures)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    raw = index._raw
    assert isinstance(raw, FileRawVectors)
    chunks: dict[str, Chunk] = {}
    digests: list[int | None] = []
    try:
        for _ in range(CUTS):
            cut = index.cut({name: chunk.version for name, chunk in chunks.items()})
            raw.hold(cut.segments)
            cut = whole(cut, chunks)
            chunks = dict(cut.chunks)
            digests.append(cut.digest)
            other = OnlineIndex.restore(cut, raw)
            other.check()
            assert other.digest == cut.digest
            assert len(other) == cut.live
            del other
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(set(digests)) == CUTS
    assert any("." in name for name in chunks)
    index.check()


def test_a_cut_may_be_read_after_the_next_was_taken(tmp_path: Path):
    """What was not read of it is taken into memory; a chunk is read once."""
    index = opened(tmp_path)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    first = index.cut()
    name = next(iter(first.chunks))
    taken = first.chunks[name]
    with pytest.raises(InvalidInput, match="twice"):
        first.chunks[name]
    index.upsert(np.arange(500), rows_of(500, 1))
    second = index.cut()
    index.delete(np.arange(700))
    chunks = {other: first.chunks[other] for other in first.chunks if other != name} | {name: taken}
    assert index._raw is not None
    restored = OnlineIndex.restore(replace(first, chunks=chunks), index._raw)
    assert restored.digest == first.digest != second.digest
    restored = OnlineIndex.restore(second, index._raw)
    assert restored.digest == second.digest
    restored.check()


def test_a_cut_for_which_memory_was_short_says_so(tmp_path: Path):
    """Writing goes on, the cut is refused, and the next one is whole."""
    index = opened(tmp_path)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    cut = index.cut()
    lib.dl_fail_after(0)
    try:
        index._core.delete([(7).to_bytes(8)])  # puts the slot aside
    except MemoryError:
        pytest.fail("deleting allocated before it put the slot aside")
    finally:
        lib.dl_fail_after(-1)
    with pytest.raises(SnapshotError, match="no memory"):
        dict(cut.chunks)
    del cut
    assert index._raw is not None
    assert len(OnlineIndex.restore(replace(index.cut(), digest=None), index._raw)) == KEYS - 1
