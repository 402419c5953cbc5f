"""Searches in a snapshot, exports that seed a replica, snapshots restored: by the command line, beside a
service and without one."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import open_log

from .running import Place, command, eventually, gaussian

DIM = 8
ROWS = 1500  # some of them as codes, with more than one slab


async def test_every_key_updated_and_deleted(tmp_path: Path) -> None:
    """The answers of a snapshot are those recorded when it was taken, after every key was updated, then
    deleted: beside the service and without it. The snapshot seeds a replica, which catches up; restored
    in place it is replayed to the same end."""
    url = f"local:{tmp_path / 'log'}"
    place = Place(url, "asof", tmp_path, index__dim=DIM, index__compress_after=500, search__recall_target=0)
    replica = Place(url, "asof", tmp_path / "replica", index__dim=DIM)
    old, queries = gaussian(ROWS, DIM, 1), gaussian(20, DIM, 2)
    keys = [f"v{row}" for row in range(ROWS)]
    np.save(tmp_path / "queries.npy", queries)
    export = tmp_path / "export"

    def driftline(*arguments: str, data_dir: Path = place.service.data_dir) -> dict[str, Any]:
        settings: dict[str, Any] = {"log": url, "data_dir": data_dir, "topics__vectors": place.vectors}
        done = command(*arguments, "--json", **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def as_of(snapshot: int) -> list[list[tuple[str, float]]]:
        asked = ("search", "--as-of", str(snapshot), "--file", str(tmp_path / "queries.npy"), "-k", "5")
        replies = driftline(*asked)["replies"]
        return [[(hit["id"], hit["distance"]) for hit in reply["hits"]] for reply in replies]

    async def recorded(client: SearchClient) -> list[list[tuple[str, float]]]:
        replies = [await client.search(query, k=5, deadline_ms=60_000) for query in queries]
        return [[(hit.id.decode(), hit.distance) for hit in reply.hits] for reply in replies]

    def take() -> int:
        return place.service.ask("snapshot")["snapshot"]["id"]

    with place.service.start():
        async with (
            open_log(url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            await feed.upsert(keys, old)
            await eventually(place.service.caught_up, "caught up")
            first, answers = await asyncio.to_thread(take), await recorded(client)
            await feed.upsert(keys, gaussian(ROWS, DIM, 3))
            await eventually(place.service.caught_up, "caught up")
            second, newer = await asyncio.to_thread(take), await recorded(client)
            await feed.delete(keys)
            await feed.upsert(["last"], old[:1])
            await eventually(place.service.caught_up, "caught up")
            await asyncio.to_thread(take)
        assert await asyncio.to_thread(as_of, first) == answers
        assert await asyncio.to_thread(as_of, second) == newer
        digest = (place.service.status() or {})["digest"]
        driftline("snapshots", "export", str(export), "--at", str(first))
        refused = command("snapshots", "prune", data_dir=place.service.data_dir)
        assert refused.returncode == 5
        assert "in use by process" in refused.stderr
        assert place.service.stop() == 0
    assert await asyncio.to_thread(as_of, first) == answers
    wrong = command("search", "--as-of", "99", "--key", "v1", data_dir=place.service.data_dir)
    assert (wrong.returncode, "there is no snapshot 99" in wrong.stderr) == (5, True)

    driftline("snapshots", "import", str(export), data_dir=replica.service.data_dir)
    with replica.service.start():
        (loaded,) = replica.service.events("snapshot.loaded")
        assert (loaded["id"], loaded["live"]) == (first, ROWS)
        assert (replica.service.status() or {})["digest"] == digest

    driftline("snapshots", "restore", "--at", str(second))
    with place.service.start():
        loaded = place.service.events("snapshot.loaded")[-1]
        assert loaded["live"] == ROWS
        assert (place.service.status() or {})["digest"] == digest
        assert place.service.stop() == 0
    kept = driftline("snapshots", "prune", "--keep", "1")["kept"]
    assert [info["id"] for info in driftline("snapshots", "list")["snapshots"]] == kept
    assert len(kept) == 1


def test_what_an_import_refuses(tmp_path: Path) -> None:
    """A file that is no export, and one that is not there: a sentence each."""
    (tmp_path / "file").write_bytes(b"something else")
    for name, says in (("file", "not a snapshot that driftline exported"), ("none", "No such file")):
        done = command("snapshots", "import", str(tmp_path / name), data_dir=tmp_path / "data")
        assert (done.returncode, says in done.stderr) == (5, True), done.stderr
