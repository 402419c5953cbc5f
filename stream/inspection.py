"""`driftline snapshots`: looking at the snapshots of a data directory, beside a running service or without
one."""

import time
from typing import Any

from ..errors import SnapshotError
from ..snapshots.store import SnapshotInfo, SnapshotStore
from .config import Settings

__all__ = ["list_snapshots", "show_snapshot", "verify_snapshot"]


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
