"""An object in a process of its own, and how much memory that process has."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import Unavailable

__all__ = ["Memory", "Process", "memory"]

# What parallel libraries read when they are loaded: set before the process is.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Memory:
    anonymous: int  # bytes of heap
    files: int  # bytes of mapped files in memory, and shared memory

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(self.anonymous - other.anonymous, self.files - other.files)


def memory() -> Memory:
    """Of this process, once all that is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return Memory(sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"])


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str
    unavailable: bool


@dataclass(frozen=True, slots=True)
class Returned:
    value: Any


class Process:
    """Makes an object in a new process that inherits nothing, and calls its methods there, one at a time.

    A method may be a generator: what it yields goes to `done`, what it returns is the answer.
    """

    def __init__(self, make: Callable[..., object], *args: object, threads: int = 1) -> None:
        for name in THREADS:
            os.environ[name] = str(threads)
        spawn = multiprocessing.get_context("spawn")
        self.pipe, there = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(there, make, args), daemon=True)
        self.process.start()
        there.close()
        self.answer(lambda _: None)

    def call(self, method: str, *args: object, done: Callable[[Any], None] = lambda _: None) -> Any:
        """What the method returns. Raises Unavailable if it raises that, or if its process ends."""
        self.pipe.send((method, args))
        return self.answer(done)

    def answer(self, done: Callable[[Any], None]) -> Any:
        while True:
            try:
                message = self.pipe.recv()
            except EOFError:
                self.process.join()
                raise Unavailable(f"its process ended with exit code {self.process.exitcode}") from None
            if isinstance(message, Returned):
                return message.value
            if isinstance(message, Failed):
                raise Unavailable(message.reason) if message.unavailable else RuntimeError(message.reason)
            done(message)

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe: Connection, make: Callable[..., object], args: tuple[object, ...]) -> None:
    """In the child, until the pipe is closed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some systems print
    made: object = None

    def construct() -> None:
        nonlocal made
        made = make(*args)

    with contextlib.suppress(EOFError, BrokenPipeError):
        pipe.send(outcome(pipe, construct, ()))
        while True:
            method, values = pipe.recv()
            pipe.send(outcome(pipe, getattr(made, method), values))


def outcome(pipe: Connection, function: Callable[..., Any], args: tuple[object, ...]) -> Returned | Failed:
    """Of the call; what a generator yields is sent at once."""
    try:
        value = function(*args)
        if isinstance(value, Generator):
            try:
                while True:
                    pipe.send(next(value))
            except StopIteration as end:
                value = end.value
        return Returned(value)
    except Unavailable as error:
        return Failed(str(error), unavailable=True)
    except (EOFError, BrokenPipeError):
        raise
    except Exception:
        return Failed(traceback.format_exc(), unavailable=False)
