"""What went on in the index while a filtered search ran.

A bitset is made before the core's search begins, and the core says which slots it wrote only after searches
can see them. So a search may meet slots that its bitset knows nothing of, or a wrong thing. This is the
account of it: every search and every call of the core that writes is noted with its time on one clock, and a
search learns, at its end, what was written between the making of its bitset and then.

Not safe for several threads: who uses it holds a lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

__all__ = ["Meanwhile", "Traffic", "Write"]


@dataclass(slots=True)
class Write:
    """Rows that are written in one call of the core: bytes of keys, and of attributes."""

    began: int
    keys: Sequence[bytes]
    payloads: Sequence[bytes]
    ended: int | None = None  # when its slots were known; None: not yet


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """What a search must know of the time since its bitset was made."""

    wrote: bool  # slots were given out: hits may be of rows that the filter excludes
    moved: Sequence[Write]  # whose keys may have been live before, and be missing: they are at new slots


class Traffic:
    """Searches and writes under way."""

    def __init__(self) -> None:
        self._clock = count(1)
        self._searches: dict[int, int] = {}  # when each began -> writes begun before
        self._writes: list[Write] = []  # of which some search may need to know, and the one under way last
        self._under_way: Write | None = None
        self._begun = 0

    def now(self) -> int:
        """A time after all that happened until now, and before all that will."""
        return next(self._clock)

    def write(self, keys: Sequence[bytes], payloads: Sequence[bytes]) -> None:
        """A write begins; the one before has ended."""
        self._under_way = Write(next(self._clock), keys, payloads)
        self._writes.append(self._under_way)
        self._begun += 1

    def written(self) -> None:
        """The slots of the write are known, to bitsets from now on."""
        if self._under_way is not None:
            self._under_way.ended = next(self._clock)
            self._under_way = None
        self._trim()

    def search(self) -> int:
        """A search begins, with a bitset of this moment."""
        began = next(self._clock)
        self._searches[began] = self._begun - (self._under_way is not None)
        return began

    def searched(self, began: int) -> Meanwhile:
        """The search that began then has its answer."""
        wrote = self._begun > self._searches.pop(began)
        writes = [w for w in self._writes if w.keys and (w.ended is None or w.ended > began)]
        self._trim()
        return Meanwhile(wrote, writes)

    def written_since(self, time: int) -> bool:
        """Whether the write that is under way, if any, began after `time`."""
        return self._under_way is None or self._under_way.began > time

    def since(self, time: int) -> bool:
        """Whether everything that is under way began after `time`."""
        oldest = next(iter(self._searches), None)
        return self.written_since(time) and (oldest is None or oldest > time)

    def _trim(self) -> None:
        oldest = next(iter(self._searches), None)
        self._writes = [
            w for w in self._writes if w.ended is None or (oldest is not None and w.ended > oldest)
        ]
