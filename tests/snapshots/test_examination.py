"""The child that looks through a directory first: what kills it is told, and costs nothing else."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from driftline.errors import SnapshotError, SnapshotsUnusable
from driftline.index.cut import Chunk, Cut
from driftline.snapshots import examination
from driftline.snapshots.chunks import PIECE_BYTES
from driftline.snapshots.environment import Environment
from driftline.snapshots.examination import examine_directory
from driftline.snapshots.store import SnapshotStore


def commit(store: SnapshotStore, version: int, data: bytes) -> int:
    return store.commit(Cut({"a": Chunk(version, data)}, b"state", frozenset(), 1), {}).id


@pytest.fixture
def cut_off(tmp_path: Path) -> tuple[Path, int, int]:
    """A file that ends within the newest snapshot's chunk, whose first page still says that all is there."""
    noise = random.Random(1).randbytes(PIECE_BYTES)
    with SnapshotStore.open(tmp_path, dim=8, metric="l2", keep=2) as store:
        for version in range(4):  # leaves free pages for the tree, so that the chunk is the end of the file
            older = commit(store, version, b"small")
        newer = commit(store, 9, noise)
    data = tmp_path / "snapshots" / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[: content.index(noise[-100:]) - (1 << 19)])
    return tmp_path, older, newer


def test_a_child_that_dies_is_told_of(cut_off: tuple[Path, int, int]) -> None:
    """SIGBUS in the child: the snapshot that it read is named, the next one is looked at, and is whole."""
    path, older, newer = cut_off
    found = examine_directory(path, alone=True)
    assert found == {newer: ("reading it ended the process that tried (SIGBUS)",), older: ()}
    with SnapshotStore.open(path, dim=8, metric="l2", keep=2) as store:
        newest = store.newest()
        assert newest is not None
        assert newest.info.id == older
        assert "SIGBUS" in newest.skipped[0]


def test_looking_beside_a_writer_survives_too(cut_off: tuple[Path, int, int]) -> None:
    """Where pages cannot be walked since somebody may write, the child dies in the parent's stead."""
    path, older, newer = cut_off
    with SnapshotStore.inspect(path) as store:
        assert [info.id for info in store.list()] == [older, newer]
        assert "SIGBUS" in store.verify(newer)[0]
        assert store.verify(older) == ()
        assert store.verify(99) == ("there is no snapshot 99",)


def test_damaged_pages_are_unusable_whoever_looks(tmp_path: Path) -> None:
    """A root page of zeros: explained to who opens and to who looks."""
    with SnapshotStore.open(tmp_path, dim=8, metric="l2") as store:
        commit(store, 1, b"small")
    data = tmp_path / "snapshots" / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[: 2 * 4096] + bytes(len(content) - 2 * 4096))
    for look in (
        lambda: SnapshotStore.open(tmp_path, dim=8, metric="l2"),
        lambda: SnapshotStore.inspect(tmp_path),
    ):
        with pytest.raises(SnapshotsUnusable, match="built anew from the log"):
            look()


def test_a_child_that_takes_too_long_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hardly answers: refused, so that nothing is set aside."""
    with SnapshotStore.open(tmp_path, dim=8, metric="l2") as store:
        commit(store, 1, b"small")
    monkeypatch.setattr(examination, "LEAST_S", 0.0)
    monkeypatch.setattr(examination, "BYTES_PER_S", 1e12)
    with pytest.raises(SnapshotError, match="could not be looked through in 0 s") as raised:
        examine_directory(tmp_path, alone=True)
    assert not isinstance(raised.value, SnapshotsUnusable)


def test_the_child_starts_light() -> None:
    """It loads neither numpy nor the core: they would take longer than the rest of its start."""
    code = "import driftline.snapshots.examination, sys\nfor name in sys.modules: print(name)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(said.stdout.split())
    assert "driftline.snapshots.snapshot" in loaded
    assert not loaded & {"numpy", "driftline.native", "asyncio"}


def test_a_directory_that_holds_nothing_yet(tmp_path: Path) -> None:
    """As a process leaves it that is killed while it makes its databases: nothing to look through."""
    Environment(tmp_path / "snapshots", [], error=SnapshotError).close()
    assert examine_directory(tmp_path, alone=True) == {}
    with pytest.raises(SnapshotError, match="no snapshot yet"):
        SnapshotStore.inspect(tmp_path)
    with SnapshotStore.open(tmp_path, dim=8, metric="l2") as store:
        assert store.newest() is None
        assert store.verify(1) == ("there is no snapshot 1",)
