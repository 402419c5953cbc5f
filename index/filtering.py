"""Filtered searches beside writers: bitsets of slots for the core, and what may have changed under them.

Bitmaps are made at the first filtered search, from the payloads in the core, and kept up to date from then
on; an index restored from a cut that had them makes them at once. So who never filters pays nothing, in
memory, at a write or at a start, and a service that does filter answers its first request after a restart as
quickly as any other. The first filtered search of an index waits for them; other searches and writes go on.

The core knows nothing of attributes, and this room learns of slots when they are written. So:

- *A slot that was given out anew* may bear the bits of its last owner. The payloads of hits come from the
  version that was found, so where something was written during the search they are compared with the filter;
  if hits fall out, the search is done again for more.
- *A key that was written anew* is at a slot that the bitset does not know, if the search began after the
  core's step and its bitset was made before ours. Such keys are few, those of one or two calls to the core;
  those that match are looked up and take their place among the hits, as of that moment.
- *A row that upkeep moves* has its bits at both slots before the move shows; the step that makes it show
  waits for searches whose bitsets are older than that.

The lock is held for microseconds to some milliseconds (20 for a slab, while bitmaps are made), never during a
search or a write of the core.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from ..native import SLAB, Answers, Core, MergedAnswers
from .attributes import Attributes
from .bitset import Bitset, bitset_of
from .filters import Filter, parse_filter
from .inflight import Meanwhile, Traffic, Write
from .payloads import items_of

__all__ = ["Filtering"]

CACHED = 64  # bitsets kept at most, and
CACHED_BYTES = 32 << 20  # so many bytes of them: of 10,000,000 slots each is 1.25 MB

Run = Callable[[int, Bitset], Answers]


@dataclass(frozen=True, slots=True)
class Compiled:
    bits: Bitset
    version: int  # of the bitmaps
    slots: int


class Filtering:
    """The filters of one index. `upkeep_lock` is held by whoever calls the core's upkeep."""

    def __init__(self, core: Core, metric: str, upkeep_lock: threading.Lock) -> None:
        self._core = core
        self._metric = metric
        self._upkeep_lock = upkeep_lock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._traffic = Traffic()
        self._attributes: Attributes | None = None  # kept up to date once there are some
        self._built = False  # complete
        self._fresh: BitMap | None = None  # while they are built: slots written since, newer than the scan
        self._cache: OrderedDict[Filter, Compiled] = OrderedDict()
        self._moves: dict[int, int] = {}  # from -> to, of moves that do not show yet
        self._move_time = 0  # when the `to` slots got their bits; 0: there are none

    @property
    def built(self) -> bool:
        """Whether there are bitmaps."""
        return self._built

    # ---- writing

    def write(
        self, keys: Sequence[bytes], payloads: Sequence[bytes], upsert: Callable[[], NDArray[np.uint32]]
    ) -> None:
        """Call `upsert`, the core's with these rows, which gives their slots. One thread at a time."""
        attributes = self._attributes
        moving: tuple[Sequence[bytes], Sequence[bytes]] = ((), ())
        if attributes is not None:
            moving = self._live(keys, payloads)
        with self._lock:
            if attributes is not self._attributes:  # made anew since: who searches them may miss any row
                attributes, moving = self._attributes, (keys, payloads)
            self._traffic.write(*moving)
        try:
            written = upsert()
        except BaseException:
            with self._lock:  # some rows are written, nobody knows where: start again from all payloads
                self._forget()
                self._traffic.written()
                self._changed.notify_all()
            raise
        with self._lock:
            if attributes is not None and attributes is self._attributes:
                slots = written.tolist()
                attributes.put(slots, payloads)
                if self._fresh is not None:
                    self._fresh.update(slots)
                self._copy([slot for slot in slots if slot in self._moves])
            self._traffic.written()
            self._changed.notify_all()

    def _live(self, keys: Sequence[bytes], payloads: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The rows that a search may miss: only a key that is live can be; a new one is but seen later."""
        found = self._core.get(keys)[0].keys
        live = [row for row in range(len(keys)) if found[row]]
        return [keys[row] for row in live], [payloads[row] for row in live]

    def upkeep(self, deadline: float) -> bool:
        """One step of the core's upkeep; True while more waits. Under the upkeep lock.

        The step would show rows at the slots that they were moved to. It waits, until `deadline` of
        time.monotonic(), for what is under way and older than the bits of those slots: searches, which do not
        have them, and a write, whose rows may be among the moved.
        """
        with self._lock:
            left = deadline - time.monotonic()
            if not self._changed.wait_for(lambda: self._traffic.since(self._move_time), max(0.0, left)):
                return True
            self._moves.clear()  # their rows are all known; once they show, `from` may be another's
        more = self._core.upkeep(eager=False)
        with self._lock:
            self._follow_moves()
        return more

    def _follow_moves(self) -> None:
        self._move_time = 0
        if self._attributes is not None:
            self._moves.update(self._core.moving().tolist())
            self._copy(self._moves)

    def _copy(self, moving: Collection[int]) -> None:
        if moving and self._attributes is not None:
            self._attributes.copy([(slot, self._moves[slot]) for slot in moving])
            self._move_time = self._traffic.now()

    # ---- reading

    def build(self) -> None:
        """Make the bitmaps from the core's payloads, unless there are some; searches and writes go on.

        Waits for the one call of the core that may be writing, and for upkeep's.
        """
        with self._upkeep_lock:  # no row changes its slot but by a write
            with self._lock:
                if self._built:
                    return
                attributes = self._attributes = Attributes()
                fresh = self._fresh = BitMap()
                # The slots of a write from before may have been changed by upkeep since; the scan sees them.
                began = self._traffic.now()
                self._changed.wait_for(lambda: self._traffic.written_since(began))
            for slab in range(self._core.slabs):
                slots, payloads = self._core.payloads(slab)
                with self._lock:
                    rows = [row for row in zip(slots.tolist(), payloads, strict=True) if row[0] not in fresh]
                    attributes.put([slot for slot, _ in rows], [payload for _, payload in rows])
            with self._lock:
                self._fresh = None
                if self._attributes is attributes:  # no write failed meanwhile
                    self._built = True
                    self._follow_moves()

    def search(
        self, filter: Filter | Mapping[str, Any], queries: NDArray[np.float32], k: int, most: int, run: Run
    ) -> Answers:
        """The answers of `run(k, allowed)`, the core's search or exact, to rows that a filter chooses.

        `most` is the largest k that the core takes. Raises InvalidInput for a filter that is malformed, or
        names a field that no row has had.
        """
        chosen = parse_filter(filter)
        wanted = k
        while True:
            while (begun := self._begin(chosen)) is None:
                self.build()
            bits, began = begun
            try:
                answers = run(wanted, bits)
            finally:
                meanwhile = self._end(began)
            if not meanwhile.wrote and wanted == k:
                return answers
            hits = [matching(answers, row, chosen) for row in range(len(answers.keys))]
            # How many are missing where an answer is short of k and the core may have more.
            short = [
                k - len(mine)
                for mine, keys in zip(hits, answers.keys, strict=True)
                if len(mine) < k and len(keys) == wanted
            ]
            if not short or wanted == most:
                return self._completed(answers, hits, chosen, queries, k, meanwhile)
            wanted = min(most, wanted + 2 * max(short))

    def _begin(self, chosen: Filter) -> tuple[Bitset, int] | None:
        with self._lock:
            if not self._built or self._attributes is None:
                return None
            return self._compile(chosen, self._attributes), self._traffic.search()

    def _end(self, began: int) -> Meanwhile:
        with self._lock:
            meanwhile = self._traffic.searched(began)
            self._changed.notify_all()
            return meanwhile

    def _compile(self, chosen: Filter, attributes: Attributes) -> Bitset:
        slots = attributes.slots = max(attributes.slots, self._core.slabs * SLAB)
        known = self._cache.get(chosen)
        if known is None or known.version != attributes.version or known.slots != slots:
            known = Compiled(bitset_of(chosen.bitmap(attributes), slots), attributes.version, slots)
            self._cache[chosen] = known
            while len(self._cache) > max(1, min(CACHED, CACHED_BYTES // max(1, known.bits.nbytes))):
                self._cache.popitem(last=False)
        self._cache.move_to_end(chosen)
        return known.bits

    def _forget(self) -> None:
        self._attributes, self._built = None, False
        self._cache.clear()

    def _completed(
        self,
        answers: Answers,
        hits: Sequence[Sequence[int]],
        chosen: Filter,
        queries: NDArray[np.float32],
        k: int,
        meanwhile: Meanwhile,
    ) -> Answers:
        """The k nearest of the hits at these places of each answer, and of keys that moved beneath it."""
        keys = sought(meanwhile.moved, chosen)
        found, vectors = self._core.get(keys) if keys else (None, queries[:0])
        out = MergedAnswers(
            [], [],
            np.full((len(hits), k), np.inf, np.float32),
            np.full((len(hits), k), 2**64 - 1, np.uint64),
            np.zeros((len(hits), k), np.uint8),
        )  # fmt: skip
        late = []
        if found is not None:
            late = [i for i in range(len(keys)) if matching(found, i, chosen)]
        for row, mine in enumerate(hits):
            present = {answers.keys[row][i] for i in mine}
            rows = [(float(answers.distances[row, i]), answers, row, i) for i in mine]
            missing = [i for i in late if keys[i] not in present]
            if missing and found is not None:
                distances = distances_of(self._metric, queries[row], vectors[missing])
                rows += [(float(d), found, i, 0) for d, i in zip(distances, missing, strict=True)]
                rows.sort(key=lambda hit: hit[0])
            rows = rows[:k]
            out.keys.append([source.keys[i][j] for _, source, i, j in rows])
            out.payloads.append([source.payloads[i][j] for _, source, i, j in rows])
            for place, (distance, source, i, j) in enumerate(rows):
                out.distances[row, place] = distance
                out.rows[row, place] = source.rows[i, j]
                out.frames[row, place] = source.frames[i, j]
        return out


def matching(answers: Answers, row: int, chosen: Filter) -> list[int]:
    """The places of an answer whose payloads the filter chooses."""
    return [i for i, payload in enumerate(answers.payloads[row]) if chosen.matches(items_of(payload))]


def sought(writes: Sequence[Write], chosen: Filter) -> list[bytes]:
    """The keys of writes whose rows the filter chooses, each once."""
    rows = [row for write in writes for row in zip(write.keys, write.payloads, strict=True)]
    return list({key: None for key, payload in rows if chosen.matches(items_of(payload))})


def distances_of(
    metric: str, query: NDArray[np.float32], vectors: NDArray[np.float32]
) -> NDArray[np.float64]:
    """[n], as the core defines distances."""
    x, q = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.square(x - q).sum(axis=1)
    products = x @ q
    if metric == "ip":
        return -products
    return 1 - products / (np.linalg.norm(x, axis=1) * np.linalg.norm(q))
