"""The topics a program needs: there, or created, or explained."""

from collections.abc import Sequence

from ..errors import LogError, TopicNotFound
from .config import Settings
from .log import Log, Topic

__all__ = ["check_retention", "prepare_topics"]


async def prepare_topics(log: Log, settings: Settings, names: Sequence[str]) -> list[str]:
    """Make sure that topics exist; returns those that were created.

    Raises TopicNotFound, with the command that creates one, where that is not ours to do.
    """
    created: list[str] = []
    there = await log.topics()
    for name in names:
        if name in there:
            continue
        compacted = name in (settings.topics.vectors, settings.topics.aliases)
        if not settings.creates_topics:
            raise TopicNotFound(_how_to_create(settings, name, compacted))
        if await log.create_topic(name, partitions=settings.topics.partitions, compacted=compacted):
            created.append(name)
    return created


def check_retention(topic: Topic, settings: Settings) -> None:
    """Raise LogError for a topic of vectors that forgets records which nothing replaces.

    An index is what the topic says; of such a one the topic would say less every day.
    """
    if topic.cleanup and "delete" in topic.cleanup and settings.topics.retention != "keep":
        policy = ",".join(sorted(topic.cleanup))
        raise LogError(
            f"topic {topic.name} has cleanup.policy={policy}: Kafka will delete vectors by age or size, and "
            "an index built from it later would lack them. Make it cleanup.policy=compact; or, if its "
            'retention is such that no record is ever deleted, say so: topics.retention = "keep"'
        )


def _how_to_create(settings: Settings, name: str, compacted: bool) -> str:
    scheme, _, place = settings.log_url.partition(":")
    if scheme == "local":
        return f"topic {name} does not exist in the local log {place}. Let it be created: --create-topics"
    policy = " --config cleanup.policy=compact" if compacted else ""
    return (
        f"topic {name} does not exist. Create it with Kafka's tool, `kafka-topics.sh --create --topic {name} "
        f"--bootstrap-server {place} --partitions {settings.topics.partitions}{policy}`, "
        "or let driftline do it: --create-topics"
    )
