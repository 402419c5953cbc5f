"""Searches in a snapshot: what the service would have answered when it was taken.

The snapshot is opened for reading, in this process, beside a service that may run in the same directory.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any, Self

from numpy.typing import ArrayLike

from ..errors import CorruptIndex, SearchFailed, SnapshotError
from ..index.online import OnlineIndex
from ..snapshots.segments import FileRawVectors
from ..snapshots.store import SnapshotInfo, SnapshotStore
from .answers import find
from .config import Settings
from .documents import Refused
from .log import Record
from .messages import Offsets, Rejection, Reply, Vectors, decode_request, encode_request

__all__ = ["SnapshotClient"]


class SnapshotClient:
    """Answers as a `SearchClient` does, from a snapshot."""

    def __init__(self, settings: Settings, snapshot: int) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self.ef = settings.search.ef

    def offer(self, query: Vectors) -> None:
        """Nothing is measured here."""

    async def __aenter__(self) -> Self:
        """Load the snapshot. Raises SnapshotError."""
        self._info, self._index, self._raw = await asyncio.to_thread(self._load)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._raw.close()

    async def search(
        self,
        vector: ArrayLike | None = None,
        *,
        key: bytes | str | None = None,
        k: int,
        ef: int | None = None,
        after: Offsets | None = None,
        deadline_ms: int,
        include: Collection[str] = (),
        filter: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The k nearest to `vector`, or to the vector of `key`, of the snapshot. Its offsets are what they
        are, and nobody waits: `after` and `deadline_ms` mean nothing. Raises SearchFailed."""
        draft = encode_request(
            self._settings.topics.search, vector=vector, key=key, k=k, ef=ef, include=include, filter=filter,
            model=self._settings.index.embedding_model,
        )  # fmt: skip
        return await asyncio.to_thread(
            self._answer, Record(draft.topic, 0, 0, -1, None, draft.value, draft.headers)
        )

    def _load(self) -> tuple[SnapshotInfo, OnlineIndex, FileRawVectors]:
        with (
            SnapshotStore.inspect(self._settings.data_dir) as store,
            store.view(self._snapshot) as (snapshot, raw),
        ):
            try:
                return snapshot.info, OnlineIndex.restore(snapshot.cut, raw), raw
            except CorruptIndex as error:
                raise SnapshotError(f"{store.path}: snapshot {snapshot.info.id}: {error}") from error

    def _answer(self, record: Record) -> Reply:
        began, info, search = time.monotonic(), self._info, self._settings.search
        held = info.extra.get("embedding_model")
        request = decode_request(
            record, dim=info.dim, metric=info.metric, model=held if isinstance(held, str) else None,
            max_k=search.k_max, max_ef=search.ef_max,
        )  # fmt: skip
        if isinstance(request, Rejection):
            raise SearchFailed(request.code, request.reason)
        try:
            hits = find(self._index, request, search, self)
        except Refused as refused:
            raise SearchFailed(refused.code, refused.reason) from None
        return Reply(hits, info.offsets, self._index.frame, round(1e6 * (time.monotonic() - began)))
