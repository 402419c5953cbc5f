"""Running statistics: two verbs, `update` and `value`, and `merge`."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from .packing import array_bytes, array_of, mapping, number

__all__ = ["LARGEST", "SPAN", "Moments", "as_rows", "spans"]

Vectors = NDArray[np.float32]
Doubles = NDArray[np.float64]

STATE_VERSION = 1
SPAN = 64  # rows worked on at once: what is needed for a moment stays small, and leaves no holes in the heap
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


class Moments:
    """Mean and variance of each dimension over a stream of rows, in float64.

    Batches are merged by Chan, Golub and LeVeque (1979), which does not cancel as sums of squares do. With
    `forget`, rows
    count half after so many further rows: a batch ages all that came before it, the rows of one batch count
        the same.
    """

    def __init__(self, dim: int, forget: float | None = None) -> None:
        if forget is not None and not forget > 0:
            raise InvalidInput(f"forget must be a positive number of rows, not {forget}")
        self.dim = dim
        self.n = 0.0
        """Rows, each by its weight."""
        self._forget = forget
        self._mean = np.zeros(dim)
        self._squares = np.zeros(dim)  # weighted sum of squared deviations from the mean

    def update(self, x: Vectors | Doubles) -> None:
        """Take the rows of float32 or float64 [n, dim]."""
        if not len(x):
            return
        batch = Moments(self.dim)
        for start in range(0, len(x), SPAN):
            rows = x[start : start + SPAN].astype(np.float64)
            mean = rows.mean(axis=0)
            rows -= mean
            batch._add(float(len(rows)), mean, np.einsum("ij,ij->j", rows, rows))
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Take what `other` has seen, as the newest rows."""
        if other.dim != self.dim:
            raise InvalidInput(f"cannot merge moments of {other.dim} dimensions into {self.dim}")
        self._add(other.n, other._mean, other._squares)

    def _add(self, n: float, mean: Doubles, squares: Doubles) -> None:
        if self._forget is not None:
            decay = 0.5 ** (n / self._forget)
            self.n *= decay
            self._squares = self._squares * decay
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
        moments = cls(dim, forget)
        moments.n = float(number(state, "n", 0, 2**62))
        moments._mean = array_of(state, "mean", "f8", (dim,))
        moments._squares = array_of(state, "squares", "f8", (dim,))
        if (moments._squares < 0).any():
            raise CorruptIndex("stored moments hold a negative variance")
        return moments
