"""native/ computes: the C core - graph, codes, kernels - and its only doorway from Python."""

from .answers import Answers, MergedAnswers
from .core import FRAMES, SLAB, Core, Slab, Survey, Tile, Usage
from .functions import (
    bin_counts,
    force_isa,
    isa,
    moments,
    rotate,
    row_errors,
    tile_decode,
    tile_encode,
    unrotate,
)

__all__ = [
    "FRAMES",
    "SLAB",
    "Answers",
    "Core",
    "MergedAnswers",
    "Slab",
    "Survey",
    "Tile",
    "Usage",
    "bin_counts",
    "force_isa",
    "isa",
    "moments",
    "rotate",
    "row_errors",
    "tile_decode",
    "tile_encode",
    "unrotate",
]
