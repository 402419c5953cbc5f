"""Snapshots of an index that changes a little between them: what is written, and what comes back."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from driftline.index.online import OnlineIndex
from driftline.snapshots.store import SnapshotStore

DIM = 24
KEYS = 5000
TURNS = 14


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def opened(path: Path) -> SnapshotStore:
    return SnapshotStore.open(path, dim=DIM, metric="l2", keep=3)


def settle(index: OnlineIndex) -> None:
    while index.maintain(0.1):
        pass


def restored(store: SnapshotStore, snapshot: int | None = None) -> OnlineIndex:
    held = store.newest() if snapshot is None else store.get(snapshot)
    assert held is not None
    index = OnlineIndex.restore(held.cut, store.open_raw())
    assert index.digest == held.info.digest
    assert len(index) == held.info.live
    return index


def test_a_hundredth_at_random_is_a_small_snapshot(tmp_path: Path) -> None:
    """Updates of 1 % touch every slab; what is written is a small part of the whole, and all of it comes
    back."""
    with opened(tmp_path) as store:
        index = OnlineIndex(DIM, m=8, ef_construction=40, raw=store.open_raw(), compress_after=1000)
        index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
        settle(index)
        whole = store.commit(index.cut(), {})
        keys = np.random.default_rng(1).choice(KEYS, KEYS // 100, replace=False)
        index.upsert(keys, rows_of(len(keys), 2))
        settle(index)
        info = store.commit(index.cut(store.known()), {})
        assert info.chunks_shared == info.chunks_written == whole.chunks_written
        state = index.cut(store.known()).state
        assert info.bytes_written - len(state) < (whole.bytes_written - len(state)) / 5
        restored(store).check()


def test_snapshots_come_back_over_restarts(tmp_path: Path) -> None:
    """Turn after turn some rows change, a snapshot is taken, and now and then all is opened anew: every one
    that is kept restores to the digest of its time, and verifies; deltas grow and begin anew."""
    rng = np.random.default_rng(3)
    store = opened(tmp_path)
    index = OnlineIndex(DIM, m=8, ef_construction=40, raw=store.open_raw(), compress_after=1000)
    index.upsert(np.arange(KEYS), rows_of(KEYS, 0))
    digests: dict[int, int | None] = {}
    chains: list[int] = []
    for turn in range(TURNS):
        if turn % 4 == 3:
            store.close()
            store = opened(tmp_path)
            index = restored(store)
        keys = rng.choice(KEYS, 60, replace=False)
        index.upsert(keys[:50], rows_of(50, turn + 10))
        index.delete(keys[50:])
        if turn % 2:
            settle(index)
        info = store.commit(index.cut(store.known()), {})
        digests[info.id] = index.digest
        chains.append(len(store.known()))
    slabs = index._core.slabs
    assert max(chains) > 2 * slabs
    assert any(after < before for before, after in pairwise(chains))
    assert len(store.list()) == 3
    for info in store.list():
        assert store.verify(info.id) == ()
        older = restored(store, info.id)
        assert older.digest == digests[info.id]
        older.check()
    store.close()
