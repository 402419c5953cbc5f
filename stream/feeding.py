"""`driftline feed`: a file of vectors onto the vectors topic."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .clients import FeedClient
from .config import Settings
from .opening import open_configured
from .sources import open_source
from .topics import prepare_topics

__all__ = ["feed", "progress_bar"]

BATCH = 500  # vectors written at once when no rate is asked for
TICK_S = 0.02  # with a rate: how often vectors are written, so that they come evenly


def progress_bar(disable: bool = False) -> Progress:
    """A progress bar on standard error; nothing where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=disable or not console.is_terminal,
        transient=True,
    )


async def feed(
    settings: Settings,
    file: Path,
    *,
    dataset: str | None = None,
    ids: str | None = None,
    limit: int | None = None,
    rate: float | None = None,
    attributes: bool = True,
) -> dict[str, Any]:
    """Produce a file's vectors. Raises InvalidInput for the file, LogError for the log."""
    most = BATCH if rate is None else max(1, min(BATCH, round(rate * TICK_S)))
    token: dict[str, dict[int, int]] = {}
    fed = 0
    with open_source(file, dataset=dataset, ids=ids) as source, progress_bar() as progress:
        total = source.rows if limit is None else min(limit, source.rows or limit)
        bar = progress.add_task(file.name, total=total, note="")
        async with open_configured(settings) as log:
            await prepare_topics(log, settings, [settings.topics.vectors])
            model = settings.index.embedding_model
            async with FeedClient(log, settings.topics.vectors, model=model) as client:
                began = time.monotonic()
                for batch in source.batches(most):
                    keep = len(batch.ids) if limit is None else min(len(batch.ids), limit - fed)
                    if keep <= 0:
                        break
                    beside: Sequence[dict[str, Any] | None] | None = batch.attributes if attributes else None
                    offsets = await client.upsert(
                        batch.ids[:keep], batch.vectors[:keep], beside and beside[:keep]
                    )
                    for topic, partitions in offsets.items():
                        token.setdefault(topic, {}).update(partitions)
                    fed += keep
                    elapsed = time.monotonic() - began
                    progress.update(bar, completed=fed, note=f"{fed / max(elapsed, 1e-9):,.0f}/s")
                    if rate is not None and fed / rate > elapsed:
                        await asyncio.sleep(fed / rate - elapsed)
    seconds = time.monotonic() - began
    return {
        "fed": fed,
        "topic": settings.topics.vectors,
        "log": settings.log_url,
        "seconds": round(seconds, 3),
        "per_second": round(fed / max(seconds, 1e-9), 1),
        "after": token,
    }
