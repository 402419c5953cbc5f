"""The log: what driftline asks of Kafka, as a small protocol with two implementations of the same meaning.

- `kafka:HOST:PORT[,HOST:PORT...]` - Apache Kafka (`kafka_log`).
- `local:DIRECTORY` - an LMDB file that many processes of one machine share (`local_log`).

Words: a *topic* has *partitions*; a record in a partition has an *offset*; offsets grow, and may skip
(compaction, transaction markers). Every offset that is passed around is a *next* offset, except the `offset`
of a record or of a `Position`, which is the record's own.

A log belongs to the event loop it was opened on. Everything that cannot be done leaves as an error of
`errors`: `InvalidInput` for a draft that can never be appended, `TopicNotFound`, `BrokerUnavailable` when
nobody answered in time, `LogError` otherwise; `LogError.retriable` says whether the same call may succeed
later.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self, TypedDict, Unpack

from ..errors import InvalidInput, LogError
from .partitioner import partition_of

__all__ = [
    "Compression",
    "Draft",
    "Headers",
    "Log",
    "Position",
    "Reader",
    "Record",
    "SaslMechanism",
    "Security",
    "SecurityProtocol",
    "Topic",
    "check_topic_name",
    "is_topic_name",
    "open_log",
    "outside",
    "record_bytes",
    "route",
]

Headers = tuple[tuple[str, bytes], ...]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

FETCH_RECORDS = 1000  # what one fetch returns at most unless asked otherwise
RECORD_OVERHEAD = 100  # bytes: Kafka's batch header (61) and the record's own varints (at most 36)
HEADER_OVERHEAD = 10  # bytes: two varint lengths
TOMBSTONES_MS = 86_400_000  # Kafka's default for delete.retention.ms
MAX_RECORD_BYTES = 1_048_588  # and for max.message.bytes; the local log's too: what works here works there
TOPIC_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Record(NamedTuple):  # made in a third of the time that a frozen dataclass takes
    """One record as it was read.

    A header that Kafka holds with a null value reads as empty; bytes of its name that are not UTF-8 read as
    lone surrogates (PEP 383).
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Draft:
    """A record to be appended.

    Without `partition`, a key decides it (Kafka's murmur2); without a key too, partitions take turns, one per
    call. `timestamp_ms` is now where it is None.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record was written: `offset` is its own."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Topic:
    """What a topic is.

    `cleanup` holds "compact", "delete" or both: what the log does with old records; empty where it keeps all,
    None where it may not be asked. Where compaction is on, a record needs a key, and tombstones go
    `tombstones_ms` after compaction has come to them. `max_record_bytes` counts key, value, headers and
    framing.
    """

    name: str
    partitions: tuple[int, ...]
    cleanup: frozenset[str] | None
    max_record_bytes: int
    tombstones_ms: int = TOMBSTONES_MS

    @property
    def compacted(self) -> bool:
        """Whether old records of a key may go: also where nobody can tell."""
        return self.cleanup is None or "compact" in self.cleanup


class Reader(Protocol):
    """Reads partitions from given offsets on, at its own pace; one task at a time."""

    async def fetch(self, max_records: int = FETCH_RECORDS, timeout_s: float = 1.0) -> list[Record]:
        """Committed records as soon as any are there, in offset order per partition; [] when there were none
        in time.

        [] also comes early when a position moved without a record (past an aborted transaction, say), so that
        a caller who waits for a position sees it. Cancelling loses nothing: what was not returned is read
        again. While a broker is away this returns [] and goes on when it is back. Raises LogError when a
        position is outside the log.
        """
        ...

    def position(self, topic: str, partition: int) -> int:
        """The next offset to be read, as of the last fetch; past markers and compacted records too."""
        ...

    async def close(self) -> None: ...


class Log(Protocol):
    """Topics that can be appended to and read. An async context manager: entering connects, leaving closes.

    Every call is bounded in time and may be cancelled; an append that is cancelled or raises
    BrokerUnavailable may still be written.
    """

    async def append(self, drafts: Sequence[Draft]) -> list[Position]:
        """Write drafts, in order per partition; returns when all are durable (fsync, or every in-sync
        replica).

        Appends that run at once have no order among them. InvalidInput and TopicNotFound come before anything
        is written. After another error a part of the drafts may be written.
        """
        ...

    async def topics(self) -> frozenset[str]: ...

    async def describe(self, topic: str, *, max_age_s: float = 60.0) -> Topic:
        """What a topic is, or was so long ago. Raises TopicNotFound at once; never creates a topic."""
        ...

    async def partitions(self, topic: str) -> tuple[int, ...]:
        """As `describe(topic).partitions`."""
        ...

    async def create_topic(self, topic: str, *, partitions: int = 1, compacted: bool = False) -> bool:
        """Create a topic and wait until it can be used; False if it was there (whatever its shape)."""
        ...

    async def begin_offsets(self, topic: str) -> dict[int, int]:
        """The first offset a reader may start from, per partition."""
        ...

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """The position of a reader that has read everything committed, per partition."""
        ...

    async def record_at(self, topic: str, partition: int, offset: int) -> Record | None:
        """The record of that very offset; None where there is none: a gap, a marker, outside the log."""
        ...

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Next offsets that a group has committed; partitions it never committed are missing."""
        ...

    async def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Record next offsets for a group, for lag tools and for its own restart."""
        ...

    async def reader(self, starts: Mapping[tuple[str, int], int]) -> Reader:
        """Read (topic, partition) -> next offset, each from there on. Closes with the log at the latest."""
        ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Security(TypedDict, total=False):
    """How to speak to a Kafka that wants more than a plain connection."""

    security_protocol: SecurityProtocol  # without it, PLAINTEXT
    sasl_mechanism: SaslMechanism  # without it, PLAIN
    sasl_username: str
    sasl_password: str
    ssl_ca_file: str  # certificates to trust, PEM; without it, the system's
    ssl_cert_file: str  # this client's own certificate, PEM
    ssl_key_file: str
    ssl_key_password: str


def open_log(
    url: str,
    *,
    ready_within_s: float = 30.0,
    compression: Compression = "none",
    **security: Unpack[Security],
) -> Log:
    """The log at `local:DIRECTORY` or `kafka:HOST:PORT[,HOST:PORT...]`; `async with` opens it.

    `ready_within_s` bounds how long opening tries, and each later call waits, for a broker. `compression` is
    of the records appended to Kafka; what is read may be compressed in any way.
    """
    # Imported here: a local log needs no Kafka client (150 ms to load), and Kafka needs no LMDB.
    scheme, _, place = url.partition(":")
    if scheme == "local" and place:
        from .local_log import LocalLog

        return LocalLog(Path(place))
    if scheme == "kafka" and place:
        from .kafka_log import KafkaLog

        return KafkaLog(place, ready_within_s=ready_within_s, compression=compression, **security)
    raise InvalidInput(f"log {url!r}: expected local:DIRECTORY or kafka:HOST:PORT[,HOST:PORT...]")


def is_topic_name(topic: str) -> bool:
    """Whether Kafka would take this name; a topic of another name cannot exist."""
    return 1 <= len(topic) <= 249 and TOPIC_NAME_CHARACTERS.issuperset(topic) and topic not in (".", "..")


def check_topic_name(topic: str) -> None:
    if not is_topic_name(topic):
        raise InvalidInput(
            f"topic name {topic!r}: 1 to 249 characters of a-z, A-Z, 0-9, '.', '_', '-'; not '.' or '..'"
        )


def outside(topic: str, partition: int, offset: int, begin: int, end: int) -> LogError:
    """The error of a reader whose position is not in the log."""
    why = "records before that were deleted" if offset < begin else "the log was replaced or cut since"
    return LogError(
        f"offset {offset} of {topic}/{partition} is outside the log, which holds {begin} to {end}: {why}"
    )


def record_bytes(draft: Draft | Record) -> int:
    """What a record takes at most in a batch of its own, in Kafka's format."""
    size = RECORD_OVERHEAD + len(draft.key or b"") + len(draft.value or b"")
    for name, value in draft.headers:
        size += (
            HEADER_OVERHEAD
            + (len(name) if name.isascii() else len(name.encode(errors="surrogateescape")))
            + len(value)
        )
    return size


def route(
    drafts: Iterable[Draft], topics: Mapping[str, Topic], turn: int
) -> dict[tuple[str, int], list[int]]:
    """Indices of drafts by (topic, partition), in order; raises InvalidInput for one that cannot be appended.

    `turn` picks the partition of drafts without key and partition: all of one call go to one.
    """
    routes: dict[tuple[str, int], list[int]] = {}
    for index, draft in enumerate(drafts):
        topic = topics[draft.topic]
        count = len(topic.partitions)
        if draft.key is None and topic.cleanup and "compact" in topic.cleanup:
            raise InvalidInput(f"draft {index}: topic {topic.name} is compacted, so a record needs a key")
        try:
            size = record_bytes(draft)
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"draft {index}: a header's name cannot be written as UTF-8: {error}"
            ) from error
        if size > topic.max_record_bytes:
            raise InvalidInput(
                f"draft {index} (key {draft.key!r:.80}): {size} bytes is more than the "
                f"{topic.max_record_bytes} that topic {topic.name} takes"
            )
        if draft.timestamp_ms is not None and not 0 <= draft.timestamp_ms < 2**63:
            raise InvalidInput(
                f"draft {index}: timestamp {draft.timestamp_ms} is not milliseconds since 1970"
            )
        if draft.partition is not None:
            partition = draft.partition
            if partition not in topic.partitions:
                raise InvalidInput(
                    f"draft {index}: topic {topic.name} has no partition {partition}, only {count}"
                )
        else:
            partition = turn % count if draft.key is None else partition_of(draft.key, count)
        routes.setdefault((draft.topic, partition), []).append(index)
    return routes
