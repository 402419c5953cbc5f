"""The exceptions of driftline, one tree.

DriftlineError
├── InvalidInput        a bad argument or record; the message names it and the reason (also a ValueError)
├── CorruptIndex        a broken invariant, or bytes read back that cannot be what was written
├── SnapshotError       a data directory that cannot be used: other dimension, metric or format, damaged
│   ├── SnapshotsUnusable  damaged, or of an older format: the log has all that it held
│   └── StorageRefused     the disk did not take it: full, read-only, failing; trying again may help
├── LogError            the log could not do it; `retriable` says whether trying again may help
│   ├── BrokerUnavailable
│   ├── RecordRefused
│   └── TopicNotFound
├── SearchFailed        a search was answered with an error; `code` and `reason`
└── ConfigError         a setting that does not exist or holds a value it may not
"""

__all__ = [
    "BrokerUnavailable",
    "ConfigError",
    "CorruptIndex",
    "DriftlineError",
    "InvalidInput",
    "LogError",
    "RecordRefused",
    "SearchFailed",
    "SnapshotError",
    "SnapshotsUnusable",
    "StorageRefused",
    "TopicNotFound",
]


class DriftlineError(Exception):
    """Anything driftline raises on purpose."""


class InvalidInput(DriftlineError, ValueError):
    """An argument or a record that cannot be accepted; nothing was changed."""


class CorruptIndex(DriftlineError):
    """A broken invariant of the index, or serialised bytes that are not what was written."""


class SnapshotError(DriftlineError):
    """A data directory that cannot be used as it is."""


class SnapshotsUnusable(SnapshotError):
    """What a data directory holds is damaged, or of an older format; the log has all of it."""

    def __init__(self, reason: str, place: object) -> None:
        super().__init__(f"{reason}; move {place} away to have the index built anew from the log")
        self.reason = reason


class StorageRefused(SnapshotError):
    """The disk did not take what was to be stored: it is full, read-only or failing."""


class LogError(DriftlineError):
    """The log could not do what was asked."""

    retriable: bool = False


class BrokerUnavailable(LogError):
    """No broker answered within the stated time."""

    retriable = True


class RecordRefused(LogError):
    """The log takes records, but not this one: its size, its time, a policy of the broker's."""


class TopicNotFound(LogError):
    """The topic does not exist."""


class SearchFailed(DriftlineError):
    """A search request was answered with an error."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class ConfigError(DriftlineError):
    """A setting that does not exist or holds a value it may not; the message says what is allowed."""
