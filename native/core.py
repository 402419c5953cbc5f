"""The one object through which Python uses the C index. Thin: checks shapes, passes arrays, copies answers
out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ._core import ffi, lib
from .answers import Answers, JoinedAnswers, PackedAnswers
from .arrays import checked, floats, pack, pointer
from .cut import CoreCut
from .threads import in_parts, side_by_side

__all__ = ["FRAMES", "NO_ROW", "SLAB", "Core", "Slab", "Survey", "Tile", "Usage"]

FRAMES: int = lib.DL_FRAMES  # alive at once
SLAB: int = lib.DL_SLAB  # slots per slab
NO_ROW = 2**64 - 1  # the row id where there is no raw vector
SPARE = 1 << 20  # bytes of an answer up to which its memory is kept for the next one
MOVES: int = lib.DL_MOVES  # slots that upkeep moves at once
METRICS = {"l2": lib.DL_L2, "ip": lib.DL_IP, "cosine": lib.DL_COSINE}

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tile:
    """The parameters of a tile frame as the core takes them.

    mean, scale: float32 [dim], in rotated coordinates if `rotated`; edges: float32 [255]; fine: [256], what
    codes decode to; coarse: [2**route_bits], what their first bits do.
    """

    mean: Floats
    scale: Floats
    edges: Floats
    fine: Floats
    coarse: Floats
    rotated: bool


@dataclass(frozen=True, slots=True)
class Slab:
    """What one slab holds: slots ever used, live ones, occupied ones by frame, and a version that grows with
    changes."""

    used: int
    live: int
    rows: tuple[int, ...]
    is_float: bool
    version: int


@dataclass(frozen=True, slots=True)
class Survey:
    """How well a slab's rows are coded: live ones by frame, how many were measured, and the squared error of
    these, summed: as they are coded (floats have none), and in each frame (0 where that is no tile frame)."""

    live: tuple[int, ...]
    rows: int
    own: float
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Slots and bytes of the core."""

    live: int
    slots: int
    slabs: int
    dead: int
    codes: int
    links: int
    keys: int
    meta: int
    scratch: int
    total: int


def _bytes(data: bytes) -> Any:
    return ffi.from_buffer("uint8_t[]", data)


def _bits(allowed: NDArray[np.uint64] | None) -> tuple[Any, int]:
    return (ffi.NULL, 0) if allowed is None else (pointer("uint64_t[]", allowed), len(allowed))


def _rows(rows: NDArray[np.uint64] | None) -> Any:
    return ffi.NULL if rows is None else pointer("uint64_t[]", rows)


def _offsets(offsets: NDArray[np.uint64]) -> Any:
    return pointer("uint64_t[]", offsets)


class Core:
    """One native index. Searches may run beside one writer; every call releases the interpreter lock."""

    def __init__(
        self,
        dim: int,
        metric: str,
        m: int,
        ef_construction: int,
        route_bits: int | None,
        seed: int,
        rotation_seed: int,
        sources: bool = False,
    ) -> None:
        shape = dim, METRICS[metric], m, ef_construction, route_bits or 0
        config = ffi.new("dl_config *", (*shape, seed, rotation_seed, sources))
        out = ffi.new("dl_index **")
        checked(lib.dl_open(config, out))
        self.dim = dim
        self._ix = ffi.gc(out[0], lib.dl_close)
        self.route_bits = int(lib.dl_route_bits(self._ix))
        self.spare: list[Any] = []
        """Memory for answers (dl_hits) that no call is using."""

    # ---- raw vectors and frames

    def attach(self, segment: int, address: int, rows: int) -> None:
        """Make raw rows readable; the memory stays mapped until `detach`."""
        checked(lib.dl_attach(self._ix, segment, ffi.cast("float *", address), rows))

    def detach(self, segment: int) -> bool:
        """False while a slot, or a search under way, may still read the segment."""
        code = lib.dl_detach(self._ix, segment)
        if code == lib.DL_EBUSY:
            return False
        checked(code)
        return True

    def open_frame(self, frame: int, tile: Tile | None) -> None:
        """Add a frame; None is the float frame."""
        if tile is None:
            checked(lib.dl_frame_open(self._ix, frame, ffi.NULL))
            return
        arrays = [
            np.ascontiguousarray(a, np.float32)
            for a in (tile.mean, tile.scale, tile.edges, tile.fine, tile.coarse)
        ]
        sizes = [a.size for a in arrays]
        if sizes != [self.dim, self.dim, 255, 256, 1 << self.route_bits]:
            raise InvalidInput(f"frame parameters of sizes {sizes} for {self.dim} dimensions")
        pointers = [pointer("float[]", a) for a in arrays]
        checked(lib.dl_frame_open(self._ix, frame, ffi.new("dl_tile *", (*pointers, tile.rotated))))

    def close_frame(self, frame: int) -> bool:
        """False while the frame is in use."""
        code = lib.dl_frame_close(self._ix, frame)
        if code == lib.DL_EBUSY:
            return False
        checked(code)
        return True

    def write_frame(self, frame: int) -> None:
        """New vectors are coded in this frame from now on."""
        checked(lib.dl_frame_write(self._ix, frame))

    def frame_counts(self, frame: int) -> tuple[NDArray[np.int64], int]:
        """Live codes int64 [dim, 16] of a frame, and how many slots it occupies."""
        counts = np.empty((self.dim, 16), np.int64)
        rows = ffi.new("uint64_t *")
        checked(lib.dl_frame_counts(self._ix, frame, pointer("int64_t[]", counts), rows))
        return counts, rows[0]

    def frame_rows(self, frame: int) -> int:
        """How many slots a frame occupies, without the copy of its counts that writers would wait for."""
        rows = ffi.new("uint64_t *")
        checked(lib.dl_frame_counts(self._ix, frame, ffi.NULL, rows))
        return rows[0]

    def reencode(self, slab: int, frame: int) -> bool:
        """Encode a slab anew in `frame` from its raw vectors and publish it; searches go on.

        False, and nothing is done, while one of them may still read the codes that the last call replaced.
        """
        code = lib.dl_reencode(self._ix, slab, frame)
        if code == lib.DL_EBUSY:
            return False
        checked(code)
        return True

    def learn(self, slab: int) -> None:
        """Learn from rows of a slab that was encoded anew how distances between codes grow with rank: by that
        searches tell when to end."""
        checked(lib.dl_learn(self._ix, slab))

    # ---- writing

    def unchanged(
        self, keys: Sequence[bytes], payloads: Sequence[bytes], vectors: Floats
    ) -> NDArray[np.bool_]:
        """bool [n]: the key is live with exactly these bytes and this payload."""
        data, offsets = pack(keys)
        more, more_offsets = pack(payloads)
        same = np.zeros(len(keys), np.uint8)
        code = lib.dl_unchanged(
            self._ix, len(keys), _bytes(data), _offsets(offsets), _bytes(more), _offsets(more_offsets),
            pointer("float[]", vectors), pointer("uint8_t[]", same),
        )  # fmt: skip
        checked(code)
        return same.astype(np.bool_)

    def upsert(
        self,
        keys: Sequence[bytes],
        payloads: Sequence[bytes],
        vectors: Floats,
        rows: NDArray[np.uint64] | None,
        threads: int = 1,
        replaced: NDArray[np.uint64] | None = None,
        sources: NDArray[np.uint64] | None = None,
    ) -> NDArray[np.uint32]:
        """Insert or replace, in order; each key's change is one step for searches. An empty payload is
        none. The slots written to, uint32 [n].

        replaced: uint64 [n], filled with the row ids of the versions that ended, NO_ROW where there was none;
        where an error came before a row, its item stays as it was. sources: uint64 [n, 2] to keep, zeros if
        None; only in an index that keeps them.
        """
        data, offsets = pack(keys)
        more, more_offsets = pack(payloads)
        vectors = floats(vectors, self.dim)
        slots = np.empty(len(keys), np.uint32)

        first = ffi.new("uint64_t *")  # that no thread has taken

        def write() -> None:
            code = lib.dl_upsert(
                self._ix, len(keys), _bytes(data), _offsets(offsets), _bytes(more), _offsets(more_offsets),
                pointer("float[]", vectors), _rows(rows), _rows(sources),
                pointer("uint32_t[]", slots), _rows(replaced), first,
            )  # fmt: skip
            checked(code)

        side_by_side(*[write] * threads)
        return slots

    def sources(self, keys: Sequence[bytes]) -> NDArray[np.uint64]:
        """uint64 [n, 2]: what is kept of live keys, zeros for those that are not."""
        data, offsets = pack(keys)
        sources = np.empty((len(keys), 2), np.uint64)
        checked(lib.dl_sources(self._ix, len(keys), _bytes(data), _offsets(offsets), _rows(sources)))
        return sources

    def set_sources(self, keys: Sequence[bytes], sources: NDArray[np.uint64]) -> None:
        """Keep these uint64 [n, 2] of those keys that are live."""
        data, offsets = pack(keys)
        checked(lib.dl_set_sources(self._ix, len(keys), _bytes(data), _offsets(offsets), _rows(sources)))

    def delete(self, keys: Sequence[bytes], replaced: NDArray[np.uint64] | None = None) -> int:
        """How many of the keys were live; `replaced` as for `upsert`."""
        data, offsets = pack(keys)
        deleted = ffi.new("uint64_t *")
        checked(lib.dl_delete(self._ix, len(keys), _bytes(data), _offsets(offsets), _rows(replaced), deleted))
        return deleted[0]

    def upkeep(self, eager: bool) -> bool:
        """One bounded step of repair after deletes; True while there is more to do at once."""
        more = ffi.new("int *")
        checked(lib.dl_upkeep(self._ix, eager, more))
        return bool(more[0])

    # ---- reading

    def _hits(self) -> Any:
        """Memory for answers. Not one a thread: a finaliser may search in the midst of another search."""
        try:
            return self.spare.pop()
        except IndexError:
            return ffi.gc(ffi.new("dl_hits *"), lib.dl_hits_free)

    def _answers(self, code: int, hits: Any, nq: int, k: int) -> PackedAnswers:
        """A copy of what a call wrote there; raises what its code means. Little memory goes to the spare."""
        if code:
            checked(code)
        size = hits.size
        data = ffi.unpack(hits.bytes, size)
        if size < SPARE:
            self.spare.append(hits)
        return PackedAnswers(data, nq, k)

    def search(
        self,
        queries: Floats,
        k: int,
        ef: int,
        rescore: int,
        *,
        radius: float = math.inf,
        allowed: NDArray[np.uint64] | None = None,
        threads: int = 1,
    ) -> Answers:
        """Approximate: `ef` candidates by code, the best `rescore` of them measured on raw vectors.

        radius: hits within it, at most k. allowed: a bit per slot that may be returned. threads: among which
        the queries are divided.
        """
        queries = floats(queries, self.dim)
        if threads > 1:
            ask = partial(self.search, k=k, ef=ef, rescore=rescore, radius=radius, allowed=allowed)
            return JoinedAnswers(in_parts(lambda part: ask(queries[part]), len(queries), threads))
        hits, nq = self._hits(), len(queries)
        bits, words = _bits(allowed)
        query = ffi.from_buffer("float[]", queries)
        code = lib.dl_search(self._ix, query, nq, k, ef, rescore, radius, bits, words, hits)
        return self._answers(code, hits, nq, k)

    def exact(self, queries: Floats, k: int, allowed: NDArray[np.uint64] | None = None) -> PackedAnswers:
        """By brute force over raw vectors (over codes where there are none)."""
        queries = floats(queries, self.dim)
        hits, nq = self._hits(), len(queries)
        code = lib.dl_exact(self._ix, pointer("float[]", queries), nq, k, *_bits(allowed), hits)
        return self._answers(code, hits, nq, k)

    def witness(
        self, queries: Floats, k: int, ef: int, rescore: int, *, raw: bool
    ) -> tuple[Floats, Floats, Floats | None]:
        """Distances float32 [nq, k] of one moment: found by a search, the best by a pass over all codes and,
        with `raw`, the best by a pass over all raw vectors."""
        queries = floats(queries, self.dim)
        shape = len(queries), k
        found, best = np.empty(shape, np.float32), np.empty(shape, np.float32)
        exact = np.empty(shape, np.float32) if raw else None
        code = lib.dl_witness(
            self._ix, pointer("float[]", queries), len(queries), k, ef, rescore, pointer("float[]", found),
            pointer("float[]", best), ffi.NULL if exact is None else pointer("float[]", exact),
        )  # fmt: skip
        checked(code)
        return found, best, exact

    def get(self, keys: Sequence[bytes]) -> tuple[PackedAnswers, Floats]:
        """One answer of at most one hit per key, and the vectors float32 [n, dim]."""
        data, offsets = pack(keys)
        vectors = np.zeros((len(keys), self.dim), np.float32)
        hits = self._hits()
        code = lib.dl_get(
            self._ix, len(keys), _bytes(data), _offsets(offsets), pointer("float[]", vectors), hits
        )
        return self._answers(code, hits, len(keys), 1), vectors

    def scan(self, slab: int) -> list[bytes]:
        """The live keys of a slab."""
        return self.live_rows(slab).keys[0]

    def live_rows(self, slab: int) -> PackedAnswers:
        """The live rows of a slab as one answer, distances aside."""
        return self._scan(slab, ffi.NULL)

    def payloads(self, slab: int) -> tuple[NDArray[np.uint32], list[bytes | None]]:
        """Slots and payloads of a slab's live rows."""
        slots = np.empty(SLAB, np.uint32)
        payloads = self._scan(slab, pointer("uint32_t[]", slots)).payloads[0]
        return slots[: len(payloads)], payloads

    def _scan(self, slab: int, slots: Any) -> PackedAnswers:
        hits = self._hits()
        code = lib.dl_scan(self._ix, slab, slots, hits)
        return self._answers(code, hits, 1, hits.k)

    def moving(self) -> NDArray[np.uint32]:
        """uint32 [n, 2]: the slots that upkeep will move, and where to; visible after the next `upkeep`."""
        pairs, count = np.empty((MOVES, 2), np.uint32), ffi.new("uint32_t *")
        lib.dl_moving(self._ix, pointer("uint32_t[]", pairs), count)
        return pairs[: count[0]]

    # ---- facts

    def __len__(self) -> int:
        return lib.dl_live(self._ix)

    @property
    def slabs(self) -> int:
        return lib.dl_slabs(self._ix)

    def slab(self, number: int) -> Slab:
        info = ffi.new("dl_slab_info *")
        checked(lib.dl_slab(self._ix, number, info))
        return Slab(info.used, info.live, tuple(info.rows), bool(info.is_float), info.version)

    def slab_rows(self, number: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """Row ids and frames of a slab's live slots."""
        rows, frames = np.empty(SLAB, np.uint64), np.empty(SLAB, np.uint8)
        count = ffi.new("uint32_t *")
        code = lib.dl_slab_rows(
            self._ix, number, pointer("uint64_t[]", rows), pointer("uint8_t[]", frames), count
        )
        checked(code)
        return rows[: count[0]], frames[: count[0]]

    def survey(self, number: int, first: int, every: int, bits: int, tables: Floats) -> Survey:
        """Measure live rows `first`, first + every, ... of a slab on their raw vectors, by the top `bits`
        bits of codes. tables: float32 [FRAMES, 2**bits], what these decode to in each frame."""
        if tables.shape != (FRAMES, 2**bits):
            raise InvalidInput(f"expected tables [{FRAMES}, {2**bits}], got {list(tables.shape)}")
        out = ffi.new("dl_errors *")
        table = pointer("float[]", np.ascontiguousarray(tables, np.float32))
        checked(lib.dl_survey(self._ix, number, first, every, bits, table, out))
        return Survey(tuple(out.live), out.rows, out.own, tuple(out.errors))

    # ---- where raw vectors lie

    def referring(self, segments: Sequence[int]) -> dict[int, int]:
        """Segment -> slots whose raw vectors lie there, those of dead slots too."""
        asked = np.array(segments, np.uint32)
        slots = np.empty(len(asked), np.uint32)
        lib.dl_referring(self._ix, len(asked), pointer("uint32_t[]", asked), pointer("uint32_t[]", slots))
        return dict(zip(segments, slots.tolist(), strict=True))

    def segment_slots(
        self, segment: int, first: int, most: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint64], int]:
        """Live slots whose raw vectors lie in a segment, and these rows, of some slabs from `first` on: at
        most `most` (SLAB at least), and the slab to go on with."""
        slots, rows = np.empty(most, np.uint32), np.empty(most, np.uint64)
        count = ffi.new("uint32_t *")
        place = pointer("uint32_t[]", slots)
        after = lib.dl_segment_slots(self._ix, segment, first, place, _rows(rows), most, count)
        return slots[: count[0]], rows[: count[0]], after

    def rebase(self, slots: NDArray[np.uint32], rows: NDArray[np.uint64], others: NDArray[np.uint64]) -> None:
        """Slots that are live with these rows have the same raw vectors at others from now on."""
        place = pointer("uint32_t[]", slots)
        checked(lib.dl_rebase(self._ix, len(slots), place, _rows(rows), _rows(others)))

    def usage(self) -> Usage:
        out = ffi.new("dl_usage *")
        lib.dl_usage_of(self._ix, out)
        return Usage(**{name: getattr(out, name) for name in Usage.__slots__})

    def check(self, codes: bool) -> None:
        """Raise CorruptIndex with the first broken invariant; with `codes`, compare every code with its raw
        vector."""
        message = ffi.new("char[256]")
        code = lib.dl_check(self._ix, codes, message, 256)
        if code == lib.DL_ECORRUPT:
            raise CorruptIndex(ffi.string(message).decode())
        checked(code)

    # ---- saving and loading

    def cut(self, known: dict[int, int]) -> CoreCut:
        """Begin a cut: all slabs and the head as of now. known: versions of slabs that the caller has from
        the cut before, or as they were loaded; of these only what changed since is saved."""
        return CoreCut(self._ix, known)

    def load_slab(self, number: int, version: int, *parts: bytes | memoryview) -> None:
        """Into an index that holds nothing else, in order of numbers: the slab saved whole and its deltas
        since, of which the last has this version; CorruptIndex on bytes that cannot be."""
        buffers = [ffi.from_buffer("uint8_t[]", part) for part in parts]
        code = lib.dl_load_slab(
            self._ix, number, version, ffi.new("uint8_t *[]", buffers),
            ffi.new("size_t[]", [len(part) for part in parts]), len(parts),
        )  # fmt: skip
        if code == lib.DL_ECORRUPT:
            raise CorruptIndex(f"the stored bytes of slab {number} are not those of a slab of this index")
        checked(code)

    def load_head(self, data: bytes) -> None:
        """Last: joins the slabs into an index and checks its structure."""
        message = ffi.new("char[256]")
        code = lib.dl_load_head(self._ix, ffi.from_buffer("uint8_t[]", data), len(data), message, 256)
        if code == lib.DL_ECORRUPT:
            raise CorruptIndex(ffi.string(message).decode())
        checked(code)
