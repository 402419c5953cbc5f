"""Asking through Spring: AskOnce.java with its jars, and what it sent."""

import base64
import os
import subprocess
import zlib
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

__all__ = ["GOLDEN", "REQUEST", "SpringFailed", "ask", "described", "install"]

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "request.json"
REQUEST = '{"vector": [1.0, -2.0, 0.5, 3.25], "k": 2, "include": ["attributes"]}'
FAST_START = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx256m")
ASK_S = 120.0  # a machine that does other things too compiles and starts this in 10 s


class SpringFailed(RuntimeError):
    """Maven or the Java program did not do what was asked; the message ends with what it printed."""


def install() -> Path:
    """The directory of the jars that pom.xml names, fetched when it is not there yet; outside the tree."""
    pom = HERE / "pom.xml"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driftline"
    target = cache / f"spring-{zlib.crc32(pom.read_bytes()):08x}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    fresh = Path(mkdtemp(prefix=f"{target.name}.", dir=cache))
    run(
        ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime",
         f"-DoutputDirectory={fresh}"],
        timeout_s=600.0,
    )  # fmt: skip
    try:
        fresh.rename(target)
    except OSError:  # somebody else was faster, with the same jars
        if not target.is_dir():
            raise
    return target


def ask(bootstrap: str, search_topic: str, reply_topic: str, partition: int | None, request: str) -> str:
    """Run AskOnce and return the reply's value."""
    where = "any" if partition is None else str(partition)
    return run(
        ["java", *FAST_START, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", str(install() / "*"),
         str(HERE / "AskOnce.java"), bootstrap, search_topic, reply_topic, where, request],
        timeout_s=ASK_S,
    )  # fmt: skip


def run(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as failed:
        raise SpringFailed(f"{command[0]}: {failed}") from failed
    if done.returncode:
        raise SpringFailed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def described(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]
) -> dict[str, Any]:
    """A record as the golden files hold it: every byte, in base64."""
    return {
        "key": key and base64.b64encode(key).decode(),
        "value": value and base64.b64encode(value).decode(),
        "headers": [[name, base64.b64encode(content).decode()] for name, content in headers],
    }
