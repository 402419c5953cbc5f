"""The log on this machine: many processes at once, kill -9, compaction, the stored bytes, directories that
will not do.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driftline.errors import InvalidInput, LogError
from driftline.snapshots.environment import Environment
from driftline.stream.local_layout import DATABASES, FORMAT_KEY, NUMBER, decode, encode
from driftline.stream.local_log import LocalLog
from driftline.stream.log import Draft, Reader, Record, open_log
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).parent
DEADLINE_S = 60.0


def appender(log: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "appender.py"), str(log), "t", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    """What is left of a process's output, once it has ended well."""
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return out.splitlines()


async def read(reader: Reader, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(records) < count:
            records += await reader.fetch()
    return records


def value_of(record: Record) -> str:
    return (record.value or b"").rstrip(b".").decode()


async def test_several_processes_write_and_read(tmp_path: Path) -> None:
    """Three writers in processes of their own and one here, a reader here following them: all there, each in
    its order.
    """
    async with open_log(f"local:{tmp_path}") as log:
        await log.create_topic("t")
        reader = await log.reader({("t", 0): 0})
        writers = [appender(tmp_path, name, 60, 5) for name in "abc"]
        mine = [Draft("t", b"key", b"d %d" % index) for index in range(300)]
        for index in range(0, 300, 5):
            await log.append(mine[index : index + 5])
        records = await read(reader, 1200)
        said = [line.split() for writer in writers for line in await asyncio.to_thread(finish, writer)]
        assert await log.end_offsets("t") == {0: 1200}
    assert [record.offset for record in records] == list(range(1200))
    for name in "abcd":
        own = [value_of(record) for record in records if value_of(record).startswith(name)]
        assert own == [f"{name} {index}" for index in range(300)]
    for offset, name, index, _ in said:
        assert value_of(records[int(offset)]) == f"{name} {index}"


async def test_a_reader_wakes_when_another_process_writes(tmp_path: Path) -> None:
    """Within 50 ms of the other process's acknowledgement (median of 40)."""
    async with open_log(f"local:{tmp_path}") as log:
        await log.create_topic("t")
        reader = await log.reader({("t", 0): 0})
        writer = appender(tmp_path, "a", 40, 1, "asked")
        assert writer.stdin is not None
        assert writer.stdout is not None
        delays: list[float] = []
        for _ in range(40):
            waiting = asyncio.ensure_future(reader.fetch(timeout_s=DEADLINE_S))
            writer.stdin.write("go\n")
            writer.stdin.flush()
            assert len(await waiting) == 1
            woken = time.monotonic()
            line = await asyncio.to_thread(writer.stdout.readline)
            delays.append(woken - float(line.split()[-1]))
        await asyncio.to_thread(finish, writer)
    assert statistics.median(delays) < 0.050


async def test_kill_9_costs_no_acknowledged_append(tmp_path: Path) -> None:
    """A writer is killed at eight random moments while it appends; what it was told is written is there,
    whole and in order.
    """
    draw = random.Random(9)
    acknowledged: dict[int, str] = {}
    for turn in range(8):
        writer = appender(tmp_path, f"w{turn}", 0, 3)
        assert writer.stdout is not None
        for _ in range(draw.randrange(1, 40)):
            offset, name, index, _ = (await asyncio.to_thread(writer.stdout.readline)).split()
            acknowledged[int(offset)] = f"{name} {index}"
        writer.kill()
        rest, _ = await asyncio.to_thread(writer.communicate)
        for line in rest.splitlines():
            if len(parts := line.split()) == 4:  # the last line may be cut
                acknowledged[int(parts[0])] = f"{parts[1]} {parts[2]}"
    async with open_log(f"local:{tmp_path}") as log:
        end = (await log.end_offsets("t"))[0]
        records = await read(await log.reader({("t", 0): 0}), end)
        await log.append([Draft("t", b"key", b"it goes on")])
    assert [record.offset for record in records] == list(range(end))
    assert len(acknowledged) >= 8
    for offset, said in acknowledged.items():
        assert value_of(records[offset]) == said
    for turn in range(8):
        own = [value_of(record) for record in records if value_of(record).startswith(f"w{turn} ")]
        assert own == [f"w{turn} {index}" for index in range(len(own))]
        assert len(own) % 3 == 0  # all of a call or nothing


async def test_two_logs_on_one_directory(tmp_path: Path) -> None:
    """In one process, under two names of the directory: they share it, and the one goes on when the other is
    closed.
    """
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "log")
    async with LocalLog(tmp_path / "log") as one:
        async with LocalLog(link) as two:
            assert await one.create_topic("t")
            assert not await two.create_topic("t")
            reader = await one.reader({("t", 0): 0})
            await two.append([Draft("t", b"k", b"v")])
            assert len(await read(reader, 1)) == 1
            closed = await two.reader({("t", 0): 0})
        with pytest.raises(LogError, match="this reader is closed"):
            await closed.fetch()
        await one.append([Draft("t", b"k", b"v")])
        assert len(await read(reader, 1)) == 1


async def test_appends_share_transactions(tmp_path: Path) -> None:
    """Five hundred appends that wait together take far fewer commits (each is an fsync) than there are
    appends.
    """
    async with LocalLog(tmp_path) as log:
        await log.create_topic("t")
        async with asyncio.TaskGroup() as tasks:
            for index in range(500):
                tasks.create_task(log.append([Draft("t", b"k", b"%d" % index)]))
        records = await read(await log.reader({("t", 0): 0}), 500)
    assert {record.value for record in records} == {b"%d" % index for index in range(500)}
    with Environment(tmp_path, DATABASES, error=LogError) as environment:
        assert environment.last_commit() < 100


async def test_compaction(tmp_path: Path) -> None:
    """Per key the newest record stays, at its offset; tombstones go when they are old; positions skip the
    gaps.
    """
    async with LocalLog(tmp_path) as log:
        await log.create_topic("t", partitions=2, compacted=True)
        for index in range(200):
            await log.append([Draft("t", b"%d" % (index % 7), b"%d" % index, partition=index % 2)])
        old_ms = time.time_ns() // 1_000_000 - 100_000
        await log.append([Draft("t", b"0", None, partition=0, timestamp_ms=old_ms)])
        await log.append([Draft("t", b"1", None, partition=0)])
        await log.append([Draft("t", b"0", b"last", partition=1)])
        behind = await log.reader({("t", 0): 10, ("t", 1): 10})
        ahead = await log.reader({("t", 0): 102, ("t", 1): 101})

        before = await read(await log.reader({("t", 0): 0, ("t", 1): 0}), 203)
        expected = {(record.partition, record.key): record for record in before}
        assert await log.compact("t", tombstones_older_than_s=1000) == 203 - len(expected)
        assert await log.compact("t", tombstones_older_than_s=1000) == 0
        after = await read(await log.reader({("t", 0): 0, ("t", 1): 0}), len(expected))
        assert {(record.partition, record.key): record for record in after} == expected

        assert await log.compact("t", tombstones_older_than_s=10) == 1
        del expected[0, b"0"]
        reader = await log.reader({("t", 0): 0, ("t", 1): 0})
        after = await read(reader, len(expected))
        assert {(record.partition, record.key): record for record in after} == expected
        assert await log.end_offsets("t") == {0: 102, 1: 101}
        assert (reader.position("t", 0), reader.position("t", 1)) == (102, 101)

        assert len(await read(behind, len(expected))) == len(expected)
        assert (behind.position("t", 0), behind.position("t", 1)) == (102, 101)
        assert await ahead.fetch(timeout_s=0) == []
        assert [position.offset for position in await log.append([Draft("t", b"0", b"", partition=0)])] == [
            102
        ]
        assert [record.offset for record in await ahead.fetch(timeout_s=DEADLINE_S)] == [102]

        await log.create_topic("plain")
        with pytest.raises(InvalidInput, match="topic plain is not compacted"):
            await log.compact("plain")


async def test_compaction_beside_writers(tmp_path: Path) -> None:
    """Another process appends while this one compacts again and again: the fold of the topic is that of all
    it wrote.
    """
    async with LocalLog(tmp_path) as log:
        await log.create_topic("t", compacted=True)
        writer = appender(tmp_path, "a", 300, 2)
        while writer.poll() is None:
            await log.compact("t")
        assert len(await asyncio.to_thread(finish, writer)) == 300
        await log.compact("t")
        reader = await log.reader({("t", 0): 0})
        assert [value_of(record) for record in await read(reader, 1)] == ["a 599"]
        assert reader.position("t", 0) == 600


async def test_stored_bytes(tmp_path: Path) -> None:
    """Every byte of a small log is that of the golden file: format 1 must stay readable as it is."""
    async with LocalLog(tmp_path) as log:
        await log.create_topic("plain")
        await log.create_topic("other.topic", partitions=300, compacted=True)
        await log.append(
            [
                Draft(
                    "plain",
                    b"key",
                    b"value",
                    (("name", b"content"), ("größe", b"")),
                    timestamp_ms=1_700_000_000_000,
                ),
                Draft("plain", None, None, timestamp_ms=0),
                Draft("plain", b"", b"", timestamp_ms=2**63 - 1),
                Draft("other.topic", b"k", None, partition=257, timestamp_ms=2**40),
            ]
        )
        await log.commit("group", "other.topic", {257: 2**33})
    with Environment(tmp_path, DATABASES, error=LogError) as environment, environment.read() as txn:
        rows = [f"{name} {key.hex()} {value.hex()}" for name in DATABASES for key, value in txn.range(name)]
    assert "\n".join(rows) + "\n" == (HERE / "local_log_format_1.txt").read_text()


@given(
    key=st.none() | st.binary(max_size=40),
    value=st.none() | st.binary(max_size=40),
    headers=st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=4),
    timestamp_ms=st.integers(-(2**63), 2**63 - 1),
)
def test_any_record_survives_storage(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], timestamp_ms: int
) -> None:
    """encode, decode: the same record; one byte changed or missing anywhere: LogError."""
    draft = Draft("t", key, value, tuple(headers), timestamp_ms=timestamp_ms)
    stored = encode(draft, 0)
    assert decode("t", 3, 5, stored) == Record("t", 3, 5, timestamp_ms, key, value, tuple(headers))
    for at in range(len(stored)):
        for damaged in (stored[:at], stored[:at] + bytes([stored[at] ^ 0x41]) + stored[at + 1 :]):
            with pytest.raises(LogError, match="t/3 is damaged at offset 5"):
                decode("t", 3, 5, damaged)


def test_headers_that_do_not_fit() -> None:
    """A name of more than 65,535 bytes, or more headers than that: refused by name."""
    for headers in ((("x" * 65_536, b""),), (("x", b""),) * 65_536):
        with pytest.raises(
            InvalidInput, match="draft with key b'k': too many headers, or one with too long a name"
        ):
            encode(Draft("t", b"k", b"v", headers), 0)


async def test_directories_that_will_not_do(tmp_path: Path) -> None:
    """Another format, another program's LMDB file, a file, damage: LogError that names the path."""
    newer, file, garbage = tmp_path / "newer", tmp_path / "file", tmp_path / "garbage"
    async with LocalLog(newer):
        pass
    with Environment(newer, DATABASES, error=LogError) as environment, environment.write() as txn:
        txn.put("meta", FORMAT_KEY, NUMBER.pack(2))
    file.write_text("not a directory")
    garbage.mkdir()
    (garbage / "data.mdb").write_bytes(random.Random(1).randbytes(8192))
    for path, reason in ((newer, "another format"), (file, ""), (garbage, "")):
        with pytest.raises(LogError, match=rf"{path}.*{reason}"):
            async with LocalLog(path):
                pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    """No permission: LogError that names the path."""
    os.chmod(tmp_path, 0o500)
    with pytest.raises(LogError, match=str(tmp_path)):
        async with LocalLog(tmp_path / "log"):
            pass
