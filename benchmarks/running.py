"""What the benchmarks measure on: a Kafka broker, and `driftline serve` in a process of its own."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # the tests' broker and service are the benchmarks' too

from tests.kafka.broker import KafkaBroker
from tests.stream.running import Service, command, fold, read_all, until

__all__ = ["LONG_S", "Service", "add_log_flag", "command", "fold", "place", "read_all", "settled", "until"]

LONG_S = 1800.0  # for whatever takes as long as the data is large
QUIET_S = 1.0  # no upkeep for so long: nothing is left to re-encode


def add_log_flag(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--log",
        metavar="URL",
        help="kafka:HOST:PORT of a cluster without driftline's topics; else a broker is started for the run",
    )


@contextmanager
def place(log: str | None) -> Iterator[tuple[Path, str]]:
    """A temporary directory, and a log: the one named, or that of a real broker that runs meanwhile."""
    with tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as name:
        directory = Path(name)
        if log is not None:
            yield directory, log
            return
        with KafkaBroker(directory / "kafka") as broker:
            yield directory, f"kafka:{broker.bootstrap}"


def settled(service: Service) -> dict[str, Any]:
    """The status, once all of the topic is applied and nothing moves to another frame any more."""
    quiet_since = time.monotonic()

    def look() -> dict[str, Any] | None:
        nonlocal quiet_since
        status = service.caught_up()
        if status is None or status["reencoding"]:
            quiet_since = time.monotonic()
        return status if time.monotonic() - quiet_since > QUIET_S else None

    return until(look, "all of the topic is applied and in its frame", LONG_S)
