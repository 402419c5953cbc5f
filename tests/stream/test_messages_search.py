"""The search topic and the way back: requests, replies in the request's form, reply routes."""

import json
from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline.errors import InvalidInput, SearchFailed
from driftline.index.filters import parse_filter
from driftline.stream.log import Draft, Record
from driftline.stream.messages import (
    CODES,
    Form,
    Hit,
    Rejection,
    Reply,
    ReplyRoute,
    SearchRequest,
    correlation_of,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
    read_route,
    reply_draft,
    reply_form,
    route_headers,
)
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 4
QUERY = np.array([1.0, -2.0, 0.5, 3.25], np.float32)
AT = 1_700_000_000_000
Headers = tuple[tuple[str, bytes], ...]
FORMS = pytest.mark.parametrize("form", [Form.JSON, Form.MSGPACK])


def record(value: bytes | None, headers: Headers = (), at: int = AT) -> Record:
    return Record("driftline.search", 0, 3, at, None, value, headers)


def delivered(draft: Draft) -> Record:
    return record(draft.value, draft.headers)


def decode(
    asked: Record, model: str | None = None, metric: str = "l2", max_k: int = 1000
) -> SearchRequest | Rejection:
    return decode_request(asked, dim=DIM, metric=metric, model=model, max_k=max_k, max_ef=4000)


def request(asked: Record) -> SearchRequest:
    decoded = decode(asked)
    assert isinstance(decoded, SearchRequest), decoded
    return decoded


def refusal(value: bytes | None, headers: Headers = (), **settings: Any) -> Rejection:
    decoded = decode(record(value, headers), **settings)
    assert isinstance(decoded, Rejection), decoded
    assert decoded.code in CODES
    return decoded


def test_a_request_of_two_fields() -> None:
    """The smallest request, as anyone would type it, and what the rest of it defaults to."""
    asked = request(record(b'{"vector": [1, -2, 0.5, 3.25]}'))
    assert asked.vector is not None
    np.testing.assert_array_equal(asked.vector, QUERY)
    assert asked.vector.dtype == np.float32
    assert (asked.form, asked.key, asked.k, asked.ef, asked.expires_ms) == (Form.JSON, None, 10, None, None)
    assert (asked.after, asked.include, asked.filter) == ({}, frozenset(), None)
    asked = request(record(b'{"key": "user-1", "k": 3}'))
    assert (asked.vector, asked.key, asked.k) == (None, b"user-1", 3)
    tight = decode(record(b'{"key": "user-1"}'), max_k=5)
    assert isinstance(tight, SearchRequest)
    assert tight.k == 5  # the default must not exceed what the service allows


@FORMS
def test_every_field_round_trips(form: Form) -> None:
    """What clients encode, in either form, decodes to the same request; a deadline counts from its time."""
    draft = encode_request(
        "driftline.search",
        vector=QUERY,
        k=7,
        ef=90,
        after={"driftline.vectors": {0: 12, 11: 0}},
        deadline_ms=250,
        include=["vector", "attributes"],
        filter={"lang": "en", "year": {"gte": 2001, "lt": 2010}},
        model="minilm",
        form=form,
    )
    asked = decode(delivered(draft), model="minilm")
    assert isinstance(asked, SearchRequest)
    assert asked.vector is not None
    np.testing.assert_array_equal(asked.vector, QUERY)
    assert (asked.form, asked.k, asked.ef, asked.expires_ms) == (form, 7, 90, AT + 250)
    assert asked.after == {"driftline.vectors": {0: 12, 11: 0}}
    assert asked.include == {"vector", "attributes"}
    assert asked.filter == parse_filter({"lang": "en", "year": {"lt": 2010.0, "gte": 2001}})
    for key in (b"user-1", "Zürich".encode(), b"\xff\x00"):
        assert request(delivered(encode_request("t", key=key, form=form))).key == key
    assert refusal(draft.value, draft.headers, model="mpnet").code == "other_model"


@pytest.mark.parametrize(
    ("code", "value", "says"),
    [
        ("undecodable_value", None, "no value"),
        ("undecodable_value", b"", "empty"),
        ("undecodable_value", b"nearest please", "application/msgpack"),
        ("undecodable_value", b'{"vector": [NaN, 1, 1, 1]}', "NaN"),
        ("schema_registry_framing", b'\x00\x00\x00\x00\x01{"key": "a"}', "registry"),
        ("no_query", b"{}", "none"),
        ("no_query", b'{"key": "a", "vector": [1, 2, 3, 4]}', "vector and key"),
        ("unknown_field", b'{"key": "a", "top_k": 3}', "'top_k'"),
        ("wrong_dimension", b'{"vector": [1, 2]}', "2 components"),
        ("not_finite", b'{"vector": [1, 2, 1e39, 4]}', "component 2"),
        ("empty_key", b'{"key": ""}', "key"),
        ("oversized_key", b'{"key": "' + b"a" * 512 + b'"}', "511"),
        ("bad_field", b'{"key": 17}', "key is 17"),
        ("bad_field", b'{"key": "\\ud800"}', "well-formed"),
        ("bad_field", b'{"key_base64": "%%"}', "well-formed"),
        ("k_out_of_range", b'{"key": "a", "k": 0}', "1 to 1000"),
        ("k_out_of_range", b'{"key": "a", "k": 1001}', "k is 1001"),
        ("k_out_of_range", b'{"key": "a", "k": ' + b"9" * 400 + b"}", "64 bits"),
        ("bad_field", b'{"key": "a", "k": 1.5}', "k is 1.5"),
        ("bad_field", b'{"key": "a", "k": true}', "k is True"),
        ("ef_out_of_range", b'{"key": "a", "ef": 4001}', "1 to 4000"),
        ("deadline_ms_out_of_range", b'{"key": "a", "deadline_ms": 0}', "600000"),
        ("bad_field", b'{"key": "a", "include": "vector"}', "include"),
        ("bad_field", b'{"key": "a", "include": ["vectors"]}', "'vectors'"),
        ("bad_field", b'{"key": "a", "include": [["vector"]]}', "include"),
        ("bad_filter", b'{"key": "a", "filter": "year > 2001"}', "filter is 'year > 2001'"),
        ("bad_filter", b'{"key": "a", "filter": {"or": [{"year": {"above": 1}}]}}', "filter.or[0].year has"),
        ("bad_filter", b'{"key": "a", "filter": {"year": null}}', "exists"),
        ("bad_filter", b'{"key": "a", "filter": {"\\ud800": 1}}', "surrogate"),
        ("bad_filter", b'{"key": "a", "filter": {"a": ' + b"9" * 400 + b', "b": {}}}', "filter.b"),
        ("bad_field", b'{"key": "a", "after": 12}', "after"),
        ("bad_field", b'{"key": "a", "after": {"t": 12}}', "'t'"),
        ("bad_field", b'{"key": "a", "after": {"t": {"x": 12}}}', "'x'"),
        ("bad_field", b'{"key": "a", "after": {"t": {"-1": 12}}}', "'-1'"),
        ("bad_field", b'{"key": "a", "after": {"t": {"0": -1}}}', "partition 0"),
        ("bad_field", b'{"key": "a", "after": {"t": {"0": 99999999999999999999}}}', "partition 0"),
        ("bad_field", '{"key": "a", "after": {"t": {"\u0663": 1}}}'.encode(), "partition number"),
    ],
)
def test_each_wrong_request_has_its_code(code: str, value: bytes | None, says: str) -> None:
    """Wrong requests: the code, and a sentence that names the field and what is allowed."""
    rejection = refusal(value)
    assert rejection.code == code
    assert says in rejection.reason


def test_requests_are_json_or_msgpack() -> None:
    """Bare floats, unknown types, other versions and, under cosine, zero vectors are refused."""
    assert (
        refusal(QUERY.tobytes(), (("content-type", b"application/octet-stream"),)).code
        == "unknown_content_type"
    )
    assert refusal(b"{}", (("content-type", b"text/plain"),)).code == "unknown_content_type"
    assert refusal(b"{}", (("driftline-version", b"9"),)).code == "unknown_version"
    assert refusal(b'{"vector": [0, 0, 0, 0]}', metric="cosine").code == "zero_vector"


def test_spring_json_has_no_content_type() -> None:
    """Spring's JSON serializer adds a __TypeId__ header and no content type: the first byte decides."""
    asked = request(record(b'{"key":"a","k":2}', (("__TypeId__", b"java.util.LinkedHashMap"),)))
    assert (asked.key, asked.form) == (b"a", Form.JSON)


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
names = st.text(max_size=3) | st.binary(max_size=2)
hostile_fields = st.dictionaries(
    st.sampled_from(
        ["vector", "dtype", "key", "key_base64", "k", "ef", "after", "deadline_ms", "include", "filter"]
    ),
    st.recursive(
        st.none() | st.booleans() | numbers | st.text(max_size=6) | st.binary(max_size=17),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
hostile_headers = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "kafka_replyTopic", "kafka_replyPartition", "kafka_correlationId"]),
        st.binary(max_size=6) | st.sampled_from([form.encode() for form in Form]),
    ),
    max_size=3,
).map(tuple)


@settings(max_examples=400)
@given(st.none() | st.binary(max_size=64) | hostile_fields.map(msgpack.packb), hostile_headers)
def test_no_bytes_raise(value: bytes | None, headers: Headers) -> None:
    """Whatever a record holds: a request or a rejection, a route or a rejection, and a form to answer in."""
    asked = record(value, headers)
    decoded = decode(asked)
    assert isinstance(decoded, SearchRequest) or decoded.code in CODES
    if isinstance(decoded, SearchRequest):
        assert decoded.form is reply_form(asked)
    assert reply_form(asked) in (Form.JSON, Form.MSGPACK)
    route = read_route(asked, "replies")
    assert isinstance(route, ReplyRoute) or route.code == "bad_reply_route"


PLAIN = attrgetter("id", "distance", "attributes")
HITS = (
    Hit(b"user-1", 0.0, {"lang": "en", "n": 3}, QUERY),
    Hit("Zürich".encode(), 0.25, {}, QUERY * 2),
    Hit(b"\xff\x00", 1.5, {"deep": {"list": [1, None, True]}}, QUERY * 3),
)


@FORMS
def test_replies_round_trip(form: Form) -> None:
    """Hits with all that can be asked for, and with nothing but ids and distances."""
    bare = tuple(Hit(hit.id, hit.distance) for hit in HITS)
    for hits in (HITS, bare, ()):
        sent = Reply(hits, {"driftline.vectors": {0: 1234, 1: 0}}, frame=3, took_us=412)
        draft = reply_draft(ReplyRoute("replies", 1, b"corr"), encode_reply(sent, form), form)
        got = decode_reply(record(draft.value, draft.headers))
        assert (got.applied, got.frame, got.took_us) == (sent.applied, 3, 412)
        assert [(h.id, h.distance, h.attributes) for h in got.hits] == [
            (h.id, h.distance, h.attributes) for h in hits
        ]
        for mine, theirs in zip(hits, got.hits, strict=True):
            assert (mine.vector is None) == (theirs.vector is None)
            if mine.vector is not None:
                np.testing.assert_array_equal(mine.vector, theirs.vector)


def test_a_json_reply_to_the_letter() -> None:
    """The reply as docs/messages.md shows it, id_base64 included."""
    reply = Reply(
        [Hit(b"a", 0.5), Hit(b"\xff", 1.0, {"n": 1})], {"driftline.vectors": {0: 9}}, frame=1, took_us=80
    )
    assert json.loads(encode_reply(reply, Form.JSON)) == {
        "hits": [
            {"id": "a", "distance": 0.5},
            {"id_base64": "/w==", "distance": 1.0, "attributes": {"n": 1}},
        ],
        "applied": {"driftline.vectors": {"0": 9}},
        "frame": 1,
        "took_us": 80,
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_reply(Reply([Hit(b"a", float("inf"))], {}, 0, 0), Form.JSON)


@FORMS
def test_errors_reach_the_client_as_search_failed(form: Form) -> None:
    """An error reply raises with the service's code and sentence."""
    with pytest.raises(SearchFailed, match="k is 0") as failed:
        decode_reply(record(encode_error("k_out_of_range", "k is 0; it must be from 1", form)))
    assert (failed.value.code, failed.value.reason) == ("k_out_of_range", "k is 0; it must be from 1")


@pytest.mark.parametrize(
    "value",
    [None, b"", b"junk", b"{}",
     b'{"hits": 3, "applied": {}, "frame": 0, "took_us": 0}', b'{"error": 3}', b'{"error": []}',
     b'{"hits": [{"id": "a"}], "applied": {}, "frame": 0, "took_us": 0}',
     b'{"hits": [{"id": 7, "distance": 1}], "applied": {}, "frame": 0, "took_us": 0}',
     b'{"hits": [{"id": "a", "distance": 1e999}], "applied": {}, "frame": 0, "took_us": 0}',
     b'{"hits": [], "applied": 3, "frame": 0, "took_us": 0}',
     b'{"hits": [], "applied": {}, "frame": 1e999, "took_us": 0}'],
)  # fmt: skip
def test_what_is_no_reply(value: bytes | None) -> None:
    """A foreign record on the reply topic is InvalidInput, never something else."""
    with pytest.raises(InvalidInput):
        decode_reply(record(value))


hostile_hits = st.fixed_dictionaries({"id": names | numbers, "distance": numbers}, optional={"vector": names})
hostile_replies = (hostile_hits | hostile_fields).map(
    lambda hit: msgpack.packb({"hits": [hit], "applied": {}, "frame": 0, "took_us": 1})
)


@settings(max_examples=200)
@given(st.binary(max_size=64) | hostile_replies)
def test_no_reply_raises_anything_else(value: bytes) -> None:
    """Clients face hostile bytes too: a reply, SearchFailed or InvalidInput."""
    with suppress(SearchFailed, InvalidInput):
        assert isinstance(decode_reply(record(value)), Reply)


def test_routes() -> None:
    """The headers of Spring's ReplyingKafkaTemplate, all and none of them, and as clients write them."""
    spring = (
        ("kafka_replyTopic", b"answers"),
        ("kafka_replyPartition", b"\x00\x00\x01\x02"),
        ("kafka_correlationId", bytes(range(16))),
    )
    route = read_route(record(b"{}", spring), "replies")
    assert route == ReplyRoute("answers", 258, bytes(range(16)))
    assert route_headers(route) == spring
    assert read_route(record(b"{}"), "replies") == ReplyRoute("replies", None, None)
    draft = reply_draft(route, b"{}", Form.JSON)
    assert (draft.topic, draft.partition, draft.key) == ("answers", 258, None)
    assert dict(draft.headers) == {
        "content-type": b"application/json",
        "driftline-version": b"1",
        "kafka_correlationId": bytes(range(16)),
    }
    assert correlation_of(record(b"", draft.headers)) == bytes(range(16))


@pytest.mark.parametrize(
    "header",
    [
        ("kafka_replyTopic", b""),
        ("kafka_replyTopic", b".."),
        ("kafka_replyTopic", b"a/b"),
        ("kafka_replyTopic", b"\xff\xfe"),
        ("kafka_replyTopic", b"a" * 250),
        ("kafka_replyPartition", b"3"),
        ("kafka_replyPartition", b"\xff\xff\xff\xff"),
        ("kafka_replyPartition", b"\x00" * 8),
        ("kafka_correlationId", b"x" * 1025),
    ],
)
def test_bad_routes(header: tuple[str, bytes]) -> None:
    """A header that leads nowhere: a rejection that names it, for the dead letters."""
    rejection = read_route(record(b"{}", (header,)), "replies")
    assert isinstance(rejection, Rejection)
    assert rejection.code == "bad_reply_route"
    assert header[0] in rejection.reason


@pytest.mark.parametrize(
    ("form", "value", "headers"),
    [
        (Form.JSON, b"junk", ()),
        (Form.JSON, None, ()),
        (Form.JSON, b'{"k": 1', ()),
        (Form.JSON, b"\x81", (("content-type", b"application/json"),)),
        (Form.MSGPACK, b"\x81", (("content-type", b"text/plain"),)),
        (Form.MSGPACK, b"\x81\xa1", ()),
        (Form.MSGPACK, b"\xde\x00", ()),
        (Form.MSGPACK, b"{", (("content-type", b"application/msgpack"),)),
    ],
)
def test_the_form_of_an_error_to_what_cannot_be_read(
    form: Form, value: bytes | None, headers: Headers
) -> None:
    """Errors answer in the request's form as far as it can be told, in JSON otherwise."""
    assert reply_form(record(value, headers)) is form


def test_client_arguments() -> None:
    """encode_request refuses what is no request at all."""
    arguments: list[Mapping[str, Any]] = [
        {},
        {"vector": QUERY, "key": "a"},
        {"vector": [[1.0]]},
        {"vector": ["a"]},
        {"key": ""},
        {"key": "a", "filter": {"year": {"above": 1}}},
        {"key": "a", "filter": {"year": float("nan")}},
    ]
    for each in arguments:
        with pytest.raises(InvalidInput):
            encode_request("t", **each)
