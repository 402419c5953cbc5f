"""The search topic: one request a record. Decoded for the service, encoded for clients.

| field             | type                       | meaning                                         |
|-------------------|----------------------------|-------------------------------------------------|
| vector, dtype     | as on the vectors topic    | the query, or                                   |
| key or key_base64 | text, or bytes in msgpack  | ask with the vector of this id                  |
| k                 | int, default 10            | how many hits, 1 to max_k                       |
| ef                | int, default the service's | how widely to search, 1 to max_ef               |
| after             | {topic: {partition: next}} | answer once all records below these are applied |
| deadline_ms       | int, default none          | milliseconds from the record's timestamp        |
| include           | list of text, default []   | "attributes", "vector": what hits carry too;    |
|                   |                            | "query": the vector asked with                  |
| filter            | map, default none          | which attributes hits have: index/filters.py    |

The replies stand in replies.py, the way to them in reply_route.py; docs/messages.md is the reference of all.
"""

import base64
import binascii
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidInput
from ..index.filters import Filter, parse_filter
from .documents import (
    CONTENT_TYPE_HEADER,
    MODEL_HEADER,
    Form,
    Refused,
    Rejection,
    dump_document,
    load_document,
    no_other_fields,
    read_envelope,
    shown,
)
from .log import Draft, Record
from .vector_messages import (
    MAX_KEY_BYTES,
    Vectors,
    check_key,
    other_model,
    row_of,
    unusable_rows,
    vector_bytes,
)

__all__ = [
    "DEFAULT_K",
    "INCLUDABLE",
    "MAX_DEADLINE_MS",
    "Offsets",
    "SearchRequest",
    "decode_request",
    "encode_request",
    "read_offsets",
    "reply_form",
    "write_key",
    "write_offsets",
]

DEFAULT_K = 10
MAX_DEADLINE_MS = 600_000  # ten minutes; who waits longer wants no search but a batch job
MAX_OFFSET = 2**63 - 1
MAX_PARTITION = 2**31 - 1
INCLUDABLE = frozenset({"attributes", "query", "vector"})
FIELDS = frozenset(
    {"vector", "dtype", "key", "key_base64", "k", "ef", "after", "deadline_ms", "include", "filter"}
)

Offsets = Mapping[str, Mapping[int, int]]  # topic -> partition -> next offset
NO_OFFSETS: Offsets = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A request in which everything was checked that can be checked without the index."""

    form: Form  # the reply's too
    vector: Vectors | None  # [dim]; exactly one of vector and key is there
    key: bytes | None
    k: int = DEFAULT_K
    ef: int | None = None
    after: Offsets = field(default_factory=lambda: NO_OFFSETS)
    expires_ms: int | None = None  # Unix milliseconds: the record's timestamp + deadline_ms
    include: frozenset[str] = frozenset()
    filter: Filter | None = None  # of fields that need not exist: that the index knows


def decode_request(
    record: Record, *, dim: int, metric: str, model: str | None, max_k: int, max_ef: int
) -> SearchRequest | Rejection:
    """The request in a record of the search topic. Never raises on what the record contains."""
    try:
        envelope = read_envelope(record.headers)
        if record.value is None:
            raise Refused("undecodable_value", "the request has no value; send {'vector': [...], 'k': 10}")
        refused = other_model(envelope.model, model)
        if refused is not None:
            raise refused
        form = envelope.form_of(record.value)
        if form is Form.BARE:
            raise Refused(
                "unknown_content_type", f"a request is {Form.JSON} or {Form.MSGPACK}, not bare floats"
            )
        document = load_document(record.value, form)
        no_other_fields(document, FIELDS)
        vector, key = query_of(document, dim, metric)
        deadline_ms = integer(document, "deadline_ms", 1, MAX_DEADLINE_MS)
        dated = deadline_ms is not None and record.timestamp_ms >= 0
        return SearchRequest(
            form=form,
            vector=vector,
            key=key,
            k=integer(document, "k", 1, max_k) or min(DEFAULT_K, max_k),
            ef=integer(document, "ef", 1, max_ef),
            after=after_of(document),
            expires_ms=record.timestamp_ms + deadline_ms if dated and deadline_ms else None,
            include=include_of(document),
            filter=filter_of(document),
        )
    except Refused as refused:
        return Rejection(record, refused.code, refused.reason)


def reply_form(record: Record) -> Form:
    """The form in which to answer a record that may be anything: its own, JSON where that cannot be told."""
    try:
        form = read_envelope(record.headers).form
    except Refused:
        form = None
    first = (record.value or b"{")[0]
    # 0x80 to 0x8f, 0xde, 0xdf: the first bytes of a msgpack map
    looks_msgpack = first >> 4 == 8 or first in (0xDE, 0xDF)
    return Form.MSGPACK if form is Form.MSGPACK or (form is None and looks_msgpack) else Form.JSON


def query_of(document: Mapping[str, object], dim: int, metric: str) -> tuple[Vectors | None, bytes | None]:
    given = [name for name in ("vector", "key", "key_base64") if document.get(name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise Refused("no_query", f"a request has one of vector, key and key_base64; this one has {found}")
    if given != ["vector"]:
        return None, key_of(given[0], document[given[0]])
    vector = np.frombuffer(bytearray(vector_bytes(document, dim)), "<f4").astype(np.float32, copy=False)
    for refused in unusable_rows(vector[np.newaxis], metric).values():
        raise refused
    return vector, None


def key_of(name: str, given: object) -> bytes:
    try:
        if name == "key" and isinstance(given, str | bytes):
            return check_key(given.encode() if isinstance(given, str) else given)
        if name == "key_base64" and isinstance(given, str):
            return check_key(base64.b64decode(given, validate=True))
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise Refused("bad_field", f"{name} is {shown(given)}, which is not well-formed") from None
    raise Refused("bad_field", f"{name} is {shown(given)}; it must be text, or bytes in msgpack")


def integer(document: Mapping[str, object], name: str, low: int, high: int) -> int | None:
    """The field, within its range; None where it is absent or null. Raises Refused (<name>_out_of_range)."""
    given = document.get(name)
    if given is None:
        return None
    if type(given) is not int:  # bool is an int, but no count
        raise Refused("bad_field", f"{name} is {shown(given)}; it must be an integer from {low} to {high}")
    if not low <= given <= high:
        raise Refused(f"{name}_out_of_range", f"{name} is {shown(given)}; it must be from {low} to {high}")
    return given


def after_of(document: Mapping[str, object]) -> Offsets:
    given = document.get("after")
    if given is None:
        return NO_OFFSETS
    try:
        return read_offsets(given)
    except ValueError as wrong:
        raise Refused(
            "bad_field",
            f'after: {wrong}; it must be like {{"driftline.vectors": {{"0": 1234}}}}, next offsets',
        ) from None


def read_offsets(given: object) -> Offsets:
    """{topic: {partition as text: next offset}} as offsets. Raises ValueError."""
    if not isinstance(given, dict):
        raise ValueError(f"{shown(given)} is no map of topics")
    offsets: dict[str, dict[int, int]] = {}
    for topic, partitions in cast(dict[object, object], given).items():
        if not isinstance(topic, str) or not isinstance(partitions, dict):
            raise ValueError(f"topic {shown(topic)} holds no map of partitions")
        offsets[topic] = {}
        for partition, offset in cast(dict[object, object], partitions).items():
            digits = isinstance(partition, str) and partition.isascii() and partition.isdecimal()
            if not digits or len(cast(str, partition)) > 10 or int(cast(str, partition)) > MAX_PARTITION:
                raise ValueError(f"{shown(partition)} is no partition number, as text")
            if type(offset) is not int or not 0 <= offset <= MAX_OFFSET:
                raise ValueError(f"partition {partition} has no next offset")
            offsets[topic][int(cast(str, partition))] = offset
    return offsets


def write_offsets(offsets: Offsets) -> dict[str, dict[str, int]]:
    """Offsets as both forms can say them: JSON's names are text."""
    return {
        topic: {str(partition): offset for partition, offset in partitions.items()}
        for topic, partitions in offsets.items()
    }


def include_of(document: Mapping[str, object]) -> frozenset[str]:
    given = document.get("include")
    if given is None:
        return frozenset()
    if not isinstance(given, list):
        raise Refused(
            "bad_field", f"include is {shown(given)}; it must be a list of {', '.join(sorted(INCLUDABLE))}"
        )
    for item in cast(list[object], given):
        if not isinstance(item, str) or item not in INCLUDABLE:
            raise Refused(
                "bad_field", f"include has {shown(item)}; it may have {', '.join(sorted(INCLUDABLE))}"
            )
    return frozenset(cast(list[str], given))


def filter_of(document: Mapping[str, object]) -> Filter | None:
    given = document.get("filter")
    if given is None:
        return None
    try:
        return parse_filter(given)
    except InvalidInput as wrong:
        raise Refused("bad_filter", str(wrong)) from None


def encode_request(
    topic: str,
    *,
    vector: ArrayLike | None = None,
    key: bytes | str | None = None,
    k: int | None = None,
    ef: int | None = None,
    after: Offsets | None = None,
    deadline_ms: int | None = None,
    include: Collection[str] = (),
    filter: Mapping[str, Any] | None = None,
    model: str | None = None,
    form: Form = Form.MSGPACK,
    headers: Sequence[tuple[str, bytes]] = (),
) -> Draft:
    """A request for the search topic; None is left out. `headers` carry the way back (reply_route.py).

    Raises InvalidInput unless exactly one of `vector` and `key` is given, and for a malformed filter. Ranges,
    and the fields that a filter names, are the service's to check.
    """
    if (vector is None) == (key is None):
        raise InvalidInput("a search needs a vector or a key, one of them")
    document: dict[str, object] = {}
    if vector is not None:
        try:
            row = row_of(vector)
        except Refused as refused:
            raise InvalidInput(f"query: {refused.reason}") from None
        document["vector"] = row.tolist() if form is Form.JSON else row.astype("<f4", copy=False).tobytes()
    elif key is not None:
        try:
            name, document_key = write_key(
                "key", check_key(key.encode() if isinstance(key, str) else key), form
            )
        except Refused:
            raise InvalidInput(f"key {shown(key)}: an id has 1 to {MAX_KEY_BYTES} bytes") from None
        document[name] = document_key
    optional = {"k": k, "ef": ef, "deadline_ms": deadline_ms}
    document.update((name, value) for name, value in optional.items() if value is not None)
    if after:
        document["after"] = write_offsets(after)
    if include:
        document["include"] = sorted(include)
    if filter is not None:
        parse_filter(filter)
        document["filter"] = filter
    own = [(CONTENT_TYPE_HEADER, form.encode())]
    if model is not None:
        own.append((MODEL_HEADER, model.encode()))
    return Draft(topic, None, dump_document(document, form), (*own, *headers))


def write_key(name: str, key: bytes, form: Form) -> tuple[str, str | bytes]:
    """Name and value of a key: bytes in msgpack; in JSON text, or base64 under `<name>_base64`."""
    if form is not Form.JSON:
        return name, key
    try:
        return name, key.decode()
    except UnicodeDecodeError:
        return f"{name}_base64", base64.b64encode(key).decode()
