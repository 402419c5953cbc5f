"""`driftline snapshots` and `driftline check`: looking at a data directory beside a running service or
without one, and moving its snapshots."""

import time
from pathlib import Path
from typing import Any

from ..errors import CorruptIndex, SnapshotError
from ..index.digest import digest_text
from ..index.online import OnlineIndex
from ..snapshots.directory import check_shape
from ..snapshots.store import SnapshotInfo, SnapshotStore
from ..snapshots.transfer import import_snapshot
from .config import Settings

__all__ = [
    "check_newest",
    "checked",
    "export_to",
    "import_from",
    "list_snapshots",
    "prune_snapshots",
    "restore_snapshot",
    "show_snapshot",
    "verify_snapshot",
]


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


def export_to(settings: Settings, snapshot: int | None, file: Path) -> dict[str, Any]:
    """Write a snapshot (the newest where None) to a new file. Raises SnapshotError."""
    if file.exists():
        raise SnapshotError(f"{file}: exists already; name a new file")
    with SnapshotStore.inspect(settings.data_dir) as store:
        began = time.monotonic()
        info, size = store.export(_find(store, snapshot).id, file)
        seconds = round(time.monotonic() - began, 3)
        return {"file": str(file), "bytes": size, "seconds": seconds, **_plain(info)}


def import_from(settings: Settings, file: Path) -> dict[str, Any]:
    """Begin a data directory with a snapshot that was exported. Raises SnapshotError."""
    directory, topic = settings.data_dir, settings.topics.vectors
    began = time.monotonic()

    def check(info: SnapshotInfo) -> None:
        check_shape(file, info, settings.index.dim or info.dim, settings.index.metric)
        if topic not in info.offsets:
            raise SnapshotError(
                f"{file}: of topic {', '.join(info.offsets)}, and topics.vectors is {topic}: a snapshot goes "
                "on with the topic that it was made from"
            )

    info = import_snapshot(directory, file, check)
    return {"data_dir": str(directory), "read_s": round(time.monotonic() - began, 3), **_plain(info)}


def restore_snapshot(settings: Settings, snapshot: int) -> dict[str, Any]:
    """Make an older snapshot the newest, where no service runs. Raises SnapshotError."""
    index, keep = settings.index, settings.snapshots.keep
    with SnapshotStore.open(settings.data_dir, dim=index.dim, metric=index.metric, keep=keep) as store:
        return {"restored": snapshot, **_plain(store.restore(snapshot))}


def prune_snapshots(settings: Settings, keep: int | None) -> dict[str, Any]:
    """Remove all but the newest snapshots, where no service runs. Raises SnapshotError."""
    index, kept = settings.index, keep or settings.snapshots.keep
    with SnapshotStore.open(settings.data_dir, dim=index.dim, metric=index.metric) as store:
        removed = store.prune(kept)
        return {"removed": list(removed), "kept": [info.id for info in store.list()]}


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
