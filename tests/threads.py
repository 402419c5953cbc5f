"""Work that goes on in threads beside a test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["forever"]

LONG_S = 60.0  # no call of the work takes longer unless something is broken


@contextmanager
def forever(stop: threading.Event, *works: Callable[[int], object]) -> Iterator[None]:
    """Call each again and again, with 0, 1, 2..., in a thread of its own, until the block or `stop` ends it.

    A failure sets `stop`; the first one is raised when the block ends.
    """
    failures: list[BaseException] = []

    def run(work: Callable[[int], object]) -> None:
        turn = 0
        try:
            while not stop.is_set():
                work(turn)
                turn += 1
        except BaseException as failure:
            failures.append(failure)
            stop.set()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG_S)
    assert not any(thread.is_alive() for thread in threads), f"a thread did not end within {LONG_S} s"
    if failures:
        raise failures[0]
