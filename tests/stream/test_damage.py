"""A damaged data directory: what can be loaded is loaded, what cannot is said, and nothing wrong is served.

benchmarks/damage.py does the same at full length.
"""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from driftline.errors import SnapshotError, SnapshotsUnusable
from driftline.index.cut import Cut
from driftline.snapshots.directory import ABOUT, FORMAT_KEY, FORMAT_NAME
from driftline.snapshots.environment import Environment
from driftline.snapshots.examination import DATABASES
from driftline.snapshots.store import SnapshotStore
from driftline.stream.config import Logging, Settings, Snapshots
from driftline.stream.events import make_logger
from driftline.stream.shard import Shard

from .damaging import (
    DIM,
    STRATA,
    Script,
    Worker,
    flip,
    make_copy,
    make_directory,
    recover,
    settings_of,
    strata,
    truncate,
)

FLIPS = 2  # in each stratum
TRUNCATIONS = 5


@pytest.fixture(scope="module")
def script() -> Script:
    return Script(steps=12, rows=60, seed=3)


@pytest.fixture(scope="module")
def whole(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with four snapshots, the last two steps of the script in none."""
    directory = tmp_path_factory.mktemp("damage") / "whole"
    make_directory(directory, script, every=2, keep=4)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    make_copy(whole, tmp_path / "copy")
    return tmp_path / "copy"


def test_flips_and_truncations(script: Script, whole: Path, tmp_path: Path) -> None:
    """Seeded damage to every kind of page and file: the process lives, what is live is always the fold's, and
    what could not be used is said."""
    draw, places, worker = random.Random(8), strata(whole), Worker(script)
    damages: list[Callable[[Path], str]] = [lambda copy: truncate(copy, draw)] * TRUNCATIONS
    for stratum in STRATA:
        if places[stratum]:  # so few chunks need no branch page
            damages += [lambda copy, at=places[stratum]: flip(copy, draw.choice(at), draw)] * FLIPS
    results = [worker.recover(whole, tmp_path / "copy", damage) for damage in damages]
    worker.close()
    assert [result for result in results if result["wrong"]] == []
    assert {"newest", "older", "rebuilt"} <= {result["outcome"] for result in results}
    for result in results:
        assert (result["outcome"] == "newest") == (not result["said"]), result


def write_format(directory: Path, version: int) -> None:
    with (
        Environment(directory / "snapshots", DATABASES, error=SnapshotError) as environment,
        environment.write() as txn,
    ):
        txn.put(ABOUT, FORMAT_KEY, struct.pack(">9sI", FORMAT_NAME, version))


def test_an_older_format_is_rebuilt_and_a_newer_one_refused(script: Script, copy: Path) -> None:
    """Older: set aside, with both numbers in the reason, unless the settings refuse. Newer: left alone."""
    write_format(copy, 2)
    settings = settings_of(copy, 4)
    careful = settings.model_copy(update={"snapshots": Snapshots(on_damage="refuse")})
    with pytest.raises(SnapshotsUnusable, match=r"format version 2, this driftline reads version 3; move"):
        Shard.open(careful, make_logger(Logging()))
    result = recover(copy, script)
    assert (result["outcome"], result["wrong"]) == ("rebuilt", None)
    assert "format version 2" in result["said"][0]
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["segments", "snapshots"]
    write_format(copy, 9)
    result = recover(copy, script)
    assert (result["outcome"], result["wrong"]) == ("refused", None)
    assert "format version 9" in result["said"][0]


def test_what_was_set_aside_before_goes(script: Script, copy: Path) -> None:
    """A directory that is damaged again and again does not fill the disk."""
    for _ in range(3):
        (copy / "snapshots" / "data.mdb").write_bytes(b"garbage" * 10_000)
        result = recover(copy, script)
        assert (result["outcome"], result["wrong"]) == ("rebuilt", None)
    assert len(list(copy.glob("damaged*"))) == 1
    assert (copy / "damaged" / "snapshots" / "data.mdb").read_bytes().startswith(b"garbage")


def test_a_snapshot_that_cannot_be_restored_is_skipped(script: Script, copy: Path) -> None:
    """Bytes that are those that were written, and are no index all the same: the older one is loaded."""
    with SnapshotStore.open(copy, dim=DIM, metric="l2", keep=9) as store:
        newest = store.newest()
        assert newest is not None
        store.commit(Cut({}, b"no state", frozenset(), 0), newest.info.offsets, newest.info.extra)
    result = recover(copy, script)
    assert (result["outcome"], result["wrong"]) == ("older", None)


def test_settings_name_what_to_do() -> None:
    """The default builds anew: nobody has to come by at night."""
    assert Settings().snapshots.on_damage == "rebuild"
