"""Bytes of a record as a document: which form they have (JSON, msgpack, bare floats), decoded within bounds.

What arrives is hostile until decoded: a length that promises gigabytes, nesting without end, numbers of a
thousand digits. Whatever the bytes are, the outcome is a plain dict or `Refused`, in memory proportional to
the value.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, cast

import msgpack

from .log import Record

__all__ = [
    "CONTENT_TYPE_HEADER",
    "FORMAT_VERSION",
    "MAX_ITEMS",
    "MAX_VALUE_BYTES",
    "MODEL_HEADER",
    "SHOWN",
    "VERSION_HEADER",
    "Envelope",
    "Form",
    "Refused",
    "Rejection",
    "dump_document",
    "find_header",
    "load_document",
    "no_other_fields",
    "pack",
    "read_envelope",
    "read_model",
    "shown",
    "unpack",
]

FORMAT_VERSION = 1  # of every message in docs/messages.md; a header may say it, absence means 1
CONTENT_TYPE_HEADER = "content-type"
MODEL_HEADER = "embedding-model"
VERSION_HEADER = "driftline-version"

MAX_VALUE_BYTES = 1 << 20  # Kafka's default record limit; a 4096-dimensional vector as JSON text is 90 kB
MAX_ITEMS = 4096  # elements of one msgpack array or map: the most dimensions a vector may have
MAX_MODEL_BYTES = 255
SHOWN = 64  # characters of foreign text repeated in a reason


class Form(StrEnum):
    """How a value is written; the text is its content type."""

    JSON = "application/json"
    MSGPACK = "application/msgpack"
    BARE = "application/octet-stream"  # float32 little-endian and nothing else; vectors only


codec: Any = msgpack  # ships no types

FORMS = {
    "application/json": Form.JSON,
    "application/msgpack": Form.MSGPACK,
    "application/x-msgpack": Form.MSGPACK,
    "application/vnd.msgpack": Form.MSGPACK,
    "application/octet-stream": Form.BARE,
}


class Refused(Exception):
    """A record cannot be accepted. Raised and caught inside the decoders; callers see a `Rejection`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was not accepted, why, and what would help."""

    record: Record
    code: str  # one of CODES, see messages.py: stable, for programs
    reason: str  # a sentence, for people; does not name the record

    @property
    def sentence(self) -> str:
        """The reason with the record's topic, partition, offset and key in front."""
        record = self.record
        key = "no key" if record.key is None else f"key {shown(record.key)}"
        return f"{record.topic}[{record.partition}]@{record.offset}, {key}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a record's headers say about its value."""

    form: Form | None  # None: no content-type header, the first byte decides
    model: str | None

    def form_of(self, value: bytes) -> Form:
        return self.form or (Form.JSON if value[:1] == b"{" else Form.MSGPACK)


def find_header(headers: Iterable[tuple[str, bytes]], name: str) -> bytes | None:
    """The last header of this name, in any case; Kafka allows several, and the last one counts."""
    found = None
    for header, value in headers:
        if header.lower() == name:
            found = value
    return found


def read_envelope(headers: Iterable[tuple[str, bytes]]) -> Envelope:
    """The headers that concern the value. Raises Refused when one of them cannot be understood."""
    headers = tuple(headers)
    for name, _ in headers:
        if not name.isascii():
            check_name(name)
    version = find_header(headers, VERSION_HEADER)
    if version is not None and version != b"%d" % FORMAT_VERSION:
        raise Refused(
            "unknown_version",
            f"header {VERSION_HEADER} is {shown(version)}; this driftline reads format {FORMAT_VERSION}",
        )
    content_type = find_header(headers, CONTENT_TYPE_HEADER)
    return Envelope(None if content_type is None else parse_content_type(content_type), read_model(headers))


def read_model(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The embedding model that a record names. Raises Refused."""
    model = find_header(headers, MODEL_HEADER)
    return None if model is None else parse_model(model)


def check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # lone surrogates: see Record
        stored = name.encode(errors="surrogateescape")
        raise Refused("bad_header", f"the name of a header, {shown(stored)}, is not UTF-8") from None


def parse_content_type(header: bytes) -> Form:
    kind, *parameters = header.decode("latin-1").lower().split(";")
    form = FORMS.get(kind.strip())
    if form is None:
        raise Refused(
            "unknown_content_type",
            f"content-type {shown(header)} is not known; send {', '.join(Form)}, or no content-type",
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8", "us-ascii"):
            raise Refused("unknown_content_type", f"content-type {shown(header)}: text must be UTF-8")
    return form


def parse_model(header: bytes) -> str:
    try:
        model = header.decode()
    except UnicodeDecodeError:
        model = ""
    if not model or len(header) > MAX_MODEL_BYTES:
        raise Refused(
            "bad_header",
            f"header {MODEL_HEADER} is {shown(header)}; it must be 1 to {MAX_MODEL_BYTES} bytes of UTF-8",
        )
    return model


def load_document(value: bytes, form: Form, most: int = MAX_VALUE_BYTES) -> dict[str, object]:
    """The map that a value of at most so many bytes holds, in JSON or msgpack. Raises Refused."""
    if len(value) > most:
        raise Refused("oversized_value", f"the value has {len(value)} bytes, over {most}")
    if not value:
        raise Refused("undecodable_value", "the value is empty; a delete is a null value, not an empty one")
    if value[0] == 0:
        raise Refused(
            "schema_registry_framing",
            "the value starts with byte 0, the framing of a schema registry's serializer; "
            "produce plain JSON or msgpack, without a registry, or set topics.decode",
        )
    try:
        document = load_json(value) if form is Form.JSON else load_msgpack(value)
    except (ValueError, RecursionError, MemoryError) as wrong:
        said = " ".join(str(wrong).split())[:200] or "nested too deeply"  # msgpack has no words for that
        hint = "" if form is Form.JSON else f"; bare float32 needs the header content-type: {Form.BARE}"
        raise Refused("undecodable_value", f"the value is not {form}: {said}{hint}") from None
    if not isinstance(document, dict):
        raise Refused("undecodable_value", f"the value is {form}, but no map of fields")
    return cast(dict[str, object], document)


def load_json(value: bytes) -> object:
    return cast(object, json.loads(value.decode(), parse_constant=refuse_constant))


def refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")


def load_msgpack(value: bytes) -> object:
    # unpackb already bounds lengths by the size of the value, but a list is allocated at its promised length:
    # 1,000 nested promises of a million items each are 8 GB from one megabyte, so items are bounded here.
    return codec.unpackb(
        value, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, strict_map_key=True, ext_hook=refuse_extension
    )


def refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"msgpack extension type {code} is not understood")


def dump_document(document: dict[str, Any], form: Form) -> bytes:
    """The bytes of a map of plain values (in JSON without bytes, NaN and infinity: ValueError)."""
    if form is Form.JSON:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return pack(document)


def pack(value: object) -> bytes:
    """msgpack of plain values."""
    return codec.packb(value)


def unpack(packed: bytes) -> object:
    """The plain values that `pack` packed; for bytes of our own only."""
    return codec.unpackb(packed)


def no_other_fields(document: dict[str, object], known: frozenset[str]) -> None:
    """Raises Refused naming the fields that are not known: a misspelt one must not be lost silently."""
    if document.keys() <= known:
        return
    other = ", ".join(sorted(shown(field) for field in document if field not in known)[:4])
    raise Refused("unknown_field", f"unknown field {other}; known are {', '.join(sorted(known))}")


def shown(foreign: object) -> str:
    """Foreign text, bytes or numbers as they can stand in a sentence: quoted, printable, short."""
    if isinstance(foreign, bytes):
        cut = len(foreign) > SHOWN
        try:
            text = repr(foreign[:SHOWN].decode())
        except UnicodeDecodeError:
            text = repr(foreign[: SHOWN // 2])
        return text + ("..." if cut else "")
    if isinstance(foreign, str):
        return repr(foreign[:SHOWN]) + ("..." if len(foreign) > SHOWN else "")
    if isinstance(foreign, int) and not -(2**63) <= foreign < 2**64:
        return "an integer of more than 64 bits"  # its digits could fill a page, or be refused by Python
    if foreign is None or isinstance(foreign, int | float):
        return str(foreign)
    return f"a {type(foreign).__name__}"
