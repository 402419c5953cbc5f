"""`driftline gateway`: a gateway by itself, for the shards of a collection. It keeps nothing on disk."""

import asyncio
from importlib.metadata import version

from .config import Settings
from .events import Logger
from .gateway import Gateway
from .http import Page, serve_http
from .log import Log
from .opening import open_configured
from .outbox import Outbox
from .stopping import on_signals, until_stopped
from .topics import prepare_topics

__all__ = ["serve_gateway"]


async def serve_gateway(settings: Settings, logger: Logger) -> None:
    """Answer until SIGTERM or SIGINT. Raises DriftlineError where it cannot start or go on."""
    logger.info(
        "gateway.started",
        version=version("driftline"),
        log=settings.log_url,
        topic=settings.topics.search,
        alias=settings.gateway.alias,
    )
    await until_stopped(_start(settings, logger))
    logger.info("gateway.stopped")


async def _start(settings: Settings, logger: Logger) -> None:
    task = asyncio.current_task()
    assert task is not None
    on_signals(task.cancel, settings.stop_s, logger)
    names = settings.topics
    async with open_configured(settings) as log:
        needed = [names.search, names.replies, names.dead_letters, names.shard_replies]
        needed += [names.vectors, names.shards] if settings.gateway.alias is None else [names.aliases]
        for topic in await prepare_topics(log, settings, needed):
            logger.info("topic.created", topic=topic, partitions=names.partitions)
        await _run(settings, log, logger)


async def _run(settings: Settings, log: Log, logger: Logger) -> None:
    outbox = Outbox(log, logger, settings.ingest.outbox_records, settings.ingest.outbox_bytes)
    letters = await log.describe(settings.topics.dead_letters)
    gateway = Gateway(settings, log, outbox, letters, logger)

    async def healthz() -> Page:
        """That the event loop turns: whatever else fails ends the process."""
        return Page(200, b"ok\n")

    async def readyz() -> Page:
        absent = gateway.status.absent
        if not absent:
            return Page(200, b"ready\n")
        return Page(503, f"not ready: partitions {', '.join(map(str, absent))} do not answer\n".encode())

    pages = {"/healthz": healthz, "/readyz": readyz}
    async with (
        serve_http(settings.http.host, settings.http.port, pages, logger),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(outbox.run())
        group.create_task(gateway.run())
