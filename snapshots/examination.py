"""Looking through a data directory in a process of its own, before it is trusted.

LMDB trusts its own pages: damage there kills the process that comes upon it (SIGSEGV), and so does a file
that is shorter than its pages say, or a disk that fails under a map (SIGBUS). So a child reads first whatever
its parent is going to read: it walks the pages of the environment where nobody else writes to it, reads every
manifest, and compares the checksums of snapshots, the newest first. The parent opens what the child came back
from, and need not hash it again.

The child is `python -m driftline.snapshots.examination`; it loads neither numpy nor the core, which would
take longer than the rest of its start. It writes JSON objects, one a line:

| object | what |
|---|---|
| `{"reading": WHAT}` | it is about to; the last such line names what killed it |
| `{"snapshot": ID, "problems": [...]}` | what is wrong with one; nothing: it is whole |
| `{"failed": ERROR, "reason": TEXT}` | the directory cannot be used, as an exception of errors.py |
"""

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import SnapshotError, SnapshotsUnusable
from .chunks import CHUNKS
from .directory import ABOUT, check_format, segments_path, snapshots_path
from .environment import Environment, examine, has_pages, is_damage
from .manifest import MANIFESTS, read_manifests
from .snapshot import problems

__all__ = ["DATABASES", "examine_directory"]

DATABASES = (ABOUT, CHUNKS, MANIFESTS)
DAMAGE_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
LEAST_S, BYTES_PER_S = 600.0, 5e6  # patience with the child: a slow disk is no damage
PAGES = "its pages"
MANIFEST_LIST = "its list of snapshots"

Problems = Mapping[int, tuple[str, ...]]


def examine_directory(directory: Path, *, alone: bool, snapshot: int | None = None) -> Problems:
    """Have a child look through a directory; what is wrong with the snapshots that it read, by their ids.

    `alone`: nobody writes there. Then the pages are walked, and snapshots are read from the newest on until
    one is whole. Otherwise only the list of snapshots is read, and all of `snapshot`.

    SnapshotsUnusable if the environment is damaged, or of an older format; SnapshotError if it cannot be
    read, is somebody else's or of a newer format, or if the child took too long (hours, for what takes a
    second).
    """
    found: dict[int, tuple[str, ...]] = {}
    if not has_pages(snapshots_path(directory)):
        return found
    limit_s = LEAST_S + _size(directory) / BYTES_PER_S
    while (killed_by := _ask_child(directory, alone, snapshot, found, limit_s)) is not None:
        reading, name = killed_by
        says = f"reading it ended the process that tried ({name})"
        if not isinstance(reading, int):
            raise SnapshotsUnusable(f"{directory}: {reading}: {says}", directory)
        found[reading] = (says,)
        if not alone:
            return found
    return found


def _ask_child(
    directory: Path, alone: bool, snapshot: int | None, found: dict[int, tuple[str, ...]], limit_s: float
) -> tuple[int | str, str] | None:
    """Run a child, and note what it found; what it was reading when a signal killed it, and which."""
    asked = {"alone": alone, "snapshot": snapshot, "skip": list(found)}
    command = [sys.executable, "-P", "-m", __name__, str(directory), json.dumps(asked)]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as cause:
        raise SnapshotError(f"{directory}: could not be looked through in {limit_s:.0f} s") from cause
    except OSError as cause:
        raise SnapshotError(f"{directory}: cannot be looked through: {cause.strerror}") from cause
    reading: int | str = PAGES
    for line in child.stdout.splitlines():
        told: dict[str, Any] = json.loads(line)
        if "reading" in told:
            reading = told["reading"]
        elif "snapshot" in told:
            found[told["snapshot"]] = tuple(told["problems"])
        elif told["failed"] == SnapshotsUnusable.__name__:
            raise SnapshotsUnusable(told["reason"], directory)
        else:
            raise SnapshotError(told["reason"])
    if child.returncode == 0:
        return None
    if -child.returncode in DAMAGE_SIGNALS:
        return reading, signal.Signals(-child.returncode).name
    last = (child.stderr.splitlines() or [f"exit code {child.returncode}"])[-1]
    raise SnapshotError(f"{directory}: cannot be looked through: {last}")


def _size(directory: Path) -> int:
    places = (snapshots_path(directory), segments_path(directory))
    return sum(file.stat().st_size for place in places if place.is_dir() for file in place.iterdir())


def _look(directory: Path, alone: bool, snapshot: int | None, skip: Collection[int]) -> Iterator[object]:
    """What the child tells, as it comes to it."""
    path = snapshots_path(directory)
    if alone:
        yield {"reading": PAGES}
        try:
            examine(path, error=SnapshotError)
        except SnapshotError as cause:
            raise SnapshotsUnusable(str(cause), directory) from cause
    yield {"reading": MANIFEST_LIST}
    with Environment(path, DATABASES, error=SnapshotError, readonly=True) as environment:
        if environment.empty:
            return
        with environment.read() as txn:
            manifests, damaged = read_manifests(txn)
            if manifests or damaged or txn.count(ABOUT):  # else it ended before it began
                check_format(directory, txn)
            wanted = sorted(manifests.keys() | damaged.keys(), reverse=True) if alone else [snapshot]
            for number in wanted:
                if number is None or number in skip:
                    continue
                yield {"reading": number}
                if number in manifests:
                    # Closed before the transaction ends: its threads read what the transaction holds still.
                    with closing(problems(txn, manifests[number], segments_path(directory))) as wrong:
                        told = list(islice(wrong, 1) if alone else wrong)
                else:
                    told = [damaged.get(number, f"there is no snapshot {number}")]
                yield {"snapshot": number, "problems": told}
                if not told:
                    break


def main(directory: str, asked: str) -> None:
    """Be the child."""
    try:
        for told in _look(Path(directory), **json.loads(asked)):
            print(json.dumps(told), flush=True)
    except SnapshotError as error:
        unusable = isinstance(error, SnapshotsUnusable) or is_damage(error)
        kind = SnapshotsUnusable if unusable else SnapshotError
        reason = error.reason if isinstance(error, SnapshotsUnusable) else str(error)
        print(json.dumps({"failed": kind.__name__, "reason": reason}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
