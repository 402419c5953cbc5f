"""The service as a whole: lives, restarts, crashes, and starts that cannot be, on the local log and on a
real Kafka."""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.errors import LogError
from driftline.index.online import OnlineIndex
from driftline.snapshots.environment import Environment
from driftline.snapshots.store import SnapshotStore
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.local_layout import DATABASES
from driftline.stream.log import Draft, Log, open_log

from .oracle import digest
from .running import (
    Place,
    bare,
    command,
    eventually,
    fold,
    gaussian,
    log_url,
    read_all,
    until,
)

DIM = 16


@pytest.fixture(params=["local", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return log_url(request, tmp_path)


@pytest.fixture
async def log(url: str) -> AsyncIterator[Log]:
    async with open_log(url) as log:
        yield log


@pytest.fixture
def name() -> str:
    """Topics of its own for each test."""
    return f"service-{uuid.uuid4().hex[:8]}"


async def matches_fold(log: Log, place: Place) -> None:
    """Every key that a plain fold of the topic holds is live with its vector, and no other."""
    live = await fold(log, place.vectors)
    status = await eventually(place.service.caught_up, "caught up")
    assert status["live"] == len(live)
    assert status["digest"] == digest({key: (vector, b"") for key, vector in live.items()})
    keys = list(live)
    async with SearchClient(log, place.search, place.replies) as client:
        asked = [client.search(key=key, k=1, include=["vector"], deadline_ms=60_000) for key in keys]
        for key, reply in zip(keys, await asyncio.gather(*asked), strict=True):
            assert np.asarray(reply.hits[0].vector, "<f4").tobytes() == live[key]


async def test_feed_search_update_delete_restart(url: str, name: str, log: Log, tmp_path: Path) -> None:
    """The whole life of a collection: after a stop in order nothing is replayed, and nothing is lost."""
    place = Place(url, name, tmp_path, index__dim=DIM, topics__partitions=3)
    vectors = gaussian(1000, DIM, 1)
    with place.service.start():
        async with (
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            await feed.upsert([f"v{row}" for row in range(1000)], vectors)
            await feed.upsert([f"v{row}" for row in range(100)], -vectors[:100])
            token = await feed.delete([f"v{row}" for row in range(900, 1000)])
            everything = await feed.upsert([f"last{p}" for p in range(20)], gaussian(20, DIM, 2))
            after = {place.vectors: {**token[place.vectors], **everything[place.vectors]}}
            reply = await client.search(-vectors[7], k=1, after=after)
            assert reply.hits[0].id == b"v7"
        await matches_fold(log, place)
        assert place.service.stop() == 0
        events = [event["event"] for event in place.service.events()]
        assert events[-3:] == ["service.stopping", "snapshot.committed", "service.stopped"]

        status = place.service.start().status()
        assert status is not None
        assert (status["live"], status["records"]) == (920, 0)
        (loaded,) = place.service.events("snapshot.loaded")
        assert loaded["live"] == 920
        await matches_fold(log, place)
        committed = await log.committed(name, place.vectors)
        assert committed == await log.end_offsets(place.vectors)


@pytest.mark.parametrize("seed", [1])
async def test_kill_at_random_moments(url: str, name: str, log: Log, tmp_path: Path, seed: int) -> None:
    """kill -9 five times while it ingests inserts, updates and deletes and takes snapshots: the live set is
    the topic's."""
    place = Place(url, name, tmp_path, index__dim=DIM, snapshots__every_records=500)
    draw = random.Random(seed)
    vectors = gaussian(20_000, DIM, seed)
    with place.service.start():
        for batch in range(5):
            drafts: list[Draft] = []
            for row in range(batch * 4000, (batch + 1) * 4000):
                key = b"k%d" % draw.randrange(3000)
                gone = draw.random() < 0.2
                drafts.append(
                    Draft(place.vectors, key, None) if gone else bare(place.vectors, key, vectors[row])
                )
            for first in range(0, len(drafts), 500):
                await log.append(drafts[first : first + 500])
            wanted = draw.randrange(200, 3800)
            until(
                lambda wanted=wanted: (place.service.status() or {}).get("records", 0) >= wanted, "under way"
            )
            if batch == 0:
                until(lambda: place.service.events("snapshot.committed"), "a first snapshot")
            place.service.kill()
            place.service.start(ready=False)
        await matches_fold(log, place)
        assert place.service.stop() == 0
    assert place.service.events("snapshot.loaded"), "no restart began with a snapshot"
    with SnapshotStore.open(place.service.data_dir, dim=DIM, metric="l2") as store:
        snapshot = store.newest()
        assert snapshot is not None
        OnlineIndex.restore(snapshot.cut, store.open_raw()).check()


async def test_dead_letters_come_before_the_snapshot(url: str, name: str, log: Log, tmp_path: Path) -> None:
    """Killed right after a snapshot: each rejected record that the snapshot has passed is in the dead-
    letter topic."""
    place = Place(url, name, tmp_path, index__dim=DIM)
    with place.service.start():
        for _ in range(3):
            drafts = [
                bare(place.vectors, b"k%d" % row, vector) for row, vector in enumerate(gaussian(200, DIM, 3))
            ]
            drafts[::2] = [Draft(place.vectors, b"bad", b"\xc1")] * 100
            await log.append(drafts)
            until(lambda: (place.service.status() or {}).get("records", 0) >= 100, "under way")
            taken = command("snapshots", "take", "--json", data_dir=place.service.data_dir)
            place.service.kill()
            assert json.loads(taken.stdout)["snapshot"]["id"]
            offsets = json.loads(
                command("snapshots", "list", "--json", data_dir=place.service.data_dir).stdout
            )
            passed = offsets["snapshots"][-1]["offsets"][place.vectors]["0"]
            letters = await read_all(log, place.letters)
            lettered = {int(dict(letter.headers)["__connect.errors.offset"]) for letter in letters}
            bad = {
                r.offset for r in await read_all(log, place.vectors) if r.key == b"bad" and r.offset < passed
            }
            assert bad <= lettered
            place.service.start(ready=False)
        await eventually(place.service.caught_up, "caught up")


async def test_periodic_snapshots(url: str, name: str, log: Log, tmp_path: Path) -> None:
    """After so many records, and after so many seconds with a record; the old ones go."""
    place = Place(
        url, name, tmp_path, index__dim=DIM, snapshots__every_records=1000, snapshots__every_seconds=1.5,
        snapshots__keep=2,
    )  # fmt: skip
    with place.service.start():
        async with FeedClient(log, place.vectors) as feed:
            for first in range(3):
                rows = gaussian(1000, DIM, first)
                await feed.upsert([f"{first}-{row}" for row in range(1000)], rows)
                until(
                    lambda first=first: len(place.service.events("snapshot.committed")) > first, "by records"
                )
            await feed.upsert(["one"], gaussian(1, DIM, 9))
            until(lambda: place.service.events("snapshot.committed")[-1]["reason"] == "seconds", "by seconds")
        listed = json.loads(command("snapshots", "list", "--json", data_dir=place.service.data_dir).stdout)
        assert len(listed["snapshots"]) == 2
        assert listed["snapshots"][-1]["live"] == 3001


def failure(*flags: str, **settings: object) -> tuple[int, str]:
    """Exit code and sentence of a `serve` that cannot start."""
    done = command("serve", *flags, **settings)
    assert "Traceback" not in done.stdout + done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("driftline: ")
    return done.returncode, sentence


def test_a_directory_of_another_shape(tmp_path: Path) -> None:
    """Other dimension, metric or embedding model than configured: refused with both."""
    place = Place(
        f"local:{tmp_path / 'log'}", "shape", tmp_path, index__dim=DIM, index__embedding_model="one"
    )
    with place.service.start():
        asyncio.run(feed_some(place))
        assert place.service.stop() == 0
    common: dict[str, Any] = {
        "data_dir": place.service.data_dir,
        "log": place.url,
        "topics__vectors": place.vectors,
    }
    code, said = failure(index__dim=DIM + 1, **common)
    assert code == 5
    assert f"dimension {DIM}" in said
    assert f"dimension {DIM + 1}" in said
    code, said = failure(index__metric="cosine", **common)
    assert code == 5
    assert "metric l2" in said
    code, said = failure(index__embedding_model="two", **common)
    assert code == 5
    assert "one" in said
    assert "two" in said
    code, said = failure(data_dir=place.service.data_dir, log=place.url, topics__vectors="other")
    assert code == 5
    assert place.vectors in said
    with place.service.start("--set", "index.m=8"):
        (ignored,) = place.service.events("settings.ignored")
        assert (ignored["setting"], ignored["configured"], ignored["held"]) == ("index.m", 8, 16)


async def feed_some(place: Place) -> None:
    async with open_log(place.url) as log, FeedClient(log, place.vectors) as feed:
        await feed.upsert(["a", "b"], gaussian(2, DIM, 1))
        await eventually(lambda: (place.service.caught_up() or {}).get("live") == 2, "caught up")


def test_a_directory_in_use(tmp_path: Path) -> None:
    """Two services in one directory: the second is refused, and the first goes on answering."""
    place = Place(f"local:{tmp_path / 'log'}", "use", tmp_path)
    with place.service.start():
        code, said = failure(data_dir=place.service.data_dir, log=place.url)
        assert code == 5
        assert "in use by process" in said
        assert place.service.ready()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    """A file in its place, another program's files, a damaged environment: a sentence each."""
    file = tmp_path / "file"
    file.write_text("x")
    assert failure(data_dir=file)[0] == 5
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    code, said = failure(data_dir=other)
    assert code == 5
    assert "thesis.txt" in said
    damaged = tmp_path / "damaged"
    (damaged / "snapshots").mkdir(parents=True)
    (damaged / "snapshots" / "data.mdb").write_bytes(random.Random(1).randbytes(100_000))
    code, said = failure(data_dir=damaged, snapshots__on_damage="refuse")
    assert code == 5
    assert "move" in said


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    """Tried until the stated deadline, then an exit code and a sentence that names the address."""
    code, said = failure(data_dir=tmp_path / "data", log="kafka:127.0.0.1:1", broker__deadline_s=1)
    assert code == 3
    assert "127.0.0.1:1" in said


def test_a_topic_that_does_not_exist(url: str, name: str, tmp_path: Path) -> None:
    """Unless topics may be created, the sentence has the command that creates it."""
    settings: dict[str, Any] = {"data_dir": tmp_path / "data", "log": url, "topics__vectors": name}
    code, said = failure("--no-create-topics", **settings)
    assert code == 4
    assert name in said
    assert "--create-topics" in said
    if url.startswith("kafka"):
        assert "cleanup.policy=compact" in said


async def test_a_topic_that_was_recreated(tmp_path: Path) -> None:
    """The log ends before the snapshot's offsets: refused, never a silent jump."""
    place = Place(f"local:{tmp_path / 'log'}", "again", tmp_path)
    with place.service.start():
        await feed_some(place)
        place.service.stop()
    code, said = await asyncio.to_thread(
        failure,
        data_dir=place.service.data_dir,
        log=f"local:{tmp_path / 'other'}",
        topics__vectors=place.vectors,
    )
    assert code == 1
    assert "before the snapshot's 2" in said


def test_a_signal_while_starting(tmp_path: Path) -> None:
    """SIGTERM while it still tries to reach a broker: it ends at once and in order."""
    place = Place("kafka:127.0.0.1:1", "early", tmp_path, broker__deadline_s=60)
    with place.service.start(ready=False):
        until(lambda: place.service.events("service.started"), "started")
        assert place.service.stop() == 0
        assert place.service.events()[-1]["event"] == "service.stopped"


async def test_a_stop_that_takes_too_long(tmp_path: Path) -> None:
    """Ended after stop_s, said so, exit code 0; nothing is lost."""
    place = Place(f"local:{tmp_path / 'log'}", "slow", tmp_path, index__dim=DIM, stop_s=1)
    with place.service.start():
        async with open_log(place.url) as log, FeedClient(log, place.vectors) as feed:
            await feed.upsert(["a", "b"], gaussian(2, DIM, 1))
        await eventually(place.service.caught_up, "caught up")
        # Somebody else's transaction: no offset can be committed, no end of it.
        with Environment(tmp_path / "log", DATABASES, error=LogError) as held, held.write():
            assert place.service.stop() == 0
        assert place.service.events()[-1]["event"] == "service.stop_given_up"
        assert not place.service.events("service.stopped")
        status = place.service.start().status()
        assert status is not None
        assert status["live"] == 2
