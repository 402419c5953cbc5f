"""A small HTTP server for probes and scrapes: GET and HEAD of fixed paths, one request a connection.

What it shows is meant for the operator's network, and it knows no passwords: it listens on 127.0.0.1 unless
the settings say otherwise.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .events import Logger

__all__ = ["Page", "Pages", "serve_http"]

HEAD_BYTES = 8192  # of a request's first line and headers
LIMIT_S = 10.0  # for a whole exchange: Prometheus gives up after ten seconds too
CONNECTIONS = 64  # at once; further ones are closed at once


@dataclass(frozen=True, slots=True)
class Page:
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Awaitable[Page]]]

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@asynccontextmanager
async def serve_http(host: str, port: int, pages: Pages, logger: Logger) -> AsyncGenerator[None]:
    """Serve pages inside the `with` block; with port 0, nothing.

    Where the address cannot be had, this is said (`http.failed`) and the block runs all the same: what the
    service is for needs no HTTP, and two services on one machine may have been given one port.
    """
    if not port:
        yield
        return
    connections = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            if connections <= CONNECTIONS:
                async with asyncio.timeout(LIMIT_S):
                    writer.write(await answer(reader))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone, or slow
        finally:
            connections -= 1
            writer.close()

    async def answer(reader: asyncio.StreamReader) -> bytes:
        method, page = "GET", Page(400, b"this is no request\n")
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            page = await find(method, target.partition("?")[0])
        except (asyncio.LimitOverrunError, ValueError):
            pass
        return response(page, body=method != "HEAD")

    async def find(method: str, path: str) -> Page:
        if path not in pages:
            return Page(404, f"there are {', '.join(pages)}\n".encode())
        if method not in ("GET", "HEAD"):
            return Page(405, b"only GET and HEAD\n")
        try:
            return await pages[path]()
        except Exception as error:
            logger.error("http.error", path=path, reason=str(error), exc_info=error)
            return Page(500, b"a defect; the log says more\n")

    try:
        server = await asyncio.start_server(converse, host, port, limit=HEAD_BYTES)
    except OSError as error:
        logger.error("http.failed", host=host, port=port, reason=error.strerror or str(error))
        yield
        return
    logger.info("http.serving", host=host, port=port, paths=list(pages))
    try:
        yield
    finally:
        server.close()


def response(page: Page, *, body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {page.status} {REASONS[page.status]}\r\nContent-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (page.body if body else b"")
