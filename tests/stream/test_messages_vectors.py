"""The vectors topic: what decodes to which vector, and what is rejected with which code."""

import json
import time

import msgpack
import numpy as np
import pytest
from driftline.errors import InvalidInput
from driftline.stream.log import Draft, Record
from driftline.stream.messages import (
    CODES,
    MAX_ATTRIBUTES_BYTES,
    MAX_VALUE_BYTES,
    Form,
    VectorBatch,
    decode_vectors,
    encode_delete,
    encode_vector,
    unpack_attributes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 4
BARE = (("content-type", b"application/octet-stream"),)
JSON = (("content-type", b"application/json"),)
MSGPACK = (("content-type", b"application/msgpack"),)
X_MSGPACK = (("content-type", b"application/x-msgpack"),)
CHARSET = (("content-type", b"application/json; charset=UTF-8"),)
GOOD = np.array([1.0, -2.0, 0.5, 3.25], np.float32)


def record(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...] = (), offset: int = 7
) -> Record:
    return Record("driftline.vectors", 2, offset, 1_700_000_000_000, key, value, headers)


def delivered(draft: Draft, offset: int = 7) -> Record:
    return record(draft.key, draft.value, draft.headers, offset)


def decode(*records: Record, dim: int = DIM, metric: str = "l2", model: str | None = None) -> VectorBatch:
    return decode_vectors(records, dim=dim, metric=metric, model=model)


def code_of(
    value: bytes | None,
    headers: tuple[tuple[str, bytes], ...] = (),
    *,
    key: bytes | None = b"k",
    metric: str = "l2",
) -> str:
    batch = decode(record(key, value, headers), metric=metric)
    assert (batch.keys, batch.deleted) == ([], [])
    (rejection,) = batch.rejected
    assert rejection.code in CODES
    return rejection.code


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (GOOD.tobytes(), BARE),
        (GOOD.tobytes(), (("Content-Type", b"Application/Octet-Stream"),)),
        (msgpack.packb({"vector": GOOD.tobytes()}), ()),
        (msgpack.packb({"vector": GOOD.tobytes(), "dtype": "f4"}), MSGPACK),
        (msgpack.packb({"vector": GOOD.astype("<f2").tobytes(), "dtype": "f2"}), X_MSGPACK),
        (msgpack.packb({"vector": GOOD.tolist()}), ()),
        (json.dumps({"vector": GOOD.tolist()}).encode(), ()),
        (json.dumps({"vector": [1, -2, 0.5, 3.25], "attributes": None}).encode(), JSON),
        (json.dumps({"vector": GOOD.tolist()}).encode(), CHARSET),
        (b' \n{"vector": [1, -2, 0.5, 3.25]}', JSON),
        (GOOD.tobytes(), (("content-type", b"text/plain"), *BARE)),
    ],
)  # fmt: skip
def test_every_form_of_one_vector(value: bytes, headers: tuple[tuple[str, bytes], ...]) -> None:
    """Bare, msgpack and JSON, with and without headers, both dtypes: always the same floats."""
    batch = decode(record(b"k", value, headers))
    assert batch.rejected == []
    assert batch.keys == [b"k"]
    assert batch.vectors.dtype == np.float32
    assert batch.vectors.flags.c_contiguous
    np.testing.assert_array_equal(batch.vectors, [GOOD])
    assert batch.attributes == [None]


NAN = np.array([1, np.nan, 1, 1], np.float32).tobytes()
LONG = np.full(DIM, 1e19, np.float32).tobytes()
SHORT = np.full(DIM, 1e-30, np.float32).tobytes()


@pytest.mark.parametrize(
    ("code", "value", "headers"),
    [
        ("undecodable_value", b"", ()),
        ("undecodable_value", b"hello", ()),
        ("undecodable_value", b'{"vector": [1, 2', ()),
        ("undecodable_value", b'{"vector": [1, NaN, 1, 1]}', ()),
        ("undecodable_value", b'{"vector": [1, Infinity, 1, 1]}', ()),
        ("undecodable_value", b'{"vector": [1, 1, 1, ' + b"1" * 5000 + b"]}", ()),
        ("undecodable_value", b'{"vector": "\xff"}', ()),
        ("undecodable_value", b"[" * 100_000, JSON),
        ("undecodable_value", b"[1, 2]", JSON),
        ("undecodable_value", b"\x91" * 100_000, ()),
        ("undecodable_value", b"\xdd\xff\xff\xff\xff", ()),
        ("undecodable_value", b"\xdd\x00\x10\x00\x00" * 10_000, ()),
        ("undecodable_value", b"\xc6\xff\xff\xff\xff", ()),
        ("undecodable_value", b"\x81\xa6vector\xd4\x05\x00", ()),
        ("undecodable_value", msgpack.packb({"vector": GOOD.tobytes()}) + b"\x00", ()),
        ("undecodable_value", msgpack.packb({1: 2}), ()),
        ("schema_registry_framing", b"\x00\x00\x00\x00\x07" + b'{"vector": [1, 2, 3, 4]}', ()),
        ("schema_registry_framing", b"\x00\x00\x00\x00\x07{}", JSON),
        ("oversized_value", b"{" + b" " * MAX_VALUE_BYTES, ()),
        ("unknown_content_type", GOOD.tobytes(), (("content-type", b"application/avro"),)),
        ("unknown_content_type", GOOD.tobytes(), (("content-type", b"\xff\x00"),)),
        ("unknown_content_type", b"{}", (("content-type", b"application/json; charset=latin-1"),)),
        ("unknown_version", GOOD.tobytes(), (*BARE, ("driftline-version", b"2"))),
        ("bad_header", GOOD.tobytes(), (*BARE, ("embedding-model", b"\xff"))),
        ("bad_header", GOOD.tobytes(), (*BARE, ("embedding-model", b""))),
        ("wrong_dimension", GOOD[:3].tobytes(), BARE),
        ("wrong_dimension", GOOD.tobytes() + b"\x00", BARE),
        ("wrong_dimension", b'{"vector": []}', ()),
        ("wrong_dimension", b'{"vector": [1, 2, 3]}', ()),
        ("wrong_dimension", msgpack.packb({"vector": GOOD.tobytes(), "dtype": "f2"}), ()),
        ("no_vector", b"{}", ()),
        ("no_vector", b'{"vector": null}', ()),
        ("unknown_field", b'{"vektor": [1, 2, 3, 4]}', ()),
        ("unknown_field", msgpack.packb({b"vector": [1, 2, 3, 4]}), ()),
        ("bad_vector", b'{"vector": "AAAA"}', ()),
        ("bad_vector", b'{"vector": [1, "2", 3, 4]}', ()),
        ("bad_vector", b'{"vector": [1, true, 3, 4]}', ()),
        ("bad_vector", b'{"vector": [[1], [2], [3], [4]]}', ()),
        ("bad_vector", msgpack.packb({"vector": GOOD.tobytes(), "dtype": "f8"}), ()),
        ("bad_vector", msgpack.packb({"vector": GOOD.tobytes(), "dtype": ["f4"]}), ()),
        ("not_finite", NAN, BARE),
        ("not_finite", b'{"vector": [1, 1e39, 1, 1]}', ()),
        ("not_finite", b'{"vector": [1, 1e999, 1, 1]}', ()),
        ("not_finite", b'{"vector": [1, 1, 1, ' + b"1" * 400 + b"]}", ()),
        ("vector_too_long", LONG, BARE),
    ],
)  # fmt: skip
def test_each_wrong_value_has_its_code(
    code: str, value: bytes, headers: tuple[tuple[str, bytes], ...]
) -> None:
    """Malformed, hostile and merely wrong values, each rejected with its code."""
    assert code_of(value, headers) == code


@pytest.mark.parametrize(
    "attributes",
    [
        [1],
        {"a": float("inf")},
        {"a": b"bytes"},
        {b"a": 1},
        {"a": msgpack.Timestamp(1)},
        {"a": "x" * MAX_ATTRIBUTES_BYTES},
    ],
)
def test_attributes_are_what_json_can_say(attributes: object) -> None:
    """Maps of names to JSON's values, of bounded size: all else is rejected, in msgpack too."""
    assert code_of(msgpack.packb({"vector": GOOD.tobytes(), "attributes": attributes})) == "bad_attributes"


@pytest.mark.parametrize("value", ['"\\ud800"', "99999999999999999999", "1e999", "[" * 20 + "]" * 20])
def test_json_that_attributes_cannot_hold(value: str) -> None:
    """Lone surrogates, integers of more than 64 bits, overflowing floats, deep nesting."""
    document = '{"vector": [1, 2, 3, 4], "attributes": {"a": ' + value + "}}"
    assert code_of(document.encode()) == "bad_attributes"


def test_keys_have_1_to_511_bytes() -> None:
    """Missing, empty and oversized keys are rejected, of vectors and deletes; the longest is taken."""
    for value in (GOOD.tobytes(), None):
        assert code_of(value, BARE, key=None) == "empty_key"
        assert code_of(value, BARE, key=b"") == "empty_key"
        assert code_of(value, BARE, key=b"k" * 512) == "oversized_key"
    assert decode(record(b"k" * 511, GOOD.tobytes(), BARE)).keys == [b"k" * 511]


def test_zero_vectors_matter_under_cosine_only() -> None:
    """A vector whose squared length vanishes in float32 has no direction; l2 and ip take it."""
    for value in (bytes(4 * DIM), SHORT):
        assert code_of(value, BARE, metric="cosine") == "zero_vector"
        for metric in ("l2", "ip"):
            assert decode(record(b"k", value, BARE), metric=metric).keys == [b"k"]


def test_the_last_accepted_record_of_a_key_wins() -> None:
    """Order within a batch: upsert, delete, upsert; a rejected record leaves its key alone."""
    batch = decode(
        record(b"twice", (GOOD * 2).tobytes(), BARE, 0),
        record(b"gone", GOOD.tobytes(), BARE, 1),
        record(b"back", None, (), 2),
        record(b"twice", GOOD.tobytes(), BARE, 3),
        record(b"gone", None, (), 4),
        record(b"back", (GOOD * 3).tobytes(), BARE, 5),
        record(b"twice", b"junk", (), 6),
        record(b"gone", NAN, BARE, 7),
    )
    assert dict(zip(batch.keys, batch.vectors.tolist(), strict=True)) == {
        b"twice": GOOD.tolist(),
        b"back": (GOOD * 3).tolist(),
    }
    assert batch.deleted == [b"gone"]
    assert [(r.record.offset, r.code) for r in batch.rejected] == [
        (6, "undecodable_value"),
        (7, "not_finite"),
    ]


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans()), max_size=9))
def test_a_batch_is_a_fold(steps: list[tuple[bytes, bool]]) -> None:
    """Any order of upserts and deletes, a delete before an upsert of the same key among them, keeps each key
    with its own vector."""
    live: dict[bytes, list[float]] = {}
    records: list[Record] = []
    for number, (key, upsert) in enumerate(steps):
        vector = GOOD * (number + 1)
        records.append(record(key, vector.tobytes(), BARE, number) if upsert else record(key, None))
        live[key] = vector.tolist() if upsert else []
    batch = decode(*records)
    held = dict(zip(batch.keys, batch.vectors.tolist(), strict=True))
    assert held == {key: vector for key, vector in live.items() if vector}
    assert set(batch.deleted) == {key for key, vector in live.items() if not vector}


def test_the_first_model_is_remembered_and_others_refused() -> None:
    """The first accepted vector that names a model sets it; deletes and nameless vectors are taken."""

    def named(key: bytes, model: bytes, value: bytes | None = GOOD.tobytes()) -> Record:
        return record(key, value, (*BARE, ("embedding-model", model)))

    batch = decode(
        record(b"a", GOOD.tobytes(), BARE),
        named(b"b", b"old", NAN),
        named(b"c", b"minilm"),
        named(b"d", b"mpnet"),
        named(b"e", b"minilm"),
        named(b"a", b"mpnet", None),
    )
    assert batch.model == "minilm"
    assert batch.keys == [b"c", b"e"]
    assert batch.deleted == [b"a"]
    assert [r.code for r in batch.rejected] == ["not_finite", "other_model"]
    assert "'mpnet'" in batch.rejected[1].reason
    assert decode(named(b"c", b"minilm"), model="mpnet").rejected[0].code == "other_model"
    assert decode(record(b"a", GOOD.tobytes(), BARE)).model is None


def test_a_rejection_says_where_and_what_to_do() -> None:
    """The sentence names topic, partition, offset and key; foreign bytes in it are quoted and short."""
    batch = decode(
        record(b"user-1", GOOD[:3].tobytes(), BARE), record(b"\xff" * 400, b"{", ()), record(None, None)
    )
    first, second, third = (rejection.sentence for rejection in batch.rejected)
    assert first.startswith("driftline.vectors[2]@7, key 'user-1': the value has 12 bytes")
    assert "4 float32, 16 bytes" in first
    assert len(second) < 400
    assert "no key: " in third
    assert all(sentence.isprintable() for sentence in (first, second, third))


def test_no_records() -> None:
    """An empty batch is an empty result of the right shape."""
    batch = decode()
    assert batch.vectors.shape == (0, DIM)
    assert (batch.keys, batch.deleted, batch.rejected, batch.model) == ([], [], [], None)


attribute_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    vector=st.lists(st.floats(-1e9, 1e9, width=32), min_size=DIM, max_size=DIM),
    key=st.binary(min_size=1, max_size=511),
    attributes=st.none() | st.dictionaries(st.text(max_size=8), attribute_values, max_size=4),
    form=st.sampled_from([Form.JSON, Form.MSGPACK]),
)
def test_round_trip(
    vector: list[float], key: bytes, attributes: dict[str, object] | None, form: Form
) -> None:
    """What a client encodes, in either form, the service decodes to the same floats and attributes."""
    batch = decode(delivered(encode_vector("t", key, vector, attributes, form=form, model="m")))
    assert batch.rejected == []
    assert (batch.keys, batch.model) == ([key], "m")
    np.testing.assert_array_equal(batch.vectors[0], np.array(vector, np.float32))
    assert unpack_attributes(batch.attributes[0]) == (attributes or {})


@given(st.dictionaries(st.text(max_size=8), attribute_values, max_size=5))
def test_equal_attributes_are_equal_bytes(attributes: dict[str, object]) -> None:
    """The kept form does not depend on the order in which a producer wrote the names, nor on the form."""
    turned = dict(reversed(attributes.items()))
    kept = {
        decode(delivered(encode_vector("t", b"k", GOOD, each, form=form))).attributes[0]
        for each in (attributes, turned)
        for form in (Form.JSON, Form.MSGPACK)
    }
    assert len(kept) == 1


hostile_headers = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "embedding-model", "driftline-version", "other"]),
        st.binary(max_size=12) | st.sampled_from([form.encode() for form in Form]),
    ),
    max_size=3,
).map(tuple)
hostile_documents = st.dictionaries(
    st.sampled_from(["vector", "dtype", "attributes", "k"]),
    attribute_values | st.binary(max_size=17),
    max_size=4,
)
hostile_values = (
    st.none()
    | st.binary(max_size=64)
    | hostile_documents.map(msgpack.packb)
    | attribute_values.map(lambda value: json.dumps(value).encode())
)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.none() | st.binary(max_size=3), hostile_values, hostile_headers), max_size=6),
    st.sampled_from(["l2", "ip", "cosine"]),
)
def test_no_bytes_raise(
    given_records: list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]], metric: str
) -> None:
    """Whatever the records hold, the outcome is a batch in which every record's key is somewhere."""
    records = [record(*fields) for fields in given_records]
    batch = decode(*records, metric=metric)
    assert batch.vectors.shape == (len(batch.keys), DIM)
    assert np.isfinite(batch.vectors).all()
    assert len(batch.attributes) == len(batch.keys)
    refused = {id(rejection.record) for rejection in batch.rejected}
    assert {r.key for r in records if id(r) not in refused} == {*batch.keys, *batch.deleted}
    assert len({*batch.keys, *batch.deleted}) == len(batch.keys) + len(batch.deleted)
    assert {rejection.code for rejection in batch.rejected} <= CODES.keys()


def test_clients_refuse_what_no_collection_takes() -> None:
    """encode_vector and encode_delete raise InvalidInput, naming the key, before anything is sent."""
    for vector in ([[1.0, 2.0]], [], [float("nan")], [1e30] * 4, [0.0] * 5000):
        with pytest.raises(InvalidInput, match="'k'"):
            encode_vector("t", "k", vector)
    with pytest.raises(InvalidInput, match="no key"):
        encode_vector("t", "", GOOD)
    with pytest.raises(InvalidInput, match=r"attributes\.when is of type object"):
        encode_vector("t", "k", GOOD, {"when": object()})
    with pytest.raises(InvalidInput, match="f2"):
        encode_vector("t", "k", [1e6], dtype="f2")
    with pytest.raises(InvalidInput, match="512 bytes"):
        encode_delete("t", "k" * 512)
    with pytest.raises(InvalidInput, match="bare"):
        encode_vector("t", "k", GOOD, {"a": 1}, form=Form.BARE)


def test_bytes_are_not_touched_one_by_one() -> None:
    """No Python per component: bare records decode far faster than lists of the same numbers."""
    vectors = np.random.default_rng(5).normal(size=(1000, 384)).astype(np.float32)
    bare = [record(b"%d" % i, row.tobytes(), BARE, i) for i, row in enumerate(vectors)]
    lists = [
        record(b"%d" % i, msgpack.packb({"vector": row.tolist()}), (), i) for i, row in enumerate(vectors)
    ]
    assert 4 * min(timed(bare) for _ in range(5)) < min(timed(lists) for _ in range(5))  # measured: 19 times


def timed(records: list[Record]) -> float:
    began = time.perf_counter()
    batch = decode_vectors(records, dim=384, metric="cosine", model=None)
    took = time.perf_counter() - began
    assert len(batch.keys) == len(records)
    return took
