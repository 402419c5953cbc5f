"""One shard of several: the partitions that `partitions` names are read, kept and vouched for, and no
others."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from driftline.errors import ConfigError, LogError, SnapshotError
from driftline.stream.answers import answer
from driftline.stream.applied import Applied
from driftline.stream.config import Settings, Sourced, load
from driftline.stream.documents import Form, Refused
from driftline.stream.ingest import starting_offsets
from driftline.stream.local_log import LocalLog
from driftline.stream.log import Record, Topic
from driftline.stream.log_end import LogEnd
from driftline.stream.messages import SearchRequest, decode_reply, decode_vectors
from driftline.stream.reconcile import reconcile
from driftline.stream.shard import Shard

from .running import bare, gaussian, read_all
from .test_topic_watch import Clocked, Scene

DIM = 4
TOPIC = "driftline.vectors"


def configured(path: Path, held: object = "all") -> Settings:
    return Settings.model_validate({"data_dir": path / "data", "index": {"dim": DIM}, "partitions": held})


@pytest.mark.parametrize("text", ["[2, 0]", " [0,2] "])
def test_partitions_as_text_and_as_a_list(text: str) -> None:
    """From the environment or a flag it is text; in order then, and each once."""
    given = load(None, {"DRIFTLINE_PARTITIONS": text}).partitions
    assert given == configured(Path(), [2, 0]).partitions == (0, 2)
    assert load(None, {"DRIFTLINE_PARTITIONS": "all"}).partitions == "all"


@pytest.mark.parametrize("text", ["", "0-2", "[]", "[-1]", "[1, 1]", "some", "{}"])
def test_wrong_partitions(text: str) -> None:
    """Said with the setting's name."""
    with pytest.raises(ConfigError, match=r"^partitions"):
        load(None, {}, {"partitions": Sourced(text, "flag --set")})


def test_every_set_of_partitions_asks_for_itself() -> None:
    """Shards read the same questions in groups of their own, replicas of one in one group."""
    groups = [configured(Path(), held).shard_group for held in ("all", [0, 2], [2, 0], [1])]
    assert groups == [
        "driftline.shard.all",
        "driftline.shard.0-2",
        "driftline.shard.0-2",
        "driftline.shard.1",
    ]
    assert [configured(Path(), held).is_shard for held in ("all", [0])] == [False, True]


async def filled(path: Path, partitions: int = 3) -> LocalLog:
    """A local log with a topic of 30 keys, ten in each partition."""
    log = Clocked(path)
    await log.__aenter__()
    await log.create_topic(TOPIC, partitions=partitions, compacted=True)
    drafts = [
        replace(bare(TOPIC, b"k%d" % row, vector), partition=row % 3)
        for row, vector in enumerate(gaussian(30, DIM, 1))
    ]
    await log.append(drafts)
    return log


async def test_where_a_shard_starts(tmp_path: Path) -> None:
    """Its own partitions only; one that does not exist is refused."""
    log = await filled(tmp_path)
    assert await starting_offsets(log, TOPIC, {}, (0, 2)) == {0: 0, 2: 0}
    assert await starting_offsets(log, TOPIC, {0: 4}, (0, 2)) == {0: 4, 2: 0}
    with pytest.raises(LogError, match=r"names 3, and topic .* has partitions 0 to 2"):
        await starting_offsets(log, TOPIC, {}, (0, 3))
    await log.close()


async def test_the_lag_of_a_shard(tmp_path: Path) -> None:
    """Of its own partitions; an instance that holds all also counts what it has not begun to read."""
    log = await filled(tmp_path)
    assert await LogEnd(log, TOPIC, Applied({0: 4}), whole=False).lag() == {0: 6}
    assert await LogEnd(log, TOPIC, Applied({0: 4})).lag() == {0: 6, 1: 10, 2: 10}
    await log.close()


async def shard_of(log: LocalLog, settings: Settings, positions: dict[int, int]) -> Shard:
    """A shard that has applied all of these partitions, up to these offsets."""
    shard = Shard.open(settings, structlog.get_logger())
    records = [record for record in await read_all(log, TOPIC) if record.partition in positions]
    batch = decode_vectors(records, dim=DIM, metric="l2", model=None)
    await shard.apply(batch, positions, len(records))
    return shard


async def test_a_snapshot_of_other_partitions(tmp_path: Path) -> None:
    """Refused when it holds more than is configured; one that holds less goes on."""
    log = await filled(tmp_path)
    settings = configured(tmp_path, [0, 2])
    shard = await shard_of(log, settings, {0: 10, 2: 10})
    pending = await shard.cut()
    assert pending is not None
    await shard.commit(pending)
    shard.close()
    with pytest.raises(SnapshotError, match="vectors of partitions 2 "):
        Shard.open(configured(tmp_path, [0, 1]), structlog.get_logger())
    for held in ([0, 2], [0, 1, 2], "all"):
        shard = Shard.open(configured(tmp_path, held), structlog.get_logger())
        assert (shard.live, shard.offsets) == (20, {0: 10, 2: 10})
        shard.close()
    await log.close()


async def test_a_shard_reconciles_with_its_own_partitions(tmp_path: Path) -> None:
    """Keys that are only in others are not its own: dropped, as those that the topic does not have."""
    log = await filled(tmp_path)
    settings = configured(tmp_path, [0, 2])
    shard = await shard_of(log, settings, {0: 10, 1: 10, 2: 10})
    done = await reconcile(settings, log, shard, (0, 2))
    assert (done.records, done.keys, done.dropped) == (20, 30, 10)
    shard.close()
    await log.close()


class Growing(Clocked):
    """A topic that gets a partition while it is read."""

    grown = False

    async def describe(self, topic: str, *, max_age_s: float = 60.0) -> Topic:
        told = await super().describe(topic)
        return told if self.grown else replace(told, partitions=told.partitions[:-1])


@pytest.mark.parametrize(("held", "added"), [("all", {2: 0}), ([0, 1], {})])
async def test_new_partitions(tmp_path: Path, held: object, added: dict[int, int]) -> None:
    """Both say that keys have moved; who holds all takes a new partition up, who has some of its own does
    not."""
    async with Growing(tmp_path / "log") as log:
        await log.create_topic(TOPIC, partitions=3, compacted=True)
        settings = configured(tmp_path, held)
        shard = Shard.open(settings, structlog.get_logger())
        scene = Scene(settings, log, shard)
        watch = await scene.watch()
        log.grown = True
        await watch.look()
        await watch.look()
        assert scene.names == ["topic.partitions_changed"]
        assert scene.added == added
        shard.close()


def test_a_shard_that_catches_up(tmp_path: Path) -> None:
    """Its answer says that it is not whole; a key that it does not have may be in what it has not applied."""
    settings = configured(tmp_path, [0, 2])
    shard = Shard.open(settings, structlog.get_logger())
    canary: Any = SimpleNamespace(ef=64, offer=lambda query: None)
    asked = SearchRequest(Form.MSGPACK, np.zeros(DIM, np.float32), None)
    for behind in ((0, 2), ()):
        value = answer(shard.index, asked, settings.search, canary, {}, 0.0, behind)
        assert decode_reply(Record("r", 0, 0, 0, None, value, ())).partial == behind
    lookup = replace(asked, vector=None, key=b"k0")
    for behind, code in (((0, 2), "unavailable"), ((), "unknown_key"), (None, "unknown_key")):
        with pytest.raises(Refused) as refused:
            answer(shard.index, lookup, settings.search, canary, {}, 0.0, behind)
        assert refused.value.code == code
    shard.close()
