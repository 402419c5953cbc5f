"""Records on Kafka that clients cannot write and aiokafka cannot read: header names that are not UTF-8."""

import asyncio
import gzip
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.kafka_client import KafkaClient, check, connection_settings
from driftline.stream.kafka_log import KafkaReader
from driftline.stream.log import Draft, Log, Record, open_log

from ..kafka.broker import KafkaBroker
from .running import Place, bare, eventually, gaussian, read_all, reasons

pytestmark = pytest.mark.kafka

DIM = 4
DEADLINE_S = 30.0
STAND_IN, NAME = b"~~~~", b"\xff\xfe\xc3("
LENGTH_AT, CRC_AT, ATTRIBUTES_AT, RECORDS_AT = 8, 17, 21, 61  # bytes of a batch
GZIP = 1


async def append_poisoned(
    kafka: KafkaBroker, drafts: list[Draft], partition: int, *, packed: bool = False
) -> None:
    """Write drafts as one batch in which every header named ~~~~ has a name that is not UTF-8."""
    builder: Any = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 24)
    for offset, draft in enumerate(drafts):
        builder.append(offset, time.time_ns() // 1_000_000, draft.key, draft.value, list(draft.headers))
    batch = bytearray(builder.build())
    assert STAND_IN in batch
    batch = batch.replace(STAND_IN, NAME)
    if packed:
        batch = batch[:RECORDS_AT] + gzip.compress(batch[RECORDS_AT:])
        batch[LENGTH_AT : LENGTH_AT + 4] = (len(batch) - LENGTH_AT - 4).to_bytes(4)
        batch[ATTRIBUTES_AT : ATTRIBUTES_AT + 2] = GZIP.to_bytes(2)
    batch[CRC_AT : CRC_AT + 4] = calc_crc32c(bytes(batch[CRC_AT + 4 :])).to_bytes(4)
    client = KafkaClient(kafka.bootstrap, DEADLINE_S, connection_settings(kafka.bootstrap))
    await client.connect()
    try:
        topic = drafts[0].topic
        leader = await client.ask("leader", lambda: client.leader(topic, partition))
        request = ProduceRequest(None, -1, 10_000, [(topic, [(partition, bytes(batch))])])
        response = await client.send(request, leader)
        check(response.topics[0][1][0][1], topic)
    finally:
        await client.close()


def poisoned(topic: str, key: bytes, value: bytes) -> Draft:
    return Draft(topic, key, value, ((STAND_IN.decode(), b"content"), ("plain", b"p")))


async def read_both(log: Log, topic: str, most: int) -> list[Record]:
    """Both partitions to their ends, in fetches of at most so many records."""
    reader = await log.reader({(topic, 0): 0, (topic, 1): 0})
    assert isinstance(reader, KafkaReader)
    ends = await log.end_offsets(topic)
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while any(reader.position(topic, partition) < end for partition, end in ends.items()):
            fetched = await reader.fetch(most)
            assert len(fetched) <= most
            records += fetched
    await reader.close()
    return records


@pytest.mark.parametrize(("most", "packed"), [(1000, False), (3, False), (3, True)])
async def test_nothing_is_lost_around_it(kafka: KafkaBroker, most: int, packed: bool) -> None:
    """Good records before and behind it in its batch, in other batches and other partitions: each once, in
    order; the bad one with its bytes."""
    topic = f"poison-{uuid.uuid4().hex[:8]}"
    async with open_log(f"kafka:{kafka.bootstrap}") as log:
        await log.create_topic(topic, partitions=2)
        other = [Draft(topic, b"k", b"other %d" % row, partition=1) for row in range(20)]
        await log.append(other[:10])
        await log.append([Draft(topic, b"k", b"before", partition=0)])
        batch = [Draft(topic, b"k", b"in %d" % row) for row in range(10)]
        batch[4] = poisoned(topic, b"bad", b"poison")
        batch[7] = poisoned(topic, b"bad", b"more")
        await append_poisoned(kafka, batch, 0, packed=packed)
        await log.append([Draft(topic, b"k", b"behind", partition=0), *other[10:]])
        records = await read_both(log, topic, most)
        bad = await log.record_at(topic, 0, 5)
        assert await log.record_at(topic, 0, 99) is None
        assert (await log.record_at(topic, 0, 11) or bad) == [r for r in records if r.partition == 0][11]
    values = [draft.value for draft in batch]
    assert [r.value for r in records if r.partition == 0] == [b"before", *values, b"behind"]
    assert [r.offset for r in records if r.partition == 0] == list(range(12))
    assert [r.value for r in records if r.partition == 1] == [draft.value for draft in other]
    assert bad is not None
    assert bad in records
    name, content = bad.headers[0]
    assert (name.encode(errors="surrogateescape"), content) == (NAME, b"content")
    assert bad.headers[1] == ("plain", b"p")


async def test_it_becomes_a_dead_letter(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Among vectors: counted, logged, lettered with its place. Among requests: answered with the error. What
    follows is applied and answered; the service stays."""
    name = f"poison-{uuid.uuid4().hex[:8]}"
    place = Place(f"kafka:{kafka.bootstrap}", name, tmp_path, index__dim=DIM)
    vectors = gaussian(4, DIM, 1)
    with place.service.start():
        async with (
            open_log(place.url) as log,
            FeedClient(log, place.vectors) as feed,
            SearchClient(log, place.search, place.replies) as client,
        ):
            value = np.asarray(vectors[1], "<f4").tobytes()
            drafts = [bare(place.vectors, b"a", vectors[0]), poisoned(place.vectors, b"bad", value)]
            await append_poisoned(kafka, [*drafts, bare(place.vectors, b"b", vectors[2])], 0)
            await append_poisoned(kafka, [poisoned(place.search, b"q", b"{}")], 0)
            token = await feed.upsert(["after"], vectors[3:])
            reply = await client.search(vectors[2], k=10, after=token)
            assert sorted(hit.id for hit in reply.hits) == [b"a", b"after", b"b"]

            def settled() -> dict[str, Any] | None:
                status = place.service.caught_up()
                return status if status and not status["dead_letters_pending"] else None

            status = await eventually(settled, "letters")
            letters = await read_all(log, place.letters)
        (letter,) = letters
        said = reasons(letter)
        assert (said["topic"], said["partition"], said["offset"]) == (place.vectors, "0", "1")
        assert said["exception.class.name"] == "driftline.bad_header"
        assert dict(letter.headers)[r"\xff\xfe\xc3("] == b"content"
        assert letter.value == value
        assert status["rejected"] == status["failed"] == {"bad_header": 1}  # a request is answered
        assert place.service.stop() == 0
