"""What a good engineer writes in an afternoon with aiokafka and hnswlib, speaking driftline's messages.

    python plain_consumer.py BOOTSTRAP DIM ROWS

It follows `driftline.vectors` from its beginning and answers `driftline.search`, `after` included, and says
each step as a JSON line. Fair to itself: whole batches are taken from the consumer, vectors become one array
without a copy per record, hnswlib works in threads without the interpreter's lock, its capacity is known
beforehand, and a search waits for no more than LOCKED rows (hnswlib allows no search beside an insertion).
hnswlib keeps the raw vectors. Unlike driftline it checks nothing of what it reads, knows bare vectors only,
keeps no snapshot, commits no offsets, and writes no dead letters.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hnswlib
import msgpack
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

VECTORS, SEARCH = "driftline.vectors", "driftline.search"
BATCH = 512  # records of one step, as driftline's
LOCKED = 32  # rows inserted while searches wait: some 10 ms
SEARCHERS = 2
M, EF_CONSTRUCTION = 16, 200


class Collection:
    """Vectors by key. Each version has a label of its own: hnswlib mixes labels up that come back."""

    def __init__(self, dim: int, rows: int) -> None:
        self.dim = dim
        self.index = hnswlib.Index("l2", dim)
        self.index.init_index(
            rows, M=M, ef_construction=EF_CONSTRUCTION, random_seed=0, allow_replace_deleted=True
        )
        self.labels: dict[bytes, int] = {}
        self.keys: dict[int, bytes] = {}
        self.next = 0
        self.lock = threading.Lock()

    def apply(self, records: Sequence[Any]) -> None:
        """The last record of a key counts."""
        last = {record.key: record.value for record in records}
        kept = [(key, value) for key, value in last.items() if value is not None]
        for key, value in last.items():
            if value is None:
                self.delete(key)
        rows = np.frombuffer(b"".join(value for _, value in kept), "<f4").reshape(-1, self.dim)
        for first in range(0, len(kept), LOCKED):
            self.upsert([key for key, _ in kept[first : first + LOCKED]], rows[first : first + LOCKED])

    def upsert(self, keys: Sequence[bytes], rows: np.ndarray[Any, Any]) -> None:
        with self.lock:
            labels = range(self.next, self.next + len(keys))
            self.next += len(keys)
            if self.index.get_current_count() + len(keys) > self.index.get_max_elements():
                self.index.resize_index(2 * self.index.get_max_elements())
            self.index.add_items(rows, list(labels), num_threads=1, replace_deleted=True)
            for key, label in zip(keys, labels, strict=True):
                self.forget(key)
                self.labels[key] = label
                self.keys[label] = key

    def delete(self, key: bytes) -> None:
        with self.lock:
            self.forget(key)

    def forget(self, key: bytes) -> None:
        label = self.labels.pop(key, None)
        if label is not None:
            self.index.mark_deleted(label)
            del self.keys[label]

    def search(self, query: np.ndarray[Any, Any], k: int, ef: int) -> list[dict[str, object]]:
        with self.lock:
            k = min(k, len(self.labels))
            if k == 0:
                return []
            self.index.set_ef(max(ef, k))
            labels, distances = self.index.knn_query(query, k, num_threads=1)
            return [
                {"id": self.keys[label], "distance": distance}
                for label, distance in zip(labels[0].tolist(), distances[0].tolist(), strict=True)
            ]


class Consumer:
    def __init__(self, bootstrap: str, dim: int, rows: int) -> None:
        self.bootstrap = bootstrap
        self.collection = Collection(dim, rows)
        self.writer = ThreadPoolExecutor(1)
        self.searchers = ThreadPoolExecutor(SEARCHERS)
        self.applied: dict[int, int] = {}
        self.moved = asyncio.Event()

    async def run(self) -> None:
        async with (
            AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", linger_ms=0) as producer,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self.follow())
            async for record in await self.consumer(SEARCH):
                group.create_task(self.answer(producer, record))

    async def consumer(self, topic: str) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest",
            fetch_max_wait_ms=100, max_partition_fetch_bytes=4 << 20, isolation_level="read_committed",
        )  # fmt: skip
        await consumer.start()
        return consumer

    async def follow(self) -> None:
        consumer = await self.consumer(VECTORS)
        say("ingest.catching_up")
        loop = asyncio.get_running_loop()
        while True:
            batches = await consumer.getmany(timeout_ms=500, max_records=BATCH)
            for place, records in batches.items():
                await loop.run_in_executor(self.writer, self.collection.apply, records)
                self.applied[place.partition] = records[-1].offset + 1
            moved, self.moved = self.moved, asyncio.Event()
            moved.set()

    async def answer(self, producer: AIOKafkaProducer, record: Any) -> None:
        request = msgpack.unpackb(record.value)
        headers = dict(record.headers)
        after = request.get("after", {}).get(VECTORS, {})
        while any(self.applied.get(int(partition), 0) < offset for partition, offset in after.items()):
            await self.moved.wait()
        query = np.frombuffer(request["vector"], "<f4")
        hits = await asyncio.get_running_loop().run_in_executor(
            self.searchers, self.collection.search, query, request.get("k", 10), request.get("ef", 64)
        )
        reply = {"hits": hits, "applied": {VECTORS: {str(p): o for p, o in self.applied.items()}},
                 "frame": 0, "took_us": 0}  # fmt: skip
        await producer.send(
            headers["kafka_replyTopic"].decode(),
            msgpack.packb(reply),
            partition=int.from_bytes(headers["kafka_replyPartition"], "big"),
            headers=[
                ("content-type", b"application/msgpack"),
                ("driftline-version", b"1"),
                ("kafka_correlationId", headers["kafka_correlationId"]),
            ],
        )


def say(event: str) -> None:
    print(json.dumps({"event": event}), flush=True)


if __name__ == "__main__":
    asyncio.run(Consumer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run())
