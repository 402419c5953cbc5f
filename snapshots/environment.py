"""A typed LMDB environment: the only file that imports lmdb.

What a caller must know:

- **One environment per path per process.** LMDB's file locks are the process's, so closing a second
  environment on the same files would drop the first one's. A second open is refused: share the object. Other
  processes may open the path at any time.
- **Threads.** An `Environment` is anybody's. A write transaction begins, runs and ends on one thread (LMDB
  holds a lock that only that thread can release). One write transaction runs at a time over all processes,
  others wait for it. Readers wait for nobody and nobody waits for them.
- **Keep read transactions short.** Pages that an open reader may see are not reused, so a forgotten reader
  makes the file grow. Readers of processes that died are cleared at open and, at most once a minute, before a
  write.
- **Durability.** A commit returns after fsync, unless opened with `durable=False`; then call `sync`.
- **Size.** `map_size` is address space, not disk: the file grows as it is written. Where less than `room` is
  left, a write transaction doubles the map before it begins, and a map that another process grew is adopted;
  both wait for the moment when no transaction of this process is open.
- **Errors.** Every error of lmdb leaves as the exception type given at open, with the path in its message.
- **Damage.** LMDB trusts its own pages: reading a damaged file may kill the process. `examine` reads the file
  without LMDB; call it before opening, while nobody writes.
"""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import lmdb
import lmdb.verify

from ..errors import DriftlineError

__all__ = [
    "MAX_KEY_BYTES",
    "Environment",
    "ReadTransaction",
    "WriteTransaction",
    "examine",
    "has_pages",
    "is_damage",
    "sync_directory",
]

Buffer = bytes | bytearray | memoryview

MAX_KEY_BYTES = 511  # LMDB's limit
DATA_FILE, LOCK_FILE = "data.mdb", "lock.mdb"
READER_BYTES = 64  # of a reader in the lock file
MAP_BYTES = 64 << 30  # address space only; small enough for several environments in a 39-bit address space
MAX_READERS = 510  # read transactions open at once, over all processes; 64 bytes each in the lock file
ROOM_BYTES = 64 << 20  # free map wanted before a write transaction that names no size
DAMAGE = (
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)  # what LMDB says of pages that cannot be; its other errors are of the system
NEARLY_FULL_BYTES = 16 << 20  # left on a disk: worth a word when something fails
REMAP_WAIT_S = 30.0  # a reader that stays longer than this is a leak
STALE_READERS_S = 60.0  # between two looks for readers of dead processes


class ReadTransaction:
    """One consistent view of an environment. It, and every view it gives out, ends with its `with` block."""

    __slots__ = ("_databases", "_txn")

    def __init__(self, txn: "lmdb.Transaction[memoryview]", databases: "dict[str, lmdb._Database]") -> None:
        self._txn = txn
        self._databases = databases

    @property
    def number(self) -> int:
        """The commit this transaction sees (a write transaction: the commit it will be)."""
        return self._txn.id()

    def get(self, database: str, key: Buffer) -> bytes | None:
        """A copy of the value at `key`."""
        value = self._txn.get(key, db=self._databases[database])
        return None if value is None else bytes(value)

    def view(self, database: str, key: Buffer) -> memoryview | None:
        """The value at `key` without a copy; dangles after the `with` block or its next write."""
        return self._txn.get(key, db=self._databases[database])

    def range(
        self, database: str, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) copies with start <= key < stop, ascending, or descending where `reverse`."""
        return ((bytes(key), bytes(value)) for key, value in self._walk(database, start, stop, reverse))

    def keys(
        self, database: str, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Copies of the keys with start <= key < stop; values are not touched."""
        return (bytes(key) for key, _ in self._walk(database, start, stop, reverse))

    def count(self, database: str) -> int:
        """Entries in a database; O(1)."""
        return self._txn.stat(self._databases[database])["entries"]

    def _walk(
        self, database: str, start: bytes, stop: bytes | None, reverse: bool
    ) -> Iterator[tuple[memoryview, memoryview]]:
        with self._txn.cursor(self._databases[database]) as cursor:
            if reverse:
                # iterprev begins where the cursor stands: on the last key below `stop`
                found = cursor.prev() if stop is not None and cursor.set_range(stop) else cursor.last()
                if not found:
                    return
                for key, value in cursor.iterprev():
                    if key.tobytes() < start:
                        return
                    yield key, value
            elif cursor.set_range(start):
                for key, value in cursor.iternext():
                    if stop is not None and key.tobytes() >= stop:
                        return
                    yield key, value


class WriteTransaction(ReadTransaction):
    """A read transaction that may also write; all of it or nothing, at the end of the `with` block."""

    __slots__ = ()

    def put(
        self, database: str, key: Buffer, value: Buffer, *, overwrite: bool = True, append: bool = False
    ) -> bool:
        """Store a value; False, and nothing stored, if `overwrite` is off and the key is there.

        `append` is for keys that only grow: pages are filled instead of split. It stores nothing, and returns
        False, if the key is not greater than all others.
        """
        return self._txn.put(key, value, overwrite=overwrite, append=append, db=self._databases[database])

    def delete(self, database: str, key: Buffer) -> bool:
        """Remove a key; False if it was not there."""
        return self._txn.delete(key, db=self._databases[database])

    def delete_range(self, database: str, start: bytes = b"", stop: bytes | None = None) -> int:
        """Remove every key with start <= key < stop; how many there were."""
        removed = 0
        with self._txn.cursor(self._databases[database]) as cursor:
            found = cursor.set_range(start)
            while found and (stop is None or cursor.key().tobytes() < stop):
                cursor.delete()  # moves to the next key
                removed += 1
                found = len(cursor.key()) > 0
        return removed


class Environment:
    """Named databases in one directory, opened once.

    `databases` are created in an empty environment, and must all be there in any other: somebody else's file
    is refused, not written to. `error` is the exception type that every failure leaves as.
    """

    def __init__(
        self,
        path: str | Path,
        databases: Sequence[str],
        *,
        error: type[DriftlineError],
        readonly: bool = False,
        durable: bool = True,
        map_size: int = MAP_BYTES,
        max_readers: int = MAX_READERS,
    ) -> None:
        self.path = Path(path)
        self._error = error
        self._active = 0
        self._idle = threading.Condition()
        self._stale_looked = time.monotonic()
        self.empty = False  # read-only, and nothing was ever stored: there are no databases to read
        try:
            if not readonly:
                self.path.mkdir(parents=True, exist_ok=True)
                _allocate(self.path / LOCK_FILE, READER_BYTES * (max_readers + 2))
            self._env = lmdb.Environment(
                str(self.path),
                map_size=map_size,
                max_dbs=len(databases),
                max_readers=max_readers,
                readonly=readonly,
                create=False,
                sync=durable,
                metasync=durable,
            )
        except lmdb.Error as cause:
            raise error(str(cause)) from cause  # the path is in it
        except OSError as cause:
            raise error(f"{self.path}: {cause.strerror or cause}") from cause
        try:
            with self._translated():
                self._env.reader_check()
                self._databases = self._open_databases(databases, readonly)
                if not readonly:
                    self._make_whole()
                    sync_directory(self.path)
        except OSError as cause:
            self._env.close()
            raise error(f"{self.path}: {cause.strerror or cause}") from cause
        except BaseException:
            self._env.close()
            raise

    @contextmanager
    def read(self) -> Generator[ReadTransaction]:
        """A consistent view of now."""
        with self._translated(), self._begin(write=False) as txn:
            yield ReadTransaction(txn, self._databases)

    @contextmanager
    def write(self, room: int = ROOM_BYTES) -> Generator[WriteTransaction]:
        """A write transaction: committed (and on disk) when the block ends, discarded if it raises.

        `room` is at least the bytes that the block will store.
        """
        with self._translated():
            if time.monotonic() - self._stale_looked > STALE_READERS_S:
                self._stale_looked = time.monotonic()
                self._env.reader_check()
            # Branch pages, copies of touched leaves and the free list come on top of the values: twice is
            # ample.
            wanted = self.used_bytes() + 2 * room + (1 << 20)
            if wanted > self._env.info()["map_size"]:
                self._remap(lambda: max(2 * self._env.info()["map_size"], 2 * wanted))
            with self._begin(write=True) as txn:
                yield WriteTransaction(txn, self._databases)

    def last_commit(self) -> int:
        """The number of the newest commit by any process: a poll that costs a memory read."""
        with self._translated():
            return self._env.info()["last_txnid"]

    def used_bytes(self) -> int:
        """Bytes of the file that hold or held pages; what is free for reuse counts too."""
        with self._translated():
            return (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]

    def sync(self) -> None:
        """Put every commit on disk, whatever `durable` was."""
        with self._translated():
            self._env.sync(True)

    def close(self) -> None:
        """Wait for open transactions, then close. Again is allowed. One that stays open is an error."""
        with self._idle:
            if not self._idle.wait_for(lambda: self._active == 0, REMAP_WAIT_S):
                raise self._error(f"{self.path}: cannot close, a transaction is still open")
            self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_databases(self, names: Sequence[str], readonly: bool) -> "dict[str, lmdb._Database]":
        try:
            if readonly:
                self.empty = self._env.stat()["entries"] == 0
                if self.empty:
                    return {}
                return {name: self._env.open_db(name.encode(), create=False) for name in names}
            # In one transaction: a process that dies here leaves all of them or an empty environment.
            with self._env.begin(write=True) as txn:
                create = txn.stat()["entries"] == 0
                return {name: self._env.open_db(name.encode(), txn=txn, create=create) for name in names}
        except lmdb.NotFoundError as cause:
            raise self._error(
                f"{self.path}: holds something else than the databases {', '.join(names)}"
            ) from cause

    def _make_whole(self) -> None:
        # A value cut off by a truncation then reads as zeros, which its reader's checksum catches, and not as
        # SIGBUS. posix_fallocate never shrinks, so a process that is writing just now loses nothing.
        _allocate(self.path / DATA_FILE, self.used_bytes())

    @contextmanager
    def _begin(self, *, write: bool) -> "Generator[lmdb.Transaction[memoryview]]":
        while True:
            with self._idle:
                self._active += 1
            try:
                try:
                    txn = self._env.begin(write=write, buffers=True)
                except lmdb.MapResizedError:
                    txn = None
                if txn is not None:
                    with txn:
                        yield txn
                    return
            finally:
                with self._idle:
                    self._active -= 1
                    self._idle.notify_all()
            self._remap(lambda: 0)  # 0 adopts the size that another process gave the map

    def _remap(self, size: Callable[[], int]) -> None:
        # Remapping under an open transaction would leave its views pointing nowhere.
        with self._idle:
            if not self._idle.wait_for(lambda: self._active == 0, REMAP_WAIT_S):
                raise self._error(
                    f"{self.path}: the map must grow, but a transaction stayed open for {REMAP_WAIT_S:g} s"
                )
            self._env.set_mapsize(size())

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise self._error(f"{self.path}: {error}{self._short_of_disk()}") from error

    def _short_of_disk(self) -> str:
        # Where a write came to the end of a disk LMDB says "Input/output error".
        try:
            disk = os.statvfs(self.path)
        except OSError:
            return ""
        left = disk.f_bavail * disk.f_frsize
        return f" ({left} bytes are left on the disk)" if left < NEARLY_FULL_BYTES else ""


def _allocate(file: Path, size: int) -> None:
    """Give a file so many bytes of disk at least: LMDB maps it, and a map finds no room by SIGBUS."""
    opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        there = os.fstat(opened).st_size
        if there < size:
            os.posix_fallocate(opened, there, size - there)
    finally:
        os.close(opened)


def is_damage(error: DriftlineError) -> bool:
    """Whether an error of an environment says that its pages are damaged."""
    return isinstance(error.__cause__, DAMAGE)


def examine(path: str | Path, *, error: type[DriftlineError]) -> None:
    """Walk the pages of the environment at `path` without LMDB; raise `error` if one is damaged.

    Nobody may write meanwhile. Tree pages are read, large values are not: 30 ms for 200 MB of 1 MiB values,
    far more for small ones. A missing or empty file is in order: LMDB creates it.
    """
    data = Path(path) / DATA_FILE
    if not has_pages(path):
        return
    try:
        # lmdb.verify is the one part of lmdb without types
        problems = cast("list[str]", lmdb.verify.verify(str(data)))  # pyright: ignore[reportUnknownMemberType]
    except lmdb.verify.VerifyError as cause:
        raise error(f"{data}: not an LMDB file, or damaged: {cause}") from cause
    except OSError as cause:
        raise error(f"{data}: {cause.strerror or cause}") from cause
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise error(f"{data}: damaged: {problems[0]}{more}")


def has_pages(path: str | Path) -> bool:
    """Whether there is anything that could be damaged."""
    try:
        return (Path(path) / DATA_FILE).stat().st_size > 0
    except OSError:  # LMDB says what is wrong, if it is more than a missing file
        return False


def sync_directory(path: str | Path) -> None:
    """Make the names in a directory (files created, renamed, removed) survive a crash of the machine."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
