"""A consistent cut of an index, as snapshots store it."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Chunk", "Cut"]


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
