"""The topics a program needs: there, or created, or explained."""

from collections.abc import Sequence

from ..errors import TopicNotFound
from .config import Settings
from .log import Log

__all__ = ["prepare_topics"]


async def prepare_topics(log: Log, settings: Settings, names: Sequence[str]) -> list[str]:
    """Make sure that topics exist; returns those that were created.

    Raises TopicNotFound, with the command that creates one, where that is not ours to do.
    """
    created: list[str] = []
    there = await log.topics()
    for name in names:
        if name in there:
            continue
        compacted = name == settings.topics.vectors
        if not settings.creates_topics:
            raise TopicNotFound(_how_to_create(settings, name, compacted))
        if await log.create_topic(name, partitions=settings.topics.partitions, compacted=compacted):
            created.append(name)
    return created


def _how_to_create(settings: Settings, name: str, compacted: bool) -> str:
    scheme, _, place = settings.log_url.partition(":")
    if scheme == "local":
        return f"topic {name} does not exist in the local log {place}. Let it be created: --create-topics"
    policy = " --config cleanup.policy=compact" if compacted else ""
    return (
        f"topic {name} does not exist. Create it with Kafka's tool, `kafka-topics.sh --bootstrap-server "
        f"{place} "
        f"--create --topic {name} --partitions {settings.topics.partitions}{policy}`, "
        "or let driftline do it: --create-topics"
    )
