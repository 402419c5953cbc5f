"""The canary of a service: takes its sample from the queries as they are answered, checks it within the
budget, and sets how wide searches go that do not say.

What is measured and decided stands in index/canary.py and index/decide.py; docs/drift.md says how to read it.
"""

import asyncio
import time

from ..index.canary import Canary, CanarySettings, Vectors
from ..index.decide import Action, Aims, Width, decide, is_lost, next_width
from ..index.events import CanaryWindow, EfChanged, Event
from ..index.online import OnlineIndex
from .config import Settings
from .drift_events import DriftEvents
from .events import Logger
from .shard import Shard
from .status import RecallStatus

__all__ = ["LiveCanary"]

POLL_S = 0.1  # between looks at whether the next batch is due
STALE_S = 3600.0  # without a batch for so long nobody knows what recall is


class LiveCanary:
    """`offer` and `ef` are for search threads; the rest belongs to the event loop."""

    def __init__(self, settings: Settings, shard: Shard, drift: DriftEvents, logger: Logger) -> None:
        search = settings.search
        self._shard = shard
        self._drift = drift
        self._logger = logger
        self._canary = Canary(CanarySettings(**settings.canary.model_dump()), rescore=search.rescore)
        self._aims = Aims(search.recall_target, search.ef, search.ef_limit)
        self._width = Width(search.ef)
        self._told = False  # that recall is low and nothing is left to do about it
        self._window: CanaryWindow | None = None
        self._window_at = self._batch_at = time.monotonic()

    @property
    def ef(self) -> int:
        """The width of a search that does not say."""
        return self._width.ef

    def offer(self, query: Vectors) -> None:
        """A query that was answered without a filter, float32 [dim]; copied if it is taken."""
        self._canary.offer(query)

    @property
    def status(self) -> RecallStatus | None:
        """The newest window; None before the first."""
        window = self._window
        if window is None:
            return None
        return RecallStatus(
            k=window.k,
            ef=window.ef,
            recall=window.recall,
            low=window.low,
            high=window.high,
            queries=window.queries,
            age_s=round(time.monotonic() - self._window_at, 3),
        )

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            index = self._shard.index
            if index is None:
                continue
            if self._canary.due:
                self._batch_at = time.monotonic()
                window = await self._shard.beside(self._canary.step, index, self.ef)
                if window is not None:
                    await self._drift.emit(self._answer(index, window))
            elif time.monotonic() - self._batch_at > STALE_S:
                index.heed(None)

    def _answer(self, index: OnlineIndex, window: CanaryWindow) -> list[Event]:
        """Draw the consequences of a window, and say so."""
        self._window, self._window_at = window, time.monotonic()
        lost = is_lost(window, self._aims) if self._aims.recall else None
        action = decide(index.drifted, lost)
        index.heed(lost)
        before, self._width = self.ef, next_width(self._width, window, self._aims, action)
        if self.ef != before:
            reason = "recall is below its target" if self.ef > before else "less would do"
            return [window, EfChanged(self.ef, before, window.recall, self._aims.recall, reason)]
        at_limit = action is Action.WIDEN
        if at_limit and not self._told:
            found = {"recall": window.recall, "high": window.high, "target": self._aims.recall}
            self._logger.warning("search.recall_low", **found, ef=self.ef)
        self._told = at_limit
        return [window]
