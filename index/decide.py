"""What drift and the canary together call for. Pure: what is known goes in, what to do comes out.

| drift | recall | what to do |
|---|---|---|
| no | holds | nothing; a search width that was raised comes down again where less would do |
| yes | holds | warn: what comes in gets codes of its own, older rows keep theirs |
| no | lost | search wider, up to a limit |
| yes | lost | encode anew |
| yes | not known | encode anew: without a canary drift decides alone |

Recall is *lost* when all of its interval lies below the target, so that a chance finding costs nothing.
"""

import math
from dataclasses import dataclass
from enum import Enum

from .events import CanaryWindow

__all__ = ["Action", "Aims", "Width", "decide", "is_lost", "next_width"]

STEP = 1.5  # of the width, up and down
ROOM = 0.25  # of the misses that the target allows: with fewer, one step less would do
CALM, MOST_CALM = 3, 96  # such windows running before a step down: at first, and at most


class Action(Enum):
    """What to do, beside giving what comes in the frame that suits it."""

    NOTHING = "nothing"
    WARN = "warn"
    WIDEN = "widen"
    REENCODE = "reencode"


def decide(drifted: bool, lost: bool | None) -> Action:
    """The table above; lost: None where nobody knows."""
    if drifted:
        return Action.WARN if lost is False else Action.REENCODE
    return Action.WIDEN if lost else Action.NOTHING


@dataclass(frozen=True, slots=True)
class Aims:
    """What is wanted of searches."""

    recall: float  # at the canary's k
    ef: int  # of a search that does not say; the least
    ef_limit: int  # the most that it is raised to


@dataclass(frozen=True, slots=True)
class Width:
    """The ef of searches that do not say."""

    ef: int
    calm: int = 0  # windows running for which less would have done
    wait: int = CALM  # for so many, before it is made less


def is_lost(window: CanaryWindow, aims: Aims) -> bool:
    """Whether recall is below the target beyond doubt."""
    return window.high < aims.recall


def next_width(width: Width, window: CanaryWindow, aims: Aims, action: Action) -> Width:
    """Wider by a step where that is called for; narrower by one after windows that have room.

    A window that was asked with another ef tells nothing. By a step down misses grow three- or fourfold (SIFT
    and the commits of docs/tuning.md), which ROOM makes room for; should it not suffice, each step up doubles
    the wait before the next one down, so that the width comes to rest.
    """
    if window.ef != width.ef:
        return width
    if action is Action.WIDEN:
        wider = max(width.ef, min(math.ceil(width.ef * STEP), aims.ef_limit))
        return Width(wider, wait=min(2 * width.wait, MOST_CALM))
    if width.ef <= aims.ef or 1 - window.recall > ROOM * (1 - aims.recall):
        return Width(width.ef, wait=width.wait)
    if width.calm + 1 < width.wait:
        return Width(width.ef, width.calm + 1, width.wait)
    return Width(max(aims.ef, int(width.ef / STEP)), wait=width.wait)
