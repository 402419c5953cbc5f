"""Spring's ReplyingKafkaTemplate, as applications use it, against a real broker and a running service."""

import asyncio
import base64
import json
from collections.abc import Iterator

import pytest
from driftline.stream.clients import FeedClient
from driftline.stream.log import open_log

from ..kafka.broker import KafkaBroker
from ..stream.running import Place, read_all
from .spring import GOLDEN, REQUEST, ask

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def place(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(f"kafka:{kafka.bootstrap}", "spring", tmp_path_factory.mktemp("spring"), index__dim=4)
    with place.service:
        place.service.start()
        yield place


@pytest.mark.parametrize("partition", [0, None], ids=["partition", "group"])
async def test_one_search_through_spring(place: Place, partition: int | None) -> None:
    """Asked with Spring's defaults, answered on the topic, partition and correlation id that Spring named.

    What Spring sent must still be what the golden file holds, names of topics and ids aside; if a new version
    of Spring sends something else, `python -m tests.spring.record` records it.
    """
    async with open_log(place.url) as log:
        async with FeedClient(log, place.vectors) as feed:
            token = await feed.upsert(
                ["near", "far", "farther"],
                [[1, -2, 0.5, 3.25], [1, -2, 0.5, 4.25], [9, 9, 9, 9]],
                [{"lang": "de"}, None, None],
            )
        request = json.dumps(json.loads(REQUEST) | {"after": token})
        bootstrap = place.url.removeprefix("kafka:")
        reply = json.loads(
            await asyncio.to_thread(ask, bootstrap, place.search, place.replies, partition, request)
        )
        assert [(hit["id"], hit["distance"], hit["attributes"]) for hit in reply["hits"]] == [
            ("near", pytest.approx(0, abs=1e-3), {"lang": "de"}),
            ("far", pytest.approx(1, abs=1e-3), {}),
        ]
        assert reply["applied"].keys() == {place.vectors}
        asked = (await read_all(log, place.search))[-1]
    golden = json.loads(GOLDEN.read_text())["group" if partition is None else "partition"]
    same = dict(golden["headers"]) | {"kafka_replyTopic": encoded(place.replies.encode())}
    if partition is not None:
        same["kafka_replyPartition"] = encoded(partition.to_bytes(4, "big"))
    sent = {name: encoded(value) for name, value in asked.headers}
    assert sent | {"kafka_correlationId": ""} == same | {"kafka_correlationId": ""}
    assert json.loads(asked.value or b"") == json.loads(request)


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
