"""Whether the service is ready: everything that the topic says is in the index, as far as can be known."""

import time
from collections.abc import Mapping
from typing import Protocol

from .events import Logger

__all__ = ["CATCHING_UP", "RECONCILING", "TOPIC_MISSING", "Readiness"]

CATCHING_UP = "not everything is applied that was in the topic at start"
RECONCILING = "tombstones may have been missed: the topic is read anew"
TOPIC_MISSING = "the topic does not exist"


class Standing(Protocol):
    """What is told when the service becomes ready."""

    @property
    def live(self) -> int: ...

    @property
    def digest(self) -> str | None: ...

    @property
    def offsets(self) -> Mapping[int, int]: ...


class Readiness:
    """Ready while nothing stands against it; every change is logged. At first it catches up."""

    def __init__(self, shard: Standing, logger: Logger) -> None:
        self._shard = shard
        self._logger = logger
        self._against = {CATCHING_UP}
        self._since = time.monotonic()

    def is_set(self) -> bool:
        return not self._against

    @property
    def against(self) -> tuple[str, ...]:
        """Why it is not ready."""
        return tuple(sorted(self._against))

    def hold(self, reason: str) -> None:
        if not self._against:
            self._since = time.monotonic()
            self._logger.warning("service.unready", reason=reason)
        self._against.add(reason)

    def release(self, reason: str) -> None:
        was = bool(self._against)
        self._against.discard(reason)
        if was and not self._against:
            self._logger.info(
                "service.ready",
                live=self._shard.live,
                digest=self._shard.digest,
                offsets=dict(self._shard.offsets),
                catch_up_s=round(time.monotonic() - self._since, 3),
            )
