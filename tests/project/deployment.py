"""What compose.yaml and Dockerfile say, read as a container engine reads them, and played on this machine.

No engine is needed, and none is imitated beyond this:

- The image's launcher turns KAFKA_* variables into properties with Kafka's own class
  `kafka.docker.KafkaDockerWrapper`; it is in Kafka's jar, and runs here. Only KAFKA_LOG_DIRS is replaced: the
  volume is a directory of the test.
- `/opt/kafka/bin/NAME.sh` in a command becomes a script that runs the class which the image's script runs.
- The engine's name service makes `kafka` an address: here it is 127.0.0.1, through the JVM's own hosts file
  (`jdk.net.hosts.file`) and, for driftline, through a `sitecustomize.py` that answers for this one name.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

from ..kafka.broker import install
from .conftest import ROOT

TOOLS = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-broker-api-versions.sh": "org.apache.kafka.tools.BrokerApiVersionsCommand",
}
IMAGE_BIN = "/opt/kafka/bin/"


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def environment(service: str) -> dict[str, str]:
    """A service's environment as its processes see it: YAML numbers become text."""
    given = compose()["services"][service]["environment"]
    assert all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in given.values())
    return {name: str(value) for name, value in given.items()}


def dockerfile() -> dict[str, Any]:
    """The last stage: ENTRYPOINT, CMD and HEALTHCHECK command as lists, ENV as a mapping, USER as it is."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    last = max(at for at, line in enumerate(lines) if line.startswith("FROM "))
    found: dict[str, Any] = {"ENV": {}}
    for line in lines[last:]:
        word, _, rest = line.partition(" ")
        match word:
            case "ENTRYPOINT" | "CMD":
                found[word] = json.loads(rest)
            case "HEALTHCHECK":
                found[word] = json.loads(rest.partition(" CMD ")[2])
            case "ENV":
                found["ENV"] |= dict([rest.split("=", 1)])
            case "USER":
                found[word] = rest
    return found


def hosts_file(directory: Path) -> Path:
    """The names that resolve in the broker and in Kafka's tools."""
    path = directory / "hosts"
    path.write_text("127.0.0.1 localhost kafka\n")
    return path


def python_knows_kafka(directory: Path) -> Path:
    """A directory for PYTHONPATH in which the name `kafka` resolves to 127.0.0.1, and all others as ever."""
    path = directory / "resolver"
    path.mkdir()
    (path / "sitecustomize.py").write_text(
        "import socket\n"
        "ask = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, *rest, **more: "
        "ask('127.0.0.1' if host in ('kafka', b'kafka') else host, *rest, **more)\n"
    )
    return path


def properties(variables: dict[str, str], hosts: Path, directory: Path) -> dict[str, str]:
    """The broker properties that the image makes of an environment. Formats what KAFKA_LOG_DIRS names."""
    defaults, mounted, final = (directory / name for name in ("default", "mounted", "final"))
    for path in (defaults, mounted, final):
        path.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (defaults / name).touch()
    words = [*java(hosts), "kafka.docker.KafkaDockerWrapper", "setup",
             "-D", str(defaults), "-M", str(mounted), "-F", str(final)]  # fmt: skip
    seen = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(words, env=seen, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (final / "server.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line)


def java(hosts: Path) -> list[str]:
    return ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", f"-Djdk.net.hosts.file={hosts}",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", str(install() / "*")]  # fmt: skip


def kafka_bin(hosts: Path, directory: Path) -> Path:
    """Stands for /opt/kafka/bin: the same names, the same classes."""
    path = directory / "bin"
    path.mkdir()
    for name, main_class in TOOLS.items():
        script = path / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(java(hosts))} {main_class} "$@"\n')
        script.chmod(0o755)
    return path


def command(words: list[str], tools: Path) -> list[str]:
    """A command of compose.yaml: `$$` undone, with this machine's stand-in for /opt/kafka/bin."""
    text = [word.replace("$$", "\0") for word in words]
    assert not [word for word in text if "$" in word], "compose would fill in a variable here"
    return [word.replace("\0", "$").replace(IMAGE_BIN, f"{tools}/") for word in text]
