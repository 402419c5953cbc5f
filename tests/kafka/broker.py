"""A real Apache Kafka broker for tests: one KRaft node, started, stopped, killed and restarted on kept
data.
"""

import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["KafkaBroker", "KafkaFailed", "free_ports", "install", "run_tool", "single_node_properties"]

HERE = Path(__file__).parent
CLUSTER_ID = "ZHJpZnRsaW5lLXRlc3RzLQ"  # 16 bytes in base64; fixed, so that a restart finds its own storage
# Start-up matters more here than peak speed: the first compiler only, and no collector threads.
FAST_START = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
READY = re.compile(r"KafkaRaftServer.*Kafka Server started")
START_S = 120.0  # three at once on a busy machine
STOP_S = 30.0


class KafkaFailed(RuntimeError):
    """The broker or one of Kafka's tools did not do what was asked; the message ends with what it printed."""


def install() -> Path:
    """The directory of Kafka's jars, fetched when it is not there yet (see install.sh)."""
    done = subprocess.run([str(HERE / "install.sh")], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise KafkaFailed("tests/kafka/install.sh failed; it printed the reason above")
    return Path(done.stdout.strip())


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listened on a moment ago.

    Below the range that outgoing connections draw from: a client that keeps dialling a stopped broker in that
    range can be given the very port it dials, and then talks to itself.
    """
    ports: list[int] = []
    draw = random.Random()  # unseeded on purpose: two runs side by side must not want the same ports
    while len(ports) < count:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def single_node_properties(client_port: int, controller_port: int) -> dict[str, str]:
    """Server properties of a node that is broker and controller at once, listening on 127.0.0.1."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client_port}",
        "controller.listener.names": "CONTROLLER",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker may come back only when the controller has given up its old session: 9 s by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # The cleaner's share of the heap, and how often it looks: compaction tests wait for it.
        "log.cleaner.dedupe.buffer.size": str(16 << 20),
        "log.cleaner.backoff.ms": "200",
    }


def run_tool(main_class: str, *arguments: str, timeout_s: float = 120.0, stdin: str = "") -> str:
    """Run one of Kafka's own tools by its main class; what it printed on standard output.

    Raises KafkaFailed when it exits with an error or does not end in time.
    """
    command = [*java(heap_mb=128, log_level="warn"), main_class, *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise KafkaFailed(f"{main_class} did not end within {timeout_s:g} s") from late
    if done.returncode:
        raise KafkaFailed(
            f"{main_class} {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def java(*, heap_mb: int, log_level: str) -> list[str]:
    level = f"-Dorg.slf4j.simpleLogger.defaultLogLevel={log_level}"
    # The one line that says the broker is up is wanted at any level.
    ready = "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"
    return ["java", f"-Xmx{heap_mb}m", *FAST_START, level, ready, "-cp", str(install() / "*")]


class KafkaBroker:
    """One broker with its data in a directory.

    Without `properties` it is a plain single node on free ports of 127.0.0.1. With them they are used as they
    stand (a compose file's environment, say), except that `log.dirs` is set to the data directory;
    `bootstrap` must then name the address that clients use. `overrides` are laid over either. `scram` are
    users of a new cluster, as kafka-storage's --add-scram takes them. `start` may be called again after
    `stop` or `kill`: ports and data are kept.
    """

    def __init__(
        self,
        directory: Path,
        properties: Mapping[str, str] | None = None,
        *,
        bootstrap: str | None = None,
        overrides: Mapping[str, str] | None = None,
        heap_mb: int = 512,
        log_level: str = "warn",
        scram: Sequence[str] = (),
    ) -> None:
        if properties is None:
            client_port, controller_port = free_ports(2)
            properties = single_node_properties(client_port, controller_port)
            bootstrap = f"127.0.0.1:{client_port}"
        if bootstrap is None:
            raise ValueError("own properties need `bootstrap`: the address that clients use")
        self.bootstrap = bootstrap
        self.directory = directory
        self.log_file = directory / "broker.log"
        self.properties = {**properties, **(overrides or {}), "log.dirs": str(directory / "data")}
        self._properties_file = directory / "server.properties"
        self._heap_mb = heap_mb
        self._log_level = log_level
        self._users = [word for user in scram for word in ("--add-scram", user)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, within_s: float = START_S) -> Self:
        """Format the storage if it is new, start the broker, return when it serves. Raises KafkaFailed."""
        if self.running:
            raise KafkaFailed("this broker is running")
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name}={value}\n" for name, value in self.properties.items())
        self._properties_file.write_text(lines)
        if not (self.directory / "data" / "meta.properties").exists():
            run_tool("kafka.tools.StorageTool", "format", "-c", str(self._properties_file),
                     "-t", CLUSTER_ID, *self._users)  # fmt: skip
        command = java(heap_mb=self._heap_mb, log_level=self._log_level)
        with self.log_file.open("ab") as log:
            already = log.tell()
            self._process = subprocess.Popen(
                [*command, "kafka.Kafka", str(self._properties_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to pytest, which stops the broker in order
            )
        deadline = time.monotonic() + within_s
        while not READY.search(self.output(already)):
            if self._process.poll() is not None:
                raise KafkaFailed(
                    f"the broker ended with {self._process.returncode}\n{self.output(already)[-4000:]}"
                )
            if time.monotonic() > deadline:
                self.kill()
                raise KafkaFailed(
                    f"the broker was not up after {within_s:g} s\n{self.output(already)[-4000:]}"
                )
            time.sleep(0.02)
        return self

    def stop(self, *, within_s: float = STOP_S) -> None:
        """Stop in order (SIGTERM); kills when that takes too long. Data stays."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the broker as a power cut of the process would (SIGKILL). Data stays."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Stop the process where it stands: connections stay open and nothing answers (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused broker go on."""
        self._signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Of the running broker."""
        if self._process is None:
            raise KafkaFailed("this broker is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def output(self, since: int = 0) -> str:
        """What the broker printed, from byte `since` of its log file."""
        with self.log_file.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def tool(self, main_class: str, *arguments: str, timeout_s: float = 120.0, stdin: str = "") -> str:
        """Run a tool against this broker: `tool("org.apache.kafka.tools.TopicCommand", "--list")`."""
        return run_tool(
            main_class, "--bootstrap-server", self.bootstrap, *arguments, timeout_s=timeout_s, stdin=stdin
        )

    def create_topic(self, topic: str, *, partitions: int = 1, config: Sequence[str] = ()) -> None:
        """Create a topic with Kafka's own tool; `config` as `cleanup.policy=compact`."""
        extra = [word for setting in config for word in ("--config", setting)]
        self.tool("org.apache.kafka.tools.TopicCommand", "--create", "--topic", topic,
                  "--partitions", str(partitions), *extra)  # fmt: skip

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise KafkaFailed("this broker is not running")
        os.kill(self._process.pid, number)
