"""A TCP proxy between a client and a broker, which loses and delays what it is told to."""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import Self

__all__ = ["LossyLink"]

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST and not FIN


class LossyLink:
    """Passes requests to a broker and its answers back, over any number of connections.

    `swallow` loses the answer to one request: the broker has done it, and the client never hears of it.
    `delay_s` holds every request and answer up. `drop` passes nothing on while connections stay open, as a
    cable that was pulled; `mend` ends it. `cut` closes every connection, with `reset` as after a crash.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.swallow: bytes | None = None  # once: a request with these bytes in it; its connection is cut
        self.swallowed = 0
        self.delay_s = 0.0
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.mend()
        serving = [task for task in self._open.values() if task is not None]
        self.cut()
        await asyncio.gather(*serving, return_exceptions=True)

    def drop(self) -> None:
        self._passing.clear()

    def mend(self) -> None:
        self._passing.set()

    def cut(self, *, reset: bool = False) -> int:
        """End every connection; how many there were."""
        ended = list(self._open)
        for writer in ended:
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort() if reset else writer.close()
        return len(ended)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        inside_writer: asyncio.StreamWriter | None = None
        try:
            inside_reader, inside_writer = await asyncio.open_connection("127.0.0.1", self.target)
            lost: deque[bool] = deque()  # of the requests whose answers are to come, in their order
            pumps = [
                asyncio.create_task(self._requests(reader, inside_writer, lost)),
                asyncio.create_task(self._answers(inside_reader, writer, lost)),
            ]
            _, running = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in running:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except ConnectionError:
            pass  # the broker is away
        finally:
            del self._open[writer]
            for end in (writer, inside_writer):
                if end is not None:
                    end.close()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: deque[bool]
    ) -> None:
        while request := await frame(reader):
            await self._pass()
            lost.append(self.swallow is not None and self.swallow in request)
            if lost[-1]:
                self.swallow = None
            writer.write(request)
            await writer.drain()

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: deque[bool]
    ) -> None:
        while answer := await frame(reader):
            await self._pass()
            if lost.popleft():
                self.swallowed += 1
                return
            writer.write(answer)
            await writer.drain()

    async def _pass(self) -> None:
        await asyncio.sleep(self.delay_s)
        await self._passing.wait()


async def frame(reader: asyncio.StreamReader) -> bytes:
    """One length-prefixed request or answer of Kafka's protocol; empty at the connection's end."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head))
    return b""
