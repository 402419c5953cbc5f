"""The tile encoder as a library: statistics of a stream, parameters from them, codes from these."""

from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import MAX_DIM, rotate
from .choose import Evidence, Parameters, candidates, choose, explained, lattice_of, law_of
from .events import EncoderChosen
from .laws import SPREAD
from .lognormal import LogMoments, LognormalParameters
from .packing import field, message, message_of, number
from .statistics import Moments, as_rows, blocks
from .tile import LEVELS, SPREADS, TileParameters

__all__ = ["TileEncoder"]

Vectors = NDArray[np.float32]
Codes = NDArray[np.uint8]
Distribution = Literal["auto", "normal", "lognormal", "lattice"]
Rotation = Literal["auto", "random", "none"]


class TileEncoder:
    """Codes of vectors whose distribution is learned as they come.

    Args:
        dim: of the vectors.
        distribution: "normal"; "lognormal" and "lattice" (all values are whole steps, as bytes are) for
            dimensions as they are, so without rotation; "auto" measures all three on a sample of the rows.
        spread: width of the law that places the tiles, 1 to 4; 1 is the published encoder.
        rotation: "random" turns vectors by a seeded random rotation first, which makes marginals close to
            normal; "none" does not; "auto" measures both.
        seed: of the rotation and of the sample.
        levels: number of tiles, 2 to 256.
    """

    def __init__(
        self,
        dim: int,
        distribution: Distribution = "auto",
        spread: float = SPREAD,
        rotation: Rotation = "auto",
        seed: int = 0,
        *,
        levels: int = LEVELS,
    ) -> None:
        if not 1 <= dim <= MAX_DIM:
            raise InvalidInput(f"dim must be 1 to {MAX_DIM}, not {dim}")
        if distribution not in ("auto", "normal", "lognormal", "lattice"):
            raise InvalidInput(
                f"distribution must be auto, normal, lognormal or lattice, not {distribution!r}"
            )
        if rotation not in ("auto", "random", "none"):
            raise InvalidInput(f"rotation must be auto, random or none, not {rotation!r}")
        if distribution in ("lognormal", "lattice") and rotation == "random":
            raise InvalidInput(f"rotation must be none or auto: rotated values are not {distribution}")
        if not SPREADS[0] <= spread <= SPREADS[1]:
            raise InvalidInput(f"spread must be {SPREADS[0]:g} to {SPREADS[1]:g}, not {spread}")
        if not 0 <= seed < 2**64:
            raise InvalidInput(f"seed must be 0 to 2^64 - 1, not {seed}")
        if not 2 <= levels <= LEVELS:
            raise InvalidInput(f"levels must be 2 to {LEVELS}, not {levels}")
        self.dim = dim
        self._asked = {
            "distribution": distribution, "spread": float(spread), "rotation": rotation, "seed": seed,
            "levels": levels,
        }  # fmt: skip
        self._spread = spread
        self._levels = levels
        self._seed = None if rotation == "none" or distribution in ("lognormal", "lattice") else seed
        self._rows = 0
        self._moments = Moments(dim)
        self._logs = LogMoments(dim) if distribution == "lognormal" else None
        self._distribution = distribution
        no_choice = rotation == "random" or distribution == "lognormal"
        no_choice |= (distribution, rotation) == ("normal", "none")
        self._evidence = None if no_choice else Evidence(dim, seed)
        self._parameters: Parameters | None = None
        self._chosen: EncoderChosen | None = None

    def update(self, x: Vectors) -> None:
        """Take the rows of float32 [n, dim] into the statistics. InvalidInput for NaN or infinity; nothing
        changes then."""
        rows = as_rows(x, self.dim)
        self._rows += len(rows)
        if self._evidence is not None:
            self._evidence.update(rows)
            self._moments.update(rows)
        elif self._logs is not None:
            self._logs.update(rows)
        else:
            for block in blocks(*rows.shape):
                self._moments.update(rows[block] if self._seed is None else rotate(rows[block], self._seed))

    def merge(self, other: "TileEncoder") -> None:
        """Take the statistics of an encoder that was made with the same arguments and has seen other rows, as
        those of another partition; what `fit` gave before stays in use. InvalidInput for other arguments.

        Moments are those of all rows together (Chan, Golub and LeVeque, 1979), and so is the range of their
        values; of the two samples 1,024 rows are kept. The order does not matter but to the last bits.
        """
        if (other.dim, other._asked) != (self.dim, self._asked):
            ours, theirs = ({"dim": each.dim, **each._asked} for each in (self, other))
            raise InvalidInput(f"cannot merge statistics for {theirs} into those for {ours}")
        self._rows += other._rows
        self._moments.merge(other._moments)
        if self._logs is not None and other._logs is not None:
            self._logs.merge(other._logs)
        if self._evidence is not None and other._evidence is not None:
            self._evidence.merge(other._evidence)

    def to_bytes(self) -> bytes:
        """Arguments and statistics, for another process to `merge` or go on with; what was fitted is not
        stored, it is fitted again.

        A message of kind "tile encoder" (index/packing.py): dim, seed, levels, rows: int; spread: float;
        distribution, rotation: str; moments (Moments.state); logs (LogMoments.state) and evidence
        (Evidence.state), or nil.
        """
        return message(
            "tile encoder",
            {
                **self._asked,
                "dim": self.dim,
                "rows": self._rows,
                "moments": self._moments.state(),
                "logs": None if self._logs is None else self._logs.state(),
                "evidence": None if self._evidence is None else self._evidence.state(),
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "TileEncoder":
        """What `to_bytes` wrote. CorruptIndex for anything that it could not have written."""
        known = message_of("tile encoder", data)
        seed = int(number(known, "seed", 0, 2**64 - 1))
        try:
            encoder = cls(
                int(number(known, "dim", 1, MAX_DIM)),
                cast(Distribution, field(known, "distribution", str)),
                number(known, "spread", *SPREADS),
                cast(Rotation, field(known, "rotation", str)),
                seed,
                levels=int(number(known, "levels", 2, LEVELS)),
            )
        except InvalidInput as cause:
            raise CorruptIndex(f"a stored encoder was not made so: {cause}") from cause
        encoder._rows = int(number(known, "rows", 0, 2**62))
        encoder._moments = Moments.from_state(encoder.dim, known.get("moments"))
        if encoder._logs is not None:
            encoder._logs = LogMoments.from_state(encoder.dim, known.get("logs"))
        if encoder._evidence is not None:
            encoder._evidence = Evidence.from_state(encoder.dim, seed, known.get("evidence"))
        if encoder._rows and not (encoder._logs or encoder._moments.n):
            raise CorruptIndex("a stored encoder counts rows that its statistics have not seen")
        if encoder._rows and encoder._evidence is not None and not len(encoder._evidence.rows):
            raise CorruptIndex("a stored encoder counts rows of which it has no sample")
        return encoder

    def fit(self) -> Parameters:
        """Freeze parameters from the statistics so far; `encode` and `decode` use them until the next fit.

        Needs no pass over data: microseconds, where there is a choice some milliseconds for coding a sample
        of 1,024 rows in each way. No histogram is recorded. InvalidInput before the first row, and if values
        are not whole steps under "lattice".
        """
        if not self._rows:
            raise InvalidInput("fit needs statistics: update the encoder with vectors first")
        spread, seed, levels = self._spread, self._seed, self._levels
        laws = self._distribution == "auto"
        if self._evidence is not None and self._distribution == "lattice":
            lattice = lattice_of(self._evidence, levels)
            if lattice is None:
                raise InvalidInput(f"values are not whole steps, {levels} of them at most: no lattice")
            self._parameters = lattice
        elif self._evidence is not None:
            mean, variance = self._moments.value()
            found = candidates(
                self._evidence, mean, variance, laws=laws, seed=seed, spread=spread, levels=levels
            )
            self._parameters, self._chosen = choose(found, self._evidence.rows)
        elif self._logs is not None:
            self._parameters = LognormalParameters.fit(*self._logs.value(), spread=spread, levels=levels)
        else:
            self._parameters = TileParameters.fit(
                *self._moments.value(), spread=spread, rotation_seed=seed, levels=levels
            )
        return self._parameters

    @property
    def chosen(self) -> EncoderChosen | None:
        """What the last `fit` chose and why; None where the arguments left no choice."""
        return self._chosen

    def explain(self) -> str:
        """The code in use and why, in lines for people. InvalidInput before the first fit."""
        parameters = self.parameters
        if self._chosen is None:
            distribution, rotation = law_of(parameters)
            return f"{distribution} law, rotation {rotation}: as asked; fitted to {self._rows:,} rows"
        return explained(self._chosen, self._rows)

    @property
    def parameters(self) -> Parameters:
        """Those of the last `fit`."""
        if self._parameters is None:
            raise InvalidInput("the encoder has no parameters yet: fit it first")
        return self._parameters

    def encode(self, x: Vectors) -> Codes:
        """uint8 [n, dim] of float32 [n, dim]: numbers below `levels`."""
        return self.parameters.encode(x)

    def decode(self, codes: Codes, bits: int = 8) -> Vectors:
        """float32 [n, dim] from codes (8 bits, whatever their levels) or from their top 1 to 5 bits.

        Prefixes are of codes whose levels are a power of two: InvalidInput otherwise.
        """
        return self.parameters.decode(codes, bits)
