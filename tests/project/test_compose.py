"""compose.yaml: valid, and its Kafka, its topics and its service do what the file says, on a real broker."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from driftline.stream.config import Settings, load
from driftline.stream.metrics import METRICS

from ..kafka.broker import KafkaBroker
from . import deployment
from .conftest import ROOT, run

SERVICES = deployment.compose()["services"]
DASHBOARD = ROOT / "ops" / "grafana" / "dashboards" / "driftline.json"


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_the_file_is_valid(tmp_path: Path) -> None:
    """Covers the compose specification's JSON schema, and that the check refuses a wrong file."""
    good = check_schema(ROOT / "compose.yaml")
    assert good.returncode == 0, good.stdout + good.stderr
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(
        (ROOT / "compose.yaml").read_text().replace("condition: service_healthy", "condition: up")
    )
    assert check_schema(wrong).returncode == 1


def test_the_kafka_is_the_one_that_is_tested() -> None:
    """Covers the image's version: it is that of the jars the tests run, for the broker and for its tools."""
    pom = (ROOT / "tests" / "kafka" / "pom.xml").read_text()
    tested = re.search("<kafka.version>(.*)</kafka.version>", pom)
    assert tested
    images = {SERVICES[name]["image"] for name in ("kafka", "topics")}
    assert images == {f"apache/kafka:{tested[1]}"}


def test_services_start_in_order() -> None:
    """Covers depends_on: topics are made on a healthy broker, driftline starts when they are there."""
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["driftline"]["depends_on"] == {
        "kafka": {"condition": "service_healthy"},
        "topics": {"condition": "service_completed_successfully"},
    }


def test_volumes_are_declared_and_are_where_the_data_is() -> None:
    """Covers that nothing is lost with a container: volumes lie where the programs write."""
    stored = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    mounts = dict(volume.split(":") for volume in stored if not volume.startswith("./"))
    assert mounts.keys() == deployment.compose()["volumes"].keys()
    assert mounts["kafka-data"] == deployment.environment("kafka")["KAFKA_LOG_DIRS"]
    assert mounts["driftline-data"] == deployment.dockerfile()["ENV"]["DRIFTLINE_DATA_DIR"]


def test_prometheus_and_grafana_find_what_they_need() -> None:
    """Covers the mounted files: they are there, and name each other as the containers see them."""
    inside: dict[str, Path] = {}
    for name in ("prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            if volume.startswith("./"):
                place, target, mode = volume.split(":")
                assert (ROOT / place).exists()
                assert mode == "ro"
                inside[target] = ROOT / place
    scrape = yaml.safe_load(inside["/etc/prometheus/prometheus.yml"].read_text())
    assert set(scrape["rule_files"]) <= inside.keys()
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"driftline:{Settings().http.port}"]}]
    assert deployment.environment("driftline")["DRIFTLINE_HTTP__HOST"] == "0.0.0.0"
    provisioning = inside["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "driftline.yaml").read_text())["providers"]
    assert inside[provider["options"]["path"]] == DASHBOARD.parent
    home = deployment.environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert all(
        port.startswith("127.0.0.1:")
        for name in ("prometheus", "grafana")
        for port in SERVICES[name]["ports"]
    )


def test_dashboard_and_alarms_ask_for_metrics_that_there_are() -> None:
    """Covers every expression: its metrics exist, its labels are theirs; every alarm stands in the manual."""
    (group,) = yaml.safe_load((ROOT / "ops" / "alarms.yml").read_text())["groups"]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [rule["expr"] for rule in group["rules"]]
    used: set[str] = set()
    for expression in asked:
        for name, labels in re.findall(r"driftline_(\w+)(?:\{(\w+)=)?", expression):
            metric = METRICS[name.removesuffix("_bucket")]
            assert (metric.kind == "histogram") == name.endswith("_bucket")
            assert labels in ("", metric.label)
            used.add(name.removesuffix("_bucket"))
    assert METRICS.keys() - used <= {"info", "uptime_seconds", "applied_offset", "unroutable_total",
                                     "search_ef", "recall_age_seconds", "reencoding"}  # fmt: skip
    page = (ROOT / "docs" / "operations.md").read_text()
    alarms = [rule["alert"] for rule in group["rules"]]
    assert re.findall(r"^\| `(Driftline\w+)` \|", page, re.M) == alarms


def test_the_host_port_is_the_advertised_one_and_stays_on_this_machine() -> None:
    """Covers the published port: where the HOST listener sends clients, bound to the loopback address."""
    assert SERVICES["kafka"]["ports"] == ["127.0.0.1:9092:9092"]
    assert "HOST://localhost:9092" in deployment.environment("kafka")["KAFKA_ADVERTISED_LISTENERS"].split(",")


def test_the_image_serves_by_default_and_not_as_root() -> None:
    """Covers the Dockerfile's last stage: its command, its health check, a user of its own."""
    image = deployment.dockerfile()
    assert image["USER"] not in ("root", "0")
    assert [*image["ENTRYPOINT"], *image["CMD"]] == ["driftline", "serve"]
    assert image["HEALTHCHECK"] == ["driftline", "status"]


@dataclass(frozen=True, slots=True)
class Composed:
    """A running broker with the compose file's environment, and the stand-ins for the engine's parts."""

    broker: KafkaBroker
    bin: Path
    resolver: Path


def wait_for_ports(ports: list[int], within_s: float) -> list[int]:
    """The ports that are still taken when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        taken: list[int] = []
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("", port))
                except OSError:
                    taken.append(port)
        if not taken or time.monotonic() > deadline:
            return taken
        time.sleep(0.2)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    home = tmp_path_factory.mktemp("compose")
    hosts = deployment.hosts_file(home)
    variables = deployment.environment("kafka") | {"KAFKA_LOG_DIRS": str(home / "formatted")}
    properties = deployment.properties(variables, hosts, home)
    ports = [int(port) for port in re.findall(r":(\d+)", properties["listeners"])]
    # The file's own ports, so that what is tested is the file. Another test run may hold them for a moment.
    if taken := wait_for_ports(ports, within_s=60):
        pytest.skip(f"ports {taken} of compose.yaml are in use on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", f"-Djdk.net.hosts.file={hosts}")
        broker = KafkaBroker(home / "broker", properties, bootstrap="localhost:9092").start()
    try:
        yield Composed(broker, deployment.kafka_bin(hosts, home), deployment.python_knows_kafka(home))
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def topics(composed: Composed) -> Composed:
    """The broker after the `topics` service has run."""
    service = SERVICES["topics"]
    run(*deployment.command([*service["entrypoint"], *service["command"]], composed.bin), timeout_s=120)
    return composed


@pytest.mark.kafka
def test_the_environment_becomes_the_brokers_properties(composed: Composed) -> None:
    """Covers the mapping, made by Kafka's own class: every variable arrives, with dots for underscores."""
    wanted = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in deployment.environment("kafka").items()
        if name.startswith("KAFKA_") and name != "KAFKA_LOG_DIRS"
    }
    have = dict(composed.broker.properties)
    assert have.pop("log.dirs")
    assert have == wanted


@pytest.mark.kafka
def test_the_broker_passes_its_health_check(composed: Composed) -> None:
    """Covers the health check's command, which also asks the inside listener under its advertised name."""
    kind, *words = SERVICES["kafka"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert "kafka:19092" in run(*deployment.command(words, composed.bin), timeout_s=60)


@pytest.mark.kafka
def test_a_client_on_the_host_is_sent_back_to_the_host(composed: Composed) -> None:
    """Covers the HOST listener: asked at localhost:9092, the broker names itself localhost:9092."""
    words = [deployment.IMAGE_BIN + "kafka-broker-api-versions.sh", "--bootstrap-server", "localhost:9092"]
    assert "localhost:9092 (id: 1" in run(*deployment.command(words, composed.bin), timeout_s=60)


@pytest.mark.kafka
def test_the_topics_are_made_and_the_vectors_topic_is_compacted(topics: Composed) -> None:
    """Covers the `topics` service, with Kafka's own tool: driftline's default names, and their policies."""
    expected = load(environment={}).topics
    listed = topics.broker.tool("org.apache.kafka.tools.TopicCommand", "--describe")
    policies = {
        line.split()[1]: re.search(r"cleanup\.policy=(\S*?)(?:,|\s|$)", line)
        for line in listed.splitlines()
        if line.startswith("Topic:")
    }
    wanted = {expected.vectors, expected.search, expected.replies, expected.dead_letters, expected.drift}
    assert wanted <= policies.keys()
    compacted = {name for name, policy in policies.items() if policy and policy[1] == "compact"}
    assert compacted & wanted == {expected.vectors}


@pytest.mark.kafka
def test_topics_may_run_again(topics: Composed) -> None:
    """Covers `docker compose up` a second time: the topics are there, and making them again is no error."""
    service = SERVICES["topics"]
    run(*deployment.command([*service["entrypoint"], *service["command"]], topics.bin), timeout_s=120)


@pytest.mark.kafka
def test_the_image_serves_on_this_kafka(topics: Composed, clean_bin: Path, tmp_path: Path) -> None:
    """Covers the driftline service: the Dockerfile's entrypoint with the compose file's environment gets
    healthy, answers a search asked from the host, and ends in order within the stop grace period."""
    image = deployment.dockerfile()
    data = tmp_path / "data"
    data.mkdir()
    # The image's environment, with this machine's directories for /data and for /opt/driftline/bin.
    inside = {
        **image["ENV"],
        **deployment.environment("driftline"),
        "PATH": f"{clean_bin}:/usr/bin:/bin",
        "DRIFTLINE_DATA_DIR": str(data),
        "PYTHONPATH": str(topics.resolver),
    }
    outside = {"PATH": os.environ["PATH"], "DRIFTLINE_LOG": "kafka:localhost:9092"}
    (tmp_path / "vectors.jsonl").write_text('{"id": "a", "vector": [1, 0]}\n{"id": "b", "vector": [0, 1]}\n')
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(
            [str(clean_bin / image["ENTRYPOINT"][0]), *image["ENTRYPOINT"][1:], *image["CMD"]],
            env=inside, cwd=data, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        ask_host(clean_bin, outside, tmp_path, "feed", "vectors.jsonl")
        wait_healthy(image["HEALTHCHECK"], inside, service, tmp_path / "log")
        answer = ask_host(
            clean_bin, outside, tmp_path, "search", "--vector", "[0.1, 0.9]", "-k", "1", "--json"
        )
        assert '"b"' in answer
        service.send_signal(signal.SIGTERM)
        grace = int(SERVICES["driftline"]["stop_grace_period"].removesuffix("s"))
        assert service.wait(grace) == 0, (tmp_path / "log").read_text()
    finally:
        service.kill()
        service.wait()


def ask_host(clean_bin: Path, variables: dict[str, str], directory: Path, *words: str) -> str:
    """Run driftline as a user outside of the containers does."""
    done = subprocess.run([str(clean_bin / "driftline"), *words], env=variables, cwd=directory,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_healthy(
    check: list[str], variables: dict[str, str], service: subprocess.Popen[bytes], log: Path
) -> None:
    """Run the image's health check, as an engine would, until it passes."""
    words = [str(Path(variables["PATH"].split(":")[0]) / check[0]), *check[1:]]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode == 0:
            return
        assert service.poll() is None, log.read_text()
        assert time.monotonic() < deadline, done.stdout + done.stderr + log.read_text()
        time.sleep(0.1)
