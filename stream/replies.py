"""The replies topic: hits, or an error, in the form of the request.

| field   | type                       | meaning                                                        |
|---------|----------------------------|----------------------------------------------------------------|
| hits    | list of maps               | nearest first: id (JSON: id_base64 where not UTF-8), distance, |
|         |                            | and attributes and vector where the request included them      |
| applied | {topic: {partition: next}} | next offsets: this answer saw every record below them          |
| frame   | int                        | encoder frame in which vectors written now are held            |
| took_us | int                        | microseconds from reading the request to encoding this        |
| query   | list, bytes in msgpack     | the vector asked with, if the request included it              |
| partial | list of int                | partitions that nobody answered for in time, or not in full    |
| unknown | list of text               | fields of the filter that no vector here has had; a shard's    |
| error   | {code, message}            | instead of all the above                                       |
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import InvalidInput, SearchFailed
from .documents import Form, Refused, dump_document, load_document, read_envelope
from .log import Record
from .search_messages import Offsets, read_offsets, write_key, write_offsets
from .vector_messages import Vectors

__all__ = ["Hit", "Reply", "decode_reply", "encode_error", "encode_reply"]

MAX_REPLY_BYTES = 64 << 20  # topics take 1 MB unless told otherwise; hits with vectors may need more


@dataclass(frozen=True, slots=True)
class Hit:
    id: bytes
    distance: float  # finite; l2: squared Euclidean, ip: -<q, x>, cosine: 1 - cos
    attributes: dict[str, Any] | None = None  # None: not asked for; {}: it has none
    vector: Vectors | None = None  # [dim]; None: not asked for


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a search."""

    hits: Sequence[Hit]  # ascending distance
    applied: Offsets
    frame: int
    took_us: int
    query: Vectors | None = None  # [dim]; None: not asked for
    partial: Sequence[int] = ()  # partitions of which nobody answered, or only with a part of the vectors
    unknown: Sequence[str] = ()  # fields of the filter that no vector of a shard has had


def encode_reply(reply: Reply, form: Form) -> bytes:
    """The value of a reply. Distances and vectors must be finite (ValueError in JSON otherwise)."""
    hits: list[dict[str, object]] = []
    for hit in reply.hits:
        name, value = write_key("id", hit.id, form)
        fields: dict[str, object] = {name: value, "distance": hit.distance}
        if hit.attributes is not None:
            fields["attributes"] = hit.attributes
        if hit.vector is not None:
            fields["vector"] = write_vector(hit.vector, form)
        hits.append(fields)
    document: dict[str, object] = {
        "hits": hits,
        "applied": write_offsets(reply.applied),
        "frame": reply.frame,
        "took_us": reply.took_us,
    }
    if reply.query is not None:
        document["query"] = write_vector(reply.query, form)
    if reply.partial:
        document["partial"] = list(reply.partial)
    if reply.unknown:
        document["unknown"] = list(reply.unknown)
    return dump_document(document, form)


def write_vector(vector: Vectors, form: Form) -> list[float] | bytes:
    return vector.tolist() if form is Form.JSON else vector.astype("<f4").tobytes()


def encode_error(code: str, message: str, form: Form) -> bytes:
    """The value of a reply that says why there is no answer."""
    return dump_document({"error": {"code": code, "message": message}}, form)


def decode_reply(record: Record) -> Reply:
    """The reply in a record of the replies topic.

    Raises SearchFailed for an error reply, InvalidInput for what is no reply of this message format.
    """
    value = record.value or b""
    try:
        form = read_envelope(record.headers).form_of(value)
        document = load_document(value, form, MAX_REPLY_BYTES)
    except Refused as refused:
        raise InvalidInput(f"no reply: {refused.reason}") from None
    try:
        error: Any = document.get("error")
        if error is not None:
            raise SearchFailed(str(error["code"]), str(error["message"]))
        return Reply(
            hits=[read_hit(hit) for hit in cast(list[dict[str, Any]], document["hits"])],
            applied=read_offsets(document["applied"]),
            frame=int(cast(int, document["frame"])),
            took_us=int(cast(int, document["took_us"])),
            query=read_vector(document.get("query")),
            partial=tuple(int(partition) for partition in cast(list[int], document.get("partial", ()))),
            unknown=tuple(str(name) for name in cast(list[str], document.get("unknown", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
        raise InvalidInput(f"no reply of message format 1: {type(wrong).__name__} {wrong}") from None


def read_hit(hit: dict[str, Any]) -> Hit:
    key: object = base64.b64decode(hit["id_base64"]) if "id_base64" in hit else hit["id"]
    if not isinstance(key, str | bytes):
        raise ValueError("an id is neither text nor bytes")
    distance = float(hit["distance"])
    if not math.isfinite(distance):
        raise ValueError("a distance is not finite")
    return Hit(
        id=key.encode() if isinstance(key, str) else key,
        distance=distance,
        attributes=hit.get("attributes"),
        vector=read_vector(hit.get("vector")),
    )


def read_vector(numbers: Any) -> Vectors | None:
    if numbers is None:
        return None
    if isinstance(numbers, bytes):
        numbers = np.frombuffer(numbers, "<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        row = np.asarray(numbers, np.float32)
    if row.ndim != 1:
        raise ValueError("a vector is no row of numbers")
    return row
