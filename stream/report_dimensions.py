"""The dimensions of a drift report: which drifted most in a period, and how far in each window.

A `drift.window` names its most significant dimensions (`worst`); where it also carries arrays of all of them
(`psis`, `shifts`: base64 of little-endian float16 [dim]), those are taken.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DimensionDrift", "Dimensions", "drift_of_dimensions"]

DRAWN = 24  # dimensions

# dimensions, their PSI, and the shift of their mean in sigmas: [n] each
Told = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class DimensionDrift:
    """How far one dimension was from the reference in a window."""

    dimension: int
    psi: float
    shift_sigmas: float


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The dimensions over a period."""

    told: int  # different ones
    all_told: bool  # whether every window tells of all dimensions, and not of the most significant only
    drifted: tuple[int, ...]  # that drifted most by the sum of PSI over windows, the most first


def drift_of_dimensions(
    windows: Sequence[Mapping[str, Any]],
) -> tuple[Dimensions, list[tuple[DimensionDrift, ...]]]:
    """Of `drift.window` events: the period's dimensions, and how far `drifted` ones were in each window."""
    sums: NDArray[np.float64] = np.zeros(0)
    seen: NDArray[np.bool_] = np.zeros(0, np.bool_)
    all_told = True
    for window in windows:
        (dimensions, psis, _), complete = _told(window)
        all_told &= complete or not window["reference_rows"]
        more = int(dimensions.max(initial=-1)) + 1 - len(sums)
        if more > 0:
            sums, seen = np.pad(sums, (0, more)), np.pad(seen, (0, more))
        sums[dimensions] += psis
        seen[dimensions] = True
    order = np.argsort(-sums, kind="stable")
    drifted: list[int] = order[seen[order]][:DRAWN].tolist()
    chosen = np.zeros(len(sums), np.bool_)
    chosen[drifted] = True
    cells: list[tuple[DimensionDrift, ...]] = []
    for window in windows:
        told = _told(window)[0]
        kept = chosen[told[0]]
        rows = zip(*(column[kept].tolist() for column in told), strict=True)
        cells.append(tuple(DimensionDrift(*row) for row in rows))
    return Dimensions(int(seen.sum()), all_told, tuple(drifted)), cells


def _told(window: Mapping[str, Any]) -> tuple[Told, bool]:
    """What a window tells of dimensions, and whether that is all of them."""
    psis, shifts = (_unpacked(window.get(name)) for name in ("psis", "shifts"))
    if len(psis) and len(psis) == len(shifts):
        return (np.arange(len(psis)), psis, shifts), True
    worst = window["worst"]
    return (
        np.array([each["dimension"] for each in worst], np.int64),
        np.array([each["psi"] for each in worst], np.float64),
        np.array([each["shift_sigmas"] for each in worst], np.float64),
    ), False


def _unpacked(packed: object) -> NDArray[np.float64]:
    """Empty where there is nothing, or nothing that could have been packed."""
    try:
        values = np.frombuffer(b64decode(packed or "", validate=True), "<f2")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return np.zeros(0)
    return np.nan_to_num(values.astype(np.float64))
