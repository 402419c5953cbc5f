"""Values of other formats, by a function that topics.decode names: the examples of docs/messages.md, through
a service on the local log, and what becomes of values and functions that are wrong."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from driftline.errors import ConfigError
from driftline.stream.clients import SearchClient
from driftline.stream.config import Settings
from driftline.stream.decode_hook import load_hook
from driftline.stream.dimension import first_dimension
from driftline.stream.log import Draft, Headers, Record, open_log
from driftline.stream.messages import VectorBatch, decode_vectors

from .running import Place, command, eventually, gaussian, read_all, reasons

DOCS = Path(__file__).parents[2] / "docs" / "messages.md"
DIM = 4
ROWS = gaussian(4, DIM, 0)


def example(name: str) -> str:
    """A function of docs/messages.md."""
    (found,) = re.findall(rf"^```python {name}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    return found


def change(op: str, row: int | None, year: int = 2024) -> bytes:
    """An envelope of Debezium's, as its JSON converter writes it."""
    after = None if row is None else {"embedding": ROWS[row].tolist(), "title": f"t{row}", "year": year}
    source = {"connector": "postgresql", "table": "document", "lsn": 42}
    payload = {"before": None, "after": after, "source": source, "op": op, "ts_ms": 1}
    return json.dumps({"schema": {}, "payload": payload} if op == "r" else payload).encode()


def avro(row: int, schema_id: int = 7) -> bytes:
    """A record as Confluent's serializer frames it."""
    space: dict[str, Any] = {}
    exec(example("avro"), space)
    data = io.BytesIO(bytes([0]) + schema_id.to_bytes(4, "big"))
    data.seek(5)
    document = {"embedding": ROWS[row].tolist(), "lang": "en"}
    fastavro.schemaless_writer(data, space["SCHEMAS"][7], document)
    return data.getvalue()


def draft(place: Place, key: bytes, value: bytes | None) -> Draft:
    return Draft(place.vectors, key, value, (("content-type", b"application/vnd.somebody"),))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that services started from here import from."""
    directory = tmp_path / "modules"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))
    return directory


async def test_debezium(tmp_path: Path, modules: Path) -> None:
    """Create, read, update; a delete, as its envelope alone and with its tombstone; the last record holds."""
    (modules / "debezium.py").write_text(example("debezium"))
    place = Place(f"local:{tmp_path / 'log'}", "debezium", tmp_path, topics__decode="debezium:decode")
    with place.service.start():
        async with open_log(place.url) as log, SearchClient(log, place.search, place.replies) as client:
            changes = [
                (b"1", change("r", 0)), (b"2", change("c", 1)), (b"3", change("c", 2)),
                (b"2", change("u", 3, year=2025)), (b"1", change("d", None)), (b"1", None),
                (b"3", change("d", None)), (b"4", change("c", 0)), (b"4", change("d", None)),
                (b"4", change("c", 2)), (b"5", b'{"op": "u"}'),
            ]  # fmt: skip
            await log.append([draft(place, key, value) for key, value in changes])
            status = await eventually(place.service.caught_up, "caught up")
            reply = await client.search(ROWS[3], k=10, include=["attributes", "vector"])
            (letter,) = await read_all(log, place.letters)
    assert (status["dim"], status["live"], status["rejected"]) == (DIM, 2, {"hook_failed": 1})
    found = {hit.id: (np.asarray(hit.vector).tolist(), hit.attributes) for hit in reply.hits}
    assert found == {
        b"2": (ROWS[3].tolist(), {"title": "t3", "year": 2025}),
        b"4": (ROWS[2].tolist(), {"title": "t2", "year": 2024}),
    }
    assert "KeyError: 'after'" in reasons(letter)["exception.message"]


async def test_avro(tmp_path: Path, modules: Path) -> None:
    """Framed records; one of an unknown schema is a dead letter; a null value deletes."""
    (modules / "avro_values.py").write_text(example("avro"))
    place = Place(f"local:{tmp_path / 'log'}", "avro", tmp_path, topics__decode="avro_values:decode")
    values = {b"1": avro(0), b"2": avro(1), b"3": avro(2, schema_id=8), b"4": b"{}"}
    with place.service.start():
        async with open_log(place.url) as log, SearchClient(log, place.search, place.replies) as client:
            await log.append([draft(place, key, value) for key, value in values.items()])
            await log.append([draft(place, b"2", None)])
            status = await eventually(place.service.caught_up, "caught up")
            reply = await client.search(ROWS[0], k=10, include=["attributes"])
    assert (status["live"], status["rejected"]) == (1, {"hook_failed": 2})
    assert [(hit.id, hit.attributes) for hit in reply.hits] == [(b"1", {"lang": "en"})]


def decoded(given: object, dim: int = 2) -> VectorBatch:
    """A record through a hook that gives, or raises, this."""

    def hook(value: bytes, headers: Headers) -> Any:
        assert (value, headers) == (b"value", (("x", b"y"),))
        if isinstance(given, Exception):
            raise given
        return given

    record = Record("t", 0, 0, 1, b"key", b"value", (("x", b"y"),))
    return decode_vectors([record], dim=dim, metric="cosine", model=None, hook=hook)


PAIR = np.array([1.5, -2.0], "<f4")


@pytest.mark.parametrize(
    "vector",
    [[1.5, -2], (1.5, -2), PAIR, PAIR.astype("f8"), PAIR.tobytes(), bytearray(PAIR.tobytes()), PAIR.data],
)
def test_what_a_vector_may_be(vector: object) -> None:
    """Numbers in a sequence or an array, or the bytes of float32."""
    batch = decoded((vector, {"b": 1, "a": 2}))
    assert (batch.rejected, batch.vectors.tolist()) == ([], [[1.5, -2.0]])
    assert batch.attributes == decoded((vector, {"a": 2, "b": 1})).attributes  # kept in one form
    assert decoded((vector, None)).attributes == [None]


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("hook_failed", ValueError("no good\n" * 1000)),
        ("hook_failed", RecursionError()),
        ("hook_failed", KeyError("\udc80")),
        ("hook_failed", [1.0, 2.0]),
        ("hook_failed", ([1.0, 2.0],)),
        ("hook_failed", "ab"),
        ("no_vector", (None, None)),
        ("bad_vector", ("ab", None)),
        ("bad_vector", ([10**400, 1], None)),
        ("bad_vector", ([[1.0], [1.0, 2.0]], None)),
        ("wrong_dimension", ([[1.0, 2.0]], None)),
        ("wrong_dimension", ([1.0], None)),
        ("wrong_dimension", (b"1234567", None)),
        ("not_finite", ([1.0, None], None)),
        ("not_finite", (np.array([1, np.nan], "<f4").tobytes(), None)),
        ("zero_vector", ([0.0, 0.0], None)),
        ("bad_attributes", ([1.0, 2.0], {"a": object()})),
        ("bad_attributes", ([1.0, 2.0], "text")),
    ],
)
def test_what_a_function_gives_wrongly(code: str, given: object) -> None:
    """A rejection with a reason of a bounded length; never an exception."""
    batch = decoded(given)
    (rejection,) = batch.rejected
    assert (rejection.code, batch.keys) == (code, [])
    assert len(rejection.sentence.encode()) < 500


def test_none_deletes() -> None:
    """As a null value does."""
    batch = decoded(None)
    assert (batch.deleted, batch.keys, batch.rejected) == ([b"key"], [], [])


def test_a_dimension_that_nobody_configured() -> None:
    """That of the first vector that a function gives, past what it refuses and deletes."""

    def hook(value: bytes, headers: Headers) -> tuple[list[float], Mapping[str, object] | None] | None:
        return None if value == b"-" else ([float(part) for part in value.split()], None)

    records = [Record("t", 0, at, 1, b"k", v, ()) for at, v in enumerate([b"-", b"x", b"0 0", b"1 2 3"])]
    assert first_dimension(records, metric="cosine", model=None, hook=hook) == 3
    assert first_dimension(records[:3], metric="cosine", model=None, hook=hook) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere_at_all:decode", "No module named 'nowhere_at_all'"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("math:pi", "is a float, not a function"),
    ],
)
def test_a_function_that_is_not_there(name: str, reason: str) -> None:
    """Refused with the reason."""
    with pytest.raises(ConfigError, match=reason):
        load_hook(name)
    assert Settings.model_validate({"topics": {"decode": name}}).topics.decode == name


def test_the_service_says_so_and_does_not_start(tmp_path: Path) -> None:
    """Exit code 2, as for any wrong setting, and the data directory is free again."""
    for wrong, said in (("nowhere:decode", "cannot be imported"), ("nowhere", "string should match")):
        ended = command("serve", data_dir=tmp_path, http__port=0, topics__decode=wrong)
        assert (ended.returncode, ended.stdout.count("service.ready")) == (2, 0)
        assert said in ended.stderr
