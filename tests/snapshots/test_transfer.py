"""Exported snapshots: the same on another machine, or nothing. And snapshots restored, pruned, looked at."""

import os
import random
import resource
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from driftline.errors import SnapshotError
from driftline.index.cut import Cut
from driftline.index.online import OnlineIndex
from driftline.snapshots.manifest import SnapshotInfo
from driftline.snapshots.store import SnapshotStore
from driftline.snapshots.transfer import import_snapshot
from numpy.typing import NDArray

DIM = 8
OFFSETS = {"t": {0: 10}}


def vectors(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((300, DIM), dtype=np.float32)


KEYS = [f"key {number}" for number in range(300)]


def accept(info: SnapshotInfo) -> None:
    """Whatever it is."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three snapshots of 300 rows; each has another vector for every key."""
    path = tmp_path / "data"
    with SnapshotStore.open(path, dim=DIM, metric="l2", keep=5) as store:
        index = OnlineIndex(DIM, raw=store.open_raw(DIM))
        for seed in range(3):
            index.upsert(KEYS, vectors(seed))
            store.commit(index.cut(store.known()), OFFSETS, {"seed": seed})
    return path


@contextmanager
def loaded(path: Path) -> Generator[OnlineIndex]:
    """The newest snapshot of a directory, checked."""
    with SnapshotStore.open(path, dim=DIM, metric="l2", keep=5) as store:
        snapshot = store.newest()
        assert snapshot is not None
        assert snapshot.skipped == ()
        index = OnlineIndex.restore(snapshot.cut, store.open_raw())
        index.check()
        yield index


def holds(index: OnlineIndex, seed: int) -> bool:
    rows = index.get(KEYS)
    return all(
        row is not None and (row.vector == v).all() for row, v in zip(rows, vectors(seed), strict=True)
    )


def export(directory: Path, file: Path, snapshot: int) -> SnapshotInfo:
    with SnapshotStore.inspect(directory) as store:
        return store.export(snapshot, file)[0]


@pytest.mark.parametrize("seed", [0, 2])
def test_a_snapshot_goes_to_another_directory(directory: Path, tmp_path: Path, seed: int) -> None:
    """With its offsets and raw vectors; what imports it goes on writing, and snapshots of its own follow."""
    file, other = tmp_path / "file", tmp_path / "other"
    info = export(directory, file, 1 + seed)
    assert import_snapshot(other, file, accept) == info
    assert sorted(os.listdir(other)) == ["lock", "segments", "snapshots"]
    with SnapshotStore.open(other, dim=DIM, metric="l2") as store:
        snapshot = store.newest()
        assert snapshot is not None
        assert snapshot.info == info
        index = OnlineIndex.restore(snapshot.cut, store.open_raw())
        index.check()
        assert holds(index, seed)
        index.upsert(KEYS, vectors(9))
        store.commit(index.cut(store.known()), OFFSETS)
    with loaded(other) as index:
        assert holds(index, 9)
    with pytest.raises(SnapshotError, match="holds snapshots already"):
        import_snapshot(other, file, accept)


def test_a_damaged_export_imports_nothing(directory: Path, tmp_path: Path) -> None:
    """Flipped anywhere, cut off anywhere, or with more behind it: refused, and the directory stays new."""
    file, other = tmp_path / "file", tmp_path / "other"
    export(directory, file, 3)
    whole, draw = file.read_bytes(), random.Random(4)
    for number in range(15):
        at = draw.randrange(len(whole)) if number > 3 else number * 7
        damaged = whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
        file.write_bytes((damaged, whole[:at], whole + b"x")[number % 3])
        with pytest.raises(SnapshotError, match=r"damaged, or cut off|not a snapshot|format version"):
            import_snapshot(other, file, accept)
        assert os.listdir(other) == ["lock"]
    file.write_bytes(whole)
    import_snapshot(other, file, accept)
    with loaded(other) as index:
        assert holds(index, 2)


def test_a_refusal_writes_nothing(directory: Path, tmp_path: Path) -> None:
    """Who says that this is another topic's snapshot is asked first."""

    def refuse(info: SnapshotInfo) -> None:
        raise SnapshotError(f"another topic than {sorted(info.offsets)}")

    export(directory, tmp_path / "file", 1)
    with pytest.raises(SnapshotError, match=r"another topic than \['t'\]"):
        import_snapshot(tmp_path / "other", tmp_path / "file", refuse)
    assert os.listdir(tmp_path / "other") == ["lock"]


def test_a_full_disk_leaves_no_part_of_a_file(directory: Path, tmp_path: Path) -> None:
    """What was there under the name stays, and an import that met it can be done again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"older")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(SnapshotError, match="File too large"):
            export(directory, file, 1)
        assert file.read_bytes() == b"older"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        export(directory, file, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        with pytest.raises(SnapshotError):
            import_snapshot(other, file, accept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path)) == ["data", "file", "other"]
    assert os.listdir(other) == ["lock"]
    import_snapshot(other, file, accept)
    with loaded(other) as index:
        assert holds(index, 0)


def test_an_older_snapshot_is_restored(directory: Path) -> None:
    """It is the newest then, under a new id; one that is not there, or not whole, is refused."""
    with SnapshotStore.open(directory, dim=DIM, metric="l2", keep=5) as store:
        again = store.restore(1)
        assert (again.id, again.extra) == (4, {"seed": 0})
        assert [info.id for info in store.list()] == [1, 2, 3, 4]
        with pytest.raises(SnapshotError, match="there is no snapshot 7"):
            store.restore(7)
    with loaded(directory) as index:
        assert holds(index, 0)


def test_prune_keeps_the_newest_that_is_whole(directory: Path) -> None:
    """Older ones go with their segments; a damaged newest one does not count, and goes too."""
    with SnapshotStore.open(directory, dim=DIM, metric="l2", keep=5) as store:
        raw = store.open_raw()
        start = raw.segments()[0][1]
    assert start
    with SnapshotStore.open(directory, dim=DIM, metric="l2", keep=5) as store:
        store.reject(3, "as if it were damaged")
        assert store.prune(1) == (1, 3)
        assert [info.id for info in store.list()] == [2]
    with loaded(directory) as index:
        assert holds(index, 1)


def test_a_view_stays_what_it_is(directory: Path) -> None:
    """While it is looked at, it is dropped with a commit and its segments are removed: all is there still."""
    with SnapshotStore.open(directory, dim=DIM, metric="l2", keep=1) as store:
        newest = store.newest()
        assert newest is not None
        with store.view(1) as (snapshot, raw):
            store.commit(Cut({}, b"state", frozenset(), 0), OFFSETS)
            assert [info.id for info in store.list()] == [4]
            for file in (directory / "segments").iterdir():
                file.unlink()
            index = OnlineIndex.restore(snapshot.cut, raw)
        index.check()
        assert holds(index, 0)
        with pytest.raises(SnapshotError, match="there is no snapshot 1"), store.view(1):
            pass
        raw.close()
