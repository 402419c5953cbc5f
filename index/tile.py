"""The tile encoder: one 8-bit code per dimension, from the distribution function of the normal law.

After Weaviate's tile encoder (2023): `code = floor(256 * F((x - mean) / sigma))`; there is nothing to train,
since mean and sigma are running statistics. Two changes cut its error to a twentieth at the same cost:

- *spread*. Tiles of equal probability spend their accuracy on the centre. F of a law that is sqrt(3) times
  wider puts tiles at the density that minimises squared error (Panter and Dite, 1951).
- *conditional means*. A tile decodes to the mean of the law inside it, not to its middle quantile.

The top b bits of a code are themselves a b-bit tile code, with conditional means of their own. spread = 1 is
the published encoder, and then decodes by middle quantiles as that does. docs/tile.md has the numbers.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import bin_counts, rotate, row_errors, tile_decode, tile_encode, unrotate
from .packing import array_bytes, array_of, message, message_of, number
from .statistics import Moments, as_rows, blocks

__all__ = ["BINS", "BITS", "SPREAD", "TileEncoder", "TileParameters"]

Vectors = NDArray[np.float32]
Codes = NDArray[np.uint8]

TILES = 256
BINS = 16  # tiles of the 4-bit prefix: what histograms count
BITS = (1, 2, 3, 4, 5, 8)
SPREAD = math.sqrt(
    3
)  # density of the best tiles is the cube root of the law's: a normal law of sqrt(3) times the width
SPREADS = (1.0, 4.0)  # narrower than published or wider than this only loses

# Floors of a dimension's scale. A dead dimension (sigma 0; all-MiniLM-L6-v2 has three of 384) would divide by
# zero.
DEAD = 1e-3  # of the root mean square sigma: its error, 4e-11 of a typical variance, is lost in any distance
ROUNDING = 2.0**-23  # of |mean|: what float32 cannot tell apart is not spread
LEAST = 1e-30  # all dimensions constant; its reciprocal, and that of MOST, are ordinary float32
MOST = 1e30


@lru_cache(maxsize=16)
def standard_edges(spread: float) -> Vectors:
    """float32 [255]: where the tiles of the unit normal law meet, read-only."""
    law = NormalDist(sigma=spread)
    half = [
        law.inv_cdf(k / TILES) for k in range(1, TILES // 2)
    ]  # the lower tail is the accurate one; mirrored
    edges = np.array([*half, 0.0, *(-edge for edge in reversed(half))], np.float32)
    edges.flags.writeable = False
    return edges


@lru_cache(maxsize=64)
def standard_table(spread: float, bits: int) -> Vectors:
    """float32 [2**bits]: what the tiles of the unit normal law decode to, read-only."""
    law = NormalDist(sigma=spread)
    tiles = 2**bits
    if spread == 1.0:
        lower = [law.inv_cdf((k + 0.5) / tiles) for k in range(tiles // 2)]
    else:
        # The mean inside [a, b] is (phi(a) - phi(b)) / (Phi(b) - Phi(a)). No tile straddles 0, and in the
        # lower tail erfc keeps every digit of Phi.
        edges = [-math.inf, *(law.inv_cdf(k / tiles) for k in range(1, tiles // 2)), 0.0]
        density = [math.exp(-0.5 * edge * edge) / math.sqrt(2 * math.pi) for edge in edges]
        below = [0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges]
        lower = [(density[k] - density[k + 1]) / (below[k + 1] - below[k]) for k in range(tiles // 2)]
    table = np.array([*lower, *(-value for value in reversed(lower))], np.float32)
    table.flags.writeable = False
    return table


@dataclass(frozen=True, slots=True, eq=False)
class TileParameters:
    """What a frame is: everything needed to code vectors and to decode them. Immutable.

    mean, scale: float32 [dim], in rotated coordinates if `rotation_seed` is not None; scale > 0.
    counts: int64 [dim, 16], how the codes of `rows` rows fell into the 16 tiles of four bits when the
        parameters were fitted; zeros with rows = 0 where no histogram was recorded.

    Stored by `to_bytes` as a message of kind "tile" (index/packing.py): mean and scale as f4 [dim], counts as
    i8 [dim, 16], spread as float, rotation_seed as int or nil, rows as int.
    """

    mean: Vectors
    scale: Vectors
    spread: float
    rotation_seed: int | None
    counts: NDArray[np.int64]
    rows: int

    @classmethod
    def fit(
        cls,
        mean: NDArray[np.float64],
        variance: NDArray[np.float64],
        *,
        spread: float = SPREAD,
        rotation_seed: int | None = None,
        sample: Vectors | None = None,
    ) -> "TileParameters":
        """Parameters from mean and variance of each dimension; `sample` is coded for the histogram.

        All in rotated coordinates if there is a rotation. Sigma is floored: see DEAD, ROUNDING, LEAST.
        """
        if not SPREADS[0] <= spread <= SPREADS[1]:
            raise InvalidInput(f"spread must be {SPREADS[0]:g} to {SPREADS[1]:g}, not {spread}")
        typical = math.sqrt(float(variance.mean()))
        floor = np.maximum(np.abs(mean) * ROUNDING, max(typical * DEAD, LEAST))
        scale = np.clip(np.sqrt(variance), floor, MOST).astype(np.float32)
        bare = cls(
            mean.astype(np.float32), scale, spread, rotation_seed, np.zeros((len(mean), BINS), np.int64), 0
        )
        if sample is None or not len(sample):
            return bare
        counts = bin_counts(bare.encode_rotated(sample))
        return cls(bare.mean, scale, spread, rotation_seed, counts, len(sample))

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def edges(self) -> Vectors:
        """float32 [255]: a code is the number of edges that are at or below (x - mean) / scale."""
        return standard_edges(self.spread)

    def table(self, bits: int) -> Vectors:
        """float32 [2**bits]: what codes of 1 to 5 or 8 bits decode to, in units of scale around mean."""
        if bits not in BITS:
            raise InvalidInput(f"bits must be 1 to 5 or 8, not {bits}")
        return standard_table(self.spread, bits)

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
        return tile_encode(rotated, self.mean, 1.0 / self.scale, self.edges)

    def decode(self, codes: Codes, bits: int = 8) -> Vectors:
        """float32 [n, dim], in original coordinates, from the top `bits` bits (1 to 5 or 8) of each code."""
        if self.rotation_seed is None:
            return self.decode_rotated(codes, bits)
        x = np.empty(self._checked(codes).shape, np.float32)
        for block in blocks(*codes.shape):
            x[block] = unrotate(self.decode_rotated(codes[block], bits), self.rotation_seed)
        return x

    def decode_rotated(self, codes: Codes, bits: int = 8) -> Vectors:
        """The same in the coordinates that are coded."""
        return tile_decode(self._checked(codes), self.mean, self.scale, self.table(bits), bits)

    def _checked(self, codes: Codes) -> Codes:
        if codes.ndim != 2 or codes.shape[1] != self.dim or codes.dtype != np.uint8:
            raise InvalidInput(f"codes must be uint8 [n, {self.dim}], not {codes.dtype} {list(codes.shape)}")
        return codes

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
        return row_errors(rotated, self.mean, self.scale, self.edges, self.table(bits), bits)

    def to_bytes(self) -> bytes:
        fields = {
            "mean": array_bytes(self.mean),
            "scale": array_bytes(self.scale),
            "counts": array_bytes(self.counts),
            "spread": self.spread,
            "rotation_seed": self.rotation_seed,
            "rows": self.rows,
        }
        return message("tile", fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> "TileParameters":
        """What `to_bytes` wrote. CorruptIndex for anything that it could not have written."""
        state = message_of("tile", data)
        mean = array_of(state, "mean", "f4", (-1,))
        if not 1 <= len(mean) <= 4096:
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
        return cls(mean, scale, float(number(state, "spread", *SPREADS)), seed, counts, rows)


class TileEncoder:
    """Codes of vectors whose distribution is learned as they come.

    Args:
        dim: of the vectors.
        distribution: "normal"; "auto" chooses, today always the normal law.
        spread: width of the law that places the tiles, 1 to 4; 1 is the published encoder.
        rotation: "random" turns vectors by a seeded random rotation first, which makes marginals close to
            normal; "none" does not; "auto" chooses, today always "random".
        seed: of the rotation.
    """

    def __init__(
        self,
        dim: int,
        distribution: Literal["auto", "normal"] = "auto",
        spread: float = SPREAD,
        rotation: Literal["auto", "random", "none"] = "auto",
        seed: int = 0,
    ) -> None:
        if not 1 <= dim <= 4096:
            raise InvalidInput(f"dim must be 1 to 4096, not {dim}")
        if distribution not in ("auto", "normal"):
            raise InvalidInput(f"distribution must be auto or normal, not {distribution!r}")
        if rotation not in ("auto", "random", "none"):
            raise InvalidInput(f"rotation must be auto, random or none, not {rotation!r}")
        if not SPREADS[0] <= spread <= SPREADS[1]:
            raise InvalidInput(f"spread must be {SPREADS[0]:g} to {SPREADS[1]:g}, not {spread}")
        if not 0 <= seed < 2**64:
            raise InvalidInput(f"seed must be 0 to 2^64 - 1, not {seed}")
        self.dim = dim
        self._spread = spread
        self._seed = None if rotation == "none" else seed
        self._moments = Moments(dim)
        self._parameters: TileParameters | None = None

    def update(self, x: Vectors) -> None:
        """Take the rows of float32 [n, dim] into the statistics. InvalidInput for NaN or infinity; nothing
        changes then."""
        rows = as_rows(x, self.dim)
        for block in blocks(*rows.shape):
            self._moments.update(rows[block] if self._seed is None else rotate(rows[block], self._seed))

    def fit(self) -> TileParameters:
        """Freeze parameters from the statistics so far; `encode` and `decode` use them until the next fit.

        Needs no pass over data, so no histogram is recorded.
        """
        if not self._moments.n:
            raise InvalidInput("fit needs statistics: update the encoder with vectors first")
        self._parameters = TileParameters.fit(
            *self._moments.value(), spread=self._spread, rotation_seed=self._seed
        )
        return self._parameters

    @property
    def parameters(self) -> TileParameters:
        """Those of the last `fit`."""
        if self._parameters is None:
            raise InvalidInput("the encoder has no parameters yet: fit it first")
        return self._parameters

    def encode(self, x: Vectors) -> Codes:
        """uint8 [n, dim] of float32 [n, dim]."""
        return self.parameters.encode(x)

    def decode(self, codes: Codes, bits: int = 8) -> Vectors:
        """float32 [n, dim] from the top `bits` bits (1 to 5 or 8) of codes."""
        return self.parameters.decode(codes, bits)
