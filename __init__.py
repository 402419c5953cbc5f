"""driftline keeps an approximate-nearest-neighbour index in step with a Kafka topic.

`OnlineIndex` and `TileEncoder` are the library; the service, its clients and its command line are
`driftline.stream`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BrokerUnavailable,
    ConfigError,
    CorruptIndex,
    DriftlineError,
    InvalidInput,
    LogError,
    SearchFailed,
    SnapshotError,
    TopicNotFound,
)

if TYPE_CHECKING:
    from .index.drift import DriftSettings
    from .index.encoder import TileEncoder
    from .index.hits import FrameRows, Hits, Row, Stats
    from .index.online import OnlineIndex
    from .index.tile import TileParameters

__all__ = [
    "BrokerUnavailable",
    "ConfigError",
    "CorruptIndex",
    "DriftSettings",
    "DriftlineError",
    "FrameRows",
    "Hits",
    "InvalidInput",
    "LogError",
    "OnlineIndex",
    "Row",
    "SearchFailed",
    "SnapshotError",
    "Stats",
    "TileEncoder",
    "TileParameters",
    "TopicNotFound",
]

# Loaded when first asked for: the command line imports this package, and its --help needs no numpy.
_HOMES = {
    "DriftSettings": "drift",
    "FrameRows": "hits",
    "Hits": "hits",
    "OnlineIndex": "online",
    "Row": "hits",
    "Stats": "hits",
    "TileEncoder": "encoder",
    "TileParameters": "tile",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".index.{_HOMES[name]}", __name__), name)
