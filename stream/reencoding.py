"""Re-encoding by hand: what the control socket does, and `driftline drift reencode`, which asks it and
watches."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from ..errors import InvalidInput
from ..index.budget import Budget
from ..index.online import OnlineIndex
from .config import Settings
from .control import Arguments, ask
from .drift_events import DriftEvents
from .feeding import progress_bar

__all__ = ["Action", "by_hand", "watch"]

LOOK_S = 0.2  # between looks at the progress

Action = Literal["now", "pause", "resume", "cancel"]


def by_hand(
    index: OnlineIndex | None, budget: Budget, drift: DriftEvents, arguments: Arguments
) -> Mapping[str, object]:
    """Do `action`, if one is given; the progress, the share of a core, and how the last re-encode ended."""
    if index is None:
        raise InvalidInput("nothing to encode anew yet: the collection has seen no vector")
    match arguments.get("action"):
        case None:
            pass
        case "now":
            index.reencode(now=True)
        case "pause":
            index.pause_reencode()
        case "resume":
            index.resume_reencode()
        case "cancel":
            index.cancel_reencode()
        case other:
            raise InvalidInput(f"reencode knows the actions now, pause, resume and cancel, not {other!r}")
    progress = asdict(index.reencode_progress())
    return {**progress, "share": round(budget.share, 4), "last": drift.last_reencode}


def watch(settings: Settings, action: Action | None, *, to_the_end: bool) -> dict[str, Any]:
    """Ask for an action, and with `to_the_end` show the progress until nothing is under way, or it is paused.

    The last answer. Ended by an interrupt, the re-encode goes on.
    """
    answer = ask(settings.data_dir, "reencode", {} if action is None else {"action": action})
    if not to_the_end or not _under_way(answer):
        return answer
    with progress_bar() as progress:
        bar = progress.add_task("re-encoding", total=None, note="")
        while _under_way(answer):
            time.sleep(LOOK_S)
            answer = ask(settings.data_dir, "reencode")
            note = f"slabs surveyed; {answer['reason']}"
            if answer["state"] == "moving":
                note = f"slabs moved, {answer['rows_done']:,} rows; {answer['share']:.0%} of a core"
            progress.update(bar, completed=answer["slabs_done"], total=answer["slabs"] or None, note=note)
    time.sleep(LOOK_S)  # what was said last may have been on its way
    return ask(settings.data_dir, "reencode")


def _under_way(answer: Mapping[str, Any]) -> bool:
    return answer["state"] != "idle" and not answer["paused"]
