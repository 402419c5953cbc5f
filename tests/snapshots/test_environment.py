"""The LMDB layer: ranges, transactions, growth, several processes, and errors in the caller's own type."""

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from driftline.errors import LogError, SnapshotError
from driftline.snapshots.environment import Environment, examine
from hypothesis import given, settings
from hypothesis import strategies as st

DEADLINE_S = 20.0
KEYS = st.binary(min_size=1, max_size=3)


def in_another_process(code: str, *arguments: object) -> str:
    """Run a piece of Python in a process of its own; its output."""
    command = [
        sys.executable,
        "-c",
        f"import sys\nfrom driftline.errors import *\n{code}",
        *map(str, arguments),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout


@settings(max_examples=60, deadline=None)
@given(
    stored=st.dictionaries(KEYS, st.binary(max_size=8), max_size=30),
    start=st.one_of(st.just(b""), KEYS),
    stop=st.one_of(st.none(), KEYS),
)
def test_ranges_are_those_of_a_sorted_dictionary(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[bytes, bytes], start: bytes, stop: bytes | None
) -> None:
    """range, keys, count and delete_range against a sorted dictionary, both ways, all kinds of border."""
    inside = [key for key in sorted(stored) if key >= start and (stop is None or key < stop)]
    path = tmp_path_factory.mktemp("environment")
    with Environment(path, ["a", "b"], error=SnapshotError, durable=False) as environment:
        with environment.write() as txn:
            for key, value in stored.items():
                assert txn.put("a", key, value)
        with environment.read() as txn:
            assert list(txn.range("a", start, stop)) == [(key, stored[key]) for key in inside]
            assert list(txn.keys("a", start, stop, reverse=True)) == inside[::-1]
            assert txn.count("a") == len(stored)
            assert txn.count("b") == 0
        with environment.write() as txn:
            assert txn.delete_range("a", start, stop) == len(inside)
            assert list(txn.keys("a")) == sorted(stored.keys() - set(inside))


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    """A block that raises leaves nothing; a reader keeps its view while a writer commits."""
    with Environment(tmp_path, ["a"], error=SnapshotError) as environment:
        with suppress(KeyError), environment.write() as txn:
            txn.put("a", b"key", b"value")
            raise KeyError
        with environment.read() as before:
            with environment.write() as txn:
                assert txn.put("a", b"key", b"value")
                assert not txn.put("a", b"key", b"other", overwrite=False)
                assert not txn.put("a", b"abc", b"", append=True), "not the greatest key"
            assert before.get("a", b"key") is None
        with environment.read() as after:
            assert after.get("a", b"key") == b"value"
            assert after.view("a", b"key") == b"value"
            assert after.number == environment.last_commit()


def test_the_map_grows_before_it_is_full(tmp_path: Path) -> None:
    """A map of 1 MiB takes 20 MiB, because a write transaction says how much it will store."""
    with Environment(tmp_path, ["a"], error=SnapshotError, map_size=1 << 20) as environment:
        for number in range(20):
            with environment.write(room=1 << 20) as txn:
                txn.put("a", b"%d" % number, bytes(1 << 20))
        with environment.read() as txn:
            assert txn.count("a") == 20


def test_a_transaction_larger_than_it_said_fails_whole(tmp_path: Path) -> None:
    """More than `room` may meet the end of the map: an error, nothing stored, and still usable."""
    with Environment(tmp_path, ["a"], error=LogError, map_size=1 << 20) as environment:

        def write_more_than_said() -> None:
            with environment.write(room=0) as txn:
                txn.put("a", b"small", b"")
                txn.put("a", b"large", bytes(8 << 20))

        with pytest.raises(LogError, match="MAP_FULL"):
            write_more_than_said()
        with environment.write(room=8 << 20) as txn:
            assert txn.get("a", b"small") is None
            txn.put("a", b"large", bytes(8 << 20))


def test_growing_waits_for_readers(tmp_path: Path) -> None:
    """A writer that must grow the map waits until another thread's reader has ended; its view stays whole."""
    reading, seen = threading.Event(), threading.Event()
    with Environment(tmp_path, ["a"], error=SnapshotError, map_size=1 << 20) as environment:
        with environment.write(room=100) as txn:
            txn.put("a", b"key", b"value")

        def read() -> None:
            with environment.read() as txn:
                view = txn.view("a", b"key")
                reading.set()
                assert view is not None
                assert bytes(view) == b"value"
                seen.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert reading.wait(DEADLINE_S)
        with environment.write(room=32 << 20) as txn:
            assert seen.is_set()
            txn.put("a", b"large", bytes(32 << 20))
        reader.join(DEADLINE_S)


def test_another_process_writes_grows_and_is_noticed(tmp_path: Path) -> None:
    """last_commit moves with another process's commit, and a map grown over there is adopted here."""
    with Environment(tmp_path, ["a"], error=SnapshotError, map_size=1 << 20) as environment:
        before = environment.last_commit()
        in_another_process(
            "from driftline.snapshots.environment import Environment\n"
            "with Environment(sys.argv[1], ['a'], error=LogError, map_size=1 << 20) as other:\n"
            "    with other.write(room=8 << 20) as txn:\n"
            "        txn.put('a', b'large', bytes(8 << 20))\n",
            tmp_path,
        )
        assert environment.last_commit() > before
        with environment.read() as txn:
            assert txn.get("a", b"large") == bytes(8 << 20)
        with environment.write() as txn:
            assert txn.delete("a", b"large")


def test_pages_held_by_a_dead_reader_come_back(tmp_path: Path) -> None:
    """A process killed inside a read transaction does not make the file grow for ever."""
    with Environment(tmp_path, ["a"], error=SnapshotError) as environment, environment.write() as txn:
        txn.put("a", b"key", bytes(1 << 20))
    in_another_process(
        "import os\n"
        "from driftline.snapshots.environment import Environment\n"
        "if os.fork() == 0:\n"
        "    with Environment(sys.argv[1], ['a'], error=LogError).read() as txn:\n"
        "        os._exit(9)\n"
        "os.wait()\n",
        tmp_path,
    )
    with Environment(tmp_path, ["a"], error=SnapshotError, durable=False) as environment:
        for _ in range(30):
            with environment.write() as txn:
                txn.put("a", b"key", bytes(1 << 20))
        assert environment.used_bytes() < 6 << 20


def test_one_environment_per_process(tmp_path: Path) -> None:
    """A second open of the same files in one process is refused, and allowed again after close."""
    environment = Environment(tmp_path, ["a"], error=SnapshotError)
    with pytest.raises(LogError, match="already open in this process"):
        Environment(tmp_path, ["a"], error=LogError)
    environment.close()
    environment.close()
    Environment(tmp_path, ["a"], error=SnapshotError).close()


def test_readonly(tmp_path: Path) -> None:
    """A read-only environment reads what is there and refuses to write or to create."""
    with pytest.raises(SnapshotError, match="No such file"):
        Environment(tmp_path / "missing", ["a"], error=SnapshotError, readonly=True)
    with Environment(tmp_path, ["a"], error=SnapshotError) as environment, environment.write() as txn:
        txn.put("a", b"key", b"value")
    with Environment(tmp_path, ["a"], error=SnapshotError, readonly=True) as environment:
        with environment.read() as txn:
            assert txn.get("a", b"key") == b"value"
        with pytest.raises(SnapshotError, match="read-only"), environment.write():
            pass


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """In the caller's error type: a file in the way, garbage, somebody else's environment, a key too long."""
    (tmp_path / "file").write_bytes(b"text")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LogError, match="file"):
            Environment(path, ["a"], error=LogError)
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / "data.mdb").write_bytes(b"not lmdb" * 4096)
    with pytest.raises(LogError, match="not an LMDB file"):
        Environment(garbage, ["a"], error=LogError)
    with (
        Environment(tmp_path / "theirs", ["theirs"], error=LogError) as environment,
        pytest.raises(LogError, match="BAD_VALSIZE"),
        environment.write() as txn,
    ):
        txn.put("theirs", bytes(512), b"")
    with pytest.raises(LogError, match="holds something else"):
        Environment(tmp_path / "theirs", ["ours"], error=LogError)


def test_examine_finds_damaged_pages(tmp_path: Path) -> None:
    """A healthy file passes, so do none and an empty one; garbage or a page with another's header do not."""
    examine(tmp_path / "nothing", error=SnapshotError)
    with Environment(tmp_path, ["a"], error=SnapshotError) as environment, environment.write() as txn:
        for number in range(1000):
            txn.put("a", b"%04d" % number, bytes(100))
    examine(tmp_path, error=SnapshotError)
    data = tmp_path / "data.mdb"
    damaged = bytearray(data.read_bytes())
    page = damaged.index(b"0500") // 4096 * 4096
    damaged[page : page + 16] = damaged[page + 4096 : page + 4112]  # the header of another page
    data.write_bytes(damaged)
    with pytest.raises(SnapshotError, match="damaged"):
        examine(tmp_path, error=SnapshotError)
    data.write_bytes(b"garbage" * 10_000)
    with pytest.raises(SnapshotError, match="not an LMDB file, or damaged"):
        examine(tmp_path, error=SnapshotError)
    data.write_bytes(b"")
    examine(tmp_path, error=SnapshotError)


def test_a_value_that_was_cut_off_reads_as_zeros(tmp_path: Path) -> None:
    """Truncated inside a large value: made whole at open, so that reading it is no SIGBUS."""
    with Environment(tmp_path, ["a"], error=SnapshotError) as environment:
        for _ in range(5):  # leaves free pages for the tree, so that the value is the end of the file
            with environment.write() as txn:
                txn.put("a", b"small", b"")
        with environment.write() as txn:
            txn.put("a", b"key", b"v" * (4 << 20))
    data = tmp_path / "data.mdb"
    content = data.read_bytes()
    end = content.rindex(b"v" * 4096)
    data.write_bytes(content[: end - (1 << 20)])
    examine(tmp_path, error=SnapshotError)
    seen = in_another_process(
        "from driftline.snapshots.environment import Environment\n"
        "with Environment(sys.argv[1], ['a'], error=LogError) as environment:\n"
        "    with environment.read() as txn:\n"
        "        value = txn.get('a', b'key')\n"
        "        print(len(value), value.count(0) > 1 << 19)\n",
        tmp_path,
    )
    assert seen.split() == [str(4 << 20), "True"]
