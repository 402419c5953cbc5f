"""The data directory of one index: its layout, whose it is, and that one process at a time writes to it.

| name | what |
|---|---|
| lock | held (flock) by the process that writes; its process id in decimal |
| snapshots/ | the LMDB environment of chunks and manifests |
| segments/ | raw vectors |
| damaged/ | what was set aside last: the other two, as they were |

Database `about` of the environment:

| key | value |
|---|---|
| "format" | "driftline" and the format version of the directory, u32 big-endian: 3 |
"""

import fcntl
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Self

from ..errors import SnapshotError, SnapshotsUnusable
from .environment import ReadTransaction, WriteTransaction, sync_directory
from .manifest import SnapshotInfo

__all__ = [
    "ABOUT",
    "DirectoryLock",
    "check_format",
    "check_shape",
    "segments_path",
    "set_aside",
    "snapshots_path",
    "start_anew",
    "write_format",
]

LOCK = "lock"
SNAPSHOTS = "snapshots"
SEGMENTS = "segments"
DAMAGED = "damaged"
ABOUT = "about"
FORMAT_KEY = b"format"
FORMAT_VALUE = struct.Struct(">9sI")
FORMAT_NAME = b"driftline"
FORMAT = 3


def snapshots_path(directory: Path) -> Path:
    return directory / SNAPSHOTS


def segments_path(directory: Path) -> Path:
    return directory / SEGMENTS


class DirectoryLock:
    """Held while this process may write to the directory; given back by `release`, or when it ends."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def acquire(cls, directory: Path) -> Self:
        """Create the directory if need be and lock it.

        SnapshotError if another process holds it (its id is in the message), if it cannot be written to, or
        if it holds files that are not driftline's.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not snapshots_path(directory).exists():
                _refuse_other_contents(directory)
            file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as cause:
            raise SnapshotError(f"{directory}: cannot be used as data directory: {cause.strerror}") from cause
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError):  # a full disk: the lock holds without the name of its holder
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as cause:
            holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise SnapshotError(f"{directory}: in use by process {holder}") from cause
        except OSError as cause:
            os.close(file)
            raise SnapshotError(f"{directory}: cannot be locked: {cause.strerror}") from cause
        return cls(file)

    def release(self) -> None:
        """Let another process have it; again is allowed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def set_aside(directory: Path) -> Path:
    """Move all that cannot be used out of the way; where it lies now. What was set aside before is removed.

    SnapshotError if another process holds the directory, or the disk refuses.
    """
    lock = DirectoryLock.acquire(directory)
    place = directory / DAMAGED
    try:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir()
        for name in (SNAPSHOTS, SEGMENTS):  # the snapshots first: segments that none names are removed
            if (directory / name).exists():
                (directory / name).rename(place / name)
        sync_directory(directory)
    except OSError as cause:
        raise SnapshotError(f"{directory}: cannot set damage aside: {cause.strerror or cause}") from cause
    finally:
        lock.release()
    return place


def write_format(txn: WriteTransaction) -> None:
    """Mark an empty environment as driftline's."""
    txn.put(ABOUT, FORMAT_KEY, FORMAT_VALUE.pack(FORMAT_NAME, FORMAT), overwrite=False)


def check_format(path: Path, txn: ReadTransaction) -> None:
    """SnapshotError if the environment is not driftline's, or of another format version: SnapshotsUnusable
    for an older one."""
    stored = txn.get(ABOUT, FORMAT_KEY)
    if stored is None or len(stored) != FORMAT_VALUE.size or not stored.startswith(FORMAT_NAME):
        raise SnapshotError(f"{path}: holds an LMDB environment that is not a data directory of driftline")
    version = FORMAT_VALUE.unpack(stored)[1]
    says = f"{path}: written in format version {version}, this driftline reads version {FORMAT}"
    if version < FORMAT:
        raise SnapshotsUnusable(says, path)
    if version > FORMAT:
        raise SnapshotError(f"{says}; use the driftline that wrote it, or {start_anew(path)}")


def check_shape(path: Path, there: SnapshotInfo, dim: int, metric: str) -> None:
    """SnapshotError if a snapshot of what is there has another dimension or metric than asked for."""
    if (there.dim, there.metric) != (dim, metric):
        raise SnapshotError(
            f"{path}: holds an index of dimension {there.dim}, metric {there.metric}; asked for was "
            f"dimension {dim}, metric {metric}. Ask for what is there, name another directory, or "
            f"{start_anew(path)}"
        )


def start_anew(path: Path) -> str:
    """The way out of a directory that cannot be used, as the end of a message."""
    return f"move {path} away to have the index built anew from the log"


def _refuse_other_contents(directory: Path) -> None:
    # Directories pass: another room of driftline may keep its own beside these, a new volume has lost+found.
    files = (entry.name for entry in os.scandir(directory) if entry.is_file())
    others = sorted(name for name in files if name != LOCK and not name.startswith("."))
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise SnapshotError(f"{directory}: holds something else ({shown}); name an empty or a new directory")
