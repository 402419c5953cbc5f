"""Upkeep of the index while it serves: small steps of repair and re-encoding, and telling what they did."""

import asyncio

from .drift_events import DriftEvents
from .shard import Shard

__all__ = ["maintain"]

STEP_S = 0.02  # of one step: a snapshot's cut or a batch waits at most about so long for it
IDLE_S = 0.1  # between looks when nothing is waiting


async def maintain(shard: Shard, drift: DriftEvents) -> None:
    """Run upkeep until cancelled."""
    while True:
        more, events = await shard.maintain(STEP_S)
        await drift.emit(events)
        await asyncio.sleep(0 if more else IDLE_S)
