"""Three real brokers as one cluster: every topic three times, acknowledged by two at least."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from aiokafka.admin import AIOKafkaAdminClient

from .broker import KafkaBroker, free_ports, single_node_properties
from .link import LossyLink

__all__ = ["KafkaCluster"]

NODES = (1, 2, 3)
HEAP_MB = 256
WHOLE_S = 90.0  # for every replica to be in sync again after a broker came back


class KafkaCluster:
    """Three nodes, each broker and controller, on free ports of 127.0.0.1.

    `bootstrap` leads to the brokers themselves, for those who watch. `url` is for what is tested: it leads
    through proxies, which are there while `links` is entered.
    """

    def __init__(self, directory: Path) -> None:
        ports = free_ports(4 * len(NODES))
        outside, clients, inside, controllers = (dict(zip(NODES, ports[n::4], strict=True)) for n in range(4))
        self._links = [(outside[node], clients[node]) for node in NODES]
        self.bootstrap = addresses(inside)
        self.url = f"kafka:{addresses(outside)}"
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in controllers.items())
        self.brokers: dict[int, KafkaBroker] = {}
        for node in NODES:
            properties = single_node_properties(inside[node], controllers[node])
            internal = f"INSIDE://127.0.0.1:{inside[node]}"
            properties |= {
                "node.id": str(node),
                "controller.quorum.voters": voters,
                "listeners": f"PLAINTEXT://127.0.0.1:{clients[node]},{internal},"
                f"CONTROLLER://127.0.0.1:{controllers[node]}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{outside[node]},{internal}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "inter.broker.listener.name": "INSIDE",
                "default.replication.factor": "3",
                "min.insync.replicas": "2",
                "offsets.topic.replication.factor": "3",
                "transaction.state.log.replication.factor": "3",
                "transaction.state.log.min.isr": "2",
                "share.coordinator.state.topic.replication.factor": "3",
                "share.coordinator.state.topic.min.isr": "2",
            }
            self.brokers[node] = KafkaBroker(
                directory / f"node-{node}", properties, bootstrap=self.bootstrap, heap_mb=HEAP_MB
            )

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(NODES)) as threads:  # none is up before two are
                list(threads.map(KafkaBroker.start, self.brokers.values()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for broker in self.brokers.values():
            broker.kill()  # in order, the last two would wait for a majority that is gone

    @asynccontextmanager
    async def links(self) -> AsyncGenerator[list[LossyLink]]:
        """The proxies that clients come through, one for each broker."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(LossyLink(*ports)) for ports in self._links]

    async def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition."""
        (found,) = await self._describe([topic])
        return next(place["leader"] for place in found["partitions"] if place["partition"] == partition)

    async def coordinator(self, group: str) -> int:
        """The node that keeps a group's offsets."""
        async with self._admin() as admin:
            return await admin.find_coordinator(group)

    async def whole(self, topics: Sequence[str]) -> None:
        """Wait until every replica of these topics is in sync."""
        async with asyncio.timeout(WHOLE_S):
            while True:
                found = await self._describe(topics)
                if all(len(place["isr"]) == len(NODES) for topic in found for place in topic["partitions"]):
                    return
                await asyncio.sleep(0.1)

    async def _describe(self, topics: Sequence[str]) -> list[dict[str, Any]]:
        async with self._admin() as admin:
            return await admin.describe_topics(list(topics))

    @asynccontextmanager
    async def _admin(self) -> AsyncGenerator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def addresses(ports: Mapping[int, int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports.values())
