"""The local log's files: one environment per directory and process, and one thread that writes to it.

LMDB forbids opening a directory twice in a process, so several local logs on one directory (a service and a
client in one program) share what is opened here; it closes with the last of them.

Jobs that wait for the writer thread together run in one transaction and share its fsync. Other processes take
turns through LMDB's own lock.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DriftlineError, LogError
from ..snapshots.environment import Environment, ReadTransaction, WriteTransaction
from .local_layout import DATABASES, FORMAT, FORMAT_KEY, NUMBER

__all__ = ["LocalFiles"]

T = TypeVar("T")

GROUP_JOBS = 1000  # of one transaction; bounds how long the first one waits for the last
GROUP_BYTES = 32 << 20  # of one transaction
READ_THREADS = 4

# The process-wide state that LMDB's own rule asks for; see the module's docstring.
_open: dict[Path, "LocalFiles"] = {}
_opening = threading.Lock()


@dataclass(slots=True, eq=False)
class Job:
    """Something to write: at most so many bytes."""

    run: Callable[[WriteTransaction], Any]
    room: int
    done: Future[Any]


class LocalFiles:
    """An open directory. Any thread may call; results come as futures of `concurrent.futures`."""

    @classmethod
    def acquire(cls, path: Path) -> "LocalFiles":
        """The files at `path`, created if missing; give them back with `release`. Raises LogError."""
        with _opening:
            path = path.resolve()
            files = _open.get(path) or cls(path)
            files._users += 1
            _open[path] = files
            return files

    def release(self) -> None:
        """Close with the last user, after what waits is written."""
        with _opening:
            self._users -= 1
            if self._users:
                return
            del _open[self.path]
            self._jobs.put(None)
            self._writer.join()
            self._readers.shutdown()
            self.environment.close()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = Environment(path, DATABASES, error=LogError)
        try:
            with self.environment.write() as txn:
                check_format(path, txn)
        except BaseException:
            self.environment.close()
            raise
        self._users = 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READ_THREADS, "local-log-read")
        # A daemon: a program that ends without closing must not hang. What it loses was not acknowledged.
        self._writer = threading.Thread(target=self._write, name="local-log-write", daemon=True)
        self._writer.start()

    def read(self, work: Callable[[ReadTransaction], T]) -> Future[T]:
        """Run `work` on a consistent view, in a thread."""

        def run() -> T:
            with self.environment.read() as txn:
                return work(txn)

        return self._readers.submit(run)

    def write(self, work: Callable[[WriteTransaction], T], room: int = 0) -> Future[T]:
        """Run `work` in the writer's next transaction; the future is done when that is on disk.

        `work` stores at most `room` bytes and, if it raises a DriftlineError, has stored nothing yet: the
        transaction goes on without it.
        """
        job = Job(work, room, Future())
        self._jobs.put(job)
        return job.done

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            group = [job]
            room = job.room
            while len(group) < GROUP_JOBS and room < GROUP_BYTES:
                try:
                    following = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._jobs.put(None)  # stop, after this group
                    break
                group.append(following)
                room += following.room
            self._commit([job for job in group if job.done.set_running_or_notify_cancel()], room)

    def _commit(self, group: list[Job], room: int) -> None:
        outcomes: list[tuple[Future[Any], Any, DriftlineError | None]] = []
        try:
            with self.environment.write(room) as txn:
                for job in group:
                    try:
                        outcomes.append((job.done, job.run(txn), None))
                    except DriftlineError as refused:
                        outcomes.append((job.done, None, refused))
        except BaseException as error:
            for job in group:
                job.done.set_exception(error)
            return
        for done, result, refused in outcomes:
            if refused is None:
                done.set_result(result)
            else:
                done.set_exception(refused)


def check_format(path: Path, txn: WriteTransaction) -> None:
    stored = txn.get("meta", FORMAT_KEY)
    if stored is None:
        txn.put("meta", FORMAT_KEY, NUMBER.pack(FORMAT))
    elif stored != NUMBER.pack(FORMAT):
        raise LogError(
            f"{path}: a local log of another format ({stored.hex()}); this driftline reads format {FORMAT}"
        )
