"""A disk that takes nothing more: ingestion pauses and says so, searches go on, and it goes on by itself.

The limit on the size of a file stands for the disk: it may be set and lifted while a service runs.
"""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import open_log

from .running import Place, eventually, gaussian

DIM = 8
FULL_BYTES = 8 << 20  # the log fits, and the rows of a segment lie behind it: its hashes take 22 MB


async def test_a_full_disk(tmp_path: Path) -> None:
    """Inserts and deletes wait, what was there is found, a snapshot fails and is told; with room again all is
    applied, and a stop meanwhile ends in order."""
    url, vectors = f"local:{tmp_path / 'log'}", gaussian(100, DIM, 1)
    place = Place(url, "disk", tmp_path, index__dim=DIM, ingest__ready_lag=0)

    def says(field: str, value: object) -> Callable[[], dict[str, Any] | None]:
        def look() -> dict[str, Any] | None:
            status = place.service.status()
            return status if status and status[field] == value else None

        return look

    def limit(size: int) -> None:
        hard = resource.prlimit(place.service.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(place.service.pid, resource.RLIMIT_FSIZE, (size, hard))

    with place.service.start():
        async with (
            open_log(url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            await feed.upsert(["a"], vectors[:1])
            await eventually(place.service.caught_up, "caught up")
            limit(FULL_BYTES)
            token = await feed.upsert([f"v{row}" for row in range(100)], vectors)
            await feed.delete(["a"])
            status = await eventually(says("paused", True), "paused")
            assert not status["ready"]
            (event,) = place.service.events("ingest.paused")
            assert (event["reason"], event["level"]) == ("storage", "error")
            assert "cannot store vectors" in event["error"]
            assert [hit.id for hit in (await client.search(vectors[0], k=5)).hits] == [b"a"]
            limit(resource.RLIM_INFINITY)
            reply = await client.search(vectors[3], k=1, after=token, deadline_ms=60_000)
            assert [hit.id for hit in reply.hits] == [b"v3"]
            status = await eventually(place.service.caught_up, "caught up")
            assert (status["live"], status["paused"]) == (100, False)
            assert len(place.service.events("ingest.resumed")) == 1
            limit(FULL_BYTES)
            await feed.upsert(["b"], vectors[:1])
            await eventually(says("paused", True), "paused again")
        assert place.service.stop() == 0
    with place.service.start():
        assert (place.service.status() or {})["live"] == 101
