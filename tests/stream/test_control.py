"""The control socket: commands, errors, deep directories, sockets left by the dead."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from driftline.errors import DriftlineError, SnapshotError
from driftline.stream.control import NAME, Arguments, Handler, ServiceUnreachable, ask, serve_control


async def greet(arguments: Arguments) -> dict[str, object]:
    return {"greeting": "hello " + arguments["name"] if "name" in arguments else "hello"}


async def refuse(_: Arguments) -> dict[str, object]:
    raise SnapshotError("the disk is full")


HANDLERS: dict[str, Handler] = {"greet": greet, "refuse": refuse}


async def test_a_command_is_answered(tmp_path: Path) -> None:
    """Any number of times, and only inside the block."""
    async with serve_control(tmp_path, HANDLERS):
        for _ in range(3):
            assert await asyncio.to_thread(ask, tmp_path, "greet") == {"greeting": "hello"}
    assert not (tmp_path / NAME).exists()
    with pytest.raises(ServiceUnreachable, match="driftline serve"):
        await asyncio.to_thread(ask, tmp_path, "greet")


async def test_a_command_has_arguments(tmp_path: Path) -> None:
    """They reach the handler as they were given."""
    async with serve_control(tmp_path, HANDLERS):
        answer = await asyncio.to_thread(ask, tmp_path, "greet", {"name": "world"})
    assert answer == {"greeting": "hello world"}


async def test_errors_come_back_as_sentences(tmp_path: Path) -> None:
    """What a handler raises on purpose, and commands that do not exist."""
    async with serve_control(tmp_path, HANDLERS):
        with pytest.raises(DriftlineError, match="the disk is full"):
            await asyncio.to_thread(ask, tmp_path, "refuse")
        with pytest.raises(DriftlineError, match="one of greet, refuse"):
            await asyncio.to_thread(ask, tmp_path, "dance")


async def test_nonsense_is_answered_and_the_next_served(tmp_path: Path) -> None:
    """Bytes that are no command; a line without end is cut off; others go on."""
    async with serve_control(tmp_path, HANDLERS):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / NAME))
        for line in (b"\xff\n", b"[]\n", b"3\n", b"{}\n", b'{"command": []}\n'):
            writer.write(line)
            assert b"error" in await reader.readline()
        writer.write(b"x" * (3 << 20))
        with contextlib.suppress(ConnectionError):  # what we sent too much was never read
            assert await reader.read() == b""
        writer.close()
        assert await asyncio.to_thread(ask, tmp_path, "greet") == {"greeting": "hello"}


async def test_a_deep_directory(tmp_path: Path) -> None:
    """A Unix address has 107 bytes; a data directory may be deeper."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    async with serve_control(deep, HANDLERS):
        assert await asyncio.to_thread(ask, deep, "greet") == {"greeting": "hello"}
    assert not (deep / NAME).exists()


async def test_a_socket_of_a_dead_service_is_replaced(tmp_path: Path) -> None:
    """After kill -9 the file is still there; nobody answers, and the next service takes its place."""
    (tmp_path / NAME).touch()
    with pytest.raises(ServiceUnreachable):
        await asyncio.to_thread(ask, tmp_path, "greet")
    async with serve_control(tmp_path, HANDLERS):
        assert await asyncio.to_thread(ask, tmp_path, "greet") == {"greeting": "hello"}


async def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    """The socket carries commands that write to the disk."""
    async with serve_control(tmp_path, HANDLERS):
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
