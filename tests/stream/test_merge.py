"""Merging answers: which hits, which offsets, when it is partial and when it is an error."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from driftline.errors import InvalidInput
from driftline.stream.documents import Form, Refused
from driftline.stream.log import Headers, Record
from driftline.stream.merge import Answer, merged, read_answer, shard_header
from driftline.stream.messages import Hit, Reply, encode_error, encode_reply
from hypothesis import given
from hypothesis import strategies as st

ALL = (0, 1, 2)


def said(partitions: set[int], hits: Mapping[bytes, float], offset: int = 5, **more: Any) -> Answer:
    listed = [Hit(key, distance) for key, distance in sorted(hits.items(), key=lambda pair: pair[1])]
    reply = Reply(listed, {"t": dict.fromkeys(partitions, offset)}, **{"frame": 1, "took_us": 9, **more})
    return Answer("t", frozenset(partitions), reply)


def refused(partitions: set[int], code: str) -> Answer:
    return Answer("t", frozenset(partitions), Refused(code, "why"))


def together(*answers: Answer, k: int = 3) -> Reply:
    return merged(answers, "t", ALL, k, lambda key: key[0] % 3)


def test_the_nearest_of_all() -> None:
    """Hits by distance over all shards, offsets of all, the newest frame; whole."""
    reply = together(
        said({0, 1}, {b"a": 1.0, b"b": 4.0, b"c": 9.0}, 7, frame=3),
        said({2}, {b"d": 2.0, b"e": 3.0}, 8),
    )
    assert [(hit.id, hit.distance) for hit in reply.hits] == [(b"a", 1.0), (b"d", 2.0), (b"e", 3.0)]
    assert reply.applied == {"t": {0: 7, 1: 7, 2: 8}}
    assert (reply.frame, reply.partial) == (3, [])


@given(st.lists(st.dictionaries(st.binary(min_size=1, max_size=2), st.floats(0, 10)), min_size=3, max_size=3))
def test_any_hits(shards: list[dict[bytes, float]]) -> None:
    """Each key at most once, ascending, none nearer left out."""
    reply = together(*(said({partition}, hits) for partition, hits in enumerate(shards)), k=4)
    keys = [hit.id for hit in reply.hits]
    distances = [hit.distance for hit in reply.hits]
    assert len(set(keys)) == len(keys) == min(4, len(set[bytes]().union(*shards)))
    assert distances == sorted(distances)
    chosen = {
        key: shards[key[0] % 3].get(key, min(hits[key] for hits in shards if key in hits))
        for key in set[bytes]().union(*shards)
    }
    assert distances == sorted(chosen.values())[:4]


def test_a_key_that_moved() -> None:
    """Held by two shards: the one whose partition it goes to now counts, though the other is nearer."""
    reply = together(said({0, 1}, {b"\x02": 1.0}), said({2}, {b"\x02": 4.0}))
    assert [hit.distance for hit in reply.hits] == [4.0]
    reply = together(said({0}, {b"\x02": 3.0}), said({1}, {b"\x02": 2.0}), said({2}, {}))
    assert [hit.distance for hit in reply.hits] == [2.0]


def test_two_that_hold_one_partition() -> None:
    """What both have seen is what the answer has seen."""
    reply = together(said({0, 1}, {b"a": 1.0}, 9), said({1, 2}, {b"a": 1.0}, 4))
    assert reply.applied == {"t": {0: 9, 1: 4, 2: 4}}
    assert [hit.id for hit in reply.hits] == [b"a"]


def test_partial() -> None:
    """Without some partitions: hits of the others, and which are missing; a shard that cannot answer now is
    missing too."""
    assert together(said({1}, {b"a": 1.0})).partial == [0, 2]
    late = said({2}, {b"b": 2.0}, partial=(2,))
    assert together(said({0, 1}, {b"a": 1.0}), late).partial == [2]
    reply = together(said({0, 1}, {b"a": 1.0}), refused({2}, "too_busy"))
    assert (reply.partial, len(reply.hits)) == ([2], 1)


def test_no_answer() -> None:
    """Nobody answered, or nobody could: an error, and never an empty answer."""
    with pytest.raises(Refused) as failed:
        together()
    assert failed.value.code == "unavailable"
    with pytest.raises(Refused) as failed:
        together(refused({0}, "internal_error"), refused({1, 2}, "too_busy"))
    assert failed.value.code == "internal_error"


def test_a_fault_of_the_request() -> None:
    """One shard says what is wrong with the request: that is the answer, whatever others found."""
    with pytest.raises(Refused) as failed:
        together(said({0, 1}, {b"a": 1.0}), refused({2}, "wrong_dimension"))
    assert failed.value.code == "wrong_dimension"


def test_fields_that_no_vector_has_had() -> None:
    """An error only if no shard knows the field, and all were asked."""
    known, other = said({0}, {}), said({1, 2}, {}, unknown=("x", "y"))
    assert together(known, other).hits == []
    one = said({0}, {}, unknown=("y",))
    with pytest.raises(Refused, match="unknown field 'y'"):
        together(one, other)
    assert together(one).partial == [1, 2]


def record(value: bytes, headers: Headers) -> Record:
    return Record("r", 0, 0, 0, None, value, (("content-type", Form.MSGPACK.encode()), *headers))


def test_answers_are_read_as_shards_write_them() -> None:
    """Partitions from the header, also of an error; what the vector was."""
    vector = np.array([1, 2], np.float32)
    reply = Reply([Hit(b"a", 1.0)], {"t": {2: 5}}, 0, 1, vector, unknown=["x"])
    answer = read_answer(record(encode_reply(reply, Form.MSGPACK), shard_header("t", {2, 0})))
    assert (answer.topic, answer.partitions) == ("t", {0, 2})
    assert isinstance(answer.reply, Reply)
    assert answer.reply.query is not None
    assert answer.reply.query.tolist() == [1, 2]
    assert answer.reply.unknown == ("x",)
    assert answer.ends
    answer = read_answer(record(encode_error("too_busy", "why", Form.MSGPACK), shard_header("t", [1])))
    assert (answer.partitions, answer.about_itself, answer.ends) == ({1}, True, False)
    assert read_answer(record(encode_error("unknown_key", "why", Form.MSGPACK), ())).partitions == frozenset()


@given(st.binary(max_size=40), st.binary(max_size=10))
def test_no_bytes_are_taken_for_an_answer(value: bytes, header: bytes) -> None:
    """What is no answer is refused in one way."""
    with contextlib.suppress(InvalidInput):
        read_answer(record(value, (("driftline-shard", header),)))
