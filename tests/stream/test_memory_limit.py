"""The memory ceiling: ingestion pauses above it and says so, searches go on."""

import asyncio
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from driftline.errors import SearchFailed
from driftline.stream import memory_limit
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import open_log
from driftline.stream.memory_limit import MemoryLimit, anonymous_bytes
from structlog.testing import capture_logs

from .running import Place, eventually, gaussian

DIM = 8


async def test_a_service_above_its_limit(tmp_path: Path) -> None:
    """Nothing more is applied; searches are answered; a request for what waits in the log is dropped at its
    deadline and counted; without the limit the next start applies it."""
    url, vectors = f"local:{tmp_path / 'log'}", gaussian(100, DIM, 1)
    place = Place(url, "memory", tmp_path, index__dim=DIM)
    tight = Place(url, "memory", tmp_path, index__dim=DIM, memory_limit="1MiB", ingest__ready_lag=0)

    def says(field: str, value: object) -> Callable[[], dict[str, Any] | None]:
        def look() -> dict[str, Any] | None:
            status = tight.service.status()
            return status if status and status[field] == value else None

        return look

    with place.service.start():
        async with open_log(url) as log, FeedClient(log, place.vectors) as feed:
            await feed.upsert(["a"], vectors[:1])
        await eventually(place.service.caught_up, "caught up")
        assert place.service.stop() == 0
    with tight.service.start():
        async with (
            open_log(url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            token = await feed.upsert([f"v{row}" for row in range(100)], vectors)
            status = await eventually(says("paused", True), "paused")
            assert (status["ready"], status["records"]) == (False, 0)
            (event,) = tight.service.events("ingest.paused")
            assert event["anonymous_bytes"] > event["memory_limit"] == 1 << 20
            assert [hit.id for hit in (await client.search(vectors[0], k=5)).hits] == [b"a"]
            with pytest.raises(SearchFailed, match="no_reply"):
                await client.search(key="v1", after=token, deadline_ms=500)
            await eventually(says("expired", 1), "counted")
        assert tight.service.stop() == 0
    with place.service.start():
        assert (place.service.status() or {})["live"] == 101


async def test_ingestion_goes_on_below_nine_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause ends when there is room to spare, not as soon as the limit is met; and is told twice."""
    held = 100
    monkeypatch.setattr(memory_limit, "anonymous_bytes", lambda: held)
    monkeypatch.setattr(memory_limit, "LOOK_S", 0)
    with capture_logs() as events:
        limit = MemoryLimit(100, structlog.get_logger())
        await limit.room()
        held = 101
        waiting = asyncio.create_task(limit.room())
        for now in (101, 95, 91):
            held = now
            for _ in range(3):
                await asyncio.sleep(0)
            assert limit.paused
            assert not waiting.done()
        held = 90
        await asyncio.wait_for(waiting, 10)
        assert not limit.paused
        await MemoryLimit(None, structlog.get_logger()).room()
    assert [event["event"] for event in events] == ["ingest.paused", "ingest.resumed"]


def test_what_counts(tmp_path: Path) -> None:
    """Memory of our own does, a mapped file does not."""
    size = 64 << 20
    path = tmp_path / "mapped"
    path.write_bytes(bytes(size))
    before = anonymous_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        assert not any(mapped[:: mmap.PAGESIZE])  # every page is in memory now
        assert anonymous_bytes() - before < size // 8
    own = bytearray(b"x" * size)
    assert anonymous_bytes() - before > size - size // 8
    del own
