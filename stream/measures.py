"""Times that a service takes of itself, for its metrics: histograms with fixed bounds."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["Histogram", "Measures"]

# From what a search of a small index takes to the longest deadline that is usual; each at most 2.5 times the
# one before, so that a quantile read from them is wrong by no more.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """How many of the times fell below each bound. Belongs to the event loop; any thread may read it."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def update(self, seconds: float) -> None:
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def value(self) -> list[int]:
        """How many times were at most each bound; the last item is how many there were."""
        return list(accumulate(list(self._counts)))


class Measures:
    """The histograms of a service, in seconds."""

    def __init__(self) -> None:
        self.apply = Histogram()  # one batch, put into the index
        self.delay = Histogram()  # of each batch's newest record, from its timestamp until it can be found
        self.search = Histogram()  # one search in its thread, reply encoded
        self.answer = Histogram()  # one request from being read to its reply encoded, waiting included
