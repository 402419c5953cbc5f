"""From a request to the bytes of its reply: what a search thread does."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from ..errors import InvalidInput
from ..index.attributes import UnknownField
from ..index.filters import without_field
from ..index.hits import Hits
from ..index.online import OnlineIndex
from .config import Search
from .documents import Refused, shown
from .messages import Hit, Reply, SearchRequest, Vectors, encode_reply, unpack_attributes

__all__ = ["answer", "find"]


class Watcher(Protocol):
    """Who says how wide a search is that does not say, and is shown the queries: the canary."""

    @property
    def ef(self) -> int: ...

    def offer(self, query: Vectors) -> None: ...


def answer(
    index: OnlineIndex | None,
    request: SearchRequest,
    settings: Search,
    canary: Watcher,
    applied: Mapping[str, Mapping[int, int]],
    began: float,
    behind: Sequence[int] | None = None,
) -> bytes:
    """Search and encode. `applied` must have been read before this call; `began` is time.monotonic() at
    arrival.

    `behind` is given where the index is a shard's: its partitions that are not caught up with yet.

    Without an index (no vector seen yet) there are no hits. Raises Refused for a key that is not live, and
    for a filter that names a field which no record has had; a shard names such fields in its reply.
    """
    query = _query(index, request, behind)
    unknown: list[str] | None = None if behind is None else []
    hits = () if index is None else _hits(index, query, request, settings, canary, unknown)
    frame = 0 if index is None else index.frame
    took_us = round(1e6 * (time.monotonic() - began))
    asked = query if "query" in request.include else None
    reply = Reply(hits, applied, frame, took_us, asked, behind or (), unknown or ())
    return encode_reply(reply, request.form)


def find(index: OnlineIndex, request: SearchRequest, settings: Search, canary: Watcher) -> list[Hit]:
    """Search. Raises Refused as `answer` does."""
    return _hits(index, _query(index, request, None), request, settings, canary, None)


def _query(index: OnlineIndex | None, request: SearchRequest, behind: Sequence[int] | None) -> Vectors:
    if request.vector is not None:
        return request.vector
    assert request.key is not None, "a request has a vector or a key"
    row = None if index is None else index.get([request.key])[0]
    if row is None and behind:
        raise Refused("unavailable", f"the id {shown(request.key)} may be in records not applied yet")
    if row is None:
        raise Refused("unknown_key", f"no live vector has the id {shown(request.key)}")
    return row.vector


def _hits(
    index: OnlineIndex,
    query: Vectors,
    request: SearchRequest,
    settings: Search,
    canary: Watcher,
    unknown: list[str] | None,
) -> list[Hit]:
    ef = max(request.ef or canary.ef, request.k)
    found = _search(index, query, ef, request, settings, unknown)
    if request.filter is None:
        canary.offer(query)
    keys = cast("list[bytes]", found.keys[0])  # the kind that ingestion upserts
    vectors: list[Any] = [None] * len(keys)
    if "vector" in request.include:
        # A key deleted since the search began has no vector any more; its hit goes without one.
        vectors = [row and row.vector for row in index.get(keys)]
    attributes: list[dict[str, Any] | None] = [None] * len(keys)
    if "attributes" in request.include:
        attributes = [unpack_attributes(packed) for packed in found.attributes[0]]
    distances = found.distances[0, : len(keys)].tolist()
    return [Hit(*fields) for fields in zip(keys, distances, attributes, vectors, strict=True)]


def _search(
    index: OnlineIndex,
    query: Vectors,
    ef: int,
    request: SearchRequest,
    settings: Search,
    unknown: list[str] | None,
) -> Hits:
    """Fields of the filter that no vector has had are added to `unknown`; without it they are refused."""
    chosen = request.filter
    if chosen is None:
        return index.search(query[None], request.k, ef, rescore=settings.rescore)
    while True:
        try:
            return index.search(query[None], request.k, ef, rescore=settings.rescore, filter=chosen)
        except UnknownField as wrong:
            if unknown is None:
                raise Refused("bad_filter", str(wrong)) from None
            unknown.append(wrong.name)
            chosen = without_field(chosen, wrong.name)
        except InvalidInput as wrong:  # all else was checked when the request was decoded
            raise Refused("bad_filter", str(wrong)) from None
