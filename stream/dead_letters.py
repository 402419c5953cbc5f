"""The dead-letter topic: what was not accepted, as it came, with the reason in Kafka Connect's headers.

The names are those of Connect's DeadLetterQueueReporter, so that the tools written for Connect's dead letters
read these. The time of a letter is that of its writing, the record's own a header: retention counts from it,
and brokers refuse records that are dated too far from now.

| header `__connect.errors.`... | value (UTF-8)                                                     |
|-------------------------------|-------------------------------------------------------------------|
| topic, partition, offset      | where the record stood                                            |
| connector.name, task.id       | "driftline", and the name of the instance                         |
| stage                         | KEY_CONVERTER, HEADER_CONVERTER, VALUE_CONVERTER or TASK_PUT      |
| class.name                    | the module that rejected it                                       |
| exception.class.name          | "driftline." and the code                                         |
| exception.message             | the sentence                                                      |
| exception.stacktrace          | the two above in one line: a rejection has no stack worth reading |

| header                  | value                                           |
|-------------------------|-------------------------------------------------|
| driftline-timestamp-ms  | the record's time, as decimal text              |
| driftline-value-bytes   | length of a value that was left out, the same   |
"""

from dataclasses import replace

from .documents import Rejection
from .log import Draft

__all__ = ["TIMESTAMP_HEADER", "VALUE_BYTES_HEADER", "bare_letter", "dead_letter"]

PREFIX = "__connect.errors."
TIMESTAMP_HEADER = "driftline-timestamp-ms"
VALUE_BYTES_HEADER = "driftline-value-bytes"
STAGES = {
    "empty_key": "KEY_CONVERTER",
    "oversized_key": "KEY_CONVERTER",
    "bad_header": "HEADER_CONVERTER",
    "bad_reply_route": "HEADER_CONVERTER",
    "unknown_content_type": "HEADER_CONVERTER",
    "unknown_version": "HEADER_CONVERTER",
    "oversized_value": "VALUE_CONVERTER",
    "schema_registry_framing": "VALUE_CONVERTER",
    "undecodable_value": "VALUE_CONVERTER",
    "unknown_field": "VALUE_CONVERTER",
}  # all else was understood and cannot be put into the index: TASK_PUT


def dead_letter(rejection: Rejection, topic: str, *, instance: str = "0", keep_value: bool = True) -> Draft:
    """The record for the dead-letter topic: key, value and headers as they came, and the reason.

    A dead letter is longer than its record, so that a record near the topic's size limit may not fit. For
    that case `keep_value=False` leaves the value out and says its length; the original is still where topic,
    partition and offset say. Reasons of an earlier rejection are replaced: a letter that was sent back and
    refused again tells of the last time.
    """
    record = rejection.record
    reasons = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "connector.name": "driftline",
        "task.id": instance,
        "stage": STAGES.get(rejection.code, "TASK_PUT"),
        "class.name": "driftline.stream.messages",
        "exception.class.name": f"driftline.{rejection.code}",
        "exception.message": rejection.sentence,
        "exception.stacktrace": f"driftline.{rejection.code}: {rejection.sentence}\n",
    }
    headers = [(_writable(name), value) for name, value in record.headers if not _is_ours(name)]
    headers += [(PREFIX + name, text.encode("utf-8", "replace")) for name, text in reasons.items()]
    headers.append((TIMESTAMP_HEADER, b"%d" % record.timestamp_ms))
    value = record.value
    if not keep_value and value is not None:
        headers.append((VALUE_BYTES_HEADER, b"%d" % len(value)))
        value = None
    return Draft(topic, record.key, value, tuple(headers))


def bare_letter(letter: Draft) -> Draft | None:
    """A letter with nothing of its record but the reasons, under its place as the key; None if it is that.

    For a topic that refuses the whole one: one that is compacted takes no letter without a key, say.
    """
    headers = tuple(header for header in letter.headers if _is_ours(header[0]))
    said = dict(headers)
    if PREFIX + "topic" not in said:
        return None  # no dead letter
    key = b"/".join(said[PREFIX + part] for part in ("topic", "partition", "offset"))
    bare = replace(letter, key=key, value=b"", headers=headers)
    return None if bare == letter else bare


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) or name in (TIMESTAMP_HEADER, VALUE_BYTES_HEADER)


def _writable(name: str) -> str:
    """The name of a header, with \\xff for a byte that is not UTF-8."""
    return name if name.isascii() else name.encode(errors="surrogateescape").decode(errors="backslashreplace")
