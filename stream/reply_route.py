"""The way back of a search: where its reply goes, in the headers that Spring's ReplyingKafkaTemplate uses.

| header               | bytes                   | meaning                                            |
|----------------------|-------------------------|----------------------------------------------------|
| kafka_replyTopic     | UTF-8 topic name        | where to reply; when absent, the service's default |
| kafka_replyPartition | 4 bytes, big-endian int | which partition of it; any when absent             |
| kafka_correlationId  | any bytes, up to 1024   | returned unchanged with the reply                  |
| traceparent,         | any bytes, up to 8192   | OpenTelemetry's context (W3C Trace Context and     |
| tracestate, baggage  | each                    | Baggage): returned unchanged with the reply        |

Driftline's own clients use the first three. Whether the topic exists is the service's to find out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InvalidInput
from .documents import (
    CONTENT_TYPE_HEADER,
    FORMAT_VERSION,
    VERSION_HEADER,
    Form,
    Refused,
    Rejection,
    find_header,
    shown,
)
from .log import Draft, Headers, Record, check_topic_name

__all__ = ["ReplyRoute", "correlation_of", "read_route", "reply_draft", "route_headers"]

TOPIC_HEADER = "kafka_replyTopic"
PARTITION_HEADER = "kafka_replyPartition"
CORRELATION_HEADER = "kafka_correlationId"
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")

MAX_CORRELATION_BYTES = 1024
MAX_TRACE_BYTES = 8192  # W3C Baggage, limits; one that is longer is left out: no trace is worth a search


@dataclass(frozen=True, slots=True)
class ReplyRoute:
    topic: str
    partition: int | None
    correlation: bytes | None
    trace: Headers = ()


def read_route(record: Record, default_topic: str) -> ReplyRoute | Rejection:
    """Where the reply to a request goes. A rejection means that there is nowhere to reply: a dead letter."""
    topic = find_header(record.headers, TOPIC_HEADER.lower())
    partition = find_header(record.headers, PARTITION_HEADER.lower())
    correlation = find_header(record.headers, CORRELATION_HEADER.lower())
    try:
        if correlation is not None and len(correlation) > MAX_CORRELATION_BYTES:
            raise refused(CORRELATION_HEADER, correlation, f"at most {MAX_CORRELATION_BYTES} bytes")
        return ReplyRoute(
            default_topic if topic is None else topic_of(topic),
            None if partition is None else partition_of(partition),
            correlation,
            tuple(trace_of(record)),
        )
    except Refused as wrong:
        return Rejection(record, wrong.code, wrong.reason)


def trace_of(record: Record) -> Iterator[tuple[str, bytes]]:
    """The trace context of a request as bytes, whatever they say: that is for tracers to judge."""
    for name in TRACE_HEADERS:
        value = find_header(record.headers, name)
        if value is not None and len(value) <= MAX_TRACE_BYTES:
            yield name, value


def topic_of(header: bytes) -> str:
    name = header.decode("utf-8", "replace")
    try:
        check_topic_name(name)
    except InvalidInput:
        raise refused(TOPIC_HEADER, header, "the name of a topic, in UTF-8") from None
    return name


def partition_of(header: bytes) -> int:
    partition = int.from_bytes(header[:5], "big", signed=True)
    if len(header) != 4 or partition < 0:
        raise refused(PARTITION_HEADER, header, "a partition number as 4 bytes, big-endian")
    return partition


def refused(header: str, value: bytes, must: str) -> Refused:
    return Refused("bad_reply_route", f"header {header} is {shown(value)}; it must be {must}")


def correlation_of(record: Record) -> bytes | None:
    """The correlation id that a reply carries."""
    return find_header(record.headers, CORRELATION_HEADER.lower())


def route_headers(route: ReplyRoute) -> tuple[tuple[str, bytes], ...]:
    """The headers with which a client asks for its reply on this route."""
    headers = [(TOPIC_HEADER, route.topic.encode())]
    if route.partition is not None:
        headers.append((PARTITION_HEADER, route.partition.to_bytes(4, "big")))
    if route.correlation is not None:
        headers.append((CORRELATION_HEADER, route.correlation))
    return tuple(headers)


def reply_draft(route: ReplyRoute, value: bytes, form: Form, more: Headers = ()) -> Draft:
    """The record that carries an encoded reply (replies.py) along a route, with `more` headers."""
    headers = [(CONTENT_TYPE_HEADER, form.encode()), (VERSION_HEADER, b"%d" % FORMAT_VERSION)]
    if route.correlation is not None:
        headers.append((CORRELATION_HEADER, route.correlation))
    return Draft(route.topic, None, value, (*headers, *route.trace, *more), partition=route.partition)
