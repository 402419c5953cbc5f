"""Upkeep of the index while it serves: small steps of repair and re-encoding, and telling what they did."""

import asyncio

from ..index.budget import Budget
from .drift_events import DriftEvents
from .shard import Shard

__all__ = ["maintain"]

STEP_S = 0.02  # of one step: a snapshot's cut or a batch waits at most about so long for it
IDLE_S = 0.1  # between looks when nothing is waiting


async def maintain(shard: Shard, drift: DriftEvents, reencoding: Budget) -> None:
    """Run upkeep until cancelled. Pauses of re-encoding are spent here, where nothing is locked."""
    while True:
        more = await shard.maintain(STEP_S, reencoding)
        await drift.emit()
        await asyncio.sleep(0 if more else reencoding.wait_s(IDLE_S))
