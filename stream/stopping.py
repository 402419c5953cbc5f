"""Stopping in order: what a signal sets off, and what ends a stop that does not come to its end."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable

from .endings import explanation
from .events import Logger

__all__ = ["on_signals", "until_stopped"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def until_stopped(work: Awaitable[None]) -> None:
    """Run a program to its end; raises the one DriftlineError that explains another end."""
    try:
        await work
    except asyncio.CancelledError:  # a signal before there was anything to save
        pass
    except BaseExceptionGroup as group:
        error = explanation(group)
        if error is None:
            raise
        raise error from group


def on_signals(act: Callable[[], object], stop_s: float, logger: Logger) -> None:
    """Do this at the first signal, and end the process when what follows takes longer than `stop_s`; at a
    second signal it ends as if nothing had been set up."""
    loop = asyncio.get_running_loop()

    def give_up() -> None:
        # From a thread of its own: what holds a stop up may be another thread inside LMDB or a slow disk,
        # which nothing can cancel. A crash at any moment loses nothing, and so this does not.
        logger.warning("service.stop_given_up", stop_s=stop_s)
        sys.stdout.flush()
        os._exit(0)

    def once() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        timer = threading.Timer(stop_s, give_up)
        timer.daemon = True  # a stop that ends in time does not wait for it
        timer.start()
        act()

    for number in SIGNALS:
        loop.add_signal_handler(number, once)
