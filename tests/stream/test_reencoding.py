"""Re-encoding by hand, through the control socket of a real service and the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftline.errors import DriftlineError
from driftline.stream.control import ask

from .running import Place, command, gaussian, until

DIM = 8
OLD = 200  # rows that the first frame is fitted to
ROWS = 6000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service whose frame was fitted to a narrow world, and codes a wide one; drift raises no alarm."""
    directory = tmp_path_factory.mktemp("reencoding")
    place = Place(
        f"local:{directory / 'log'}", "driftline", directory, index__compress_after=OLD, index__m=4,
        index__ef_construction=20, drift__alpha=1e-12, drift__loss_limit=1e12,
    )  # fmt: skip
    with place.service.start():
        for first, last, scale in ((0, OLD, 1.0), (OLD, ROWS, 3.0)):
            file = directory / "rows.npz"
            keys = np.array([str(row) for row in range(first, last)])
            np.savez(file, vectors=scale * gaussian(last - first, DIM, first), keys=keys)
            text(place, "feed", str(file), "--dataset", "vectors", "--ids", "keys")
            until(lambda rows=last: frames(place) == {1: rows}, "fed, and in the first frame")
        yield place


def frames(place: Place) -> dict[int, int]:
    status = place.service.caught_up()
    return {} if status is None else {frame["frame"]: frame["rows"] for frame in status["frames"]}


def text(place: Place, *arguments: str) -> str:
    done = command(*arguments, data_dir=place.service.data_dir, log=place.url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(place: Place, *flags: str) -> dict[str, Any]:
    return json.loads(text(place, "drift", "reencode", *flags, "--json"))


def test_from_the_command_line(place: Place) -> None:
    """Nothing at first; paused before it begins, it does not; resumed it is watched to its end, all rows
    arrive, and what came of it is told. A second one finds nothing to gain."""
    assert text(place, "drift", "reencode").startswith("nothing is being encoded anew\nthe last one")
    ask(place.service.data_dir, "reencode", {"action": "now"})
    ask(place.service.data_dir, "reencode", {"action": "pause"})
    paused = state(place)
    assert paused["paused"]
    assert 0.05 <= paused["share"] <= 0.25
    assert "paused" in text(place, "drift", "reencode")
    done = text(place, "drift", "reencode", "--resume")
    assert "6 slabs (6,000 rows) moved" in done
    assert "their error became" in done
    assert frames(place) == {2: ROWS}
    assert "no new frame; the code still fits" in text(place, "drift", "reencode", "--now")
    assert state(place)["last"]["event"] == "reencode.declined"


def test_cancelled_from_the_command_line(place: Place) -> None:
    """What waits for a hand is over at once, and nothing moves."""
    paused_before = len(place.service.events("reencode.paused"))
    ask(place.service.data_dir, "reencode", {"action": "pause"})
    state(place, "--cancel")
    ask(place.service.data_dir, "reencode", {"action": "now"})
    ask(place.service.data_dir, "reencode", {"action": "pause"})
    cancelled = state(place, "--cancel")
    assert cancelled["state"] == "idle"
    assert not cancelled["paused"]
    until(lambda: len(place.service.events("reencode.paused")) >= paused_before + 2, "both are told")
    assert sum(frames(place).values()) == ROWS


def test_what_is_refused(place: Place, tmp_path: Path) -> None:
    """Two wishes at once, a wish that is none, and one to a service that is not there; one sentence each."""
    both = command("drift", "reencode", "--now", "--pause", data_dir=place.service.data_dir, log=place.url)
    assert both.returncode == 2
    assert "--now --pause" in both.stderr
    with pytest.raises(DriftlineError, match="'dance'"):
        ask(place.service.data_dir, "reencode", {"action": "dance"})
    nobody = command("drift", "reencode", data_dir=tmp_path / "nothing", log=place.url)
    assert nobody.returncode == 1
    assert "driftline serve" in nobody.stderr
