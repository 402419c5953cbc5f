"""One batch of a partition, asked for by its offset and read by ourselves.

aiokafka's consumer decodes the names of headers as UTF-8 and fails on a record where that cannot be done; by
then it has dropped the good records before that one, and those of other partitions, and it fails again at the
same place for ever. Brokers take such records. Here such a name keeps its bytes as lone surrogates (PEP 383),
so that the record can be told of and stepped over. It costs Python per byte of framing: for the batch in
question only, and for single records that are looked up.
"""

from typing import Any

from aiokafka import TopicPartition, errors
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record import default_records
from aiokafka.record.legacy_records import LegacyRecordBatch

from .kafka_client import READ_COMMITTED, KafkaClient, check
from .log import Headers, Record

__all__ = ["as_record", "fetch_batch"]

WAIT_MS = 0  # what is there now
BATCH_BYTES = 1  # a broker gives a whole batch all the same: that of the offset, or the next there is
FRAME_BYTES = 12  # of a batch: its offset, 8 bytes, and the length of what follows, 4
MAGIC_AT = 16  # the batch's format; header names came with 2
internal: Any = default_records
Parser: Any = internal._DefaultRecordBatchPy  # in Python; the public name is the compiled one
consumed: Any = PartitionRecords
plain: Any = bytearray.__getitem__


async def fetch_batch(
    client: KafkaClient, topic: str, partition: int, offset: int
) -> tuple[list[Record], int]:
    """The committed records of the batch at an offset, from that offset on, and the next offset after them.

    No records, and the offset itself, where there is nothing yet or the offset is outside the log; no records
    and a later offset where there is a marker, or all was aborted or compacted away. Raises LogError.
    """

    async def attempt() -> tuple[list[Record], int]:
        leader = await client.leader(topic, partition)
        wanted = [(topic, [(partition, offset, BATCH_BYTES)])]
        request = FetchRequest(WAIT_MS, 1, BATCH_BYTES, READ_COMMITTED, wanted)
        response = await client.send(request, leader)
        _, code, *fields, stored = response.topics[0][1][0]
        if code == errors.OffsetOutOfRangeError.errno:
            return [], offset
        check(code, f"{topic}/{partition}")
        aborted = fields[-2 if response.API_VERSION >= 11 else -1]
        place = TopicPartition(topic, partition)
        found = consumed(place, Batches(stored or b""), aborted, offset, None, None, True, READ_COMMITTED)
        return [as_record(record) for record in found], found.next_fetch_offset

    return await client.ask(f"read {topic}/{partition} at offset {offset}", attempt)


def as_record(record: Any) -> Record:
    """A record of aiokafka's as ours."""
    headers: Headers = record.headers
    for _, value in record.headers:
        if value is None:  # seldom, and to make them anew takes longer than all the rest
            headers = tuple((name, value or b"") for name, value in record.headers)
            break
    return Record(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, headers
    )


class Batches:
    """The batches of a response, as aiokafka's MemoryRecords gives them."""

    def __init__(self, stored: bytes) -> None:
        self._rest = memoryview(stored)

    def has_next(self) -> bool:
        return FRAME_BYTES <= self._end <= len(self._rest)  # the last one may be cut off

    def next_batch(self) -> Any:
        batch, self._rest = self._rest[: self._end], self._rest[self._end :]
        magic = batch[MAGIC_AT]
        return Batch(batch) if magic >= 2 else LegacyRecordBatch(batch, magic)

    @property
    def _end(self) -> int:
        return FRAME_BYTES + int.from_bytes(self._rest[8:FRAME_BYTES]) if len(self._rest) > MAGIC_AT else 0


class Batch(Parser):
    """A batch whose headers may have any names."""

    def __iter__(self) -> Any:
        Parser.__iter__(self)  # takes the compression off
        self._buffer = Text(self._buffer)
        return self


class Text(bytearray):
    """Bytes that decode as UTF-8, or as what stands for bytes that are not."""

    def __getitem__(self, at: Any) -> Any:
        found = plain(self, at)
        return Text(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
        return super().decode(encoding, "surrogateescape")
