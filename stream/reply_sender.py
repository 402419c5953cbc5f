"""Sending replies: is there such a topic, and what to do when there is not.

A reply topic is another program's word. It is looked up in metadata, within a second, and remembered for a
second when it is missing, so that a client that asks for a wrong one costs the broker little and other
clients nothing. One that was found before and cannot be looked up just now is taken to be there still.
"""

import asyncio
import time
from collections.abc import Callable

from ..errors import LogError, TopicNotFound
from .events import Logger
from .log import Headers, Log, Record, Topic, record_bytes
from .messages import Form, Rejection, ReplyRoute, encode_error, reply_draft
from .outbox import Outbox, fitting_letter
from .status import Counters

__all__ = ["ReplySender"]

LOOKUP_S = 1.0
MISSING_S = 1.0
REMEMBERED = 1000  # topics, as missing and as found


class ReplySender:
    """Sends replies, and the requests that cannot be answered to the dead-letter topic."""

    def __init__(
        self,
        log: Log,
        outbox: Outbox,
        letters: Topic,
        instance: str,
        counters: Counters,
        logger: Logger,
        more: Callable[[], Headers] = tuple,
    ) -> None:
        """`more`: headers of every reply, beside those that the request asks for."""
        self._log = log
        self._outbox = outbox
        self._letters = letters
        self._instance = instance
        self._counters = counters
        self._logger = logger
        self._more = more
        self._missing: dict[str, tuple[float, str]] = {}  # topic -> until when, why
        self._found: dict[str, Topic] = {}  # as last looked up

    async def send(self, request: Record, route: ReplyRoute, value: bytes, form: Form) -> None:
        """Send a reply along a route. Raises LogError when the log will not take it."""
        topic = await self._look_up(route)
        if isinstance(topic, str):
            await self.nowhere(Rejection(request, "unknown_reply_topic", topic))
            return
        draft = reply_draft(route, value, form, self._more())
        if record_bytes(draft) > topic.max_record_bytes:
            sentence = (
                f"the reply has {record_bytes(draft)} bytes and topic {topic.name} takes "
                f"{topic.max_record_bytes}: ask for fewer hits, or for less of each"
            )
            self._counters.failed["reply_too_large"] += 1
            draft = reply_draft(route, encode_error("reply_too_large", sentence, form), form, self._more())
        try:
            await self._log.append([draft])
        except TopicNotFound as gone:  # since it was looked up
            await self.nowhere(Rejection(request, "unknown_reply_topic", str(gone)))

    async def nowhere(self, rejection: Rejection) -> None:
        """Dead-letter a request that cannot be replied to; returns when the letter is acknowledged.

        Only then is the request done with, and its offset committed.
        """
        self._counters.unroutable += 1
        self._counters.rejected[rejection.code] += 1
        self._logger.warning("record.rejected", code=rejection.code, reason=rejection.sentence)
        await self._outbox.put([fitting_letter(rejection, self._letters, self._instance)])
        await self._outbox.flushed()

    async def _look_up(self, route: ReplyRoute) -> Topic | str:
        """The topic, or a sentence that says why there is no way."""
        now = time.monotonic()
        until, why = self._missing.get(route.topic, (0.0, ""))
        if now < until:
            return why
        found: Topic | str
        try:
            async with asyncio.timeout(LOOKUP_S):
                found = await self._log.describe(route.topic)
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            self._found[route.topic] = found
        except TopicNotFound:
            found = f"reply topic {route.topic} does not exist"
        except (TimeoutError, LogError) as error:
            cause = str(error) or "no answer within a second"
            found = self._found.get(route.topic, f"reply topic {route.topic} could not be looked up: {cause}")
        if isinstance(found, str):
            if len(self._missing) >= REMEMBERED:
                self._missing.clear()
            self._missing[route.topic] = (now + MISSING_S, found)
        elif route.partition is not None and route.partition not in found.partitions:
            return (
                f"reply topic {route.topic} has no partition {route.partition}, only {len(found.partitions)}"
            )
        return found
