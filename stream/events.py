"""Log events: what happened, as one line each - JSON where a program reads, colours where a person does.

An event is a name (`ingest.batch`) and fields whose names carry their unit (`_ms`, `_s`, `_bytes`).
docs/drift.md lists the events of the index, docs/operations.md those of the service. The logger is made
once, by the command line, and handed on. Tracebacks are without the values of variables: passwords are
among them, and vectors.
"""

import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from .config import Logging

__all__ = ["Logger", "adopt_library_logs", "make_logger"]

Logger = FilteringBoundLogger

REPEAT_S = 10.0
MESSAGES_MAX = 200  # different messages of libraries that are remembered

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def make_logger(settings: Logging, stream: TextIO = sys.stdout) -> Logger:
    """A logger that writes lines to `stream`."""
    level = LEVELS[settings.level]
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    timestamp = structlog.processors.TimeStamper(
        fmt="%H:%M:%S.%f" if console else "iso", utc=not console, key="time"
    )
    shared: list[Processor] = [structlog.processors.add_log_level, timestamp]
    if console:
        shared.append(
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                timestamp_key="time",
                pad_event_to=22,
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    else:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared += [structlog.processors.ExceptionRenderer(tracebacks), _headline_first]
        shared.append(structlog.processors.JSONRenderer(default=str))
    return cast(
        Logger,
        structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=shared,
            wrapper_class=structlog.make_filtering_bound_logger(level),
            cache_logger_on_first_use=True,
        ),
    )


def _headline_first(logger: object, method: str, event: EventDict) -> EventDict:
    """When, how grave, what; then the fields."""
    headline = {name: event.pop(name) for name in ("time", "level", "event")}
    return {**headline, **event}


class LibraryHandler(logging.Handler):
    """Turns what libraries log (aiokafka, asyncio) into `library.message` events of ours.

    A client whose broker is away says the same hundred times a second: a message is passed on once in
    REPEAT_S, with how often it was `repeated` since it last was.
    """

    def __init__(self, logger: Logger, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._logger = logger
        # message -> when it was passed on, and how often it was said since
        self._said: dict[str, tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        when, repeated = self._said.get(message, (-REPEAT_S, 0))
        if record.created - when < REPEAT_S:
            self._said[message] = (when, repeated + 1)
            return
        if len(self._said) >= MESSAGES_MAX:
            self._said.clear()
        self._said[message] = (record.created, 0)
        more = {"repeated": repeated} if repeated else {}
        self._logger.log(record.levelno, "library.message", library=record.name, message=message, **more)


def adopt_library_logs(logger: Logger) -> None:
    """Send the standard library's root logger through `logger`: otherwise warnings would mix into stderr
    unformatted."""
    root = logging.getLogger()
    root.handlers = [LibraryHandler(logger)]
    root.setLevel(logging.WARNING)
