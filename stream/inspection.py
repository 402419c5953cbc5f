"""`driftline snapshots` and `driftline check`: looking at a data directory, beside a running service or
without one."""

import time
from typing import Any

from ..errors import CorruptIndex, SnapshotError
from ..index.digest import digest_text
from ..index.online import OnlineIndex
from ..snapshots.store import SnapshotInfo, SnapshotStore
from .config import Settings

__all__ = ["check_newest", "checked", "list_snapshots", "show_snapshot", "verify_snapshot"]


def list_snapshots(settings: Settings) -> dict[str, Any]:
    """Every snapshot, oldest first. Raises SnapshotError."""
    with SnapshotStore.inspect(settings.data_dir) as store:
        return {"data_dir": str(settings.data_dir), "snapshots": [_plain(info) for info in store.list()]}


def show_snapshot(settings: Settings, snapshot: int) -> dict[str, Any]:
    """One snapshot. Raises SnapshotError."""
    with SnapshotStore.inspect(settings.data_dir) as store:
        return _plain(_find(store, snapshot))


def verify_snapshot(settings: Settings, snapshot: int | None) -> dict[str, Any]:
    """What is wrong with a snapshot (the newest where None). Raises SnapshotError."""
    with SnapshotStore.inspect(settings.data_dir) as store:
        began = time.monotonic()
        found = _find(store, snapshot)
        problems = list(store.verify(found.id))
        return {
            "id": found.id,
            "bytes": found.bytes,
            "problems": problems,
            "seconds": round(time.monotonic() - began, 3),
        }


def check_newest(settings: Settings) -> dict[str, Any]:
    """Load the newest snapshot that is whole, where no service runs, and check it. Raises SnapshotError."""
    index = settings.index
    with SnapshotStore.open(settings.data_dir, dim=index.dim, metric=index.metric) as store:
        snapshot = store.newest()
        if snapshot is None:
            raise SnapshotError(f"{store.path}: no snapshot yet, so there is nothing to check")
        try:
            restored = OnlineIndex.restore(snapshot.cut, store.open_raw())
        except CorruptIndex as error:
            raise SnapshotError(f"{store.path}: snapshot {snapshot.info.id}: {error}") from error
        return {"snapshot": snapshot.info.id, "skipped": list(snapshot.skipped), **checked(restored)}


def checked(index: OnlineIndex | None) -> dict[str, Any]:
    """What `OnlineIndex.check` finds, and the digest that it compared; blocks."""
    began = time.monotonic()
    problem = None
    if index is not None:
        try:
            index.check()
        except CorruptIndex as error:
            problem = str(error)
    return {
        "live": 0 if index is None else len(index),
        "digest": None if index is None else digest_text(index.digest),
        "problem": problem,
        "seconds": round(time.monotonic() - began, 3),
    }


def _find(store: SnapshotStore, snapshot: int | None) -> SnapshotInfo:
    infos = store.list()
    for info in infos:
        if info.id == (snapshot or infos[-1].id):
            return info
    there = ", ".join(str(info.id) for info in infos) or "none"
    raise SnapshotError(f"{store.path}: no snapshot {snapshot or ''}; there are: {there}")


def _plain(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.created / 1000)),
        "live": info.live,
        "digest": digest_text(info.digest),
        "dim": info.dim,
        "metric": info.metric,
        "bytes": info.bytes,
        "bytes_written": info.bytes_written,
        "chunks_written": info.chunks_written,
        "chunks_shared": info.chunks_shared,
        "seconds": round(info.seconds, 3),
        "offsets": {topic: dict(offsets) for topic, offsets in info.offsets.items()},
        **info.extra,
    }
