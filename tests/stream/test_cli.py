"""The command line: what it prints, where, and how it ends."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.index.online import OnlineIndex
from driftline.snapshots.store import SnapshotStore

from .running import Place, command, gaussian, until

DIM = 8
COMMANDS = ("serve", "feed", "search", "status", "check", "drift", "snapshots", "config", "demo")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service on a local log, fed from a file."""
    directory = tmp_path_factory.mktemp("cli")
    place = Place(f"local:{directory / 'log'}", "driftline", directory)
    np.save(directory / "vectors.npy", gaussian(300, DIM, 1))
    with place.service.start():
        yield place


def result(place: Place, *arguments: str) -> Any:
    """What a command prints with --json."""
    done = command(*arguments, "--json", data_dir=place.service.data_dir, log=place.url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text(place: Place, *arguments: str) -> str:
    """What a command prints for people."""
    done = command(*arguments, data_dir=place.service.data_dir, log=place.url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_version() -> None:
    """Every command is listed and explains itself."""
    listed = command("--help").stdout
    for name in COMMANDS:
        assert name in listed
        explained = command(name, "--help")
        assert explained.returncode == 0
        assert "Usage" in explained.stdout
    for name in ("events", "report", "watch"):
        assert name in command("drift", "--help").stdout
        assert "Usage" in command("drift", name, "--help").stdout
    assert command("--version").stdout.startswith("driftline 0.")


def test_help_loads_nothing_heavy() -> None:
    """`driftline --help` must be quick: no numpy, no Kafka, no LMDB, no index."""
    program = (
        "import sys, driftline.stream.cli\n"
        "heavy = {'numpy', 'aiokafka', 'lmdb', 'pydantic', 'structlog', 'driftline.index.online'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_feed_then_search(place: Place, tmp_path: Path) -> None:
    """A file goes in; its token makes a search wait for it; one vector, one id, a file of queries come
    out."""
    vectors = gaussian(300, DIM, 1)
    file = str(place.service.data_dir.parent / "vectors.npy")
    fed = result(place, "feed", file)
    assert fed["fed"] == 300
    token = json.dumps(fed["after"])
    one = result(
        place, "search", "--vector", json.dumps(vectors[7].tolist()), "-k", "3", "--after", token, "--vectors"
    )
    (reply,) = one["replies"]
    assert reply["hits"][0]["id"] == "7"
    assert np.allclose(reply["hits"][0]["vector"], vectors[7])
    assert len(reply["hits"]) == 3
    assert result(place, "search", "--key", "9")["replies"][0]["hits"][0]["id"] == "9"
    many = result(place, "search", "--file", file, "--limit", "50", "-k", "1")
    assert [reply["hits"][0]["id"] for reply in many["replies"]] == [str(row) for row in range(50)]
    assert "distance" in text(place, "search", "--key", "9")


def test_feed_with_attributes_rate_and_limit(place: Place, tmp_path: Path) -> None:
    """A .jsonl with ids and attributes, no faster than asked, no more than asked."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": f"row {n}", "vector": vector.tolist(), "attributes": {"n": n}}
        for n, vector in enumerate(gaussian(100, DIM, 2) + 50)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fed = result(place, "feed", str(file), "--rate", "100", "--limit", "40")
    assert fed["fed"] == 40
    assert 0.3 < fed["seconds"] < 5
    found = result(place, "search", "--key", "row 39", "--after", json.dumps(fed["after"]))
    assert found["replies"][0]["hits"][0] == {"id": "row 39", "distance": 0.0, "attributes": {"n": 39}}
    assert "n: 39" in text(place, "search", "--key", "row 39")
    chosen = result(place, "search", "--key", "row 39", "--filter", '{"n": {"in": [3, 7]}}')
    assert sorted(hit["attributes"]["n"] for hit in chosen["replies"][0]["hits"]) == [3, 7]
    assert text(place, "feed", str(file), "--limit", "1").startswith("fed 1 vectors")


def test_status(place: Place, tmp_path: Path) -> None:
    """0 and the figures when it is ready; 2 and a sentence where nothing serves."""
    status = result(place, "status")
    assert status["ready"]
    assert status["topic"] == place.vectors
    assert status["memory"]["resident"] > 1e6
    assert "applied offsets" in text(place, "status")
    none = command("status", data_dir=tmp_path)
    assert none.returncode == 2
    assert "driftline serve" in none.stderr


def test_check(place: Place, tmp_path: Path) -> None:
    """In a running service, and in a directory without one: in order, until a raw vector is flipped."""
    status, checked = result(place, "status"), result(place, "check")
    assert checked["problem"] is None
    assert (checked["live"], checked["digest"]) == (status["live"], status["digest"])
    assert "is in order" in text(place, "check")
    none = command("check", data_dir=tmp_path / "none")
    assert none.returncode == 5
    assert "no snapshot yet" in none.stderr
    with SnapshotStore.open(tmp_path, dim=DIM, metric="l2") as store:
        index = OnlineIndex(DIM, raw=store.open_raw())
        index.upsert(["a", "b"], gaussian(2, DIM, 1))
        store.commit(index.cut(), {"topic": {0: 2}})
    alone = ("check", "--json", "--set", f"index.dim={DIM}")
    done = command(*alone, data_dir=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["digest"] == f"{index.digest:032x}"
    segment = next((tmp_path / "segments").iterdir())
    whole = bytearray(segment.read_bytes())
    at = whole.rindex(gaussian(2, DIM, 1)[1].tobytes())
    whole[at + 1] ^= 1
    segment.write_bytes(whole)
    done = command(*alone, data_dir=tmp_path)
    assert done.returncode == 5
    assert "rows 0 to 1 are not those that were written" in done.stderr


def test_snapshots(place: Place) -> None:
    """Take one, list them, show one, verify the newest."""
    taken = result(place, "snapshots", "take")["snapshot"]["id"]
    assert [info["id"] for info in result(place, "snapshots", "list")["snapshots"]][-1] == taken
    assert result(place, "snapshots", "show", str(taken))["dim"] == DIM
    assert result(place, "snapshots", "verify")["problems"] == []
    assert "next offsets" in text(place, "snapshots")
    assert result(place, "snapshots") == result(place, "snapshots", "list")
    misplaced = command("snapshots", "--json", "verify", data_dir=place.service.data_dir)
    assert misplaced.returncode == 2
    assert "behind the command" in misplaced.stderr
    missing = command("snapshots", "verify", "999", data_dir=place.service.data_dir)
    assert missing.returncode == 5
    assert f"there are: {taken}" in missing.stderr or str(taken) in missing.stderr


def test_config(place: Place) -> None:
    """Every setting with its value, flags included."""
    shown = result(place, "config", "--set", "index.m=24")
    assert shown["index.m"] == 24
    assert shown["data_dir"] == str(place.service.data_dir)
    assert "index.ef_construction" in text(place, "config")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("config", "--set", "index.mm=3"), 2, "index.m"),
        (("config", "--set", "index.m"), 2, "NAME=VALUE"),
        (("serve", "--metric", "euclid"), 2, "'l2', 'ip' or 'cosine'"),
        (("feed", "nothing.npy"), 1, "no such file"),
        (("feed", "nothing.txt"), 1, ".npy"),
        (("search",), 1, "--vector"),
        (("search", "--vector", "[1, 2"), 1, "JSON"),
        (("search", "--key", "x", "--after", "[]"), 1, "driftline.vectors"),
        (("search", "--key", "x", "--filter", "[]"), 1, '{"year": {"gte": 2001}}'),
        (("search", "--key", "x", "--filter", "{"), 1, "--filter"),
        (("search", "--key", "x", "--filter", '{"a": {"above": 1}}'), 1, "filter.a has the operator"),
        (("search", "--vector", "[1.0]"), 6, "wrong_dimension"),
        (("search", "--key", "never there"), 6, "unknown_key"),
        (("drift", "--log", "kafka:127.0.0.1:1", "--set", "broker.deadline_s=1"), 3, "127.0.0.1:1"),
        (("drift", "--set", "topics.drift=none"), 4, "none"),
        (("drift", "report", "--out", "/nonexistent/report.html"), 1, "/nonexistent/report.html"),
        (("drift", "report", "--json", "--since", "yesterday"), 2, "12h"),
        (("snapshots", "list", "--data-dir", "/nonexistent"), 5, "/nonexistent"),
    ],
)
def test_failures_are_one_sentence(place: Place, arguments: tuple[str, ...], code: int, said: str) -> None:
    """On standard error, with its exit code, without a traceback, and nothing on standard output."""
    done = command(*arguments, data_dir=place.service.data_dir, log=place.url)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_serve_logs_json_lines(place: Place) -> None:
    """When standard output is no terminal, every line is an event with time, level and name."""
    until(lambda: place.service.events("ingest.batch"), "an event")
    for line in place.service.output.read_text().splitlines():
        assert {"time", "level", "event"} <= json.loads(line).keys()


def test_drift_history(place: Place) -> None:
    """The events of the drift topic, and where the service stands; readable and as JSON."""
    shown = result(place, "drift")
    assert shown["now"]["ready"]
    assert isinstance(shown["events"], list)
    assert "frames" in text(place, "drift")
    misplaced = command("drift", "--limit", "3", "events", data_dir=place.service.data_dir)
    assert misplaced.returncode == 2
    assert "behind the command" in misplaced.stderr


def test_drift_report(place: Place, tmp_path: Path) -> None:
    """A page where it was asked for, and the same data with --json; neither asked for is refused."""
    page = tmp_path / "report.html"
    assert text(place, "drift", "report", "--out", str(page), "--since", "7d").startswith(str(page))
    assert "<svg" in page.read_text() or "Nothing has been told" in page.read_text()
    data = result(place, "drift", "report")
    assert data["collection"] == place.vectors
    assert data["now"]["ready"]
    assert data["out"] is None
    nowhere = command("drift", "report", data_dir=place.service.data_dir)
    assert nowhere.returncode == 2
    assert "--out" in nowhere.stderr
