"""The control socket: how the command line talks to a running service.

A Unix domain socket `control.sock` in the data directory; only who may use the directory may use it. One
JSON object a line each way: `{"command": "status"}` -> `{"ok": {...}}` or `{"error": "sentence"}`. A
command's arguments stand beside it. Any number of commands a connection.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from ..errors import DriftlineError

__all__ = ["Arguments", "Handler", "ServiceUnreachable", "ask", "serve_control"]

NAME = "control.sock"
MAX_LINE = 1 << 20  # bytes of one command or answer

Arguments = Mapping[str, Any]
Handler = Callable[[Arguments], Awaitable[Mapping[str, object]]]


class ServiceUnreachable(DriftlineError):
    """No service answers in this data directory."""


@contextmanager
def _short_path(data_dir: Path) -> Generator[str]:
    """A path to the socket that fits the 107 bytes of a Unix address however deep the directory lies
    (Linux)."""
    path = str(data_dir / NAME)
    if len(os.fsencode(path)) <= 100 or not os.path.isdir("/proc/self/fd"):
        yield path
        return
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)


@asynccontextmanager
async def serve_control(data_dir: Path, handlers: Mapping[str, Handler]) -> AsyncGenerator[None]:
    """Answer commands inside the `with` block. The caller owns the data directory, so a socket found there
    is a dead one's."""

    async def answer(line: bytes) -> dict[str, object]:
        try:
            request: Any = json.loads(line)
            handler = handlers[request["command"]]
        except (ValueError, KeyError, TypeError):
            return {"error": f'expected a line {{"command": NAME}}, NAME one of {", ".join(handlers)}'}
        try:
            return {"ok": await handler(request)}
        except DriftlineError as error:
            return {"error": str(error)}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await answer(line), default=str).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a line longer than the limit
            pass
        finally:
            writer.close()

    (data_dir / NAME).unlink(missing_ok=True)
    with _short_path(data_dir) as path:
        server = await asyncio.start_unix_server(converse, path, limit=MAX_LINE)
    (data_dir / NAME).chmod(0o600)
    try:
        yield
    finally:
        server.close()
        (data_dir / NAME).unlink(missing_ok=True)


def ask(
    data_dir: Path, command: str, arguments: Arguments | None = None, *, timeout_s: float = 5.0
) -> dict[str, Any]:
    """Send one command to the service in `data_dir` and return its answer.

    Raises ServiceUnreachable where none answers in time, DriftlineError where it answers with an error.
    """
    try:
        with _short_path(data_dir) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(json.dumps({**(arguments or {}), "command": command}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE)
    except OSError as error:
        raise ServiceUnreachable(
            f"no service answers in {data_dir} ({error.strerror or error}); start one with `driftline serve`"
        ) from error
    if not line:
        raise ServiceUnreachable(f"the service in {data_dir} ended while it was asked")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise DriftlineError(str(reply["error"]))
    return reply["ok"]
