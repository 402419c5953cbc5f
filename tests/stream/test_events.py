"""Log events: JSON lines where a program reads, colours on a terminal, libraries on the same stream."""

import io
import json
import logging

from driftline.stream.config import Logging
from driftline.stream.events import LibraryHandler, make_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_where_no_terminal_is() -> None:
    """Time, level and name first, then the fields; values that JSON cannot hold as text; levels below are
    dropped."""
    stream = io.StringIO()
    logger = make_logger(Logging(), stream)
    logger.info("ingest.batch", records=3, odd={1, 2}.__class__)
    logger.debug("search.expired")
    (event,) = events(stream)
    assert list(event)[:3] == ["time", "level", "event"]
    assert (event["level"], event["event"], event["records"]) == ("info", "ingest.batch", 3)


def test_an_exception_is_one_line() -> None:
    """With its type and message as fields."""
    stream = io.StringIO()
    try:
        raise ValueError("broken")
    except ValueError as error:
        make_logger(Logging(), stream).error("search.failed", exc_info=error)
    (event,) = events(stream)
    assert "broken" in json.dumps(event["exception"])


def test_colours_on_a_terminal() -> None:
    """Unless told otherwise."""
    stream = Terminal()
    make_logger(Logging(), stream).info("service.ready", live=3)
    assert "\x1b[" in stream.getvalue()
    assert "service.ready" in stream.getvalue()
    plain = Terminal()
    make_logger(Logging(format="json"), plain).info("service.ready", live=3)
    assert events(plain)[0]["live"] == 3


def test_libraries_are_heard_but_not_a_hundred_times() -> None:
    """The same message is passed on once in ten seconds, with how often it was said meanwhile."""
    stream = io.StringIO()
    handler = LibraryHandler(make_logger(Logging(), stream))
    for second in (0, 1, 2, 11):
        record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, "no %s", ("broker",), None)
        record.created = 1e9 + second
        handler.emit(record)
    first, last = events(stream)
    assert (first["library"], first["message"], first["level"]) == ("aiokafka", "no broker", "error")
    assert "repeated" not in first
    assert last["repeated"] == 2
