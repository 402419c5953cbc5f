"""Drift events as sentences."""

import time
from collections.abc import Mapping
from typing import Any

__all__ = ["sentence", "time_of_day"]

KINDS = {  # of a change; records of older versions have none
    "abrupt": " abruptly",
    "gradual": " gradually",
    "scale": " in scale",
    "returning": " back to an earlier state",
}


def time_of_day(event: Mapping[str, Any]) -> str:
    """When a drift event was told, in local time."""
    return time.strftime("%H:%M:%S", time.localtime(event["time_ms"] / 1000))


def sentence(event: Mapping[str, Any]) -> str:
    """One drift event, as it stands on the drift topic, for people."""
    try:
        return _sentence(event)
    except (KeyError, TypeError, ValueError):
        return f"{event['event']}: not as this version tells it"


def _sentence(event: Mapping[str, Any]) -> str:
    match event["event"]:
        case "drift.window":
            compared = "a reference is being learned"
            if event["reference_rows"]:
                compared = (
                    f"{event['drifted_share']:.0%} of dimensions differ from the reference, "
                    f"mean shift {event['mean_shift_sigmas']:.2f} sigma"
                )
            return f"rows up to {event['rows_seen']:,}: fit loss {event['fit_loss']:.3f}; {compared}"
        case "drift.detected":
            worst = [f"{w['dimension']} ({w['shift_sigmas']:+.1f} sigma)" for w in event["worst"][:3]]
            how = f"fit loss {event['fit_loss']:.3f}"  # all there is to tell while a reference is learned
            if worst:
                how = f"{event['drifted_share']:.0%} of dimensions, most of all {', '.join(worst)}"
            return (
                f"the data changed{KINDS.get(event.get('kind', ''), '')} "
                f"after row {event['since_rows_seen']:,}, noticed at row {event['rows_seen']:,}: {how}"
            )
        case "encoder.chosen":
            errors = ", ".join(
                f"{code['distribution']}, rotation {code['rotation']}: {code['error']:.3g}"
                for code in event["measured"]
            )
            turned = "after a random rotation" if event["rotation"] == "random" else "as they are"
            return (
                f"vectors are coded by the {event['distribution']} law, {turned}: {event['reason']} "
                f"(error / variance by {errors})"
            )
        case "frame.opened":
            return (
                f"new vectors are coded in frame {event['frame']} from now on: {event['reason']}; "
                f"fitted to {event['fitted_rows']:,} rows"
                + _with_gain(event["expected_gain"], "; that makes their error {} smaller")
            )
        case "frame.retired":
            return f"frame {event['frame']} codes no vector any more"
        case "reencode.started":
            return f"{_slabs(event)} to move to another frame: {event['reason']}" + _with_gain(
                event["expected_gain"], "; their error should become {} smaller"
            )
        case "reencode.progress":
            return f"{event['slabs_done']} of {event['slabs']} slabs moved"
        case "reencode.finished":
            return (
                f"{_slabs(event)} moved in {event['seconds']:.2f} s"
                + _with_gain(event["measured_gain"], "; their error became {} smaller")
                + _with_gain(event["predicted_gain"], " ({} was predicted)")
            )
        case "reencode.cancelled":
            return f"re-encoding ended early: {event['reason']}; {_moved(event)}"
        case "reencode.paused":
            return f"re-encoding is paused; {_moved(event)}"
        case "reencode.resumed":
            return f"re-encoding goes on; {_moved(event)}"
        case "reencode.declined":
            what = f"not moved: {_slabs(event)}" if event["slabs"] else "no new frame"
            best = _with_gain(
                event["expected_gain"], f"; the best gain was {{}}, {_ratio(event['threshold'])} is wanted"
            )
            return f"{what}; {event['reason']}{best}"
        case "canary.window":
            raw = event["raw_recall"]
            return (
                f"recall@{event['k']} of {event['queries']} live queries at ef {event['ef']}: "
                f"{event['recall']:.4f}, between {event['low']:.4f} and {event['high']:.4f}"
                + ("" if raw is None else f"; {raw:.4f} by all raw vectors")
                + f"; {event['cpu_share']:.1%} of a core"
            )
        case "ef.changed":
            return (
                f"searches use ef {event['ef']} from now on, not {event['before']}: {event['reason']} "
                f"(recall {event['recall']:.4f}, wanted {event['target']:.4f})"
            )
        case _:
            return _fields(event)


def _fields(event: Mapping[str, Any]) -> str:
    fields = {name: value for name, value in event.items() if name not in ("event", "time_ms", "topic")}
    return f"{event['event']}: " + ", ".join(f"{name} {value}" for name, value in fields.items())


def _with_gain(gain: float | None, text: str) -> str:
    """`text` with the gain in place of {}; nothing where there is none, as for rows that were floats."""
    return "" if gain is None else text.format(_ratio(gain))


def _slabs(event: Mapping[str, Any]) -> str:
    return f"{event['slabs']} slab{'s' if event['slabs'] != 1 else ''} ({event['rows']:,} rows)"


def _moved(event: Mapping[str, Any]) -> str:
    if not event["slabs"]:
        return "no slab was moving"
    return f"{event['slabs_done']} of {event['slabs']} slabs ({event['rows_done']:,} rows) had moved"


def _ratio(gain: float) -> str:
    return f"{gain:.2f}x"
