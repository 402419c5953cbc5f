"""What a topic of vectors comes to, by a plain consumer: nothing of driftline is used here."""

import asyncio
from hashlib import sha256
from typing import Any

import msgpack
from aiokafka import AIOKafkaConsumer, TopicPartition

__all__ = ["Fold", "Live", "digest"]

Live = dict[bytes, tuple[bytes, bytes]]  # key -> little-endian float32, and msgpack of attributes or b""
DEADLINE_S = 120.0


class Fold:
    """The live set of a topic, folded on from where it was each time it is asked for.

    Values are bare float32, or msgpack maps with `vector` as bytes and flat `attributes`.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._places = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._bootstrap = bootstrap
        self._live: Live = {}
        self._starts = dict.fromkeys(self._places, 0)
        self.records = 0

    @property
    def offsets(self) -> dict[str, int]:
        """Next offset of each partition, as a status has them."""
        return {str(place.partition): offset for place, offset in self._starts.items()}

    async def live(self) -> Live:
        """The last committed value of every key, up to the end of the topic as it is now.

        The end is that of uncommitted records: a commit is acknowledged before its markers stand in every
        partition, and until then a reader of committed ones would take an earlier end for the last.
        """
        ends = await self._ends()
        consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, isolation_level="read_committed", enable_auto_commit=False
        )
        await consumer.start()
        try:
            consumer.assign(self._places)
            for place, start in self._starts.items():
                consumer.seek(place, start)
            async with asyncio.timeout(DEADLINE_S):
                while any([await consumer.position(place) < ends[place] for place in self._places]):
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        for record in records:
                            self._take(record)
            self._starts = {place: await consumer.position(place) for place in self._places}
        finally:
            await consumer.stop()
        return dict(self._live)

    async def _ends(self) -> dict[TopicPartition, int]:
        consumer: Any = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            return await consumer.end_offsets(self._places)
        finally:
            await consumer.stop()

    def _take(self, record: Any) -> None:
        self.records += 1
        if record.value is None:
            self._live.pop(record.key, None)
        elif dict(record.headers)["content-type"] == b"application/octet-stream":
            self._live[record.key] = (record.value, b"")
        else:
            document = msgpack.unpackb(record.value)
            attributes = dict(sorted(document["attributes"].items()))
            self._live[record.key] = (document["vector"], msgpack.packb(attributes))


def digest(live: Live) -> str:
    """The digest of a live set, as docs/operations.md defines it."""
    total = 0
    for key, (vector, attributes) in live.items():
        row = (
            len(key).to_bytes(4, "little") + key + len(attributes).to_bytes(4, "little") + attributes + vector
        )
        total += int.from_bytes(sha256(row).digest()[:16], "little")
    return f"{total % 2**128:032x}"
