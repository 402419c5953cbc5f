"""`driftline search`: questions to a running service, over its topics, or to a snapshot."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .clients import SearchClient
from .config import Settings
from .feeding import progress_bar
from .messages import Hit, Offsets, Reply
from .opening import open_configured
from .sources import open_source

if TYPE_CHECKING:
    from .as_of import SnapshotClient

__all__ = ["search"]

IN_FLIGHT = 32  # questions asked at once
FILE_BATCH = 1000

Question = tuple[str, NDArray[np.float32] | None, str | None]  # name, vector, key


async def search(
    settings: Settings,
    *,
    vector: str | None = None,
    key: str | None = None,
    file: Path | None = None,
    dataset: str | None = None,
    limit: int | None = None,
    k: int = 10,
    ef: int | None = None,
    after: str | None = None,
    deadline_ms: int = 5000,
    include: Collection[str] = (),
    filter: str | None = None,
    as_of: int | None = None,
) -> dict[str, Any]:
    """Ask the service, or snapshot `as_of`, and gather replies in the order of the questions. Raises
    SearchFailed for the first that fails."""
    given = [
        name for name, value in (("--vector", vector), ("--key", key), ("--file", file)) if value is not None
    ]
    if len(given) != 1:
        raise InvalidInput(
            f"search needs one of --vector, --key and --file, not {' and '.join(given) or 'none'}"
        )
    token = None if after is None else _offsets(after)
    chosen = None if filter is None else _filter(filter)
    if token is not None and as_of is not None:
        raise InvalidInput("--after waits for a running service; a snapshot of --as-of stays what it is")
    async with _client(settings, as_of) as client:
        waits: list[float] = []

        async def ask(question: Question) -> dict[str, Any]:
            name, query, of = question
            began = time.monotonic()
            reply = await client.search(
                query, key=of, k=k, ef=ef, after=token, deadline_ms=deadline_ms, include=include,
                filter=chosen,
            )  # fmt: skip
            waits.append(1000 * (time.monotonic() - began))
            return {"query": name, **_plain(reply)}

        replies: list[dict[str, Any]] = []
        with progress_bar(disable=file is None) as progress:
            bar = progress.add_task("asking", total=None, note="")
            for questions in _questions(vector, key, file, dataset, limit):
                progress.update(bar, note="")
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(ask(question)) for question in questions]
                replies += [task.result() for task in tasks]
                progress.update(bar, completed=len(replies))
    timing = {"median": round(statistics.median(waits), 2), "max": round(max(waits), 2)} if waits else {}
    return {"replies": replies, "round_trip_ms": timing}


@asynccontextmanager
async def _client(settings: Settings, as_of: int | None) -> AsyncGenerator["SearchClient | SnapshotClient"]:
    if as_of is not None:
        from .as_of import SnapshotClient  # with the core, which questions to a service need not load

        async with SnapshotClient(settings, as_of) as client:
            yield client
        return
    topics, model = settings.topics, settings.index.embedding_model
    async with (
        open_configured(settings) as log,
        SearchClient(log, topics.search, topics.replies, model=model, max_in_flight=IN_FLIGHT) as client,
    ):
        yield client


def _questions(
    vector: str | None, key: str | None, file: Path | None, dataset: str | None, limit: int | None
) -> Iterator[list[Question]]:
    if key is not None:
        yield [(key, None, key)]
    elif vector is not None:
        yield [("vector", _vector(vector), None)]
    elif file is not None:
        with open_source(file, dataset=dataset) as source:
            asked = 0
            for batch in source.batches(FILE_BATCH):
                left = len(batch.ids) if limit is None else limit - asked
                names = [name.decode(errors="replace") for name in batch.ids[:left]]
                if names:
                    yield [(name, row, None) for name, row in zip(names, batch.vectors[:left], strict=True)]
                asked += len(names)


def _vector(text: str) -> NDArray[np.float32]:
    try:
        return np.array(json.loads(text), np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"--vector: expected a JSON array of numbers: {error}") from None


def _offsets(text: str) -> Offsets:
    try:
        given = json.loads(text)
        return {str(topic): {int(p): int(o) for p, o in offsets.items()} for topic, offsets in given.items()}
    except (ValueError, TypeError, AttributeError):
        raise InvalidInput('--after: expected JSON like {"driftline.vectors": {"0": 1234}}') from None


def _filter(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f'--filter: expected JSON like {{"year": {{"gte": 2001}}}}: {error}') from None
    if not isinstance(given, dict):
        raise InvalidInput('--filter: expected a JSON object like {"year": {"gte": 2001}}')
    return cast("dict[str, Any]", given)


def _plain(reply: Reply) -> dict[str, Any]:
    return {
        "hits": [_hit(hit) for hit in reply.hits],
        "applied": {topic: dict(offsets) for topic, offsets in reply.applied.items()},
        "frame": reply.frame,
        "took_us": reply.took_us,
        **({"partial": list(reply.partial)} if reply.partial else {}),
    }


def _hit(hit: Hit) -> dict[str, Any]:
    plain: dict[str, Any] = {"id": hit.id.decode(errors="backslashreplace"), "distance": hit.distance}
    if hit.attributes is not None:
        plain["attributes"] = hit.attributes
    if hit.vector is not None:
        plain["vector"] = hit.vector.tolist()
    return plain
