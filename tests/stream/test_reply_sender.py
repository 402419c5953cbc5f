"""Looking up where a reply goes, on a log whose metadata may not answer."""

import asyncio
import io
from collections.abc import Sequence
from typing import Any, cast

import pytest
from driftline.errors import TopicNotFound
from driftline.stream import reply_sender
from driftline.stream.config import Logging
from driftline.stream.events import make_logger
from driftline.stream.log import Draft, Log, Position, Record, Topic
from driftline.stream.messages import Form, ReplyRoute
from driftline.stream.outbox import Outbox
from driftline.stream.reply_sender import ReplySender
from driftline.stream.status import Counters

TOPIC = Topic("replies", (0,), frozenset(), 1 << 20)
REQUEST = Record("search", 0, 7, 0, None, b"", ())
ROUTE = ReplyRoute("replies", 0, b"c")


class Metadata:
    """A log that takes every record, and describes topics if it is told to."""

    def __init__(self) -> None:
        self.answers = True
        self.exists = True
        self.written: list[str] = []

    async def describe(self, topic: str) -> Topic:
        if not self.answers:
            await asyncio.Event().wait()
        if not self.exists:
            raise TopicNotFound("no such topic")
        return TOPIC

    async def append(self, drafts: Sequence[Draft]) -> list[Position]:
        self.written += [draft.topic for draft in drafts]
        return [Position(draft.topic, 0, 0) for draft in drafts]


async def test_a_topic_that_cannot_be_looked_up_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker slow to answer must not cost the replies of a topic that was there; one never found, or that
    is gone, does."""
    monkeypatch.setattr(reply_sender, "LOOKUP_S", 0.01)
    monkeypatch.setattr(reply_sender, "MISSING_S", 0.0)
    metadata, counters, logger = Metadata(), Counters(), make_logger(Logging(), io.StringIO())
    log = cast(Log, cast(Any, metadata))
    outbox = Outbox(log, logger, 10)
    letters = Topic("letters", (0,), frozenset(), 1 << 20)
    sender = ReplySender(log, outbox, letters, "group", counters, logger)

    async def sent() -> str:
        await sender.send(REQUEST, ROUTE, b"", Form.JSON)
        return metadata.written[-1]

    sending = asyncio.create_task(outbox.run())
    metadata.answers = False
    assert await sent() == "letters"
    metadata.answers = True
    assert await sent() == "replies"
    metadata.answers = False
    assert await sent() == "replies"
    metadata.answers, metadata.exists = True, False
    assert await sent() == "letters"
    assert counters.unroutable == 2
    sending.cancel()
