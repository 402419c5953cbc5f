"""The vectors topic: key = id, value = the vector, null value = delete. Decoded a batch at a time.

| value       | content-type             | layout                                                         |
|-------------|--------------------------|----------------------------------------------------------------|
| null        |                          | delete                                                         |
| bare        | application/octet-stream | dim float32, little-endian                                     |
| msgpack map | application/msgpack      | vector: bin, little-endian, of dtype; or array of numbers      |
|             |                          | dtype: "f4" (default) or "f2", for a bin                       |
|             |                          | attributes: map (attributes.py); absent or null: none          |
| JSON object | application/json         | vector: array of numbers; attributes: object                   |

With a decode hook (decode_hook.py) it says what a value that is not null means. docs/messages.md is the
reference. The cost that matters is the bare and the msgpack-with-bytes path: one
Python step per record, none per component; all checks of numbers are made on the batch as one array.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidInput
from ..index.sources import Sources, pack_sources
from .attributes import pack_attributes, unpack_attributes
from .decode_hook import DecodeHook, call_hook
from .documents import (
    CONTENT_TYPE_HEADER,
    MAX_ITEMS,
    MODEL_HEADER,
    Envelope,
    Form,
    Refused,
    Rejection,
    dump_document,
    load_document,
    no_other_fields,
    read_envelope,
    read_model,
    shown,
)
from .log import Draft, Headers, Record

__all__ = [
    "MAX_DIM",
    "MAX_KEY_BYTES",
    "VectorBatch",
    "Vectors",
    "check_key",
    "decode_vectors",
    "encode_delete",
    "encode_vector",
    "foreign_value",
    "other_model",
    "row_of",
    "unusable_rows",
    "vector_bytes",
]

Vectors = NDArray[np.float32]

MAX_DIM = MAX_ITEMS
MAX_KEY_BYTES = 511  # LMDB's longest key
# Squared lengths as float32. Above: a component may be more than the index takes (1e18); distances could
# become infinite. Below: a length that float32 cannot divide by, which is as good as zero under cosine.
MAX_SQUARED_LENGTH = 2.0**119
MIN_SQUARED_LENGTH = 2.0**-126

FIELDS = frozenset({"vector", "dtype", "attributes"})
WIDTHS = {"f4": 4, "f2": 2}  # bytes of a component, by dtype
NUMBERS = frozenset({int, float})


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """What a batch of records comes to. Of each partition a key stands once, in `keys` or in `deleted`."""

    keys: list[bytes]
    vectors: Vectors  # [len(keys), dim]
    attributes: list[bytes | None]  # packed, see attributes.py
    sources: Sources  # of `keys` (index/sources.py)
    deleted: list[bytes]
    deleted_sources: Sources
    newest_ms: dict[int, int]  # partition -> the highest timestamp of these records
    rejected: list[Rejection]  # in the order of the records
    time_ms: int | None  # the newest timestamp of the records; None if they have none
    model: str | None  # the given one, else the first that an accepted vector named


def decode_vectors(
    records: Sequence[Record], *, dim: int, metric: str, model: str | None, hook: DecodeHook | None = None
) -> VectorBatch:
    """Decode records of the vectors topic in their order; the last accepted record of a key in its
    partition holds there, with the highest timestamp of those it replaces.

    `model` is the embedding model that the collection holds, None when none is known yet. `hook` decodes
    values in place of driftline's own forms. Never raises on what a record contains: what cannot be accepted
    is in `rejected`, and leaves its key as it was.
    """
    decoded: list[Decoded | Refused] = []
    payloads: list[bytes] = []
    owners: list[int] = []  # record number of each payload
    headers: object = ()
    envelope = read_envelope(())
    for number, record in enumerate(records):
        try:
            key = check_key(record.key)
            if record.value is None:
                decoded.append(Decoded(key, -1, None, None))
                continue
            if record.headers != headers:  # producers send the same ones over and over
                envelope = envelope_of(record, hook)
                headers = record.headers
            if hook is None:
                payload, attributes = decode_value(record.value, envelope, dim)
            elif (foreign := foreign_value(hook, record.value, record.headers, dim)) is not None:
                payload, attributes = foreign
            else:
                decoded.append(Decoded(key, -1, None, None))
                continue
            decoded.append(Decoded(key, len(payloads), attributes, envelope.model))
            payloads.append(payload)
            owners.append(number)
        except Refused as refused:
            decoded.append(refused)

    vectors = join_rows(payloads, dim)
    for row, refused in unusable_rows(vectors, metric).items():
        decoded[owners[row]] = refused
    return fold(records, decoded, vectors, model)


class Decoded(NamedTuple):
    key: bytes
    row: int  # of the payloads; -1 for a delete
    attributes: bytes | None
    model: str | None


class Entry(NamedTuple):
    decoded: Decoded
    partition: int
    offset: int
    time_ms: int


def sources_of(entries: Sequence[Entry]) -> Sources:
    return pack_sources(
        [entry.partition for entry in entries],
        [entry.offset for entry in entries],
        [entry.time_ms for entry in entries],
    )


def fold(
    records: Sequence[Record], decoded: Sequence[Decoded | Refused], vectors: Vectors, model: str | None
) -> VectorBatch:
    last: dict[tuple[bytes, int], Entry] = {}
    rejected: list[Rejection] = []
    for record, outcome in zip(records, decoded, strict=True):
        refused = outcome if isinstance(outcome, Refused) else other_model(outcome.model, model)
        if refused is not None:
            rejected.append(Rejection(record, refused.code, refused.reason))
        elif isinstance(outcome, Decoded):
            model = model or outcome.model
            place = outcome.key, record.partition
            before = last.pop(
                place, None
            )  # so that keys stand in the order of their last records, as rows do
            time_ms = record.timestamp_ms if before is None else max(record.timestamp_ms, before.time_ms)
            last[place] = Entry(outcome, record.partition, record.offset, time_ms)
    kept = [entry for entry in last.values() if entry.decoded.row >= 0]
    deleted = [entry for entry in last.values() if entry.decoded.row < 0]
    if len(kept) != len(vectors):
        vectors = vectors[np.fromiter((entry.decoded.row for entry in kept), np.intp, len(kept))]
    newest_ms: dict[int, int] = {}
    for entry in last.values():
        newest_ms[entry.partition] = max(entry.time_ms, newest_ms.get(entry.partition, -1))
    return VectorBatch(
        keys=[entry.decoded.key for entry in kept],
        vectors=vectors,
        attributes=[entry.decoded.attributes for entry in kept],
        sources=sources_of(kept),
        deleted=[entry.decoded.key for entry in deleted],
        deleted_sources=sources_of(deleted),
        newest_ms=newest_ms,
        rejected=rejected,
        time_ms=max((record.timestamp_ms for record in records if record.timestamp_ms >= 0), default=None),
        model=model,
    )


def envelope_of(record: Record, hook: DecodeHook | None) -> Envelope:
    """What the headers say; those that concern the form are the hook's, where there is one."""
    return read_envelope(record.headers) if hook is None else Envelope(None, read_model(record.headers))


def foreign_value(
    hook: DecodeHook, value: bytes, headers: Headers, dim: int | None
) -> tuple[bytes, bytes | None] | None:
    """As `decode_value`, by a hook; None for a delete. Any dimension will do if `dim` is None."""
    given = call_hook(hook, value, headers)
    if given is None:
        return None
    vector, attributes = given
    row = vector if isinstance(vector, bytes) else row_of(vector).astype("<f4", copy=False).tobytes()
    if dim is not None and len(row) != 4 * dim:
        raise Refused("wrong_dimension", bare_length(len(row), dim))
    return row, attributes


def decode_value(value: bytes, envelope: Envelope, dim: int) -> tuple[bytes, bytes | None]:
    """The vector as float32 bytes, not yet checked for what the numbers are, and the packed attributes."""
    form = envelope.form_of(value)
    if form is Form.BARE:
        if len(value) != 4 * dim:
            raise Refused("wrong_dimension", bare_length(len(value), dim))
        return value, None
    document = load_document(value, form)
    no_other_fields(document, FIELDS)
    return vector_bytes(document, dim), pack_attributes(document.get("attributes"))


def bare_length(size: int, dim: int) -> str:
    return f"the value has {size} bytes; a vector of this collection has {dim} float32, {4 * dim} bytes"


def vector_bytes(document: Mapping[str, object], dim: int) -> bytes:
    """The field `vector` of a document, with its `dtype`, as little-endian float32. Raises Refused."""
    vector = document.get("vector")
    dtype = document.get("dtype")
    width = 4 if dtype is None else WIDTHS.get(dtype) if isinstance(dtype, str) else None
    if width is None:
        raise Refused("bad_vector", f"dtype is {shown(dtype)}; it must be 'f4' or 'f2'")
    if isinstance(vector, bytes):
        if len(vector) != width * dim:
            raise Refused(
                "wrong_dimension",
                f"the vector has {len(vector)} bytes; this collection's dimension is {dim}, of {width} bytes",
            )
        return vector if width == 4 else widened(vector)
    if isinstance(vector, list):
        return list_bytes(cast(list[object], vector), dim)
    if vector is None:
        raise Refused("no_vector", "the value has no field vector; a delete is a null value")
    raise Refused("bad_vector", f"vector is {shown(vector)}; it must be numbers, or bytes in msgpack")


def widened(halves: bytes) -> bytes:
    with np.errstate(invalid="ignore"):  # a NaN is found later, with all others
        return np.frombuffer(halves, "<f2").astype("<f4").tobytes()


def list_bytes(numbers: list[object], dim: int) -> bytes:
    if len(numbers) != dim:
        raise Refused("wrong_dimension", f"the vector has {len(numbers)} components; here it must have {dim}")
    if not NUMBERS.issuperset(map(type, numbers)):  # bool is not among them, though numpy would take it
        where, wrong = next((i, item) for i, item in enumerate(numbers) if type(item) not in NUMBERS)
        raise Refused("bad_vector", f"component {where} of the vector is {shown(wrong)}; it must be a number")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(numbers, np.float64).astype("<f4").tobytes()
    except OverflowError:
        raise Refused("not_finite", "the vector has an integer beyond float32 (3.4e38)") from None


def join_rows(payloads: Sequence[bytes], dim: int) -> Vectors:
    joined = bytearray().join(payloads)  # a bytearray, so that the array is writable
    return np.frombuffer(joined, "<f4").astype(np.float32, copy=False).reshape(-1, dim)


def unusable_rows(vectors: Vectors, metric: str) -> dict[int, Refused]:
    """The rows that cannot be compared with others: row number -> why."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared: Vectors = np.einsum("ij,ij->i", vectors, vectors)
    wrong = ~(squared <= MAX_SQUARED_LENGTH)  # so written, it holds for NaN
    if metric == "cosine":
        wrong |= squared < MIN_SQUARED_LENGTH
    return {row: unusable(vectors[row]) for row in np.flatnonzero(wrong).tolist()}


def unusable(vector: Vectors) -> Refused:
    finite = np.isfinite(vector)
    if not finite.all():
        at = int(finite.argmin())
        return Refused("not_finite", f"component {at} of the vector is {vector[at]} as float32, not finite")
    if not vector.any():
        return Refused("zero_vector", "the vector is zero, which has no direction, and the metric is cosine")
    if float(np.abs(vector).max()) < 1.0:
        return Refused("zero_vector", "the vector is too short to have a direction in float32; scale it up")
    return Refused("vector_too_long", "the squared length of the vector is over 2^119; scale it down")


def check_key(key: bytes | None) -> bytes:
    """The key, when it can be an id. Raises Refused."""
    if not key:
        raise Refused("empty_key", "the record has no key; the key is the id of the vector")
    if len(key) > MAX_KEY_BYTES:
        raise Refused("oversized_key", f"the key has {len(key)} bytes; an id has at most {MAX_KEY_BYTES}")
    return key


def other_model(named: str | None, held: str | None) -> Refused | None:
    """Why a record may not meet the collection's vectors, when it names another embedding model."""
    if named is None or held is None or named == held:
        return None
    return Refused(
        "other_model",
        f"the record is of embedding model {shown(named)}, this collection of {shown(held)}; vectors of two "
        "models cannot be compared: use another collection, or feed all vectors again",
    )


def encode_vector(
    topic: str,
    key: bytes | str,
    vector: ArrayLike,
    attributes: Mapping[str, object] | None = None,
    *,
    model: str | None = None,
    form: Form = Form.MSGPACK,
    dtype: Literal["f4", "f2"] = "f4",
) -> Draft:
    """A record of the vectors topic. Without attributes, msgpack of f4 is shortened to the bare form.

    Raises InvalidInput for what no collection would accept; dimension, model and metric are the service's to
    check.
    """
    try:
        key = check_key(key.encode() if isinstance(key, str) else key)
        packed = pack_attributes(attributes)
        row = row_of(vector)
        value, form = encode_value(row, packed, form, dtype)
    except Refused as refused:
        raise InvalidInput(f"vector {shown(key)}: {refused.reason}") from None
    headers = [(CONTENT_TYPE_HEADER, form.encode())]
    if model is not None:
        headers.append((MODEL_HEADER, model.encode()))
    return Draft(topic, key, value, tuple(headers))


def row_of(vector: ArrayLike) -> Vectors:
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
            row = np.asarray(vector, np.float32)
    except (TypeError, ValueError, OverflowError) as wrong:
        raise Refused("bad_vector", f"the vector is no row of numbers: {wrong}") from None
    if row.ndim != 1 or not 1 <= len(row) <= MAX_DIM:
        raise Refused("wrong_dimension", f"its shape is {row.shape}, not one row of 1 to {MAX_DIM}")
    for refused in unusable_rows(row[np.newaxis], "l2").values():
        raise refused
    return row


def encode_value(row: Vectors, packed: bytes | None, form: Form, dtype: str) -> tuple[bytes, Form]:
    whole = row.astype("<f4", copy=False).tobytes()
    if form is not Form.JSON and dtype == "f4" and packed is None:
        return whole, Form.BARE
    if form is Form.BARE:
        raise Refused("bad_attributes", "the bare form holds float32 only: no attributes, no f2")
    document: dict[str, object] = {"vector": row.tolist() if form is Form.JSON else whole}
    if dtype == "f2" and form is Form.MSGPACK:
        with np.errstate(over="ignore"):
            half = row.astype("<f2")
        if not np.isfinite(half).all():
            raise Refused("not_finite", "a component is beyond the range of f2 (65504); send f4")
        document = {"vector": half.tobytes(), "dtype": "f2"}
    if packed is not None:
        document["attributes"] = unpack_attributes(packed)
    return dump_document(document, form), form


def encode_delete(topic: str, key: bytes | str) -> Draft:
    """The record that deletes a key. Raises InvalidInput for a key that cannot be an id."""
    try:
        return Draft(topic, check_key(key.encode() if isinstance(key, str) else key), None)
    except Refused as refused:
        raise InvalidInput(f"key {shown(key)}: {refused.reason}") from None
