"""Ingestion: what becomes of records, good and bad, on the local log and on a real Kafka."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline.errors import LogError
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.ingest import starting_offsets
from driftline.stream.log import Draft, Log, Record, open_log

from .running import Place, bare, eventually, gaussian, log_url, read_all, reasons

DIM = 8
MODEL = "minilm"
JSON = (("content-type", b"application/json"),)
BARE = (("content-type", b"application/octet-stream"),)
GOOD = [1.0] * DIM


@pytest.fixture(scope="module", params=["local", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One service for the tests of this file: cosine, so that a zero vector is bad too."""
    directory = tmp_path_factory.mktemp("ingest")
    url = log_url(request, directory)
    place = Place(
        url, "ingest", directory, index__dim=DIM, index__metric="cosine", index__embedding_model=MODEL
    )
    with place.service.start():
        yield place


@pytest.fixture
async def log(place: Place) -> AsyncIterator[Log]:
    async with open_log(place.url) as log:
        yield log


def packed(**fields: object) -> bytes:
    return msgpack.packb(fields)


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


BAD: dict[str, tuple[str, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]] = {
    "undecodable msgpack": ("undecodable_value", b"a", b"\xc1nonsense", ()),
    "undecodable json": ("undecodable_value", b"a", b"{nonsense", ()),
    "no map": ("undecodable_value", b"a", msgpack.packb([1, 2, 3]), ()),
    "unknown content type": ("unknown_content_type", b"a", b"<vector/>", (("content-type", b"text/xml"),)),
    "schema registry framing": ("schema_registry_framing", b"a", b"\0\0\0\0\x07avro", ()),
    "wrong dimension": ("wrong_dimension", b"a", packed(vector=[1.0] * (DIM + 1)), ()),
    "wrong dimension, bare": ("wrong_dimension", b"a", floats(1, 2, 3), BARE),
    "NaN": ("not_finite", b"a", floats(*GOOD[1:], float("nan")), BARE),
    "infinity": ("not_finite", b"a", packed(vector=floats(*GOOD[1:], float("inf"))), ()),
    "zero vector under cosine": ("zero_vector", b"a", floats(*[0.0] * DIM), BARE),
    "empty key": ("empty_key", b"", floats(*GOOD), BARE),
    "oversized key": ("oversized_key", b"k" * 512, floats(*GOOD), BARE),
    "another model": ("other_model", b"a", floats(*GOOD), (*BARE, ("embedding-model", b"ada"))),
    "no vector": ("no_vector", b"a", json.dumps({"attributes": {}}).encode(), JSON),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_record_becomes_a_dead_letter(place: Place, log: Log, case: str) -> None:
    """With its reason, its place and its bytes; counted, logged; the key keeps what it had; the next record
    is applied."""
    code, key, value, headers = BAD[case]
    before = place.service.status()
    assert before is not None
    async with FeedClient(log, place.vectors, model=MODEL) as feed:
        await feed.upsert(["a"], gaussian(1, DIM, 1))
        (position,) = await log.append([Draft(place.vectors, key, value, headers)])
        token = await feed.upsert(["after"], gaussian(1, DIM, 2))
    async with SearchClient(log, place.search, place.replies, model=MODEL) as client:
        reply = await client.search(key="after", k=1, after=token)
        kept = await client.search(key="a", k=1, include=["vector"])
    assert [hit.id for hit in reply.hits] == [b"after"]
    assert np.array_equal(np.asarray(kept.hits[0].vector), gaussian(1, DIM, 1)[0])

    async def letter() -> Record:
        async with asyncio.timeout(10):
            while True:
                for record in await read_all(log, place.letters):
                    said = reasons(record)
                    if (said["topic"], said["offset"]) == (place.vectors, str(position.offset)):
                        return record

    found = await letter()
    said = reasons(found)
    assert (found.key, found.value) == (key, value)
    assert said["exception.class.name"] == f"driftline.{code}"
    assert said["partition"] == str(position.partition)
    assert f"@{position.offset}" in said["exception.message"]
    status = place.service.status()
    assert status is not None
    assert status["rejected"][code] == before["rejected"].get(code, 0) + 1
    assert any(event["code"] == code for event in place.service.events("record.rejected"))


async def test_bad_records_disturb_no_good_ones(place: Place, log: Log) -> None:
    """2,000 malformed among 2,000 good: as many dead letters, every good one live, the service alive."""
    cases = list(BAD.values())
    drafts: list[Draft] = []
    for row, vector in enumerate(gaussian(2000, DIM, 3)):
        _, key, value, headers = cases[row % len(cases)]
        drafts += [bare(place.vectors, b"mixed%d" % row, vector), Draft(place.vectors, key, value, headers)]
    before = len(await read_all(log, place.letters))
    live = len([d for d in drafts if (d.key or b"").startswith(b"mixed")])
    for first in range(0, len(drafts), 500):
        await log.append(drafts[first : first + 500])

    def settled() -> dict[str, Any] | None:
        status = place.service.caught_up()
        return status if status and not status["dead_letters_pending"] else None

    await eventually(settled, "caught up")
    letters = (await read_all(log, place.letters))[before:]
    assert Counter(reasons(letter)["exception.class.name"] for letter in letters) == Counter(
        f"driftline.{cases[row % len(cases)][0]}" for row in range(2000)
    )
    async with SearchClient(log, place.search, place.replies, model=MODEL) as client:
        asked = [client.search(key=f"mixed{row}", k=1) for row in range(0, live, 100)]
        for reply in await asyncio.gather(*asked):
            assert reply.hits


async def test_the_last_record_of_a_key_counts(place: Place, log: Log) -> None:
    """Insert, update, delete, insert again, in one batch and over several; forms and attributes as they
    were sent."""
    vectors = gaussian(4, DIM, 4)
    form = {"vector": vectors[3].tolist(), "attributes": {"title": "four", "tags": [1, 2]}}
    await log.append([bare(place.vectors, b"updated", vectors[0]), bare(place.vectors, b"gone", vectors[1])])
    await log.append([bare(place.vectors, b"updated", vectors[2]), Draft(place.vectors, b"gone", None)])
    async with (
        FeedClient(log, place.vectors) as feed,
        SearchClient(log, place.search, place.replies) as client,
    ):
        await log.append([Draft(place.vectors, b"updated", json.dumps(form).encode())])
        token = await feed.delete(["never there"])
        reply = await client.search(vectors[3], k=1, after=token, include=["attributes", "vector"])
        around = await client.search(vectors[1], k=500)
    (hit,) = reply.hits
    assert (hit.id, hit.attributes) == (b"updated", form["attributes"])
    assert np.array_equal(np.asarray(hit.vector), vectors[3])
    assert b"gone" not in [hit.id for hit in around.hits]


async def test_what_the_decoder_accepts_the_index_takes(place: Place, log: Log) -> None:
    """The largest component and the shortest length that are no bad record: applied, and the service goes
    on."""
    large, short = [8.1e17, *[0.0] * (DIM - 1)], [1.1e-19, *[0.0] * (DIM - 1)]
    await log.append([bare(place.vectors, b"large", large), bare(place.vectors, b"short", short)])
    async with (
        FeedClient(log, place.vectors) as feed,
        SearchClient(log, place.search, place.replies) as client,
    ):
        token = await feed.delete(["never there"])
        for key in ("large", "short"):
            assert (await client.search(key=key, k=1, after=token)).hits
        await feed.delete(["large", "short"])


async def test_the_first_usable_vector_gives_dimension_and_model(tmp_path: Path) -> None:
    """Nothing configured: bad records before it are refused for what is wrong with them, later ones are
    measured by it."""
    url = f"local:{tmp_path / 'log'}"
    place = Place(url, "first", tmp_path)
    with place.service.start():
        async with open_log(url) as log, SearchClient(log, place.search, place.replies) as client:
            assert (await client.search([1.0, 2.0], k=3)).hits == []
            named = (*BARE, ("embedding-model", b"ada"))
            await log.append([
                Draft(place.vectors, b"x", None),
                Draft(place.vectors, b"x", floats(1, float("nan"), 3), BARE),
                Draft(place.vectors, b"", floats(1, 2), BARE),
                Draft(place.vectors, b"first", floats(1, 2, 3), named),
                Draft(place.vectors, b"second", floats(1, 2), BARE),
                Draft(place.vectors, b"third", floats(1, 2, 4), (*BARE, ("embedding-model", b"other"))),
            ])  # fmt: skip
            status = await eventually(place.service.caught_up, "caught up")
            reply = await client.search([1.0, 2.0, 3.0], k=3)
        assert (status["dim"], status["embedding_model"], status["live"]) == (3, "ada", 1)
        assert status["rejected"] == {"not_finite": 1, "empty_key": 1, "wrong_dimension": 1, "other_model": 1}
        assert [hit.id for hit in reply.hits] == [b"first"]
        assert place.service.stop() == 0
        again = place.service.start().status()
        assert again is not None
        assert (again["dim"], again["embedding_model"], again["live"]) == (3, "ada", 1)


class Ends:
    """A log of which only the ends are known."""

    def __init__(self, begins: dict[int, int], ends: dict[int, int]) -> None:
        self._begins, self._ends = begins, ends

    async def begin_offsets(self, topic: str) -> dict[int, int]:
        return self._begins

    async def end_offsets(self, topic: str) -> dict[int, int]:
        return self._ends


async def test_where_ingestion_starts() -> None:
    """At the snapshot's offsets; a partition it does not know, from the beginning."""
    log: Any = Ends({0: 5, 1: 0, 2: 7}, {0: 10, 1: 10, 2: 7})
    assert await starting_offsets(log, "t", {}) == {0: 5, 1: 0, 2: 7}
    assert await starting_offsets(log, "t", {0: 5, 1: 10}) == {0: 5, 1: 10, 2: 7}


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [({0: 4}, "begins at offset 5"), ({0: 11}, "ends at offset 10"), ({3: 0}, "does not exist any more")],
)
async def test_offsets_that_are_gone_are_explained(snapshot: dict[int, int], reason: str) -> None:
    """Never a silent jump: what is missing, why, and the way out."""
    log: Any = Ends({0: 5}, {0: 10})
    with pytest.raises(LogError, match=reason) as refused:
        await starting_offsets(log, "t", snapshot)
    assert "empty data directory" in str(refused.value)
