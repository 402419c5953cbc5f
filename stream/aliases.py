"""Aliases: names that clients search, each meaning one collection at a time.

They lie on a compacted topic, so that a switch is one record: every gateway sees it, and none sees half of
it. Its key is the alias, its value JSON; a null value takes the alias away.

| field      | meaning                                   |
|------------|-------------------------------------------|
| collection | its name, for people                      |
| vectors    | the topic of its vectors                  |
| shards     | the topic on which its shards are asked   |
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidInput
from .config import Settings
from .control import ServiceUnreachable, ask
from .events import Logger
from .log import Draft, Log, Reader, Record, is_topic_name
from .opening import open_configured
from .topics import prepare_topics

__all__ = ["Alias", "Target", "aliases", "switch", "target_of"]

FETCH_S = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """Whose shards are asked, and where."""

    collection: str | None
    vectors: str
    shards: str


def target_of(settings: Settings) -> Target:
    """The collection that settings are of."""
    return Target(settings.collection, settings.topics.vectors, settings.topics.shards)


def encode_alias(topic: str, alias: str, target: Target | None) -> Draft:
    """The record that gives an alias its meaning, or takes it away."""
    value = None if target is None else json.dumps(asdict(target)).encode()
    return Draft(topic, alias.encode(), value)


def decode_alias(record: Record) -> Target | None:
    """What an alias means from a record on. Raises InvalidInput for what is no such record."""
    if record.value is None:
        return None
    try:
        document: Any = json.loads(record.value)
        target = Target(document["collection"], document["vectors"], document["shards"])
        if not all(is_topic_name(topic) for topic in (target.vectors, target.shards)):
            raise ValueError("vectors and shards must be names of topics")
    except (ValueError, KeyError, TypeError) as wrong:
        raise InvalidInput(f"no alias: {type(wrong).__name__} {wrong}") from None
    return target


class Alias:
    """Follows what one alias means."""

    def __init__(self, log: Log, topic: str, name: str, logger: Logger) -> None:
        self.name = name
        self.target: Target | None = None
        self._log = log
        self._topic = topic
        self._logger = logger

    async def open(self) -> Reader:
        """Read what it means now. Raises LogError."""
        found, reader = await read_aliases(self._log, self._topic)
        self._switch(found.get(self.name))
        return reader

    async def run(self, reader: Reader) -> None:
        """Follow until cancelled. Raises LogError."""
        try:
            while True:
                for record in await reader.fetch(timeout_s=FETCH_S):
                    self._follow(record)
        finally:
            await reader.close()

    def _follow(self, record: Record) -> None:
        if record.key != self.name.encode():
            return
        try:
            self._switch(decode_alias(record))
        except InvalidInput as error:
            self._logger.warning("gateway.misunderstood", reason=str(error), offset=record.offset)

    def _switch(self, target: Target | None) -> None:
        self.target = target
        collection = None if target is None else target.collection
        self._logger.info("alias.switched", alias=self.name, collection=collection)


async def read_aliases(log: Log, topic: str) -> tuple[dict[str, Target], Reader]:
    """Every alias that means something now, and the reader that read so far. Raises LogError.

    What is no alias is passed over: the last meaning holds.
    """
    found: dict[str, Target] = {}
    ends = await log.end_offsets(topic)
    begins = await log.begin_offsets(topic)
    reader = await log.reader({(topic, p): begin for p, begin in begins.items()})
    while any(reader.position(topic, p) < end for p, end in ends.items()):
        for record in await reader.fetch(timeout_s=FETCH_S):
            with contextlib.suppress(InvalidInput):
                target = decode_alias(record)
                alias = (record.key or b"").decode(errors="replace")
                found.pop(alias, None)
                if target is not None:
                    found[alias] = target
    return dict(sorted(found.items())), reader


async def aliases(settings: Settings) -> dict[str, Any]:
    """What `driftline alias` shows. Raises LogError."""
    topic = settings.topics.aliases
    async with open_configured(settings) as log:
        if topic not in await log.topics():
            return {"aliases": {}}
        found, _ = await read_aliases(log, topic)
        return {"aliases": {alias: asdict(target) for alias, target in found.items()}}


async def switch(settings: Settings, alias: str, to: Settings | None, *, force: bool) -> dict[str, Any]:
    """Let an alias mean the collection of `to`, or nothing; durable when this returns.

    Raises LogError, and InvalidInput for a collection whose service, on this machine, is not ready, unless
    forced.
    """
    if to is not None and not force:
        check_ready(to)
    topic = settings.topics.aliases
    async with open_configured(settings) as log:
        await prepare_topics(log, settings, [topic])
        found, _ = await read_aliases(log, topic)
        before, target = found.get(alias), None if to is None else target_of(to)
        await log.append([encode_alias(topic, alias, target)])
    return {
        "alias": alias,
        "collection": None if target is None else target.collection,
        "before": None if before is None else before.collection,
    }


def check_ready(collection: Settings) -> None:
    """Raise InvalidInput if a service on this machine says that the collection is not ready."""
    try:
        ready = ask(collection.data_dir, "status")["ready"]
    except ServiceUnreachable:
        return  # on another machine, or not served yet: nobody here knows
    if not ready:
        raise InvalidInput(
            f"collection {collection.collection} is not ready, it catches up with its topic: wait until "
            f"`driftline status --set collection={collection.collection}` says so, or --force"
        )
