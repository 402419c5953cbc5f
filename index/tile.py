"""The tile encoder: one 8-bit code per dimension, from the distribution function of the normal law.

After Weaviate's tile encoder (2023): `code = floor(256 * F((x - mean) / sigma))`; there is nothing to train,
since mean and sigma are running statistics. Two changes cut its error to a twentieth at the same cost:

- *spread*. Tiles of equal probability spend their accuracy on the centre. F of a law that is sqrt(3) times
  wider puts tiles at the density that minimises squared error (Panter and Dite, 1951).
- *conditional means*. A tile decodes to the mean of the law inside it, not to its middle quantile.

The top b bits of a code are themselves a b-bit tile code, with conditional means of their own. spread = 1 is
the published encoder, and then decodes by middle quantiles as that does. Values that are whole steps need no
law: their tiles are the steps (laws.py). docs/tile.md has the numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import MAX_DIM, bin_counts, rotate, row_errors, tile_decode, tile_encode, unrotate
from .laws import SPREAD, lattice_edges, lattice_table, normal_edges, normal_table
from .packing import array_bytes, array_of, message, message_of, number
from .statistics import as_rows, blocks

__all__ = ["BINS", "BITS", "SPREADS", "TileParameters", "check_codes", "tiles_of"]

Vectors = NDArray[np.float32]
Codes = NDArray[np.uint8]

LEVELS = 256  # of a frame of the index
BINS = 16  # tiles of the 4-bit prefix: what histograms count
BITS = (1, 2, 3, 4, 5, 8)
SPREADS = (1.0, 4.0)  # narrower than published or wider than this only loses

# Floors of a dimension's scale. A dead dimension (sigma 0; all-MiniLM-L6-v2 has three of 384) would divide by
# zero.
DEAD = 1e-3  # of the root mean square sigma: its error, 4e-11 of a typical variance, is lost in any distance
ROUNDING = 2.0**-23  # of |mean|: what float32 cannot tell apart is not spread
LEAST = 1e-30  # all dimensions constant; its reciprocal, and that of MOST, are ordinary float32
MOST = 1e30


def tiles_of(levels: int, bits: int) -> int:
    """Tiles that the top `bits` bits of a code of `levels` tiles tell apart; 8 bits are all of any code.

    InvalidInput where there are no such prefixes: they are of 1 to 5 bits, and levels must be a power of two
    that has as many.
    """
    if bits == 8:
        return levels
    if bits not in BITS:
        raise InvalidInput(f"bits must be 1 to 5 or 8, not {bits}")
    if levels & (levels - 1) or 2**bits > levels:
        raise InvalidInput(f"codes of {levels} levels have no prefix of {bits} bits; 8 decode all of it")
    return 2**bits


def check_codes(codes: Codes, dim: int) -> None:
    """InvalidInput unless they are uint8 [n, dim]."""
    if codes.ndim != 2 or codes.shape[1] != dim or codes.dtype != np.uint8:
        raise InvalidInput(f"codes must be uint8 [n, {dim}], not {codes.dtype} {list(codes.shape)}")


@dataclass(frozen=True, slots=True, eq=False)
class TileParameters:
    """What a frame is: everything needed to code vectors and to decode them. Immutable.

    mean, scale: float32 [dim], in rotated coordinates if `rotation_seed` is not None; scale > 0.
    counts: int64 [dim, 16], how the codes of `rows` rows fell into the 16 tiles of four bits when the
        parameters were fitted; zeros with rows = 0 where no histogram was recorded.
    levels: number of tiles, 2 to 256; frames of the index have 256.
    steps: None under the normal law. Under the lattice law (values are mean + scale * 0, 1, 2, ...) int64
        [levels], how often each step was seen, in all dimensions together.

    Stored by `to_bytes` as a message of kind "tile" (index/packing.py): mean and scale as f4 [dim], counts as
    i8 [dim, 16], spread as float, rotation_seed as int or nil, rows as int; where they are not 256 and None
    also levels as int and steps as i8 [levels] or nil.
    """

    mean: Vectors
    scale: Vectors
    spread: float
    rotation_seed: int | None
    counts: NDArray[np.int64]
    rows: int
    levels: int = LEVELS
    steps: NDArray[np.int64] | None = None

    @classmethod
    def fit(
        cls,
        mean: NDArray[np.float64],
        variance: NDArray[np.float64],
        *,
        spread: float = SPREAD,
        rotation_seed: int | None = None,
        sample: Vectors | None = None,
        levels: int = LEVELS,
    ) -> "TileParameters":
        """Parameters of the normal law from mean and variance of each dimension; `sample` is coded for the
        histogram, which only codes of 256 levels have.

        All in rotated coordinates if there is a rotation. Sigma is floored: see DEAD, ROUNDING, LEAST.
        """
        if not SPREADS[0] <= spread <= SPREADS[1]:
            raise InvalidInput(f"spread must be {SPREADS[0]:g} to {SPREADS[1]:g}, not {spread}")
        typical = math.sqrt(float(variance.mean()))
        floor = np.maximum(np.abs(mean) * ROUNDING, max(typical * DEAD, LEAST))
        scale = np.clip(np.sqrt(variance), floor, MOST).astype(np.float32)
        none = np.zeros((len(mean), BINS), np.int64)
        bare = cls(mean.astype(np.float32), scale, spread, rotation_seed, none, 0, levels)
        if sample is None or not len(sample):
            return bare
        counts = bin_counts(bare.encode_rotated(sample))
        return cls(bare.mean, scale, spread, rotation_seed, counts, len(sample))

    @classmethod
    def lattice(cls, dim: int, least: float, step: float, steps: NDArray[np.int64]) -> "TileParameters":
        """Parameters for values that are least + step * k, k below len(steps), seen steps[k] times each."""
        mean, scale = np.full(dim, least, np.float32), np.full(dim, step, np.float32)
        return cls(mean, scale, SPREAD, None, np.zeros((dim, BINS), np.int64), 0, len(steps), steps)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def edges(self) -> Vectors:
        """float32 [255]: a code is the number of edges that are at or below (x - mean) / scale, and
        levels - 1 at most."""
        return normal_edges(self.spread, self.levels) if self.steps is None else lattice_edges()

    def table(self, bits: int) -> Vectors:
        """float32 [tiles]: what codes (8 bits) or their top 1 to 5 bits decode to, in units of scale around
        mean."""
        tiles = tiles_of(self.levels, bits)
        return normal_table(self.spread, tiles) if self.steps is None else lattice_table(self.steps, tiles)

    def rotated(self, x: Vectors) -> Vectors:
        """float32 [n, dim] in the coordinates that are coded."""
        return x if self.rotation_seed is None else rotate(x, self.rotation_seed)

    def encode(self, x: Vectors) -> Codes:
        """uint8 [n, dim] of float32 [n, dim]. What lies beyond the outermost edge gets the outermost tile."""
        rows = as_rows(x, self.dim)
        codes = np.empty(rows.shape, np.uint8)
        for block in blocks(*rows.shape):
            codes[block] = self.encode_rotated(self.rotated(rows[block]))
        return codes

    def encode_rotated(self, rotated: Vectors) -> Codes:
        """The same of vectors that `rotated` has been applied to."""
        codes = tile_encode(rotated, self.mean, 1.0 / self.scale, self.edges)
        return codes if self.levels == LEVELS else np.minimum(codes, np.uint8(self.levels - 1))

    def decode(self, codes: Codes, bits: int = 8) -> Vectors:
        """float32 [n, dim], in original coordinates, from codes (8 bits) or their top 1 to 5 bits."""
        check_codes(codes, self.dim)
        if self.rotation_seed is None:
            return self.decode_rotated(codes, bits)
        x = np.empty(codes.shape, np.float32)
        for block in blocks(*codes.shape):
            x[block] = unrotate(self.decode_rotated(codes[block], bits), self.rotation_seed)
        return x

    def decode_rotated(self, codes: Codes, bits: int = 8) -> Vectors:
        """The same in the coordinates that are coded."""
        check_codes(codes, self.dim)
        return tile_decode(codes, self.mean, self.scale, self._places(bits), 8)

    def _places(self, bits: int) -> Vectors:
        """float32 [256]: what every code decodes to by its top bits; codes that are never given, as the
        outermost."""
        table = self.table(bits)
        places = np.repeat(table, self.levels // len(table))
        return np.pad(places, (0, LEVELS - len(places)), mode="edge")

    def error(self, x: Vectors, bits: int = 8) -> float:
        """Mean over rows of |x - decode(encode(x))|^2; 0 without rows."""
        rows = as_rows(x, self.dim)
        sums = (
            float(self.row_errors(self.rotated(rows[block]), bits).sum()) for block in blocks(*rows.shape)
        )
        return sum(sums) / max(len(rows), 1)

    def error_rotated(self, rotated: Vectors, bits: int = 8) -> float:
        """The same of vectors that `rotated` has been applied to: a rotation keeps norms."""
        return float(self.row_errors(rotated, bits).mean()) if len(rotated) else 0.0

    def row_errors(self, rotated: Vectors, bits: int = 8) -> NDArray[np.float64]:
        """float64 [n]: |x - decode(encode(x))|^2 of each row of float32 [n, dim] in rotated coordinates."""
        return row_errors(rotated, self.mean, self.scale, self.edges, self._places(bits), 8)

    def to_bytes(self) -> bytes:
        fields = {
            "mean": array_bytes(self.mean),
            "scale": array_bytes(self.scale),
            "counts": array_bytes(self.counts),
            "spread": self.spread,
            "rotation_seed": self.rotation_seed,
            "rows": self.rows,
        }
        if self.levels != LEVELS or self.steps is not None:
            fields["levels"] = self.levels
            fields["steps"] = None if self.steps is None else array_bytes(self.steps)
        return message("tile", fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> "TileParameters":
        """What `to_bytes` wrote. CorruptIndex for anything that it could not have written."""
        state = message_of("tile", data)
        mean = array_of(state, "mean", "f4", (-1,))
        if not 1 <= len(mean) <= MAX_DIM:
            raise CorruptIndex(f"tile parameters of dimension {len(mean)}")
        scale = array_of(state, "scale", "f4", (len(mean),))
        counts = array_of(state, "counts", "i8", (len(mean), BINS))
        rows = int(number(state, "rows", 0, 2**62))
        seed = state.get("rotation_seed")
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**64):
            raise CorruptIndex(f"rotation_seed is {seed!r}")
        if not (scale.min() >= LEAST / 2 and scale.max() <= MOST * 2):
            raise CorruptIndex("tile parameters hold a scale that cannot be")
        if (counts < 0).any() or (counts > rows).any() or (counts.sum(axis=1) != rows).any():
            raise CorruptIndex("tile parameters hold a histogram that does not count its rows")
        levels = int(number(state, "levels", 2, LEVELS)) if "levels" in state else LEVELS
        steps = None if state.get("steps") is None else array_of(state, "steps", "i8", (levels,))
        if steps is not None and ((steps < 0).any() or (steps > 2**48).any()):
            raise CorruptIndex("tile parameters hold steps that were not counted")
        spread = float(number(state, "spread", *SPREADS))
        return cls(mean, scale, spread, seed, counts, rows, levels, steps)
