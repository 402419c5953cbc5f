"""Questions to Kafka: which topics there are and what they are, their offsets, what groups committed."""

import time
from collections.abc import Mapping
from typing import Any

from aiokafka import errors
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.offset import OffsetRequest

from ..errors import TopicNotFound
from .kafka_client import READ_COMMITTED, REQUEST_S, KafkaClient, check
from .log import MAX_RECORD_BYTES, Topic, check_topic_name, is_topic_name

__all__ = ["KafkaTopics"]

DESCRIPTION_S = 60.0  # how long a topic's description is believed
TOPIC_RESOURCE = 2  # the protocol's number for "a topic's settings"
FORBIDDEN = (errors.TopicAuthorizationFailedError.errno, errors.ClusterAuthorizationFailedError.errno)
BEGIN, END = -2, -1  # the protocol's timestamps for the first and the next offset
NO_GENERATION = -1  # a commit from outside a rebalancing group,
NO_RETENTION = -1  # kept as long as the broker keeps any
BROKER_DEFAULT = -1  # replicas


class KafkaTopics:
    """The topics of one cluster. Every method is bounded by the client's deadline and raises LogError."""

    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._described: dict[str, tuple[float, Topic]] = {}

    async def names(self) -> frozenset[str]:
        response = await self._client.ask("list topics", lambda: self._client.metadata(None))
        return frozenset(name for code, name, _, _ in response.topics if not code)

    async def describe(self, topic: str, max_age_s: float = DESCRIPTION_S) -> Topic:
        at, known = self._described.get(topic, (0.0, None))
        if known is not None and time.monotonic() - at < max_age_s:
            return known
        found = None
        if is_topic_name(topic):
            found = await self._client.ask(f"describe topic {topic}", lambda: self._describe(topic))
        if found is None:
            self._described.pop(topic, None)
            raise TopicNotFound(f"topic {topic} does not exist on Kafka at {self._client.servers}")
        self._described[topic] = (time.monotonic(), found)
        return found

    async def _describe(self, topic: str) -> Topic | None:
        response = await self._client.metadata([topic])
        (code, _, _, partitions) = response.topics[0]
        if code in (errors.UnknownTopicOrPartitionError.errno, errors.InvalidTopicError.errno):
            return None  # definite: unlike other errors of a topic, nothing to wait for
        check(code, topic)
        numbers = tuple(sorted(int(partition[1]) for partition in partitions))
        names = ["cleanup.policy", "max.message.bytes", "delete.retention.ms"]
        response = await self._client.send(DescribeConfigsRequest([(TOPIC_RESOURCE, topic, names)]))
        code, reason, _, _, entries = response.resources[0]
        if code in FORBIDDEN:
            return Topic(topic, numbers, None, MAX_RECORD_BYTES)  # as if nobody had set it
        check(code, f"the settings of {topic} {reason or ''}")
        settings = {entry[0]: str(entry[1]) for entry in entries}
        return Topic(
            name=topic,
            partitions=numbers,
            cleanup=frozenset(settings["cleanup.policy"].split(",")),
            max_record_bytes=int(settings["max.message.bytes"]),
            tombstones_ms=int(settings["delete.retention.ms"]),
        )

    async def create(self, topic: str, partitions: int, compacted: bool) -> bool:
        check_topic_name(topic)
        settings = [("cleanup.policy", "compact")] if compacted else []
        wanted: Any = (topic, partitions, BROKER_DEFAULT, [], settings)

        async def attempt() -> bool:
            response = await self._client.send(CreateTopicsRequest([wanted], int(REQUEST_S * 1000), False))
            _, code, *reason = response.topic_errors[0]
            if code == errors.TopicAlreadyExistsError.errno:
                return False
            check(code, str(reason[0]) if reason else topic)
            return True

        created = await self._client.ask(f"create topic {topic}", attempt)
        # Also where somebody else has just created it: the brokers may not have heard of it yet.
        await self._client.ask(f"create topic {topic}: waiting for it", lambda: self._appear(topic))
        return created

    async def _appear(self, topic: str) -> None:
        # The controller has created it; the brokers hear of it a little later, each in its own time.
        found = await self._describe(topic)
        if found is None:
            raise errors.UnknownTopicOrPartitionError(topic)
        for partition in found.partitions:
            await self._client.leader(topic, partition)
        self._described[topic] = (time.monotonic(), found)

    async def begin_offsets(self, topic: str) -> dict[int, int]:
        return await self._offsets(topic, BEGIN)

    async def end_offsets(self, topic: str) -> dict[int, int]:
        return await self._offsets(topic, END)

    async def _offsets(self, topic: str, which: int) -> dict[int, int]:
        async def attempt() -> dict[int, int]:
            by_leader: dict[int, list[tuple[int, int]]] = {}
            for partition in partitions:
                by_leader.setdefault(await self._client.leader(topic, partition), []).append(
                    (partition, which)
                )
            found: dict[int, int] = {}
            for leader, wanted in by_leader.items():
                response = await self._client.send(
                    OffsetRequest(-1, READ_COMMITTED, [(topic, wanted)]), leader
                )
                for partition, code, _, offset in response.topics[0][1]:
                    check(code, f"{topic}/{partition}")
                    found[partition] = offset
            return dict(sorted(found.items()))

        partitions = (await self.describe(topic)).partitions
        return await self._client.ask(f"offsets of topic {topic}", attempt)

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        partitions = (await self.describe(topic)).partitions

        async def attempt() -> dict[int, int]:
            request = OffsetFetchRequest(group, [(topic, list(partitions))])
            response = await self._client.send(request, await self._client.coordinator(group))
            check(response.error_code, group)
            found: dict[int, int] = {}
            for partition, offset, _, code in response.topics[0][1]:
                check(code, f"{topic}/{partition}")
                if offset >= 0:
                    found[partition] = offset
            return dict(sorted(found.items()))

        return await self._client.ask(f"committed offsets of group {group}", attempt)

    async def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        if not offsets:
            return
        await self.describe(topic)

        async def attempt() -> None:
            wanted = [(partition, offset, "") for partition, offset in offsets.items()]
            request = OffsetCommitRequest(group, NO_GENERATION, "", NO_RETENTION, [(topic, wanted)])
            response = await self._client.send(request, await self._client.coordinator(group))
            for partition, code in response.topics[0][1]:
                check(code, f"{topic}/{partition}")

        await self._client.ask(f"commit offsets of group {group}", attempt)
