"""One call's work in several threads. The core lets go of the interpreter lock, so they do run at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

__all__ = ["in_parts", "side_by_side"]

PARTS = 8  # of a call for each thread

T = TypeVar("T")


def parts(n: int, most: int) -> list[slice]:
    """0..n in at most `most` spans of about one size; one empty span for n = 0."""
    count = max(1, min(most, n))
    ends = [n * i // count for i in range(count + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]


def side_by_side(*works: Callable[[], None]) -> None:
    """Call all at once, each in a thread of its own; the first in this one."""
    if len(works) == 1:
        return works[0]()
    with ThreadPoolExecutor(len(works) - 1) as pool:
        others = [pool.submit(work) for work in works[1:]]
        works[0]()
    for other in others:
        other.result()


def in_parts(work: Callable[[slice], T], n: int, threads: int) -> list[T]:
    """`work` on parts of 0..n, several for each thread, so that none waits long for the last; what it gave,
    in order."""
    if threads == 1 or n <= 1:
        return [work(slice(0, n))]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts(n, threads * PARTS)))
