"""A real `driftline serve` in a process of its own, and a plain consumer to compare it with."""

import asyncio
import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pytest
from driftline import OnlineIndex, Row
from driftline.snapshots.store import SnapshotStore
from driftline.stream.control import ServiceUnreachable, ask
from driftline.stream.log import Draft, Log, Record
from numpy.typing import NDArray

DRIFTLINE = Path(sysconfig.get_path("scripts")) / "driftline"
DEADLINE_S = 60.0
BATCH = 2000  # keys asked for at once

Found = TypeVar("Found")
Wanted = TypeVar("Wanted")
Vectors = NDArray[np.float32]


def environment(**settings: object) -> dict[str, str]:
    """The environment of a child: ours without DRIFTLINE_ variables, and settings as `index__dim=8`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    return plain | {f"DRIFTLINE_{name.upper()}": str(value) for name, value in settings.items()}


def command(
    *arguments: str, timeout_s: float = DEADLINE_S, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run `driftline` to its end."""
    return subprocess.run(
        [DRIFTLINE, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False,
        env=environment(**settings),
    )  # fmt: skip


def until(look: Callable[[], Found | None], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """What `look` finds, as soon as it is something."""
    end = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        time.sleep(0.02)


async def eventually(look: Callable[[], Found | None], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """The same beside other tasks; `look` runs in a thread."""
    return await asyncio.to_thread(until, look, what, deadline_s)


class Service:
    """One data directory and the process that serves it; may be started again after `kill` or `stop`."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.data_dir = directory / "data"
        self.output = directory / "serve.jsonl"
        # Many services run at once here: only the tests of HTTP ask for a port.
        self._environment = environment(data_dir=self.data_dir, **{"http__port": 0, **settings})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, ready: bool = True, program: str = "serve") -> Self:
        """Start, and wait until everything that is in the topic is applied."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [DRIFTLINE, program, *flags], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=self._environment,
            )  # fmt: skip
        if ready:
            until(self.ready, "ready")
        return self

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    def ready(self) -> bool:
        status = self.status()
        return status is not None and status["ready"]

    def status(self) -> dict[str, Any] | None:
        """What the service says of itself; None while it is not to be reached."""
        assert self._process is not None
        assert self._process.poll() is None, f"the service ended: {self.output.read_text()[-3000:]}"
        try:
            return ask(self.data_dir, "status")
        except ServiceUnreachable:
            return None

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """What the service answers to a command of its control socket."""
        return ask(self.data_dir, command, arguments, timeout_s=DEADLINE_S)

    def caught_up(self) -> dict[str, Any] | None:
        """The status, once nothing of the topic is left to apply."""
        status = self.status()
        return (
            status
            if status and status["ready"] and status["lag"] and not any(status["lag"].values())
            else None
        )

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Stop in order; the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(DEADLINE_S)

    def wait(self) -> int:
        """The exit code of a service that ends by itself."""
        assert self._process is not None
        return self._process.wait(DEADLINE_S)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The log events so far, of one name or all."""
        lines = [line for line in self.output.read_text().splitlines() if line.startswith("{")]
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [event for event in events if name is None or event["event"] == name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Place:
    """A service on a log, and the names of its topics."""

    def __init__(self, url: str, name: str, directory: Path, **settings: object) -> None:
        self.url = url
        self.vectors, self.search, self.replies = f"{name}.vectors", f"{name}.search", f"{name}.replies"
        self.letters, self.drift = f"{name}.dead-letters", f"{name}.drift"
        self.service = Service(
            directory, log=url, topics__vectors=self.vectors, topics__search=self.search,
            topics__replies=self.replies, topics__dead_letters=self.letters, topics__drift=self.drift,
            topics__create=True, broker__group=name, **settings,
        )  # fmt: skip


def log_url(request: pytest.FixtureRequest, directory: Path) -> str:
    """The log that a fixture's parameter asks for: "local", in the directory, or "kafka"."""
    if request.param == "kafka":
        return f"kafka:{request.getfixturevalue('kafka').bootstrap}"
    return f"local:{directory / 'log'}"


def reasons(letter: Record) -> dict[str, str]:
    prefix = "__connect.errors."
    return {
        name.removeprefix(prefix): value.decode() for name, value in letter.headers if name.startswith(prefix)
    }


async def read_all(log: Log, topic: str) -> list[Record]:
    """Everything in a topic up to its end now."""
    ends = await log.end_offsets(topic)
    reader = await log.reader({(topic, p): begin for p, begin in (await log.begin_offsets(topic)).items()})
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while any(reader.position(topic, partition) < end for partition, end in ends.items()):
            records += await reader.fetch()
    await reader.close()
    return records


async def fold(log: Log, topic: str) -> dict[bytes, bytes]:
    """The live set by the plainest consumer there is: last value per key, for topics of bare vectors."""
    live: dict[bytes, bytes] = {}
    for record in await read_all(log, topic):
        assert record.key is not None
        if record.value is None:
            live.pop(record.key, None)
        else:
            live[record.key] = record.value
    return live


def differences(
    service: Service,
    wanted: Mapping[bytes, Wanted],
    same: Callable[[Row, Wanted], bool],
    *,
    dim: int,
    metric: str,
) -> list[str]:
    """How a stopped service's newest snapshot differs from what each key should hold; checks its index."""
    with SnapshotStore.open(service.data_dir, dim=dim, metric=metric) as store:
        snapshot = store.newest()
        if snapshot is None:
            return ["no snapshot"]
        index = OnlineIndex.restore(snapshot.cut, store.open_raw())
        index.check()  # raises CorruptIndex
        keys = list(wanted)
        missing = other = 0
        for first in range(0, len(keys), BATCH):
            span = keys[first : first + BATCH]
            for key, row in zip(span, index.get(span), strict=True):
                missing += row is None
                other += row is not None and not same(row, wanted[key])
        surplus = len(set(index.keys()) - wanted.keys())
    found = {"keys missing": missing, "keys with other values": other, "keys too many": surplus}
    wrong = [f"{count} {what}" for what, count in found.items() if count]
    return wrong + [f"damaged: {reason}" for reason in snapshot.skipped]


def bare(topic: str, key: bytes, vector: Iterable[float] | Vectors) -> Draft:
    """A record with a bare vector."""
    value = np.asarray(vector, "<f4").tobytes()
    return Draft(topic, key, value, (("content-type", b"application/octet-stream"),))


def gaussian(rows: int, dim: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
