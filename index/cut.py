"""A consistent cut of an index, as snapshots store it.

The chunks are the native core's slabs. A slab is a chunk by its number, "00000007", and what changed in it
since are chunks of their own behind it, "00000007.1" and so on: a cut names those that the caller has, and
adds one, or starts anew with the whole slab once they have grown.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidInput, SnapshotError

if TYPE_CHECKING:  # the process that examines snapshots starts without the core
    from ..native import CoreCut

__all__ = ["Chunk", "Cut", "OpenChunks", "chains", "last_versions"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of an index.

    `version` grows whenever the piece changes. `data` is None when the piece is unchanged since the version
    that the caller said it knows: the stored bytes stay valid.
    """

    version: int
    data: bytes | memoryview | None


@dataclass(frozen=True, slots=True)
class Cut:
    """Everything an index is at one moment, except the raw vectors themselves.

    `chunks` are the native core's slabs by name; `state` is the rest (msgpack: shape, frames, statistics);
    `segments` names the raw-vector segments that hold a live row; `live` counts the live keys; `digest` is
    theirs (digest.py), None where no row's hash is kept.
    """

    chunks: Mapping[str, Chunk]
    state: bytes
    segments: frozenset[int]
    live: int
    digest: int | None = None


class OpenChunks(Mapping[str, Chunk]):
    """The chunks of a cut of an index that goes on changing: each is made when it is asked for, once.

    Until then the core keeps what changes as it was, so they are better asked for soon, and dropped when they
    are not wanted. SnapshotError if memory was too short to keep something.
    """

    def __init__(self, saved: "CoreCut", known: Mapping[str, int]) -> None:
        """known: what `saved` was begun with, by name."""
        self._saved = saved
        self._known = known
        self._lock = threading.Lock()
        self._chunks: dict[str, Chunk | None] = {}  # None: still to be saved, or taken
        self._slabs: dict[str, int] = {}  # of those to be saved
        self._listed = False

    def _list(self) -> None:
        """Not when it begins: writers would wait for it."""
        if self._listed:
            return
        self._listed, saved, known = True, self._saved, self._known
        had = chains(known)
        for slab in range(len(saved)):
            chain = had.get(slab, [])
            if saved.is_same(slab) or saved.is_delta(slab):
                self._chunks |= {name: Chunk(known[name], None) for name in chain}
            if not saved.is_same(slab):
                name = chunk_name(slab, len(chain) if saved.is_delta(slab) else 0)
                self._chunks[name], self._slabs[name] = None, slab
        self._close_if_done()

    def __getitem__(self, name: str) -> Chunk:
        with self._lock:
            self._list()
            return self._chunks[name] or self._save(name)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._list()
            return iter(self._chunks)

    def __len__(self) -> int:
        with self._lock:
            self._list()
            return len(self._chunks)

    def keep(self) -> None:
        """Have all that is still to be made in memory, so that another cut can begin."""
        with self._lock:
            self._list()
            for name in list(self._slabs):
                self._chunks[name] = self._save(name)

    def _save(self, name: str) -> Chunk:
        if name not in self._slabs:
            raise InvalidInput(f"chunk {name} of an open cut was asked for twice")
        slab = self._slabs.pop(name)
        try:
            data = self._saved.save(slab)
        except MemoryError as cause:
            raise SnapshotError("there was no memory to keep what changed during the snapshot") from cause
        self._close_if_done()
        return Chunk(int(self._saved.versions[slab]), data)

    def _close_if_done(self) -> None:
        if not self._slabs:
            self._saved.close()


def last_versions(known: Mapping[str, int]) -> dict[int, int]:
    """By slab the version of the last chunk of its chain."""
    versions: dict[int, int] = {}
    for name, version in known.items():
        slab = int(name.partition(".")[0])
        versions[slab] = max(version, versions.get(slab, version))
    return versions


def chunk_name(slab: int, delta: int) -> str:
    """Of a slab, or of what changed in it: its first delta is 1."""
    return f"{slab:08d}.{delta}" if delta else f"{slab:08d}"


def chains(names: Iterable[str]) -> dict[int, list[str]]:
    """By slab the names of its chunks, in order. ValueError for what is no chunk's name."""
    found: dict[int, list[tuple[int, str]]] = {}
    for name in names:
        slab, _, delta = name.partition(".")
        found.setdefault(int(slab), []).append((int(delta or 0), name))
    return {slab: [name for _, name in sorted(chain)] for slab, chain in found.items()}
