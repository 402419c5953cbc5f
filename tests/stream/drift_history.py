"""A made-up history of a collection's drift, in the events that the index itself would tell."""

import json
from dataclasses import fields
from typing import Any

from driftline.index.events import (
    DriftDetected,
    DriftWindow,
    Event,
    FrameOpened,
    FrameRetired,
    ReencodeFinished,
    ReencodeStarted,
)

__all__ = ["COLLECTION", "START_MS", "alarm", "canary", "story", "told", "window"]

COLLECTION = "driftline.vectors"
START_MS = 1_795_000_000_000
WINDOW_ROWS = 1000

DriftEvent = dict[str, Any]


def told(event: Event, at_s: float) -> DriftEvent:
    """The event as it stands on the drift topic."""
    return document(type(event), at_s, **event.to_fields())


def document(kind: type[Event], at_s: float, **values: Any) -> DriftEvent:
    """The same from values, some at least; other fields hold nothing."""
    plain: dict[Any, Any] = {int: 0, float: 0.0, str: "", bool: False}
    nothing = {field.name: plain.get(field.type) for field in fields(kind)}
    time_ms = START_MS + round(1000 * at_s)
    event = {"event": kind.name, "time_ms": time_ms, "topic": COLLECTION, **nothing, **values}
    return json.loads(json.dumps(event))


def window(
    at_s: float,
    rows_seen: int,
    fit_loss: float = 1.02,
    *,
    differs: str = "",
    worst: dict[int, float] | None = None,
    compared: bool = True,
    **values: Any,
) -> DriftEvent:
    """worst: PSI by dimension."""
    return document(
        DriftWindow,
        at_s,
        rows=WINDOW_ROWS,
        rows_seen=rows_seen,
        fit_loss=fit_loss,
        drifted_share=0.25 if differs else 0.0,
        worst=[{"dimension": dim, "psi": psi, "shift_sigmas": psi} for dim, psi in (worst or {}).items()],
        reference_rows=4000 if compared else 0,
        differs=differs,
        **values,
    )


def alarm(at_s: float, rows_seen: int, since_rows_seen: int, worst: dict[int, float]) -> DriftEvent:
    """worst: shift of the mean by dimension."""
    return document(
        DriftDetected,
        at_s,
        rows_seen=rows_seen,
        since_rows_seen=since_rows_seen,
        differs="fit_loss",
        fit_loss=8.0,
        drifted_share=0.25,
        worst=[{"dimension": dim, "psi": 1.0, "shift_sigmas": shift} for dim, shift in worst.items()],
    )


def canary(at_s: float, recall: float, low: float, high: float) -> DriftEvent:
    return {
        "event": "canary.window", "time_ms": START_MS + round(1000 * at_s), "topic": COLLECTION,
        "queries": 200, "k": 10, "ef": 64, "recall": recall, "low": low, "high": high,
        "raw_recall": None, "cpu_share": 0.01,
    }  # fmt: skip


def story() -> list[DriftEvent]:
    """Forty windows, one each half minute. At 600 s the data change: two windows differ, then a new frame.

    Dimension 7 drifts most, then 300, then 12. Ingestion is twice as fast in the last ten windows.
    """
    events = [
        told(FrameOpened(1, "enough rows are known to fit a code", 1000, None), 0),
        told(ReencodeStarted("enough rows are known to fit a code", 1, 1, 1000, None), 0.1),
        told(ReencodeFinished(1, 1000, 0.2, None, None), 0.3),
        told(FrameRetired(0), 0.4),
    ]
    for index in range(1, 41):
        at = 30.0 * index if index <= 30 else 900 + 15.0 * (index - 30)
        shown: dict[str, Any] = {"fit_loss": 1.0 + 0.01 * (index % 5), "compared": index > 4}
        if index > 4:
            shown["worst"] = {12: 0.12, 40 + index % 3: 0.03}
        if index in (20, 21):
            shown |= {
                "fit_loss": {20: 4.0, 21: 8.0}[index],
                "differs": "fit_loss",
                "worst": {7: 3.0, 300: 0.7},
            }
        events.append(window(at, 1000 * index + 1000, **shown))
        if index % 4 == 0:
            dip = 0.05 if index == 20 else 0.0
            events.append(canary(at + 1, 0.98 - dip, 0.965 - dip, 0.99 - dip))
    events += [
        alarm(630.1, 22_000, 20_000, {7: 2.0, 300: 1.0}),
        told(FrameOpened(2, "drift", 2000, 3.5), 630.2),
        told(ReencodeStarted("drift", 2, 3, 3000, 1.4), 630.3),
        told(ReencodeFinished(3, 3000, 60.0, 1.4, 1.35), 690.3),
    ]
    return sorted(events, key=lambda event: event["time_ms"])
