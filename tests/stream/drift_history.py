"""A made-up history of a collection's drift, in the events that the index itself would tell."""

import json
from typing import Any

from driftline.index.events import (
    DriftDetected,
    DriftWindow,
    Event,
    FrameOpened,
    FrameRetired,
    ReencodeFinished,
    ReencodeStarted,
    WorstDimension,
)

__all__ = ["COLLECTION", "START_MS", "canary", "story", "told", "window"]

COLLECTION = "driftline.vectors"
START_MS = 1_795_000_000_000
WINDOW_ROWS = 1000

DriftEvent = dict[str, Any]


def told(event: Event, at_s: float) -> DriftEvent:
    """The event as it stands on the drift topic."""
    time_ms = START_MS + round(1000 * at_s)
    document = {"event": event.name, "time_ms": time_ms, "topic": COLLECTION, **event.to_fields()}
    return json.loads(json.dumps(document))


def window(
    at_s: float,
    rows_seen: int,
    fit_loss: float = 1.02,
    *,
    differs: str = "",
    worst: dict[int, float] | None = None,
    compared: bool = True,
) -> DriftEvent:
    """worst: PSI by dimension."""
    return told(
        DriftWindow(
            rows=WINDOW_ROWS,
            rows_seen=rows_seen,
            fit_loss=fit_loss,
            error=fit_loss,
            best_error=1.0,
            psi=0.02,
            jensen_shannon=0.01,
            wasserstein_sigmas=0.05,
            mean_shift_sigmas=0.1,
            drifted_share=0.25 if differs else 0.0,
            worst=tuple(WorstDimension(dim, psi, psi) for dim, psi in (worst or {}).items()),
            inflation=1.0,
            p_value=1e-9 if differs else 0.5,
            reference_rows=4000 if compared else 0,
            differs=differs,
            detected=False,
        ),
        at_s,
    )


def canary(at_s: float, recall: float, low: float, high: float) -> DriftEvent:
    return {
        "event": "canary.window", "time_ms": START_MS + round(1000 * at_s), "topic": COLLECTION,
        "queries": 200, "k": 10, "ef": 64, "recall": recall, "low": low, "high": high,
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
    worst = (WorstDimension(7, 3.0, 2.0), WorstDimension(300, 0.7, 1.0))
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
    detected = DriftDetected(22_000, 20_000, "fit_loss", 8.0, 0.25, 0.4, 1e-9, worst)
    events += [
        told(detected, 630.1),
        told(FrameOpened(2, "drift", 2000, 3.5), 630.2),
        told(ReencodeStarted("drift", 2, 3, 3000, 1.4), 630.3),
        told(ReencodeFinished(3, 3000, 60.0, 1.4, 1.35), 690.3),
    ]
    return sorted(events, key=lambda event: event["time_ms"])
