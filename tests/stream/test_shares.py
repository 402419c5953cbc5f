"""Ingestion and searches on the local log: neither starves the other."""

from pathlib import Path

from driftline.stream.clients import FeedClient
from driftline.stream.log import open_log

from .running import Place, eventually, gaussian
from .shares import catching_up, searching

ROWS, DIM = 12000, 32
CLIENTS = 32
LEAST = 0.1  # of what each does alone; docs/operations.md says what they have, this machine may be busy


async def test_ingestion_and_searches_leave_room_for_each_other(tmp_path: Path) -> None:
    """A service that catches up with a topic while clients ask without a pause: both go on, each with a fair
    part of the rate that it has alone."""
    url, rows = f"local:{tmp_path / 'log'}", gaussian(ROWS, DIM, 0)
    places = [
        Place(url, "shares", tmp_path / name, index__dim=DIM, logging__level="warning") for name in "ab"
    ]
    async with open_log(url) as log:
        for place in places:
            place.service.data_dir.parent.mkdir()
        names = places[0]
        await log.create_topic(names.vectors, compacted=True)
        for topic in (names.search, names.replies):
            await log.create_topic(topic)
        async with FeedClient(log, names.vectors) as feed:
            await feed.upsert([b"%d" % row for row in range(ROWS)], rows)
        first, last = ROWS // 4, ROWS
        with places[0].service.start(ready=False):
            alone = await catching_up(log, places[0], rows, 0, first, last)
            await eventually(places[0].service.caught_up, "caught up")
            searches_alone = await searching(log, places[0], rows, CLIENTS, 1.0)
        with places[1].service.start(ready=False):
            both = await catching_up(log, places[1], rows, CLIENTS, first, last)
    print(f"rows/s {alone.rows:.0f}, beside searches {both.rows:.0f}; "
          f"searches/s {searches_alone:.0f}, beside ingestion {both.searches:.0f}")  # fmt: skip
    assert both.rows > LEAST * alone.rows
    assert both.searches > LEAST * searches_alone
