"""Reconciling: finding the keys whose tombstones were missed.

Compaction keeps the newest record of every key for ever, but a tombstone only for delete.retention.ms.
Whoever has not read that long may have missed one, and would keep the key for ever. What is left of it in the
log is nothing; so the topic is read from its beginning, and the live keys that no record names are deleted.

Nothing else is applied: what the index holds of a key that the log still has is its newest record, or will be
when ingestion comes to it. So searches never see older values meanwhile. Records that were rejected do not
count: a key that only those have left is dropped, as it would be in an index built anew.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .config import Settings
from .log import Log, Record
from .messages import decode_vectors
from .shard import Shard

__all__ = ["Reconciled", "reconcile"]

FETCH_S = 0.5  # as of ingestion


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconcile came to."""

    records: int  # read
    keys: int  # live when it began
    dropped: int  # of them, those that the topic does not have
    took_s: float


async def reconcile(settings: Settings, log: Log, shard: Shard, held: Collection[int]) -> Reconciled:
    """Drop what the partitions that are held do not have, beside ingestion and searches. Raises LogError.

    All of them are read, whichever was missed: a row does not know where it came from.
    """
    began = time.monotonic()
    topic = settings.topics.vectors
    keys = await shard.mark()
    begins, ends = await log.begin_offsets(topic), await log.end_offsets(topic)
    records = 0
    if keys:
        reader = await log.reader({(topic, partition): begins[partition] for partition in held})
        try:
            while any(reader.position(topic, partition) < ends[partition] for partition in held):
                fetched = await reader.fetch(settings.ingest.batch_records, FETCH_S)
                records += len(fetched)
                await shard.seen(await shard.beside(_named, fetched, settings.index.metric, shard))
        finally:
            await reader.close()
    dropped = await shard.drop_unseen()
    return Reconciled(records, keys, dropped, round(time.monotonic() - began, 3))


def _named(records: Sequence[Record], metric: str, shard: Shard) -> Sequence[bytes]:
    assert shard.dim is not None, "there are live keys"
    batch = decode_vectors(records, dim=shard.dim, metric=metric, model=shard.model, hook=shard.hook)
    return [*batch.keys, *batch.deleted]
