"""native/ computes: the C core - graph, codes, kernels - and its only doorway from Python."""

from .answers import Answers, MergedAnswers, PackedAnswers
from .core import FRAMES, NO_ROW, SLAB, Core, Slab, Survey, Tile, Usage
from .cut import CoreCut
from .functions import (
    MAX_DIM,
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
from .threads import side_by_side

__all__ = [
    "FRAMES",
    "MAX_DIM",
    "NO_ROW",
    "SLAB",
    "Answers",
    "Core",
    "CoreCut",
    "MergedAnswers",
    "PackedAnswers",
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
    "side_by_side",
    "tile_decode",
    "tile_encode",
    "unrotate",
]
