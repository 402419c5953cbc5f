"""The bytes of message format 1: what is written today is what was written when the format was laid down."""

import json
from pathlib import Path

import numpy as np
from driftline.stream.log import Draft, Record
from driftline.stream.messages import (
    Form,
    Hit,
    Rejection,
    Reply,
    ReplyRoute,
    dead_letter,
    decode_reply,
    decode_vectors,
    encode_delete,
    encode_error,
    encode_reply,
    encode_request,
    encode_vector,
    reply_draft,
    route_headers,
)

GOLDEN = Path(__file__).parent / "golden" / "messages_format_1.json"
VECTOR = np.array([1.0, -2.0, 0.5, 65504.0], np.float32)
ROUTE = ReplyRoute("replies", 3, bytes(range(16)))
ATTRIBUTES = {
    "year": 2024,
    "lang": "en",
    "tags": ["a", None, True],
    "score": 0.5,
    "né": {"b": -1, "a": 2**40},
}
REPLY = Reply(
    [Hit(b"a", 0.5, ATTRIBUTES, VECTOR), Hit(b"\xff", 1.5)], {"vectors": {0: 12, 10: 7}}, frame=2, took_us=99
)


def messages() -> dict[str, Draft]:
    """One of each kind, in each form."""
    drafts = {
        "delete": encode_delete("vectors", "a"),
        "vector bare": encode_vector("vectors", "a", VECTOR, model="minilm"),
        "vector f2": encode_vector("vectors", b"\xff", VECTOR, dtype="f2"),
        "dead letter": dead_letter(
            Rejection(
                Record("vectors", 1, 7, 1_700_000_000_000, b"a", b"junk", ()), "undecodable_value", "no"
            ),
            "dead",
        ),
    }
    for form in (Form.JSON, Form.MSGPACK):
        drafts |= {
            f"vector {form}": encode_vector("vectors", "a", VECTOR, ATTRIBUTES, form=form),
            f"request {form}": encode_request(
                "search", vector=VECTOR, k=3, ef=50, after={"vectors": {0: 12}}, deadline_ms=250,
                include=["vector", "attributes"], model="minilm", form=form, headers=route_headers(ROUTE),
            ),
            f"request filtered {form}": encode_request(
                "search", key="a", form=form,
                filter={"lang": {"in": ["en", "né"]}, "not": {"or": [{"year": {"lt": 2001}}, {"ok": True}]}},
            ),
            f"request by key {form}": encode_request("search", key=b"\xff", form=form),
            f"reply {form}": reply_draft(ROUTE, encode_reply(REPLY, form), form),
            f"error {form}": reply_draft(ROUTE, encode_error("no_query", "none", form), form),
        }  # fmt: skip
    return drafts


def written(draft: Draft) -> dict[str, object]:
    return {
        "key": draft.key and draft.key.hex(),
        "value": draft.value and draft.value.hex(),
        "headers": [[name, value.hex()] for name, value in draft.headers],
        "partition": draft.partition,
        "timestamp_ms": draft.timestamp_ms,
    }


def golden(name: str) -> Record:
    given = json.loads(GOLDEN.read_text())[name]
    key, value = (field and bytes.fromhex(field) for field in (given["key"], given["value"]))
    headers = tuple((header, bytes.fromhex(content)) for header, content in given["headers"])
    return Record("topic", 0, 0, 0, key, value, headers)


def test_encoders_write_format_1() -> None:
    """Every encoder's bytes, headers and all, are the golden ones."""
    assert {name: written(draft) for name, draft in messages().items()} == json.loads(GOLDEN.read_text())


def test_decoders_read_format_1() -> None:
    """The golden bytes decode to the same vectors in every form, to the kept attributes, and to replies."""
    for name in ("vector bare", "vector f2", f"vector {Form.JSON}", f"vector {Form.MSGPACK}"):
        batch = decode_vectors([golden(name)], dim=4, metric="l2", model=None)
        assert batch.rejected == []
        np.testing.assert_array_equal(batch.vectors, [VECTOR])
        packed = batch.attributes[0]
        assert packed is None or packed.hex() == KEPT
    for form in (Form.JSON, Form.MSGPACK):
        reply = decode_reply(golden(f"reply {form}"))
        assert (reply.applied, reply.frame, reply.took_us) == (REPLY.applied, 2, 99)
        assert [(hit.id, hit.distance, hit.attributes) for hit in reply.hits] == [
            (b"a", 0.5, ATTRIBUTES),
            (b"\xff", 1.5, None),
        ]


# attributes as snapshots hold them: msgpack, names in code point order
KEPT = (
    "85a46c616e67a2656ea36ec3a982a161cf0000010000000000a162ffa5736"
    "36f7265cb3fe0000000000000a47461677393a161c0c3a479656172cd07e8"
)
