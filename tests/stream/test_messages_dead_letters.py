"""Dead letters: what stands in them."""

from driftline.stream.dead_letters import bare_letter
from driftline.stream.log import Draft, Record
from driftline.stream.messages import Rejection, dead_letter

RECORD = Record(
    "vectors", 3, 17, 1_700_000_000_000, b"user-1", b"\x00junk", (("content-type", b"x"), ("trace", b"\xff"))
)
PREFIX = "__connect.errors."


def test_a_letter_is_the_record_and_kafka_connects_headers() -> None:
    """Key, value and headers as they came, then the ten headers of Kafka Connect and the record's time."""
    letter = dead_letter(Rejection(RECORD, "wrong_dimension", "too short"), "dead", instance="shard-0")
    assert (letter.topic, letter.key, letter.value) == ("dead", RECORD.key, RECORD.value)
    assert (letter.partition, letter.timestamp_ms) == (None, None)
    assert letter.headers[:2] == RECORD.headers
    sentence = "vectors[3]@17, key 'user-1': too short"
    assert dict(letter.headers[2:]) == {
        PREFIX + "topic": b"vectors",
        PREFIX + "partition": b"3",
        PREFIX + "offset": b"17",
        PREFIX + "connector.name": b"driftline",
        PREFIX + "task.id": b"shard-0",
        PREFIX + "stage": b"TASK_PUT",
        PREFIX + "class.name": b"driftline.stream.messages",
        PREFIX + "exception.class.name": b"driftline.wrong_dimension",
        PREFIX + "exception.message": sentence.encode(),
        PREFIX + "exception.stacktrace": f"driftline.wrong_dimension: {sentence}\n".encode(),
        "driftline-timestamp-ms": b"1700000000000",
    }


def test_a_letter_sent_back_tells_of_the_last_time() -> None:
    """Headers of an earlier rejection are replaced, not doubled."""
    first = dead_letter(Rejection(RECORD, "zero_vector", "zero"), "dead")
    again = Record("vectors", 0, 99, -1, first.key, first.value, first.headers)
    second = dead_letter(Rejection(again, "undecodable_value", "junk"), "dead")
    names = [name for name, _ in second.headers]
    assert len(names) == len(set(names)) == len(first.headers)
    assert dict(second.headers)[PREFIX + "offset"] == b"99"
    assert dict(second.headers)[PREFIX + "stage"] == b"VALUE_CONVERTER"
    assert dict(second.headers)["driftline-timestamp-ms"] == b"-1"


def test_a_value_can_be_left_out() -> None:
    """For records that would not fit with their reasons: the length stands instead of the value."""
    letter = dead_letter(Rejection(RECORD, "oversized_value", "long"), "dead", keep_value=False)
    assert letter.value is None
    assert dict(letter.headers)["driftline-value-bytes"] == b"5"


def test_a_bare_letter_is_its_reasons() -> None:
    """For topics that refuse the whole one: a key that any topic takes, and nothing of the record. There is
    no barer one, and none of what is no letter."""
    letter = dead_letter(Rejection(RECORD, "zero_vector", "zero"), "dead")
    bare = bare_letter(letter)
    assert bare is not None
    assert (bare.topic, bare.key, bare.value) == ("dead", b"vectors/3/17", b"")
    assert dict(bare.headers) == {
        name: value for name, value in letter.headers if name not in ("content-type", "trace")
    }
    assert bare_letter(bare) is None
    assert bare_letter(Draft("drift", None, b"{}", (("content-type", b"application/json"),))) is None
