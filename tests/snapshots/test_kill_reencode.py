"""Killed in the middle of a re-encode, again and again: what is restored goes on until it is finished."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from driftline import DriftSettings, OnlineIndex
from driftline.index.events import ReencodeFinished, ReencodeStarted
from driftline.native import SLAB
from driftline.snapshots.store import SnapshotStore

DIM = 16
SLABS = 12
OLD = 200  # rows of the world that the first frame is fitted to
DEAF = DriftSettings(alpha=1e-12, loss_limit=math.inf)  # only a hand starts anything
KILLS = (3, 2, 3)  # each when so many more slabs have moved

# Moves one slab after the other, commits after each and says so; does not end, however late the kill comes.
CHILD = f"""
import math, sys
from driftline import DriftSettings, OnlineIndex
from driftline.snapshots.store import SnapshotStore

store = SnapshotStore.open(sys.argv[1], dim={DIM}, metric="l2")
deaf = DriftSettings(alpha=1e-12, loss_limit=math.inf)
index = OnlineIndex.restore(store.newest().cut, store.open_raw(), deaf)
if not index.stats().reencoding:
    index.reencode(now=True)
done = 0
while True:
    at = index.reencode_progress()
    if at.state == "moving" and at.slabs_done > done:
        done = at.slabs_done
        store.commit(index.cut(store.known()), {{}})
        print(at.slabs, flush=True)
    if at.state == "moving" and at.slabs_done == at.slabs - 1:
        sys.stdin.read()
    index.maintain(0.0)
"""


def rows_of(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def killed_after(path: Path, slabs: int) -> int:
    """A child restores and re-encodes; kill -9 when it has moved so many. How many it had to move."""
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(slabs)]
        child.kill()
    assert all(said), "the child ended before"
    return int(said[0])


def test_a_reencode_survives_kills(tmp_path: Path) -> None:
    """Each restart has fewer slabs to move, and the last one finishes: all rows in the new frame, every code
    that of its raw vector, every key found."""
    x = rows_of(1, SLABS * SLAB)
    x[OLD:] = 2 * x[OLD:] + 1
    with SnapshotStore.open(tmp_path, dim=DIM, metric="l2") as store:
        raw = store.open_raw(DIM)
        index = OnlineIndex(DIM, raw=raw, compress_after=OLD, drift=DEAF)
        index.upsert(np.arange(OLD), x[:OLD])
        while index.maintain(1.0):
            pass
        index.upsert(np.arange(OLD, len(x)), x[OLD:])
        store.commit(index.cut(), {})
        del index
    had = [killed_after(tmp_path, slabs) for slabs in KILLS]
    assert had[0] == SLABS
    with SnapshotStore.open(tmp_path, dim=DIM, metric="l2") as store:
        newest = store.newest()
        assert newest is not None
        index = OnlineIndex.restore(newest.cut, store.open_raw(), DEAF)
        assert index.stats().reencoding
        index.check()
        while index.maintain(1.0):
            pass
        index.check()
        events = index.take_events()
        (started,) = [event for event in events if isinstance(event, ReencodeStarted)]
        (finished,) = [event for event in events if isinstance(event, ReencodeFinished)]
        had.append(started.slabs)
        assert all(after <= before - moved for before, after, moved in zip(had, had[1:], KILLS, strict=False))
        assert finished.slabs == started.slabs
        assert [(frame.frame, frame.rows) for frame in index.stats().frames] == [(2, len(x))]
        hits = index.search(x[::97], 1, ef=200)
        assert [keys[0] for keys in hits.keys] == list(range(0, len(x), 97))
