"""Raw vectors on disk: ids, addresses, restarts, retention, damage, and a disk that is full."""

import ctypes
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from driftline.errors import CorruptIndex, InvalidInput, SnapshotError
from driftline.index.raw import RawVectors
from driftline.snapshots import segment_files
from driftline.snapshots.segment_files import damaged_block, segment_problem
from driftline.snapshots.segments import FileRawVectors
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"
DEADLINE_S = 20.0


def vectors(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


@pytest.fixture
def full_disk() -> Iterator[int]:
    """Files of this process cannot grow beyond so many bytes."""
    limit = 1 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@settings(max_examples=30, deadline=None)
@given(
    dim=st.integers(1, 70),
    segment_rows=st.integers(1, 40),
    batches=st.lists(st.integers(0, 50), max_size=6),
    seed=st.integers(0, 1000),
)
def test_rows_read_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, dim: int, segment_rows: int, batches: list[int], seed: int
) -> None:
    """What was appended in batches over segment borders comes back by id, shuffled and repeated."""
    raw: RawVectors = FileRawVectors(tmp_path_factory.mktemp("raw"), dim, {}, segment_rows=segment_rows)
    stored = [vectors(count, dim, seed + place) for place, count in enumerate(batches)]
    ids = [raw.append(batch) for batch in stored]
    if sum(batches):
        all_rows, all_ids = np.concatenate(stored), np.concatenate(ids)
        assert len(np.unique(all_ids)) == len(all_ids)
        picked = np.random.default_rng(seed).integers(0, len(all_ids), 2 * len(all_ids))
        np.testing.assert_array_equal(raw.read(all_ids[picked]), all_rows[picked])
        np.testing.assert_array_equal(np.concatenate(raw.views(all_ids[picked])), all_rows[picked])
        assert len(raw.views(all_ids)) == -(-len(all_ids) // segment_rows)
    raw.close()


def test_addresses_stay_and_hold_the_rows(tmp_path: Path) -> None:
    """segments() gives page-aligned addresses where row r lies at 4 * dim * r, unmoved by later segments."""
    raw = FileRawVectors(tmp_path, 24, {}, segment_rows=10)
    first = vectors(10, 24)
    raw.append(first)
    address, room = raw.segments()[0]
    raw.append(vectors(25, 24))
    assert raw.segments()[0] == (address, room) == (address, 10)
    assert address % 4096 == 0
    in_memory = np.ctypeslib.as_array((ctypes.c_float * 240).from_address(address)).reshape(10, 24)
    np.testing.assert_array_equal(in_memory, first)
    assert list(raw.segments()) == [0, 1, 2, 3]
    raw.close()


def test_a_segment_is_small_on_disk_until_it_is_written(tmp_path: Path) -> None:
    """A default segment is at most 64 MiB long and takes only the disk that its rows need."""
    raw = FileRawVectors(tmp_path, 384, {})
    raw.append(vectors(10, 384))
    raw.sync()
    size = (tmp_path / "0.f32").stat()
    assert 63 << 20 < size.st_size <= 64 << 20
    assert size.st_blocks * 512 < 1 << 20
    raw.close()


def test_a_restart_goes_on_behind_what_is_named(tmp_path: Path) -> None:
    """Appends continue in the same file behind the named rows; rows after them are free, unnamed files go."""
    raw = FileRawVectors(tmp_path, 8, {}, segment_rows=10)
    ids = raw.append(vectors(14, 8))
    named = raw.high_water()
    assert named == {0: 10, 1: 4}
    raw.append(vectors(20, 8, seed=1))
    raw.close()
    for restart in range(3):
        raw = FileRawVectors(tmp_path, 8, named, segment_rows=10)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0.f32", "1.f32"]
        np.testing.assert_array_equal(raw.read(ids), vectors(14, 8))
        new = raw.append(vectors(1, 8, seed=restart))
        assert new.tolist() == [1 << 32 | 4 + restart]
        named = raw.high_water()
        raw.close()
    raw = FileRawVectors(tmp_path, 8, {0: 10}, segment_rows=10)
    assert raw.append(vectors(1, 8)).tolist() == [2 << 32], "not the id of a segment that was there"
    raw.close()


def test_forget_keeps_what_is_live_held_or_open(tmp_path: Path) -> None:
    """Files go only when nothing needs them; a segment that is gone can neither be held nor read."""
    raw = FileRawVectors(tmp_path, 4, {}, segment_rows=2)
    ids = raw.append(vectors(9, 4))
    views = raw.views(ids)
    raw.hold(frozenset({0, 1}))
    raw.hold_only(frozenset({1}))
    assert raw.forget(frozenset({2})) == {0, 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.f32", "2.f32", "4.f32"]
    assert sorted(raw.segments()) == [1, 2, 4]
    np.testing.assert_array_equal(raw.read(ids[2:6]), vectors(9, 4)[2:6])
    with pytest.raises(SnapshotError, match="segment 0 is gone"):
        raw.hold(frozenset({0, 1}))
    with pytest.raises(CorruptIndex, match="segment 0"):
        raw.read(ids[:1])
    raw.sync()
    raw.close()
    np.testing.assert_array_equal(np.concatenate(views), vectors(9, 4))
    assert not any(view.flags.writeable for view in views)


def test_what_append_and_read_refuse(tmp_path: Path) -> None:
    """Another dimension is refused, and so is the id of a row that was not written yet."""
    raw = FileRawVectors(tmp_path, 4, {})
    with pytest.raises(InvalidInput, match=r"\(2, 5\)"):
        raw.append(vectors(2, 5))
    raw.append(vectors(3, 4))
    with pytest.raises(CorruptIndex, match="no row 3 in segment 0"):
        raw.read(np.array([1, 3], np.uint64))
    assert raw.append(vectors(0, 4)).shape == raw.read(np.empty(0, np.uint64))[:, 0].shape == (0,)
    raw.close()


def test_readers_and_syncs_beside_the_writer(tmp_path: Path) -> None:
    """While one thread appends over segment borders, others read complete rows and sync; nothing is torn."""
    raw = FileRawVectors(tmp_path, 16, {}, segment_rows=64)
    done = threading.Event()
    published: list[NDArray[np.uint64]] = []
    failures: list[BaseException] = []

    def watched(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                while not done.is_set():
                    work()
            except BaseException as failure:
                failures.append(failure)

        return threading.Thread(target=run)

    def read() -> None:
        for ids in published[-20:]:
            rows = raw.read(ids)
            assert (rows == rows[:, :1]).all()
            assert (rows[:, 0] == ids.astype(np.float32)).all()

    threads = [watched(read), watched(read), watched(raw.sync), watched(raw.high_water)]
    for thread in threads:
        thread.start()
    expected = 0
    try:
        for _ in range(200):
            ids = raw.append(np.zeros((16, 16), np.float32) + row_values(expected, 16))
            assert int(ids[0]) == (expected // 64) << 32 | expected % 64
            published.append(ids)
            expected += 16
    finally:
        done.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not failures
    assert sum(raw.high_water().values()) == expected
    raw.close()


def row_values(first: int, count: int) -> NDArray[np.float32]:
    numbers = np.arange(first, first + count)
    return ((numbers // 64) << 32 | numbers % 64).astype(np.float32)[:, None]


def test_the_header_is_the_documented_one(tmp_path: Path) -> None:
    """A segment file equals the golden one byte for byte, and the golden one is read."""
    raw = FileRawVectors(tmp_path, 3, {}, segment_rows=2)
    hashes = np.arange(100, 108, dtype=np.uint32).reshape(2, 4)
    ids = raw.append(np.arange(6, dtype=np.float32).reshape(2, 3), hashes)
    np.testing.assert_array_equal(raw.hashes(ids[::-1]), hashes[::-1])
    raw.close()
    assert (tmp_path / "0.f32").read_bytes() == (GOLDEN / "segment.f32").read_bytes()
    (tmp_path / "0.f32").write_bytes((GOLDEN / "segment.f32").read_bytes())
    assert segment_problem(tmp_path, 0, 3, 2) is None


DAMAGES: list[tuple[Callable[[bytes], bytes], str, int | None]] = [
    (lambda whole: whole[:-1], "too short for its 2 rows of 3 float32", 1),
    (lambda whole: whole[:8192], "too short for its 2 rows of 3 float32", 0),
    (lambda whole: whole[:8191], "too short for its 2 rows of 3 float32", None),
    (lambda whole: whole[:100], "too short", None),
    (lambda whole: b"", "too short", None),
    (lambda whole: b"X" + whole[1:], "header is damaged", None),
    (lambda whole: whole[:13] + b"\1" + whole[14:], "header is damaged", None),
]


@pytest.mark.parametrize(("damage", "reason", "left"), DAMAGES)
def test_a_damaged_file_is_named_and_left_alone(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str, left: int | None
) -> None:
    """Truncation and a flipped header byte are found; only rows that are left can be read: never a SIGBUS."""
    whole = (GOLDEN / "segment.f32").read_bytes()
    (tmp_path / "0.f32").write_bytes(damage(whole))
    assert reason in str(segment_problem(tmp_path, 0, 3, 2))
    raw = FileRawVectors(tmp_path, 3, {0: 2})
    assert {segment: room for segment, (_, room) in raw.segments().items()} == (
        {} if left is None else {0: left}
    )
    with pytest.raises(CorruptIndex, match="no row 1 in segment 0"):
        raw.read(np.array([1], np.uint64))
    assert raw.append(vectors(1, 3)).tolist() == [1 << 32]
    assert (tmp_path / "0.f32").read_bytes() == damage(whole)
    raw.close()


def test_a_file_that_is_another_is_refused(tmp_path: Path) -> None:
    """A missing file, another segment's file, another dimension, and more rows than it can hold."""
    assert "No such file" in str(segment_problem(tmp_path, 0, 3, 2))
    (tmp_path / "1.f32").write_bytes((GOLDEN / "segment.f32").read_bytes())
    assert "says segment 0" in str(segment_problem(tmp_path, 1, 3, 2))
    (tmp_path / "0.f32").write_bytes((GOLDEN / "segment.f32").read_bytes())
    assert "dim 3" in str(segment_problem(tmp_path, 0, 2, 2))
    assert "2 rows" in str(segment_problem(tmp_path, 0, 3, 3))


def test_a_cut_behind_the_named_rows_costs_nothing(tmp_path: Path) -> None:
    """A file truncated behind what is meant is in order, and read; appends go to the next one."""
    raw = FileRawVectors(tmp_path, 4, {}, segment_rows=5000)
    ids = raw.append(vectors(100, 4))
    raw.close()
    with (tmp_path / "0.f32").open("r+b") as file:
        file.truncate(4096 + 5000 * 16 + 1920 + 100 * 16)  # header, hashes up to a page, rows
    raw = FileRawVectors(tmp_path, 4, {0: 100})
    more = raw.append(vectors(4900, 4, seed=1))
    np.testing.assert_array_equal(raw.read(ids), vectors(100, 4))
    np.testing.assert_array_equal(raw.read(more), vectors(4900, 4, seed=1))
    assert list(raw.segments()) == [0, 1]
    raw.close()


def test_a_flipped_bit_in_any_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows and of their hashes, in whole blocks and the last one; what lies behind the rows that are meant
    is free. Checksums taken at once are those taken as rows came, and those that a restart was told."""
    monkeypatch.setattr(segment_files, "BLOCK_BYTES", 64)  # four rows
    raw = FileRawVectors(tmp_path, 4, {}, segment_rows=15)
    steps: list[dict[int, bytes]] = []
    for start in range(0, 20, 3):
        raw.append(vectors(3, 4, start), np.full((3, 4), 1 + start, np.uint32))
        steps.append(raw.checksums(raw.high_water()))
    named = raw.high_water()
    raw.close()
    assert named == {0: 15, 1: 6}
    assert {segment: len(sums) for segment, sums in steps[-1].items()} == {0: 64, 1: 32}
    for told in ({}, steps[-1]):
        raw = FileRawVectors(tmp_path, 4, named, told, segment_rows=15)
        assert raw.checksums(named) == steps[-1]
        raw.close()

    def problems() -> list[str]:
        found = [
            damaged_block(tmp_path, segment, 4, named[segment], sums) for segment, sums in steps[-1].items()
        ]
        return [problem for problem in found if problem is not None]

    assert problems() == []
    for offset, damaged in (
        (8192, 0),
        (8192 + 5 * 16, 0),
        (4096 + 5 * 16, 0),
        (8192 + 14 * 16, 0),
        (8192 + 5 * 16, 1),
    ):
        path = tmp_path / f"{damaged}.f32"
        whole = path.read_bytes()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        row = (offset - 8192) // 16 if offset >= 8192 else 5
        (problem,) = problems()
        assert f"segment {damaged}.f32: rows {row // 4 * 4} to " in problem
        path.write_bytes(whole)
    path.write_bytes(whole[: 8192 + 6 * 16] + b"\1" + whole[8192 + 6 * 16 + 1 :])
    assert problems() == []
    assert "No such file" in str(damaged_block(tmp_path, 2, 4, 1, bytes(16)))


def test_a_full_disk_is_said_and_survived(tmp_path: Path, full_disk: int) -> None:
    """Where the file system refuses, append raises, earlier rows stay, and later appends go on."""
    raw = FileRawVectors(tmp_path, 64, {}, segment_rows=full_disk // 256)
    with pytest.raises(SnapshotError, match="cannot store vectors"):
        raw.append(vectors(10, 64))
    assert raw.segments() == {}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * full_disk, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    ids = raw.append(vectors(10, 64))
    np.testing.assert_array_equal(raw.read(ids), vectors(10, 64))
    raw.close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way of the directory is a SnapshotError."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SnapshotError, match="file"):
        FileRawVectors(tmp_path / "file", 4, {})
