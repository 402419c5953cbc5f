"""The online index: keys and vectors in, nearest neighbours out, while its codes follow the data."""

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import NO_ROW, Answers, Core, PackedAnswers, side_by_side
from .batch import Batch, turns
from .bitset import Bitset
from .budget import Budget
from .cut import Chunk, Cut, OpenChunks, chains, last_versions
from .digest import Hashes, digest_text, row_hashes, total
from .drift import DriftMonitor, DriftSettings
from .events import Event
from .filtering import Filtering
from .filters import Filter
from .follow import Follower
from .frames import Frames
from .hits import FrameRows, Hits, Row, Stats, Witnessed
from .keys import Key, Keys
from .origins import Origins
from .packing import message, message_of
from .payloads import Attribute, pack_items
from .raw import MemoryRawVectors, RawVectors, RowIds, segments_of
from .reencode import Progress, Reencoder
from .rewriting import Rewriter
from .sources import Sources
from .tile import TileParameters

__all__ = ["OnlineIndex"]

Metric = Literal["l2", "ip", "cosine"]
WRITE_ROWS = 256  # that each thread links per call into the core: after it, filters see them
DIGESTS = 1 << 128
LARGEST = 1e18  # of a component: squares stay finite in float32
MAX_K = 1 << 20
EVENTS = 1000  # kept until they are taken
NOT_WRITTEN = NO_ROW - 1  # in place of a replaced row's id: no row's, its segment would be beyond the core's

Vectors = NDArray[np.float32]


def _few(k: int) -> int:
    """How many of the best are measured on raw vectors, at most: the k nearest are among them by code."""
    return k + k // 2 + 5


def _bytes_of(chunk: Chunk) -> bytes | memoryview:
    assert chunk.data is not None, "a cut to restore from holds all its bytes"
    return chunk.data


def _taken(keys: list[bytes], places: NDArray[np.intp]) -> list[bytes]:
    chosen: list[int] = places.tolist()
    return [keys[place] for place in chosen]


class OnlineIndex:
    """Approximate nearest neighbours over a changing set of vectors (HNSW, arXiv 1603.09320, over tile
    codes).

    Args:
        dim: of the vectors, 1 to 4096. metric: "l2" (squared Euclidean), "ip" (-<q, x>) or "cosine" (1 -
        cos). m: links per node; twice as many at level 0. 2 to 128. ef_construction: candidates kept while a
        vector is linked, 1 to 4096. seed: of levels and rotation: same seed and order, same index. raw: where
        raw vectors lie; they rescore hits and are what codes are made from. None keeps none: codes are then
        never
            made anew once they are made.
        compress_after: rows after which vectors are held as codes instead of floats; None decides from the
        data. drift: how drift is watched for. sources: keep where each row comes from, 16 bytes a row.

    Any thread may call any method. Searches never wait for writers; writers queue. `maintain` does the work
    that was put off.
    """

    def __init__(
        self,
        dim: int,
        metric: Metric = "l2",
        m: int = 16,
        ef_construction: int = 200,
        seed: int = 0,
        *,
        route_bits: Literal[3, 5] | None = None,
        raw: RawVectors | Literal["memory"] | None = "memory",
        compress_after: int | None = None,
        drift: DriftSettings | None = None,
        sources: bool = False,
    ) -> None:
        if metric not in ("l2", "ip", "cosine"):
            raise InvalidInput(f"metric must be l2, ip or cosine, not {metric!r}")
        for name, value, least, most in (
            ("dim", dim, 1, 4096), ("m", m, 2, 128), ("ef_construction", ef_construction, 1, 4096),
            ("seed", seed, 0, 2**64 - 1),
        ):  # fmt: skip
            if not least <= value <= most:
                raise InvalidInput(f"{name} must be {least} to {most}, not {value}")
        self.dim = dim
        self.metric: Metric = metric
        if route_bits not in (None, 3, 5):
            raise InvalidInput(f"route_bits must be 3, 5 or None, not {route_bits!r}")
        self._shape = (dim, metric, m, ef_construction, seed, route_bits)
        self._compress_after = compress_after
        self._raw = MemoryRawVectors(dim) if raw == "memory" else raw
        self._sources = sources
        core = Core(dim, metric, m, ef_construction, route_bits, seed, rotation_seed=seed, sources=sources)
        self._assemble(core, Frames(core), DriftMonitor(dim, drift, rotation_seed=seed), Keys())

    def _assemble(self, core: Core, frames: Frames, monitor: DriftMonitor, keys: Keys) -> None:
        self._core = core
        self._frames = frames
        self._keys = keys
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._attached: set[int] = set()
        self._digest = 0  # where the raw vectors keep hashes
        self._origins = Origins(core) if self._sources else None
        self._writing = threading.RLock()  # upserts, deletes, cuts: the statistics and the raw rows
        self._upkeep = threading.Lock()  # maintain: holds raw segments still while they are read
        self._repairing = True  # what was restored may hold segments that are sparse
        self._releasing = False  # a search had an address in a segment that nothing refers to
        self._cutting = threading.Lock()  # taken before the two above
        self._cut_waits = False  # for upkeep to end its step
        self._open_cut: weakref.ref[OpenChunks] | None = None
        rewrite = None if self._raw is None else Rewriter(core, self._raw, self._attach, self._writing)
        self._rewriter = rewrite
        self._filtering = Filtering(core, self.metric, self._upkeep)
        emit = self._events.append
        read = None if self._raw is None else self._coded
        reencoder = Reencoder(core, frames, read, emit, monitor.settings.min_gain)
        self._follower = Follower(core, frames, monitor, reencoder, emit, compress_after=self._compress_after)

    # ---- writing

    def upsert(
        self,
        keys: Sequence[Key] | NDArray[Any],
        vectors: Vectors,
        attributes: Sequence[bytes | Mapping[str, Attribute] | None] | None = None,
        threads: int = 1,
        now_ms: int | None = None,
        sources: Sources | None = None,
    ) -> int:
        """Insert or replace; how many rows were new or different.

        keys: n of bytes, str or integers, the kind that this index has seen first; vectors: float32 [n, dim];
        attributes: n byte strings that come back with hits, or mappings of names to scalars or lists of
        scalars, which come back as msgpack; what filters see in either stands in payloads.py. A key given
        twice: the last counts. For searches each key's change is one step. threads: that link them side by
        side; with more than one the graph depends on their timing. now_ms: when the rows came, in
        milliseconds of a clock of your own, for drift windows that end with time. sources: uint64 [n, 2],
        where each row comes from, in an index that keeps them: a row does not replace one that holds against
        it (sources.py), and a key given twice is written twice.

        Raises InvalidInput (nothing is changed): shapes, NaN, infinite or huge components, a zero vector
        under cosine, bad keys, attributes of other types.
        """
        if threads < 1:
            raise InvalidInput(f"threads must be at least 1, not {threads}")
        x = self._checked(vectors, "vector")
        if len(x) != len(keys) or (attributes is not None and len(attributes) != len(x)):
            given = "" if attributes is None else f", {len(attributes)} attributes"
            raise InvalidInput(
                f"{len(keys)} keys, {len(x)} vectors{given}: there must be one of each per row"
            )
        with self._writing:
            self._expect_sources(sources, len(x))
            encoded = self._keys.encode(keys, fix=True)
            payloads = [b""] * len(x) if attributes is None else pack_items(attributes)
            batch = Batch(encoded, payloads, x, sources)
            if self._origins is None:
                return self._write(batch.last(), threads, now_ms)
            return sum(self._write(batch.only(part), threads, now_ms) for part in turns(encoded))

    def delete(
        self,
        keys: Sequence[Key] | NDArray[Any],
        sources: Sources | None = None,
        *,
        remember: bool = False,
    ) -> int:
        """Remove keys; how many were live. Searches that begin from now on do not see them.

        sources: as for `upsert`; None: whatever holds them. remember: that they are deleted, since another
        partition may hold an older row of theirs, until `forget_deletes`.
        """
        with self._writing:
            encoded = self._keys.encode(keys)
            if sources is None:
                return self._remove(encoded)
            self._expect_sources(sources, len(keys))
            assert self._origins is not None
            deleted = 0
            for part in turns(encoded):
                asked = _taken(encoded, part)
                rows, held = self._origins.holding(asked, sources[part])
                gone = _taken(asked, rows)
                deleted += self._remove(gone)
                if remember:
                    self._origins.tombstones.remember(gone, held)
            return deleted

    def forget_deletes(self, before_ms: int) -> None:
        """Forget remembered deletes with an older timestamp: no partition will show an older row any more."""
        if self._origins is not None:
            with self._writing:
                self._origins.tombstones.forget(before_ms)

    @property
    def contested(self) -> int:
        """How many records, since the start, found their key held by another partition's."""
        return 0 if self._origins is None else self._origins.contested

    @property
    def deletes_dropped(self) -> int:
        """How many deletes, since the start, were forgotten too early: there were too many (origins.py)."""
        return 0 if self._origins is None else self._origins.tombstones.dropped

    def _expect_sources(self, sources: Sources | None, rows: int) -> None:
        if sources is not None and self._origins is None:
            raise InvalidInput("this index keeps no sources")
        if self._origins is not None and (sources is None or sources.shape != (rows, 2)):
            raise InvalidInput(f"this index keeps sources: {rows} rows need an array of shape [{rows}, 2]")

    def _write(self, batch: Batch, threads: int, now_ms: int | None) -> int:
        if self._origins is not None and batch.sources is not None:
            rows, held = self._origins.holding(batch.keys, batch.sources)
            batch = replace(batch.only(rows), sources=held)
        if self._raw is not None:
            same = self._core.unchanged(batch.keys, batch.payloads, batch.vectors)
            if same.any():
                refreshed = batch.only(np.flatnonzero(same))
                if refreshed.sources is not None:
                    self._core.set_sources(refreshed.keys, refreshed.sources)
                batch = batch.only(np.flatnonzero(~same))
        if not len(batch):
            return 0
        hashes = self._hashes(batch)
        rows = self._append(batch.vectors, hashes)
        link = partial(self._link, batch, rows, hashes, threads)
        observe = partial(self._observe, batch.vectors, rows, now_ms)
        if threads == 1:
            link()
            observe()
        else:
            side_by_side(link, observe)
        if self._origins is not None:
            self._origins.tombstones.discard(batch.keys)
        return len(batch)

    def _remove(self, keys: list[bytes]) -> int:
        replaced = np.full(len(keys), NOT_WRITTEN, np.uint64)
        try:
            return self._core.delete(keys, replaced)
        finally:
            self._account(None, replaced)

    def _link(self, batch: Batch, rows: RowIds | None, hashes: Hashes | None, threads: int) -> None:
        replaced = np.full(len(batch), NOT_WRITTEN, np.uint64)
        count = WRITE_ROWS * threads
        try:
            for start in range(0, len(batch), count):
                span = slice(start, start + count)
                part = batch.keys[span], batch.payloads[span]
                ids = None if rows is None else rows[span]
                sources = None if batch.sources is None else batch.sources[span]
                more = batch.vectors[span], ids, threads, replaced[span], sources
                self._filtering.write(*part, partial(self._core.upsert, *part, *more))
        finally:
            self._account(hashes, replaced)

    def _hashes(self, batch: Batch) -> Hashes | None:
        if self._raw is None or not self._raw.hashed:
            return None
        return row_hashes(batch.keys, batch.payloads, batch.vectors)

    def _account(self, hashes: Hashes | None, replaced: RowIds) -> None:
        """Move the digest on by what was written, also when not all of it could be."""
        if self._raw is None or not self._raw.hashed:
            return
        written = replaced != NOT_WRITTEN
        gone = self._raw.hashes(replaced[written & (replaced != NO_ROW)])
        come = 0 if hashes is None else total(hashes[written])
        self._digest = (self._digest + come - total(gone)) % DIGESTS

    def _observe(self, x: Vectors, rows: RowIds | None, now_ms: int | None) -> None:
        if self._raw is None or rows is None or self.metric == "cosine":
            self._follower.observe(self._normalised(x), now_ms=now_ms)
        else:
            for stored in self._raw.views(rows):
                self._follower.observe(stored, stored=True, now_ms=now_ms)

    def _append(self, x: Vectors, hashes: Hashes | None) -> RowIds | None:
        if self._raw is None:
            return None
        rows = self._raw.append(x, hashes)
        self._attach(segments_of(rows))
        return rows

    def _attach(self, wanted: Iterable[int]) -> None:
        new = [segment for segment in wanted if segment not in self._attached]
        if new and self._raw is not None:
            segments = self._raw.segments()
            for segment in new:
                self._core.attach(segment, *segments[segment])
                self._attached.add(segment)

    def _checked(self, x: Any, what: str) -> Vectors:
        array = np.ascontiguousarray(x, np.float32)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise InvalidInput(f"expected a {what} array of shape [n, {self.dim}], got {list(array.shape)}")
        bad = ~((array.min(axis=1) > -LARGEST) & (array.max(axis=1) < LARGEST))  # NaN compares false
        if self.metric == "cosine":
            bad |= ~array.any(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            reason = (
                "has no direction (all zero), which cosine needs"
                if not array[row].any()
                else f"holds a component that is not finite, or beyond {LARGEST:g}"
            )
            raise InvalidInput(f"{what} {row} {reason}")
        return array

    def _normalised(self, x: Vectors) -> Vectors:
        if self.metric != "cosine":
            return x
        return (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)

    def _coded(self, rows: RowIds) -> Vectors:
        """Raw vectors as codes are made from them."""
        assert self._raw is not None, "only an index with raw vectors makes codes anew"
        return self._normalised(self._raw.read(rows))

    # ---- reading

    def search(
        self,
        queries: Vectors,
        k: int = 10,
        ef: int = 64,
        *,
        rescore: bool = True,
        filter: Filter | Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> Hits:
        """The k approximately nearest, from `ef` candidates; larger is more exact and slower.

        queries: float32 [nq, dim]. rescore: measure the best few on raw vectors, where they are kept. filter:
        answer only with rows whose attributes it holds for, say {"year": {"gte": 2001}}, see filters.py; an
        index's first one makes the bitmaps for all, and takes the longer the more rows there are. Each answer
        is a snapshot of what was live when its search began; under a filter, a key that was being written
        just then may be answered as it was a little later. Raises InvalidInput as `upsert` does, for k or ef
        out of range, and for a filter that is malformed or names a field that no row has had.
        """
        if not (1 <= k <= MAX_K and 1 <= ef <= MAX_K):
            raise InvalidInput(f"k and ef must be 1 to {MAX_K}, not {k} and {ef}")
        rescored = rescore and self._raw is not None
        try:
            if filter is None:
                few = _few(k) if rescored else 0
                return self._hits(self._core.search(queries, k, ef, few, threads=threads))
            x = np.ascontiguousarray(queries, np.float32)
            run = partial(self._among, x, ef, rescored, threads)  # a closure would cost those without filter
            return self._hits(self._filtering.search(filter, x, k, MAX_K, run))
        except InvalidInput:
            self._checked(queries, "query")  # says which, and why
            raise

    def _among(self, x: Vectors, ef: int, rescored: bool, threads: int, k: int, allowed: Bitset) -> Answers:
        few = _few(k) if rescored else 0
        return self._core.search(x, k, ef, few, threads=threads, allowed=allowed)

    def within(
        self,
        queries: Vectors,
        radius: float,
        *,
        limit: int = 1000,
        ef: int = 64,
        filter: Filter | Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> Hits:
        """Those at a distance of at most `radius`; the `limit` nearest of them if there are more.

        The radius is one of distances as they are returned. The search widens from `ef` candidates until half
        of what it finds lies outside. Otherwise as `search`; raises InvalidInput also for a radius that is
        not a finite number.
        """
        if not (1 <= limit <= MAX_K and 1 <= ef <= MAX_K):
            raise InvalidInput(f"limit and ef must be 1 to {MAX_K}, not {limit} and {ef}")
        if not math.isfinite(radius):
            raise InvalidInput(f"radius must be a finite number, not {radius}")
        x = self._checked(queries, "query")

        def run(most: int, allowed: Bitset | None = None) -> Answers:
            few = 0 if self._raw is None else most
            return self._core.search(x, most, ef, few, radius=radius, threads=threads, allowed=allowed)

        if filter is None:
            return self._hits(run(limit))
        return self._hits(self._filtering.search(filter, x, limit, MAX_K, run))

    def exact(
        self, queries: Vectors, k: int = 10, *, filter: Filter | Mapping[str, Any] | None = None
    ) -> Hits:
        """The same by brute force over raw vectors (over codes where none are kept): the oracle."""
        if not 1 <= k <= MAX_K:
            raise InvalidInput(f"k must be 1 to {MAX_K}, not {k}")
        x = self._checked(queries, "query")
        if filter is None:
            return self._hits(self._core.exact(x, k))

        def run(most: int, allowed: Bitset) -> Answers:
            return self._core.exact(x, most, allowed=allowed)

        return self._hits(self._filtering.search(filter, x, k, MAX_K, run))

    def witness(
        self, queries: Vectors, k: int = 10, ef: int = 64, *, rescore: bool = True, raw: bool = False
    ) -> Witnessed:
        """What `search` finds, beside what it should have found, of one and the same moment.

        The second answer comes from one pass over the codes of all rows, without the graph, and the raw
        vectors of the 8 k nearest by code; with `raw` also from a pass over all raw vectors. At most 16
        queries share a moment and a pass. Nobody waits for it; memory that is given up meanwhile is given
        back after it. Raises InvalidInput as `search` does.
        """
        if not (1 <= k <= MAX_K and 1 <= ef <= MAX_K):
            raise InvalidInput(f"k and ef must be 1 to {MAX_K}, not {k} and {ef}")
        x = self._checked(queries, "query")
        few = _few(k) if rescore and self._raw is not None else 0
        return Witnessed(*self._core.witness(x, k, ef, few, raw=raw))

    def _hits(self, answers: Answers) -> Hits:
        return Hits(answers, self._keys, self._frames.numbers)

    def get(self, keys: Sequence[Key] | NDArray[Any]) -> list[Row | None]:
        """The rows of keys; None for one that is not live."""
        encoded = self._keys.encode(keys)
        answers, vectors = self._core.get(encoded)
        frames = self._frames.numbers[answers.frames]
        return [
            Row(self._keys.decode([encoded[i]])[0], vectors[i], answers.payloads[i][0], int(frames[i, 0]))
            if answers.keys[i]
            else None
            for i in range(len(encoded))
        ]

    def keys(self) -> list[Key]:
        """All live keys, in no order."""
        with self._upkeep:  # no row changes its slot but by a write
            found = [key for slab in range(self._core.slabs) for key in self._core.scan(slab)]
        return self._keys.decode(found)

    def __len__(self) -> int:
        return len(self._core)

    @property
    def frame(self) -> int:
        """The frame that new vectors are written in."""
        return self._frames.write.number

    def __contains__(self, key: Key) -> bool:
        return self.get([key])[0] is not None

    # ---- upkeep

    def maintain(self, budget_s: float, reencoding: Budget | None = None) -> bool:
        """Repair after deletes, move slabs to other frames, give memory back; for about budget_s seconds.

        reencoding: what following the data may take of a core, survey and moves; None: all of it. True while
        more can be done at once. Searches and writes go on meanwhile.
        """
        deadline = time.monotonic() + budget_s
        with self._upkeep:
            while True:
                repairing = self._filtering.upkeep(deadline)
                rewriting = self._rewrite(ended=self._repairing and not repairing)
                self._repairing = repairing
                more = self._follow(reencoding) or repairing or rewriting
                if not more or self._cut_waits or time.monotonic() >= deadline:
                    return more

    def _follow(self, budget: Budget | None) -> bool:
        if budget is None:
            return self._follower.step()
        if not budget.due:
            return False
        with budget.step():
            more = self._follower.step()
        return more and budget.due

    def reencode(self, *, now: bool = False) -> None:
        """Ask for a re-encode, whether or not the data drifted; `maintain` carries it out.

        First it is decided whether new vectors get another frame, as at an alarm; then all slabs are
        surveyed, and those that gain `DriftSettings.min_gain` move. now: any gain will do that is more than
        the error of measuring it. What is paused is resumed. InvalidInput where no raw vectors are kept, and
        while rows are floats.
        """
        self._follower.ask(now=now)

    def pause_reencode(self) -> None:
        """Move no more slabs, of this re-encode or a later one, until `resume_reencode`, `reencode` or
        `cancel_reencode`; also after a restart. The step that is under way ends."""
        self._follower.pause()

    def resume_reencode(self) -> None:
        """Go on where `pause_reencode` came."""
        self._follower.unpause()

    def cancel_reencode(self) -> None:
        """End the re-encode that is under way, if there is one, with the next call of `maintain`. Slabs that
        have moved stay where they are."""
        self._follower.cancel()

    def reencode_progress(self) -> Progress:
        """How far the re-encode under way is; takes no lock."""
        return self._follower.progress

    @property
    def reencode_changes(self) -> int:
        """Grows with every step of a re-encode and with every wish by hand, since the index was made or
        restored: while it stays, a cut says nothing new of them."""
        return self._follower.changes

    def heed(self, recall_lost: bool | None) -> None:
        """What a canary says of recall, for what is decided from now on (index/decide.py).

        False: it holds, and drift moves no older vectors to other codes. True: it is lost. None, as at first:
        nobody knows, and drift decides alone.
        """
        self._follower.heed(recall_lost)

    @property
    def drifted(self) -> bool:
        """Whether drift is being answered by encoding anew, or would be if recall were lost."""
        return self._follower.drifted

    def _rewrite(self, ended: bool) -> bool:
        """A step of rewriting raw segments; when repair has ended, and with each segment, some may go."""
        if self._rewriter is None:
            return False
        if self._rewriter.step() or ended or self._releasing:
            self._release_segments()
            self._rewriter.choose(self._attached)
        return self._rewriter.busy

    def _release_segments(self) -> None:
        """Let go of raw segments that no slot refers to any more."""
        with self._writing:
            if self._raw is None:
                return
            idle = self._attached - self._live_segments()
            gone = {segment for segment in idle if self._core.detach(segment)}
            self._releasing = gone != idle
            self._attached -= gone
            self._raw.forget(frozenset(self._attached))

    def _live_segments(self) -> frozenset[int]:
        referring = self._core.referring(sorted(self._attached))
        return frozenset(segment for segment, slots in referring.items() if slots)

    def take_events(self) -> list[Event]:
        """What happened since the last call: drift windows, frames, re-encodes; in order. Of more than 1,000
        the oldest are dropped."""
        events: list[Event] = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def parameters(self, frame: int) -> TileParameters | None:
        """Those of a frame that is alive; None for floats, and for a frame that is not."""
        return next((known.parameters for known in self._frames.alive if known.number == frame), None)

    def explain(self) -> str:
        """The code that new vectors get and why, beside what a bare TileEncoder would choose from, in lines
        for people; errors are of the newest rows. Takes some milliseconds."""
        return self._follower.explain()

    @property
    def digest(self) -> int | None:
        """The digest of the live set (digest.py), of the last write that ended; None without raw vectors.

        With raw vectors on disk it stands ready. With those in memory, which keep no hashes, every row is
        hashed, and writers wait.
        """
        if self._raw is None or self._raw.hashed:
            return None if self._raw is None else self._digest
        with self._upkeep, self._writing:
            return sum(total(hashes) for _, hashes in self._live_hashes()) % DIGESTS

    def check(self) -> None:
        """Raise CorruptIndex on a broken invariant, an unreachable live key, a code that is not its raw
        vector's, a raw vector that is not what was stored, and a digest that is not the live set's.

        Where hashes are kept, writers wait while every live row is hashed.
        """
        if self._raw is not None and self._raw.hashed:
            with self._upkeep, self._writing:
                self._check_hashes(self._raw)
        self._core.check(codes=True)

    def _check_hashes(self, raw: RawVectors) -> None:
        found = 0
        for live, hashes in self._live_hashes():
            wrong = (hashes != raw.hashes(live.rows[0])).any(axis=1)
            if wrong.any():
                row = int(wrong.argmax())
                segment, place = divmod(int(live.rows[0, row]), 1 << 32)
                raise CorruptIndex(
                    f"the row of key {live.keys[0][row]!r} is not what was stored (row {place} of segment "
                    f"{segment}): its hash is another"
                )
            found += total(hashes)
        if found % DIGESTS != self._digest:
            live, kept = digest_text(found % DIGESTS), digest_text(self._digest)
            raise CorruptIndex(f"the digest of the live rows is {live}, kept was {kept}")

    def _live_hashes(self) -> Iterator[tuple[PackedAnswers, Hashes]]:
        """A slab's live rows, and their hashes made anew; while nobody writes."""
        assert self._raw is not None, "rows are hashed by their raw vectors"
        for slab in range(self._core.slabs):
            live = self._core.live_rows(slab)
            if live.keys[0]:
                yield live, row_hashes(live.keys[0], live.payloads[0], self._raw.read(live.rows[0]))

    def stats(self) -> Stats:
        """One moment of the index."""
        usage = self._core.usage()
        return Stats(
            live=usage.live,
            slots=usage.slots,
            dead=usage.dead,
            frames=tuple(
                FrameRows(f.number, "float" if f.parameters is None else "tile", self._frames.rows(f))
                for f in self._frames.alive
            ),
            fit_loss=self._follower.fit_loss,
            reencoding=self._follower.waiting,
            bytes={
                name: getattr(usage, name) for name in ("codes", "links", "keys", "meta", "scratch", "total")
            },
        )

    # ---- cuts

    def cut(self, known: Mapping[str, int] | None = None) -> Cut:
        """All of the index at one moment. A chunk whose version `known` names comes without its bytes; they
        are those of the cut before, or of the cut that this index was restored from.

        Writers wait until that moment is fixed, searches do not. The chunks are made when they are asked for,
        each once, beside whatever happens then; what changes in the meantime is kept in memory as it was. One
        cut can be open: the next one takes what is left of it into memory.
        """
        known = known or {}
        versions = last_versions(known)
        with self._cutting:
            before = None if self._open_cut is None else self._open_cut()
            if before is not None:
                before.keep()
            self._cut_waits = True
            with self._upkeep, self._writing:
                self._cut_waits = False
                saved = self._core.cut(versions)
                dim, metric, m, ef_construction, seed, route_bits = self._shape
                state = {
                    "dim": dim, "metric": metric, "m": m, "ef_construction": ef_construction, "seed": seed,
                    "route_bits": route_bits, "compress_after": self._compress_after, "keys": self._keys.kind,
                    "head": saved.head, "frames": self._frames.state(), "follower": self._follower.state(),
                    "filtered": self._filtering.built, "sources": self._sources,
                    "tombstones": [] if self._origins is None else self._origins.tombstones.state(),
                }  # fmt: skip
                segments, live = self._live_segments(), len(self)
                digest = self._digest if self._raw is not None and self._raw.hashed else None
            chunks = OpenChunks(saved, known)
            self._open_cut = weakref.ref(chunks)
            return Cut(chunks, message("index", state), segments, live, digest)

    @classmethod
    def restore(cls, cut: Cut, raw: RawVectors | None, drift: DriftSettings | None = None) -> "OnlineIndex":
        """The index that was cut; `raw` holds the rows that it held then.

        CorruptIndex if the bytes cannot be that.
        """
        state = message_of("index", cut.state)
        try:
            return cls._restored(state, cut, raw, drift)
        except (KeyError, TypeError, ValueError) as cause:
            raise CorruptIndex(f"the saved state of the index is damaged: {cause}") from cause

    @classmethod
    def _restored(
        cls, state: dict[str, Any], cut: Cut, raw: RawVectors | None, drift: DriftSettings | None
    ) -> "OnlineIndex":
        shape = (state["dim"], state["metric"], state["m"], state["ef_construction"])
        seed, route_bits = state["seed"], state["route_bits"]
        after, sources = state["compress_after"], state["sources"]
        index = cls(*shape, seed, route_bits=route_bits, raw=raw, compress_after=after, sources=sources)
        core = Core(*shape, route_bits, seed, rotation_seed=seed, sources=sources)
        monitor = DriftMonitor.from_state(state["follower"]["monitor"], drift)
        index._assemble(core, Frames.restore(core, state["frames"]), monitor, Keys(state["keys"]))
        index._attach(sorted(cut.segments))
        for number, chain in sorted(chains(cut.chunks).items()):
            parts = [cut.chunks[name] for name in chain]
            core.load_slab(number, parts[-1].version, *[_bytes_of(part) for part in parts])
        core.load_head(state["head"])
        if raw is not None and raw.hashed:
            index._digest = index._stored_digest(raw)
            if cut.digest not in (None, index._digest):
                found, kept = digest_text(index._digest), digest_text(cut.digest)
                raise CorruptIndex(f"the digest of the rows is {found}, that of the cut {kept}")
        if index._origins is not None:
            index._origins.tombstones.restore(state["tombstones"])
        index._follower.resume(state["follower"])
        if state["filtered"]:
            index._filtering.build()
        return index

    def _stored_digest(self, raw: RawVectors) -> int:
        """By the hashes that are kept: no row is hashed."""
        slabs = range(self._core.slabs)
        return sum(total(raw.hashes(self._core.slab_rows(slab)[0])) for slab in slabs) % DIGESTS
