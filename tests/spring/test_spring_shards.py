"""Three shards over 6 partitions of a real Kafka, one index of all of them beside, and Spring's
ReplyingKafkaTemplate before the gateway."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.log import Log, open_log

from ..kafka.broker import KafkaBroker
from ..stream.fleet import PARTITIONS, SHARDS, Fleet
from ..stream.running import DEADLINE_S, Place, Service, Vectors, gaussian, read_all
from .spring import ask

pytestmark = pytest.mark.kafka

DIM = 16
K = 10
BASE, QUERIES = gaussian(1500, DIM, 1), gaussian(100, DIM, 2)


@pytest.fixture(scope="module")
def fleet(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("shards")
    with Fleet(f"kafka:{kafka.bootstrap}", "sharded", directory, index__dim=DIM) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def one(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An instance that holds all partitions of the same topic, and is asked on topics of its own."""
    place = Place(fleet.url, "whole", tmp_path_factory.mktemp("whole"), index__dim=DIM)
    place.service = Service(
        place.service.data_dir.parent, log=fleet.url, topics__vectors=fleet.vectors, index__dim=DIM,
        topics__search=place.search, topics__replies=place.replies, topics__drift=place.drift,
        topics__dead_letters=place.letters, topics__create=True, broker__group="whole",
    )  # fmt: skip
    with place.service:
        place.service.start()
        yield place


def recall(hits: list[list[int]]) -> float:
    """Of the first ten neighbours, against numpy."""
    distances = ((BASE[None] - QUERIES[:, None]) ** 2).sum(2)
    near = np.argsort(distances, axis=1)[:, :K]
    return float(np.mean([len(set(found) & set(true)) / K for found, true in zip(hits, near, strict=True)]))


async def answers(log: Log, search: str, replies: str, token: Any) -> list[list[int]]:
    async with SearchClient(log, search, replies) as client:
        await client.search(QUERIES[0], k=K, after=token, deadline_ms=60_000)
        asked = [client.search(query, k=K, deadline_ms=60_000) for query in QUERIES]
        return [[int(hit.id) for hit in reply.hits] for reply in await asyncio.gather(*asked)]


async def through_spring(fleet: Fleet, query: Vectors) -> tuple[dict[str, Any], int]:
    """The reply that Spring took, and how many were sent to its request."""
    request = json.dumps({"vector": query.tolist(), "k": K})
    servers = fleet.url.removeprefix("kafka:")
    async with open_log(fleet.url) as log:
        before = await correlations(log, fleet.search)
        taken = await asyncio.to_thread(ask, servers, fleet.search, fleet.replies, 0, request)
        (asked,) = await correlations(log, fleet.search) - before
        return json.loads(taken), (await correlations(log, fleet.replies))[asked]


async def correlations(log: Log, topic: str) -> Counter[bytes]:
    return Counter(dict(record.headers)["kafka_correlationId"] for record in await read_all(log, topic))


async def test_the_answers_of_one_index_and_one_reply_to_spring(fleet: Fleet, one: Place) -> None:
    """Recall is that of one instance; a Spring client gets one merged reply; one shard killed, it is flagged
    as partial, and whole again after the restart."""
    async with open_log(fleet.url) as log:
        async with FeedClient(log, fleet.vectors) as feed:
            token = await feed.upsert([str(row) for row in range(len(BASE))], BASE)
        assert token[fleet.vectors].keys() == set(range(PARTITIONS))
        whole = recall(await answers(log, one.search, one.replies, token))
        merged = recall(await answers(log, fleet.search, fleet.replies, token))
        assert merged >= whole - 0.005
        assert whole > 0.9

    nearest = [str(row) for row in np.argsort(((BASE - QUERIES[0]) ** 2).sum(1))[:3]]
    reply, sent = await through_spring(fleet, QUERIES[0])
    assert [hit["id"] for hit in reply["hits"]][:3] == nearest
    assert reply["applied"][fleet.vectors].keys() == {str(partition) for partition in range(PARTITIONS)}
    assert "partial" not in reply
    assert sent == 1

    service = fleet.shards[1].service
    service.kill()
    reply, sent = await through_spring(fleet, QUERIES[0])
    assert reply["partial"] == list(SHARDS[1])
    assert len(reply["hits"]) == K
    assert sent == 1

    await asyncio.to_thread(service.start)
    async with open_log(fleet.url) as log, SearchClient(log, fleet.search, fleet.replies) as client:
        async with asyncio.timeout(DEADLINE_S):
            while (await client.search(QUERIES[0], k=3)).partial:
                pass
        again = recall(await answers(log, fleet.search, fleet.replies, token))
        assert again >= whole - 0.005
