"""What kind of change an alarm is about.

| kind        | what is true                                                                            |
|-------------|-----------------------------------------------------------------------------------------|
| `returning` | a live frame that is not the one in use codes the new rows as well as a new one would   |
| `scale`     | more of the change lies in the dimensions' spreads than in their means                  |
| `gradual`   | the windows before the alarm lie on the way, none far from the one before               |
| `abrupt`    | none of these: the change came within two windows                                       |

The first that holds is told. Spread and mean are weighed as the Kullback-Leibler divergence of two normal
laws does for small changes: a mean moved by m sigmas counts m^2 / 2, a spread r times as wide (ln r)^2.
Chance adds the same to both.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["RETURNS", "Kind", "kind_of"]

Kind = Literal["abrupt", "gradual", "returning", "scale"]
Doubles = NDArray[np.float64]

JUMP = 2 / 3  # of the way within two windows, which a change inside one may touch, is abrupt
RETURNS = 1.05  # error of an earlier frame / that of a new one, up to which the earlier one is used again
LEAST_VARIANCE = 1e-3  # of a feature, in squared sigmas: a constant dimension has none


def kind_of(
    path: Sequence[Doubles],
    origin: Doubles,
    dimensions: NDArray[np.bool_],
    errors: tuple[float, Sequence[float], float],
    min_gain: float,
) -> Kind:
    """The kind of a change.

    path: [2, dim] each, mean and mean square of every dimension, in sigmas, in the windows up to the last one
    that differed, oldest first, one or more; origin: the same of the reference. dimensions: bool [dim], those
    that count, all of them if none is true. errors: mean squared error of the last window's rows in the frame
    in use, in the others that are alive, and in one fitted to themselves. min_gain: from which another frame
    is used.
    """
    now, others, fitted = errors
    if others and min(others) * min_gain <= now and min(others) <= RETURNS * fitted:
        return "returning"
    chosen = dimensions if dimensions.any() else np.ones_like(dimensions)
    target = path[-1][:, chosen]
    start = origin[:, chosen]
    before, after = (np.maximum(each[1] - each[0] ** 2, LEAST_VARIANCE) for each in (start, target))
    moved = float(((target[0] - start[0]) ** 2 / before).sum()) / 2
    widened = float((np.log(after / before) ** 2).sum()) / 4
    if widened > moved:
        return "scale"
    places = [_along(each[:, chosen], start, target) for each in path]
    steps = [later - earlier for earlier, later in zip(places, places[2:], strict=False)]
    return "gradual" if steps and max(steps) < JUMP else "abrupt"


def _along(features: Doubles, start: Doubles, target: Doubles) -> float:
    """How far on the way from the start (0) to the target (1)."""
    way = target - start
    length = float((way * way).sum())
    return float(((features - start) * way).sum()) / length if length > 0 else math.nan
