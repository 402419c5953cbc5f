"""Running statistics: two verbs, `update` and `value`, and `merge`."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ..native import moments
from .packing import array_bytes, array_of, mapping, message, message_of, number

__all__ = ["LARGEST", "SPAN", "Moments", "as_rows", "blocks", "spans"]

Vectors = NDArray[np.float32]
Doubles = NDArray[np.float64]

STATE_VERSION = 1
SPAN = 64  # rows worked on at once: what is needed for a moment stays small, and leaves no holes in the heap
BLOCK = 1 << 18  # bytes of rows rotated at once: what is next done with them finds them in the cache
LARGEST = 1e18  # of a component: its square, and a rotated vector's components, stay finite in float32


def as_rows(x: Any, dim: int) -> Vectors:
    """`x` as contiguous float32 [n, dim]. InvalidInput if it has another shape, NaN, infinity or a component
    beyond 1e18."""
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinity, and is refused below
        rows = np.ascontiguousarray(x, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InvalidInput(f"expected vectors of shape [n, {dim}], got {list(rows.shape)}")
    if rows.size and not (rows.min() >= -LARGEST and rows.max() <= LARGEST):  # NaN compares false
        row, column = np.argwhere(~(np.abs(rows) <= LARGEST))[0]
        raise InvalidInput(f"vector {row} holds {rows[row, column]} in dimension {column}")
    return rows


def spans(parts: Iterable[Vectors]) -> Iterator[Vectors]:
    """What the parts are together, SPAN rows at a time, however it was cut into them."""
    held: list[Vectors] = []
    count = 0
    for part in parts:
        start = 0
        while start < len(part):
            held.append(part[start : start + SPAN - count])
            start += len(held[-1])
            count += len(held[-1])
            if count == SPAN:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def blocks(rows: int, dim: int) -> Iterator[slice]:
    """0..rows in parts of BLOCK bytes of float32 [rows, dim]."""
    size = max(BLOCK // (4 * dim), 1)
    return (slice(start, start + size) for start in range(0, rows, size))


class Moments:
    """Mean and variance of each dimension over a stream of rows, in float64.

    Rows are taken one by one (Welford, 1962), which does not cancel as sums of squares do: the same bits
    however they are cut into batches, on every machine. With `forget`, a row counts half after so many
    further rows.
    """

    def __init__(self, dim: int, forget: float | None = None) -> None:
        if forget is not None and not forget > 0:
            raise InvalidInput(f"forget must be a positive number of rows, not {forget}")
        self.dim = dim
        self.n = 0.0
        """Rows, each by its weight."""
        self._forget = forget
        self._mean: Doubles = np.zeros(dim)
        self._squares: Doubles = np.zeros(dim)  # weighted sum of squared deviations from the mean

    def update(self, x: Vectors | Doubles) -> None:
        """Take the rows of float32 or float64 [n, dim]; those of float64, in Python, are meant to be few."""
        if x.dtype == np.float64:
            for row in x:
                self._age(1)
                self._add(1.0, row, np.zeros(self.dim))
            return
        rows = np.asarray(x, np.float32)
        self.n, self._mean, self._squares = moments(rows, self.n, self._mean, self._squares, self._kept(1))

    def merge(self, other: "Moments") -> None:
        """Take what `other` has seen (Chan, Golub and LeVeque, 1979).

        If it forgets, its rows have aged by themselves, as those of another partition have: neither side
        ages the other. If it does not, it is a batch of rows that are newer than all that were seen here.
        """
        if other.dim != self.dim:
            raise InvalidInput(f"cannot merge moments of {other.dim} dimensions into {self.dim}")
        if other._forget is None:
            self._age(other.n)
        self._add(other.n, other._mean, other._squares)

    def _kept(self, rows: float) -> float:
        """What a weight is multiplied by when so many rows come."""
        return 1.0 if self._forget is None else 0.5 ** (rows / self._forget)

    def _age(self, rows: float) -> None:
        kept = self._kept(rows)
        self.n *= kept
        self._squares = self._squares * kept

    def _add(self, n: float, mean: Doubles, squares: Doubles) -> None:
        total = self.n + n
        if not total:
            return
        apart = mean - self._mean
        self._mean = self._mean + apart * (n / total)
        self._squares = self._squares + squares + apart * apart * (self.n * n / total)
        self.n = total

    def value(self) -> tuple[Doubles, Doubles]:
        """Mean and (population) variance, float64 [dim] each. InvalidInput before the first row."""
        if not self.n:
            raise InvalidInput("no row has been seen yet")
        return self._mean.copy(), self._squares / self.n

    def to_bytes(self) -> bytes:
        """A message of kind "moments" (index/packing.py), with the fields of `state`: for another process to
        merge."""
        return message("moments", self.state())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Moments":
        """What `to_bytes` wrote. CorruptIndex for anything that it could not have written."""
        state = message_of("moments", data)
        return cls.from_state(len(array_of(state, "mean", "f8", (-1,))), state)

    def state(self) -> dict[str, Any]:
        """For `from_state`: version (1), n, forget (float or nil), mean and squares (f8 [dim])."""
        return {
            "version": STATE_VERSION,
            "n": self.n,
            "forget": self._forget,
            "mean": array_bytes(self._mean),
            "squares": array_bytes(self._squares),
        }

    @classmethod
    def from_state(cls, dim: int, state: Any) -> "Moments":
        """What `state` said. CorruptIndex for what it cannot have said."""
        state = mapping(state, "moments")
        if state.get("version") != STATE_VERSION:
            raise CorruptIndex(f"moments of version {state.get('version')!r}, not {STATE_VERSION}")
        forget = None if state.get("forget") is None else number(state, "forget", 1e-300, 1e300)
        restored = cls(dim, forget)
        restored.n = float(number(state, "n", 0, 2**62))
        restored._mean = array_of(state, "mean", "f8", (dim,))
        restored._squares = array_of(state, "squares", "f8", (dim,))
        if (restored._squares < 0).any():
            raise CorruptIndex("stored moments hold a negative variance")
        return restored
