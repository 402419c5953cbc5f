"""Snapshots: what was committed comes back whole or not at all, through kills, damage and full disks."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from driftline.errors import InvalidInput, SnapshotError
from driftline.index.cut import Chunk, Cut
from driftline.snapshots import chunks, manifest
from driftline.snapshots.environment import Environment
from driftline.snapshots.segment_files import rows_at
from driftline.snapshots.store import Snapshot, SnapshotInfo, SnapshotStore
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
DEADLINE_S = 30.0
DIM = 8
OFFSETS = {"driftline.vectors": {0: 10, 1: 20}}
PIECE = chunks.PIECE_BYTES


def open_store(path: Path, *, keep: int = 2) -> SnapshotStore:
    return SnapshotStore.open(path, dim=DIM, metric="l2", keep=keep)


def cut_of(versions: Mapping[str, tuple[int, bytes | None]], segments: frozenset[int] = frozenset()) -> Cut:
    return Cut({name: Chunk(*chunk) for name, chunk in versions.items()}, b"state", segments, live=7)


def contents(snapshot: Snapshot | None) -> dict[str, bytes]:
    assert snapshot is not None
    return {name: bytes(chunk.data or b"") for name, chunk in snapshot.cut.chunks.items()}


def stored_pieces(path: Path) -> int:
    with (
        Environment(path / "snapshots", ["chunks"], error=SnapshotError, readonly=True) as environment,
        environment.read() as txn,
    ):
        return txn.count("chunks")


def flip(path: Path, database: str, choose: Callable[[list[bytes]], bytes], at: int = 0) -> None:
    """Flip a bit of a stored value."""
    with (
        Environment(path / "snapshots", ["about", "chunks", "manifests"], error=SnapshotError) as environment,
        environment.write() as txn,
    ):
        key = choose(list(txn.keys(database)))
        value = bytearray(txn.get(database, key) or b"")
        value[at] ^= 1
        txn.put(database, key, value)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_cut_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random cuts of changed, unchanged and removed chunks, reopened at random: newest is the last commit."""
    path = tmp_path_factory.mktemp("store") / "data"
    store = open_store(path, keep=data.draw(st.integers(1, 3)))
    live: dict[str, bytes] = {}
    for version in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            store.close()
            store = open_store(path)
            assert contents(store.newest()) == live if live or version else store.newest() is None
        changed = data.draw(st.dictionaries(st.text(max_size=4), st.binary(max_size=40), max_size=5))
        gone = data.draw(st.sets(st.sampled_from(sorted(live) or [""])))
        live = {name: bytes_ for name, bytes_ in live.items() if name not in gone} | changed
        known = store.known()
        cut = cut_of({n: (version, b) if n in changed else (known[n], None) for n, b in live.items()})
        info = store.commit(cut, OFFSETS, {"version": version})
        assert (info.chunks_written, info.chunks_shared) == (len(changed), len(live) - len(changed))
        newest = store.newest()
        assert contents(newest) == live
        assert newest is not None
        assert newest.info == info
        assert newest.cut.state == b"state"
        assert (info.offsets, info.extra, info.live, info.dim, info.metric) == (
            OFFSETS,
            {"version": version},
            7,
            DIM,
            "l2",
        )
    store.close()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_sizes_at_the_borders_of_a_piece(tmp_path: Path, size: int) -> None:
    """A chunk of any size around the piece's comes back, given as bytes or as a view of floats."""
    data = random.Random(size).randbytes(size)
    floats = np.arange(1000, dtype=np.float32)
    with open_store(tmp_path) as store:
        store.commit(Cut({"a": Chunk(1, data), "b": Chunk(1, floats.data)}, b"", frozenset(), 0), OFFSETS)
        newest = store.newest()
        assert contents(newest) == {"a": data, "b": floats.tobytes()}
    assert stored_pieces(tmp_path) == -(-size // PIECE) + 1


def test_unchanged_chunks_are_shared_and_go_with_the_last_that_names_them(tmp_path: Path) -> None:
    """Sharing writes nothing; retention removes manifests and exactly the chunks nobody names any more."""
    with open_store(tmp_path, keep=2) as store:
        first = store.commit(cut_of({"a": (1, b"a1"), "b": (1, b"b1")}), OFFSETS)
        second = store.commit(cut_of({"a": (1, None), "b": (2, b"b2!")}), OFFSETS)
        assert (second.chunks_written, second.chunks_shared) == (1, 1)
        assert (second.bytes, second.bytes_written) == (5 + 2 + 3, 5 + 3)
        assert store.known() == {"a": 1, "b": 2}
        assert contents(store.get(first.id)) == {"a": b"a1", "b": b"b1"}
        third = store.commit(cut_of({"a": (1, None), "b": (2, None)}), OFFSETS)
        assert [info.id for info in store.list()] == [second.id, third.id]
        with pytest.raises(SnapshotError, match=f"snapshot {first.id}: is not there"):
            store.get(first.id)
        assert contents(store.newest()) == {"a": b"a1", "b": b"b2!"}
        assert store.verify(second.id) == store.verify(third.id) == ()
    assert stored_pieces(tmp_path) == 2 + 2, "a1, b2 and two states"


def test_a_lazy_chunk_of_a_pruned_snapshot_is_said_to_be_gone(tmp_path: Path) -> None:
    """A snapshot that is dropped while someone reads it raises; it never gives other bytes."""
    with open_store(tmp_path, keep=1) as store:
        store.commit(cut_of({"a": (1, b"a1")}), OFFSETS)
        old = store.newest()
        store.commit(cut_of({"a": (2, b"a2")}), OFFSETS)
        with pytest.raises(SnapshotError, match="chunk 'a': piece 0 is missing"):
            contents(old)


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    """Twenty whole snapshots of 4 MB with two retained settle at a few times that."""
    with open_store(tmp_path) as store:
        for version in range(20):
            store.commit(cut_of({str(n): (version, bytes(1 << 20)) for n in range(4)}), OFFSETS)
    assert (tmp_path / "snapshots" / "data.mdb").stat().st_size < 5 * (4 << 20)


def test_what_a_cut_may_not_say(tmp_path: Path) -> None:
    """Unchanged since a version not stored, segments without raw vectors, no retention: refused."""
    with open_store(tmp_path) as store:
        store.commit(cut_of({"a": (1, b"a1")}), OFFSETS)
        for versions in ({"a": (2, None)}, {"b": (1, None)}):
            with pytest.raises(InvalidInput, match="unchanged"):
                store.commit(cut_of({"c": (1, b"c"), **versions}), OFFSETS)
        with pytest.raises(InvalidInput, match="raw segments"):
            store.commit(cut_of({}, segments=frozenset({0})), OFFSETS)
        assert contents(store.newest()) == {"a": b"a1"}
    with pytest.raises(InvalidInput, match="keep = 0"):
        open_store(tmp_path, keep=0)
    assert stored_pieces(tmp_path) == 2, "what the refused cuts wrote is gone"


def test_progress_and_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told per transaction, rises, and ends at what was written; no transaction exceeds its
    bound."""
    monkeypatch.setattr(chunks, "TRANSACTION_BYTES", 3 << 20)
    steps: list[int] = []
    with open_store(tmp_path) as store:
        cut = cut_of({str(number): (1, bytes(1_700_000)) for number in range(5)})
        info = store.commit(cut, OFFSETS, progress=steps.append)
    assert len(steps) >= 4
    assert all(0 < after - before <= 3 << 20 for before, after in zip([0, *steps], steps, strict=False))
    assert steps[-1] == info.bytes_written


# ---- raw vectors beside the chunks


def test_raw_rows_of_a_snapshot_survive_and_later_ones_do_not_matter(tmp_path: Path) -> None:
    """After a restart the rows a manifest names are there, and appends go on behind them."""
    rows = np.arange(20 * DIM, dtype=np.float32).reshape(20, DIM)
    with open_store(tmp_path) as store:
        raw = store.open_raw()
        ids = raw.append(rows)
        store.commit(cut_of({}, segments=frozenset({0})), OFFSETS)
        raw.append(rows)
    with open_store(tmp_path) as store:
        assert store.newest() is not None
        raw = store.open_raw()
        assert raw is store.open_raw()
        np.testing.assert_array_equal(raw.read(ids), rows)
        assert raw.append(rows[:1]).tolist() == [20]


def test_segments_that_any_manifest_names_are_kept(tmp_path: Path) -> None:
    """A segment goes only after the last manifest that names it; a cut naming one that is gone fails."""
    row = np.zeros((1, DIM), np.float32)
    with open_store(tmp_path, keep=2) as store:
        raw = store.open_raw()
        raw._capacity = 1  # a segment a row  # pyright: ignore[reportPrivateUsage]
        for _ in range(4):
            raw.append(row)
        store.commit(cut_of({}, segments=frozenset({0, 1})), OFFSETS)
        store.commit(cut_of({}, segments=frozenset({1})), OFFSETS)
        assert raw.forget(frozenset()) == {2}
        with pytest.raises(SnapshotError, match="segment 2 is gone"):
            store.commit(cut_of({}, segments=frozenset({1, 2})), OFFSETS)
        store.commit(cut_of({}, segments=frozenset({3})), OFFSETS)
        assert raw.forget(frozenset()) == {0}
        assert sorted(path.name for path in (tmp_path / "segments").iterdir()) == ["1.f32", "3.f32"]


def cut_off(path: Path, row_at: Callable[[int], int]) -> None:
    os.truncate(path, row_at(1500))


def flip_in_row(path: Path, row_at: Callable[[int], int]) -> None:
    with path.open("r+b") as file:
        file.seek(row_at(1500))
        file.write(b"\1")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "too short for its 2000 rows"),
        (flip_in_row, "rows 0 to 1999 are not those that were written"),
    ],
)
def test_a_damaged_segment_makes_the_older_snapshot_the_newest(
    tmp_path: Path, damage: Callable[[Path, Callable[[int], int]], None], reason: str
) -> None:
    """The snapshot whose rows are cut off or changed is skipped, with the reason; the older one is whole, and
    loads."""
    rows = np.ones((1000, DIM), np.float32)
    with open_store(tmp_path) as store:
        raw = store.open_raw()
        ids = raw.append(rows)
        older = store.commit(cut_of({"a": (1, b"a1")}, segments=frozenset({0})), OFFSETS)
        raw.append(rows)
        newer = store.commit(cut_of({"a": (2, b"a2")}, segments=frozenset({0})), OFFSETS)
        start = rows_at(raw.segments()[0][1])
    damage(tmp_path / "segments" / "0.f32", lambda row: start + row * 4 * DIM)
    with open_store(tmp_path) as store:
        newest = store.newest()
        assert newest is not None
        assert newest.info.id == older.id
        assert reason in newest.skipped[0]
        assert store.verify(older.id) == ()
        assert "0.f32" in store.verify(newer.id)[0]
        np.testing.assert_array_equal(store.open_raw().read(ids), rows)


# ---- damage


def test_a_damaged_chunk_falls_back_to_the_older_snapshot(tmp_path: Path) -> None:
    """One flipped byte: the older snapshot is used and says why; the next commit builds on it."""
    with open_store(tmp_path) as store:
        older = store.commit(cut_of({"a": (1, b"a1"), "b": (1, b"b1")}), OFFSETS)
        newer = store.commit(cut_of({"a": (1, None), "b": (2, b"b2")}), OFFSETS)
    flip(tmp_path, "chunks", lambda keys: keys[-1])
    with open_store(tmp_path) as store:
        newest = store.newest()
        assert newest is not None
        assert newest.info.id == older.id
        assert newest.skipped == (
            f"snapshot {newer.id}: chunk 'b': its bytes are not those that were written (checksum)",
        )
        assert len(store.verify(newer.id)) == 1
        with pytest.raises(SnapshotError, match="chunk 'b'"):
            contents(store.get(newer.id))
        assert store.known() == {"a": 1, "b": 1}, "of the one that was loaded"
        latest = store.commit(cut_of({"a": (1, None), "b": (2, b"other b2")}), OFFSETS)
        assert [info.id for info in store.list()] == [older.id, latest.id]
        assert contents(store.newest()) == {"a": b"a1", "b": b"other b2"}


def test_a_damaged_chunk_that_is_shared_leaves_nothing_whole(tmp_path: Path) -> None:
    """If every snapshot needs the damaged chunk, each is named, with the way out; nothing is loaded."""
    with open_store(tmp_path) as store:
        first = store.commit(cut_of({"a": (1, b"a1")}), OFFSETS)
        second = store.commit(cut_of({"a": (1, None)}), OFFSETS)
    flip(tmp_path, "chunks", lambda keys: keys[1])
    with open_store(tmp_path) as store:
        with pytest.raises(SnapshotError, match=r"no snapshot is whole.*built anew from the log") as raised:
            store.newest()
        assert f"snapshot {first.id}: chunk 'a'" in str(raised.value)
        assert f"snapshot {second.id}: chunk 'a'" in str(raised.value)


def test_a_damaged_or_foreign_manifest(tmp_path: Path) -> None:
    """A flipped bit in a manifest, or another format version, makes that snapshot unusable, not the rest."""
    with open_store(tmp_path, keep=3) as store:
        infos = [store.commit(cut_of({"a": (n, b"a%d" % n)}), OFFSETS) for n in range(3)]
    flip(tmp_path, "manifests", lambda keys: keys[2], at=100)
    flip(tmp_path, "manifests", lambda keys: keys[1], at=0)
    with open_store(tmp_path, keep=3) as store:
        newest = store.newest()
        assert contents(newest) == {"a": b"a0"}
        assert newest is not None
        assert newest.skipped == (
            f"snapshot {infos[2].id}: its manifest is damaged",
            f"snapshot {infos[1].id}: its manifest has format [0], this driftline reads 1",
        )
        assert store.verify(infos[2].id) == ("its manifest is damaged",)
        assert [info.id for info in store.list()] == [infos[0].id]
        store.commit(cut_of({"a": (9, b"a9")}), OFFSETS)
        assert len(store.list()) == 2
    assert stored_pieces(tmp_path) == 4


def test_flipped_bytes_of_the_file_never_give_a_wrong_answer(tmp_path: Path) -> None:
    """30 seeded flips all over the LMDB file and in headers of its pages: each loads right, falls back, or
    says why."""
    child = subprocess.run(
        [sys.executable, "-c", FLIPPER, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    outcomes = [int(word) for word in child.stdout.split()]
    assert sum(outcomes) == 30
    assert min(outcomes) > 0, "right, older and refused all occur"


FLIPPER = """
import random, sys
from pathlib import Path
from driftline.errors import SnapshotError
from driftline.index.cut import Chunk, Cut
from driftline.snapshots.store import SnapshotStore

path = Path(sys.argv[1])
made = [{str(n): bytes([version, n]) * 3000 for n in range(8)} for version in range(2)]
with SnapshotStore.open(path, dim=8, metric="l2") as store:
    for version, chunks in enumerate(made):
        store.commit(Cut({n: Chunk(version, c) for n, c in chunks.items()}, b"state", frozenset(), 1), {})
file = path / "snapshots" / "data.mdb"
whole = file.read_bytes()
random = random.Random(5)
outcomes = {"right": 0, "older": 0, "refused": 0}
for number in range(30):
    damaged = bytearray(whole)
    at = random.randrange(len(whole))
    damaged[at if number % 3 else at // 4096 * 4096 + at % 64] ^= 1 << random.randrange(8)
    file.write_bytes(damaged)
    try:
        with SnapshotStore.open(path, dim=8, metric="l2") as store:
            newest = store.newest()
            found = {n: c.data for n, c in newest.cut.chunks.items()}
            assert found in made and newest.cut.state == b"state"
            outcomes["right" if found == made[1] else "older"] += 1
    except SnapshotError:
        outcomes["refused"] += 1
print(*outcomes.values())
"""


def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    """data.mdb cut in the middle, or not LMDB at all, is a SnapshotError that names the way out."""
    with open_store(tmp_path) as store:
        store.commit(cut_of({str(n): (1, bytes(3000)) for n in range(30)}), OFFSETS)
    file = tmp_path / "snapshots" / "data.mdb"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"garbage" * 5000):
        file.write_bytes(content)
        with pytest.raises(SnapshotError, match=r"damaged.*built anew from the log"):
            open_store(tmp_path)


# ---- directories


def test_another_dimension_metric_or_format_is_refused(tmp_path: Path) -> None:
    """The message says what is there, what was asked for, and what to do; an empty store has no shape yet."""
    SnapshotStore.open(tmp_path, dim=3, metric="ip").close()
    with open_store(tmp_path) as store:
        store.commit(cut_of({}), OFFSETS)
    for dim, metric in ((9, "l2"), (DIM, "cosine")):
        with pytest.raises(SnapshotError, match=f"dimension 8, metric l2; asked for was dimension {dim}"):
            SnapshotStore.open(tmp_path, dim=dim, metric=metric)
    flip(tmp_path, "about", lambda keys: keys[0], at=11)
    for look in (open_store, SnapshotStore.inspect):
        with pytest.raises(SnapshotError, match="format version 259, this driftline reads version 3"):
            look(tmp_path)


def test_a_dimension_that_is_not_known_at_first(tmp_path: Path) -> None:
    """Opened without a dimension: what is there gives it, else open_raw does; a second one is refused."""
    with SnapshotStore.open(tmp_path, dim=None, metric="l2") as store:
        for wanting in (store.open_raw, lambda: store.commit(cut_of({}), OFFSETS)):
            with pytest.raises(InvalidInput, match="dimension"):
                wanting()
        store.open_raw(DIM).append(np.zeros((1, DIM), np.float32))
        with pytest.raises(InvalidInput, match="dimension 9, where it is 8"):
            store.open_raw(9)
        store.commit(cut_of({}, segments=frozenset({0})), OFFSETS)
    with SnapshotStore.open(tmp_path, dim=None, metric="l2") as store:
        assert store.open_raw().dim == DIM
        assert store.list()[0].dim == DIM


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    """Somebody's files, somebody's LMDB, a file in the way, nothing at all: said, and untouched."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"holds something else \(cat.jpg\)"):
        open_store(photos)
    assert os.listdir(photos) == ["cat.jpg"]
    with pytest.raises(SnapshotError, match="cannot be used as data directory"):
        open_store(photos / "cat.jpg")
    Environment(tmp_path / "theirs" / "snapshots", ["theirs"], error=SnapshotError).close()
    with pytest.raises(SnapshotError, match="holds something else"):
        open_store(tmp_path / "theirs")
    with pytest.raises(SnapshotError, match="not a data directory of driftline"):
        SnapshotStore.inspect(tmp_path / "missing")
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    open_store(volume).close()


def test_one_process_writes_and_others_look(tmp_path: Path) -> None:
    """A second writer is told the first one's process id; looking works meanwhile; kill frees the lock."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(SnapshotError, match=f"in use by process {child.pid}$"):
        open_store(tmp_path)
    with SnapshotStore.inspect(tmp_path) as looking:
        assert [info.live for info in looking.list()] == [1]
        assert looking.verify(looking.list()[0].id) == ()
        child.stdin.write("commit\n")
        child.stdin.flush()
        assert child.stdout.readline() == "committed\n"
        assert [info.live for info in looking.list()] == [1, 2]
        with pytest.raises(InvalidInput, match="belong to the process that writes"):
            looking.open_raw()
    child.kill()
    child.wait(DEADLINE_S)
    child.stdin.close()
    child.stdout.close()
    with open_store(tmp_path) as store:
        assert len(store.list()) == 2
        with pytest.raises(SnapshotError, match=f"in use by process {os.getpid()}$"):
            open_store(tmp_path)


HOLDER = """
import sys
from driftline.index.cut import Chunk, Cut
from driftline.snapshots.store import SnapshotStore

with SnapshotStore.open(sys.argv[1], dim=8, metric="l2") as store:
    store.commit(Cut({"a": Chunk(1, b"a")}, b"", frozenset(), 1), {})
    print("ready", flush=True)
    sys.stdin.readline()
    store.commit(Cut({"a": Chunk(1, None)}, b"", frozenset(), 2), {})
    print("committed", flush=True)
    sys.stdin.readline()
"""


# ---- crashes


def test_kill_at_any_moment_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    """A committing child is killed after random steps, 8 times: the newest snapshot is whole, no orphans."""
    chance = random.Random(11)
    committed = 0
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(tmp_path), str(committed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 40)):
            words = child.stdout.readline().split()
            if words[0] == "committed":
                committed = int(words[1])
        child.kill()
        rest = child.stdout.read().split("\n")
        child.wait(DEADLINE_S)
        child.stdout.close()
        said = [int(line.split()[1]) for line in rest if line.startswith("committed") and line.endswith(".")]
        committed = max([committed, *said])
        with open_store(tmp_path) as store:
            newest = store.newest()
            if newest is None:
                assert committed == 0
                continue
            number = newest.info.extra["number"]
            assert isinstance(number, int)
            assert committed <= number <= committed + 1, "nothing said to be committed is lost"
            committed = number
            assert newest.skipped == ()
            assert all(store.verify(info.id) == () for info in store.list())
            assert contents(newest) == {
                str(n): random.Random(number * 10 + n).randbytes(300_000) for n in range(9)
            }
            rows = np.array(newest.info.extra["rows"], np.uint64)
            assert (store.open_raw().read(rows) == number).all()
            named = sum(1 + info.chunks_written for info in store.list())
        assert stored_pieces(tmp_path) == named, "orphans are gone"
    assert committed > 0


COMMITTER = """
import random, sys
import numpy as np
from driftline.index.cut import Chunk, Cut
from driftline.snapshots import chunks
from driftline.snapshots.store import SnapshotStore

chunks.TRANSACTION_BYTES = 1 << 20  # many transactions in a small commit
chunks.PIECE_BYTES = 400_000
with SnapshotStore.open(sys.argv[1], dim=8, metric="l2") as store:
    store.newest()
    raw = store.open_raw()
    number = int(sys.argv[2])
    while True:
        number += 1
        rows = raw.append(np.full((50, 8), number, np.float32))
        cut = Cut(
            {str(n): Chunk(number, random.Random(number * 10 + n).randbytes(300_000)) for n in range(9)},
            b"state",
            frozenset(int(row) >> 32 for row in rows),
            50,
        )
        extra = {"number": number, "rows": rows.tolist()}
        store.commit(cut, {}, extra, progress=lambda done: print("progress .", flush=True))
        print("committed", number, ".", flush=True)
"""


def test_a_full_disk_leaves_the_older_snapshot(tmp_path: Path) -> None:
    """A commit that meets a full disk raises, leaves no orphan, and works again when there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open_store(tmp_path) as store:
        store.commit(cut_of({"a": (1, b"a1")}), OFFSETS)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            with pytest.raises(SnapshotError, match="mdb_txn_commit"):
                store.commit(cut_of({"a": (2, bytes(4 << 20))}), OFFSETS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert contents(store.newest()) == {"a": b"a1"}
        store.commit(cut_of({"a": (2, bytes(4 << 20))}), OFFSETS)
        assert contents(store.newest()) == {"a": bytes(4 << 20)}


def test_commits_in_threads_beside_appends(tmp_path: Path) -> None:
    """Commits run in their callers' threads, one after the other, beside appends; all come out whole."""
    with open_store(tmp_path, keep=10) as store:
        raw = store.open_raw()
        raw.append(np.zeros((1, DIM), np.float32))
        infos: list[SnapshotInfo] = []

        def commit(number: int) -> None:
            cut = cut_of({"a": (number, bytes([number]) * (2 << 20))}, segments=frozenset({0}))
            infos.append(store.commit(cut, OFFSETS))

        threads = [threading.Thread(target=commit, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            raw.append(np.zeros((10, DIM), np.float32))
        for thread in threads:
            thread.join(DEADLINE_S)
        assert sorted(info.id for info in infos) == [1, 2, 3, 4, 5, 6]
        assert [store.verify(info.id) for info in infos] == [()] * 6


def test_the_manifest_is_the_documented_one() -> None:
    """encode gives the golden bytes, and decode gives back what was encoded."""
    info = SnapshotInfo(
        id=3,
        created=1_700_000_000_000,
        seconds=0.5,
        dim=128,
        metric="cosine",
        live=1000,
        digest=2**127 + 5,
        bytes=1_100,
        bytes_written=600,
        chunks_written=1,
        chunks_shared=1,
        offsets={"driftline.vectors": {0: 10, 7: 2**40}},
        extra={"model": "a", "digest": [1, None]},
    )
    stored = manifest.Manifest(
        info,
        state=manifest.ChunkEntry(0, 3, 0, 100, bytes(range(16))),
        chunks={
            "slab/0": manifest.ChunkEntry(4, 2, 1, 500, bytes(range(16, 32))),
            "slab/1": manifest.ChunkEntry(9, 3, 1, 500, bytes(range(32, 48))),
        },
        segments={0: 40_000, 2: 17},
        row_checksums={0: bytes(range(80)), 2: bytes(range(16))},
    )
    golden = (GOLDEN / "manifest.bin").read_bytes()
    assert manifest.encode(stored) == golden
    assert manifest.decode(3, golden) == stored

    reached = {
        0: manifest.Reached(1_700_000_000_001, (manifest.Anchor(9, 1_700_000_000_000, bytes(range(16))),)),
        7: manifest.Reached(None, ()),
    }
    stored = replace(stored, info=replace(info, reached={"driftline.vectors": reached}))
    golden = (GOLDEN / "manifest-reached.bin").read_bytes()
    assert manifest.encode(stored) == golden
    assert manifest.decode(3, golden) == stored


def test_a_snapshot_can_be_renewed(tmp_path: Path) -> None:
    """What it says of its partitions is replaced, all else stays, and the next commit builds upon it."""
    reached = {"t": {0: manifest.Reached(5, (manifest.Anchor(1, 2, bytes(16)),))}}
    later = {"t": {0: manifest.Reached(6, ())}}
    with open_store(tmp_path) as store:
        with pytest.raises(SnapshotError, match="no snapshot to renew"):
            store.renew(later)
        info = store.commit(cut_of({"a": (1, b"a1")}), OFFSETS, reached=reached)
        store.renew(later)
    with open_store(tmp_path) as store:
        snapshot = store.newest()
        assert snapshot is not None
        assert snapshot.info == replace(info, reached=later)
        assert store.verify(info.id) == ()
        store.commit(cut_of({"a": (1, None)}), OFFSETS)
