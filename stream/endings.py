"""How a command ends: the one error that explains it, and its exit code."""

from ..errors import (
    BrokerUnavailable,
    ConfigError,
    CorruptIndex,
    DriftlineError,
    SearchFailed,
    SnapshotError,
    TopicNotFound,
)

__all__ = ["exit_code", "explanation"]

EXIT_CODES: list[tuple[type[DriftlineError], int]] = [
    (ConfigError, 2),  # as for a wrong flag
    (BrokerUnavailable, 3),
    (TopicNotFound, 4),
    (SnapshotError, 5),
    (CorruptIndex, 5),
    (SearchFailed, 6),
    (DriftlineError, 1),
]


def exit_code(error: DriftlineError) -> int:
    """The exit code of docs/operations.md."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def explanation(group: BaseExceptionGroup[BaseException]) -> DriftlineError | None:
    """The first error in a group that was raised on purpose; None if all are defects."""
    found = group.subgroup(DriftlineError)
    while found is not None:
        error = found.exceptions[0]
        if isinstance(error, DriftlineError):
            return error
        found = error
    return None
