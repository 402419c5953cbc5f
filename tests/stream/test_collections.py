"""Several collections in one service, and the alias that clients search while one takes the place of
another."""

import asyncio
import json
from pathlib import Path

import pytest
from driftline.errors import ConfigError, InvalidInput, SearchFailed
from driftline.stream.aliases import Target, decode_alias, encode_alias
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.config import Settings, Sourced, load, load_collections
from driftline.stream.control import ServiceUnreachable, ask
from driftline.stream.log import Record, open_log

from .running import Service, command, eventually, gaussian

OLD, NEW = gaussian(50, 4, 1), gaussian(80, 6, 2)

TABLES = """
data_dir = "{place}"
log = "local:{place}/log"
[gateway]
behind = true
[http]
port = 0
[collections.minilm.index]
dim = 4
[collections.e5]
partitions = [0, 1]
[collections.e5.index]
dim = 6
metric = "cosine"
[collections.e5.topics]
partitions = 2
"""


def configured(directory: Path, text: str = TABLES) -> Path:
    file = directory / "driftline.toml"
    file.write_text(text.format(place=directory / "data"))
    return file


def test_each_table_is_a_collection(tmp_path: Path) -> None:
    """Topics and directory of its own, named after it; its table over the rest, flags over both; one log."""
    file = configured(tmp_path, TABLES.replace("port = 0", "port = 7000"))
    first, second = load_collections(file, {}, {"index.m": Sourced(8, "flag")})
    assert (first.collection, first.index.dim, first.partitions) == ("minilm", 4, "all")
    assert (second.index.dim, second.index.metric, second.partitions) == (6, "cosine", (0, 1))
    assert (first.topics.vectors, second.topics.dead_letters) == ("minilm.vectors", "e5.dead-letters")
    assert second.data_dir == tmp_path / "data" / "e5"
    assert first.log_url == second.log_url == f"local:{tmp_path / 'data' / 'log'}"
    assert [first.http.port, second.http.port] == [7000, 7001]
    assert first.index.m == second.index.m == 8
    chosen = {"collection": Sourced("e5", "flag")}
    assert load(file, {}, chosen) == load_collections(file, {}, chosen)[0]
    assert load(file, {}, chosen).topics == second.topics
    assert load(file, {}).topics.vectors == Settings().topics.vectors
    assert load_collections(None, {}) == [load(None, {})]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[collections.a]\nmetrik = 1", "collections.a.metrik .* no such setting"),
        ("[collections.a.broker]\ngroup = 'x'", "collections.a.broker.group .* one for all collections"),
        ("[collections.a.logging]\nlevel = 'debug'", "one for all collections"),
        ("[collections.a.index]\ndim = 0", r"index.dim = 0 \(.*driftline.toml\)"),
        ("collections = 3", r"expected a table, \[collections\]"),
        ("collection = 'b'\n[collections.a.index]\ndim = 3", r"no table \[collections.b\]; there are: a"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, says: str) -> None:
    """Refused with the setting and its source."""
    with pytest.raises(ConfigError, match=says):
        load_collections(configured(tmp_path, table), {})


def test_what_an_alias_is() -> None:
    """Read as it is written; anything else is refused in words."""
    target = Target("e5", "e5.vectors", "e5.shards")
    draft = encode_alias("t", "articles", target)

    def record(value: bytes | None) -> Record:
        return Record("t", 0, 0, 0, draft.key, value, ())

    assert draft.key == b"articles"
    assert decode_alias(record(draft.value)) == target
    assert decode_alias(record(encode_alias("t", "articles", None).value)) is None
    wrong = dict(json.loads(draft.value or b""), shards="no topic!")
    for value in (b"", b"{", b"[]", b"{}", b"\xff", json.dumps(wrong).encode()):
        with pytest.raises(InvalidInput, match="no alias"):
            decode_alias(record(value))


async def test_an_alias_is_switched_from_one_collection_to_another(tmp_path: Path) -> None:
    """Built beside, caught up, switched: clients ask one topic all the time, and get the answers of one
    collection or the other, never neither; also a gateway that starts later."""
    file = configured(tmp_path)
    base = load(file, {})

    def run(*arguments: str) -> str:
        done = command(*arguments, "--config", str(file))
        assert done.returncode == 0, done.stderr
        return done.stdout

    service = Service(tmp_path, config=file)
    gateway = Service(tmp_path / "gateway", config=file, gateway__alias="articles")
    gateway.output.parent.mkdir()
    with service, gateway:
        service.start(ready=False)
        for name in ("minilm", "e5"):
            await eventually(lambda name=name: caught_up(tmp_path, name), "ready")
        gateway.start(program="gateway", ready=False)
        await eventually(lambda: gateway.events("gateway.serving"), "the gateway serves")
        async with (
            open_log(base.log_url) as log,
            FeedClient(log, "minilm.vectors") as old,
            FeedClient(log, "e5.vectors") as new,
            SearchClient(log) as client,
        ):
            after_old = await old.upsert([f"old{n}" for n in range(50)], OLD)
            after_new = await new.upsert([f"new{n}" for n in range(80)], NEW)
            with pytest.raises(SearchFailed, match="articles means no collection"):
                await client.search(OLD[0], k=1)
            assert "no aliases" in run("alias")
            run("alias", "articles", "minilm")
            await eventually(lambda: means(gateway, "minilm"), "the gateway has heard of it")
            reply = await client.search(OLD[3], k=1, after=after_old)
            assert reply.hits[0].id == b"old3"
            assert reply.applied.keys() == {"minilm.vectors"}

            stop = asyncio.Event()

            async def keep_asking() -> list[bytes]:
                """With a key that both have: whichever is asked answers."""
                found: list[bytes] = []
                while not stop.is_set():
                    reply = await client.search(key="both", k=1, deadline_ms=60_000)
                    found.append(next(iter(reply.applied)).encode())
                return found

            await old.upsert(["both"], OLD[:1] + 9)
            token = await new.upsert(["both"], NEW[:1] + 9)
            for name in ("minilm", "e5"):
                await eventually(lambda name=name: caught_up(tmp_path, name), "applied")
            asking = asyncio.create_task(keep_asking())
            await asyncio.to_thread(run, "alias", "articles", "e5")
            await eventually(lambda: means(gateway, "e5"), "the gateway has heard of it")
            reply = await client.search(NEW[5], k=1, after={**after_new, **token})
            stop.set()
            assert reply.hits[0].id == b"new5"
            switched = await asking
            assert switched == sorted(switched, reverse=True), "old answers, then new ones"
            assert {b"minilm.vectors", b"e5.vectors"} >= set(switched)

            gateway.kill()
            gateway.start(program="gateway", ready=False)
            assert (await client.search(NEW[7], k=1, deadline_ms=60_000)).hits[0].id == b"new7"
            assert "e5, topic e5.vectors" in run("alias")
            run("alias", "articles", "--drop")
            assert "no aliases" in run("alias")
        assert service.stop() == 0
        saved = [event["collection"] for event in service.events("snapshot.committed")]
        assert sorted(saved) == ["e5", "minilm"], "a last snapshot of each"


def caught_up(directory: Path, name: str) -> bool:
    try:
        status = ask(directory / "data" / name, "status")
    except ServiceUnreachable:
        return False
    return status["ready"] and not any(status["lag"].values())


def means(gateway: Service, collection: str) -> bool:
    events = gateway.events("alias.switched")
    return bool(events) and events[-1]["collection"] == collection
