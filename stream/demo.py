"""`driftline demo`: the whole path on real data, on the local log, in a temporary directory.

The data are sentence embeddings (384-d) of 6,000 dictionary glosses, then of 4,500 commit subjects of a
software project: one domain, then another. Their texts come along as attributes, so that hits can be read.
demo_data/ORIGIN.md says where they are from.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import DriftlineError
from .clients import FeedClient, SearchClient
from .config import Settings
from .control import ask
from .demo_stage import Child, Data
from .drift_words import sentence
from .feeding import progress_bar
from .history import drift
from .log import Log
from .messages import Offsets, Reply
from .opening import open_configured

__all__ = ["run"]

DOMAINS = ("dictionary glosses", "commit subjects")
BATCH = 250
K = 10
SHOWN_QUESTIONS = (1, 18, 21, 37)  # of the 40, two of each domain
SHOWN_HITS = 3
DEADLINE_S = 60.0  # for anything that the demo waits for


def run(as_json: bool) -> None:
    """Play the demo and print it, or with `as_json` only what it found. Raises DriftlineError."""
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    data = Data.load()
    with tempfile.TemporaryDirectory(prefix="driftline-demo-") as directory:
        child = Child(Path(directory))
        try:
            found = asyncio.run(_play(data, child, console))
        finally:
            child.kill()
    if as_json:
        print(json.dumps(found))


async def _play(data: Data, child: Child, console: Console) -> dict[str, Any]:
    began = time.monotonic()
    settings = Settings(data_dir=child.data_dir)
    topics = settings.topics
    _head(console, "A service on a local log", f"driftline serve --data-dir {child.data_dir} --metric cosine")
    started = await asyncio.to_thread(child.start)
    console.print(
        f"Ready after {started:.1f} s. It follows the topic {topics.vectors} and answers {topics.search}."
    )
    async with (
        open_configured(settings) as log,
        FeedClient(log, topics.vectors) as feed,
        SearchClient(log, topics.search, topics.replies) as client,
    ):
        fed = await _feed(data, child, feed, console)
        asked = await _ask(data, client, fed["after"], console)
        drifted = await _drift(settings, child, console)
        crashed = await _crash(data, child, feed, client, log, settings, console)
    seconds = round(time.monotonic() - began, 1)
    _head(console, "Where to go next", None)
    console.print(
        f"This took {seconds:.0f} s. Next:\n"
        "  driftline serve                         the same service, with its data in ./driftline-data\n"
        "  driftline feed FILE                     your vectors: .npy .npz .fvecs .hdf5 .parquet .jsonl\n"
        "  driftline search --key ID               ask it; `status`, `drift`, `snapshots` tell how it is\n"
        "  driftline serve --log kafka:HOST:PORT   on your Kafka, or `docker compose up` for one\n"
        "  docs/messages.md                        produce and ask from your own programs"
    )
    return {"seconds": seconds, "fed": fed["fed"], "ask": asked, "drift": drifted, "crash": crashed}


async def _feed(data: Data, child: Child, feed: FeedClient, console: Console) -> dict[str, Any]:
    rows = len(data.vectors)
    first = int((data.domain == 0).sum())
    _head(
        console,
        f"Feeding {rows:,} sentences, in order: {first:,} {DOMAINS[0]}, then {rows - first:,} {DOMAINS[1]}",
        None,
    )
    began = time.monotonic()
    after: Offsets = {}
    with progress_bar(disable=console.quiet) as progress:
        bar = progress.add_task("searchable", total=rows, note="")
        for start in range(0, rows, BATCH):
            span = range(start, min(start + BATCH, rows))
            attributes = [{"text": data.texts[row], "domain": DOMAINS[int(data.domain[row])]} for row in span]
            after = await feed.upsert(
                [str(row) for row in span], data.vectors[span.start : span.stop], attributes
            )
            progress.update(bar, completed=(await asyncio.to_thread(child.status))["live"])
        while (live := (await asyncio.to_thread(child.status))["live"]) < rows:
            progress.update(bar, completed=live)
            _check_time(began)
            await asyncio.sleep(0.1)
    seconds = time.monotonic() - began
    console.print(
        f"{rows:,} vectors of {data.vectors.shape[1]} dimensions are searchable after {seconds:.1f} s."
    )
    return {"fed": rows, "after": after}


async def _ask(data: Data, client: SearchClient, after: Offsets, console: Console) -> dict[str, Any]:
    _head(
        console,
        f"Asking {len(data.questions)} questions over the topics",
        "driftline search --vector '[...]' -k 10",
    )
    began = time.monotonic()
    replies = await _answers(data, client, after)
    seconds = time.monotonic() - began
    exact = data.exact(np.ones(len(data.vectors), np.bool_), K)
    for question in SHOWN_QUESTIONS:
        table = Table(
            title=f"[bold]{data.questions[question]}[/]", title_justify="left", box=None, pad_edge=False
        )
        table.add_column("driftline", ratio=1, overflow="ellipsis", no_wrap=True)
        table.add_column("exact", ratio=1, overflow="ellipsis", no_wrap=True)
        for hit, row in zip(replies[question].hits[:SHOWN_HITS], exact[question], strict=False):
            table.add_row(Text(data.texts[int(hit.id)]), Text(data.texts[int(row)]))
        console.print(table, soft_wrap=False, width=min(console.width, 150))
        console.print()
    recall = _recall(replies, exact)
    took_ms = 1000 * seconds / len(replies)
    search_ms = statistics.median(reply.took_us for reply in replies) / 1000
    console.print(
        f"Of the {K} exact nearest, {recall:.1%} were found (recall@{K}). {took_ms:.1f} ms a question over "
        f"the topics, {search_ms:.1f} ms of it in the service."
    )
    return {
        "questions": len(replies),
        f"recall_at_{K}": round(recall, 4),
        "round_trip_ms": round(took_ms, 2),
        "service_ms": round(search_ms, 2),
    }


async def _drift(settings: Settings, child: Child, console: Console) -> dict[str, Any]:
    _head(console, "What the service saw in the stream", "driftline drift")
    began = time.monotonic()
    while (await asyncio.to_thread(child.status))["reencoding"]:
        _check_time(began)
        await asyncio.sleep(0.1)
    shown = await drift(settings, limit=1000)
    for event in shown["events"]:
        if event["event"] != "reencode.progress":
            console.print(Text(f"  {event['event']:<18} {sentence(event)}"))
    now = shown["now"]
    frames = ", ".join(f"frame {f['frame']} ({f['kind']}) {f['rows']:,} rows" for f in now["frames"])
    loss = "" if now["fit_loss"] is None else f"; fit loss of the newest window {now['fit_loss']:.3f}"
    console.print(f"Now: {frames}{loss}.")
    return shown


async def _crash(
    data: Data,
    child: Child,
    feed: FeedClient,
    client: SearchClient,
    log: Log,
    settings: Settings,
    console: Console,
) -> dict[str, Any]:
    _head(console, "A snapshot, a few more records, then kill -9", "driftline snapshots take")
    snapshot = (await asyncio.to_thread(ask, child.data_dir, "snapshot", timeout_s=DEADLINE_S))["snapshot"]
    gone = [str(row) for row in range(0, 500, 5)]
    after = await feed.delete(gone)
    before = await _answers(data, client, after)
    status = await asyncio.to_thread(child.status)
    console.print(
        f"Snapshot {snapshot['id']} holds {snapshot['live']:,} vectors; {len(gone)} were deleted since."
    )
    await asyncio.to_thread(child.kill)
    restart = await asyncio.to_thread(child.start)
    again = await asyncio.to_thread(child.status)
    replies = await _answers(data, client, after)
    same = sum(
        [hit.id for hit in a.hits] == [hit.id for hit in b.hits] for a, b in zip(before, replies, strict=True)
    )
    end = await log.end_offsets(settings.topics.vectors)
    live = np.ones(len(data.vectors), np.bool_)
    live[[int(key) for key in gone]] = False
    recall = _recall(replies, data.exact(live, K))
    offsets = {str(partition): offset for partition, offset in end.items()}
    whole: dict[str, Any] = {"live": int(live.sum()), "applied": offsets}
    for name, wanted in whole.items():
        if not again[name] == status[name] == wanted:
            raise DriftlineError(f"the demo lost something: {name} is {again[name]}, and should be {wanted}")
    console.print(
        f"Killed and started again: ready after {restart:.1f} s, {again['records']} records replayed. "
        f"{status['live']:,} vectors before, {again['live']:,} after, every offset applied; {same} of "
        f"{len(replies)} questions get the same {K} answers (recall@{K} {recall:.1%}). Nothing was lost."
    )
    return {
        "snapshot_live": snapshot["live"],
        "live_before": status["live"],
        "live_after": again["live"],
        "replayed": again["records"],
        "restart_s": round(restart, 2),
        "same_answers": same,
        f"recall_at_{K}": round(recall, 4),
    }


async def _answers(data: Data, client: SearchClient, after: Offsets) -> list[Reply]:
    return [
        await client.search(query, k=K, after=after, deadline_ms=int(1000 * DEADLINE_S))
        for query in data.queries
    ]


def _recall(replies: Sequence[Reply], exact: NDArray[np.int64]) -> float:
    found = [
        len({int(hit.id) for hit in reply.hits} & set(rows.tolist()))
        for reply, rows in zip(replies, exact, strict=True)
    ]
    return sum(found) / exact.size


def _check_time(began: float) -> None:
    if time.monotonic() - began > DEADLINE_S:
        raise DriftlineError(f"the demo's service did not get there within {DEADLINE_S:.0f} s")


def _head(console: Console, title: str, command: str | None) -> None:
    console.print(f"\n[bold cyan]{title}[/]")
    if command:
        console.print(Text(f"$ {command}", style="dim"))
