"""One connection to a Kafka cluster: reached within a deadline, asked again while asking may help.

aiokafka's client and its request classes are used directly. Its admin client cannot list or commit offsets;
its producer retries for ever, cannot be stopped while a broker is away, and after one refused batch all later
ones of that partition fail, because the refused one used up sequence numbers. What is here and in
`kafka_producer` is the part of them that driftline needs, with a deadline on everything.

aiokafka has no types of its own: what comes from it is `Any` here, and does not leave the kafka_* modules.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, Unpack, get_args

from aiokafka import AIOKafkaClient, errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest

from ..errors import BrokerUnavailable, ConfigError, InvalidInput, LogError, RecordRefused, TopicNotFound
from .log import SaslMechanism, Security, SecurityProtocol

__all__ = ["READ_COMMITTED", "REQUEST_S", "KafkaClient", "check", "connection_settings", "turned"]

T = TypeVar("T")

REQUEST_S = 10.0  # one request to one broker; then the connection is renewed
# The protocol's isolation level; the end of a partition is then the last stable offset: as far as a reader of
# committed records can come.
READ_COMMITTED = 1
RETRY_S = 0.1  # between two attempts
RECONNECT_S = 0.5  # between two attempts to reach any broker at all
UNREACHABLE = (
    errors.KafkaConnectionError,
    errors.NodeNotReadyError,
    errors.NoBrokersAvailable,
    errors.RequestTimedOutError,
    errors.StaleMetadata,
)
REFUSALS = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
    errors.PolicyViolationError,
)
# The broker was reached, and it or we will have nothing to do with the other: trying again will not help.
REFUSED = (
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    ssl.SSLCertVerificationError,
)


def connection_settings(servers: str, **security: Unpack[Security]) -> dict[str, Any]:
    """Keyword arguments that every class of aiokafka with a connection takes.

    Raises InvalidInput for an address that is none, ConfigError for security settings that cannot be.
    """
    protocol = security.get("security_protocol", "PLAINTEXT")
    if protocol not in get_args(SecurityProtocol):
        known = ", ".join(get_args(SecurityProtocol))
        raise ConfigError(f"security_protocol {protocol!r}: expected one of {known}")
    for server in servers.split(","):
        host, _, port = server.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidInput(f"Kafka server {server!r}: expected HOST:PORT")
    settings: dict[str, Any] = {
        "bootstrap_servers": servers.split(","),
        "client_id": "driftline",
        "request_timeout_ms": int(REQUEST_S * 1000),
        "security_protocol": protocol,
    }
    if protocol.startswith("SASL"):
        mechanism = security.get("sasl_mechanism", "PLAIN")
        if mechanism not in get_args(SaslMechanism):
            known = ", ".join(get_args(SaslMechanism))
            raise ConfigError(f"sasl_mechanism {mechanism!r}: expected one of {known}")
        if "sasl_username" not in security or "sasl_password" not in security:
            raise ConfigError(f"security_protocol {protocol} needs sasl_username and sasl_password")
        settings |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": security["sasl_username"],
            "sasl_plain_password": security["sasl_password"],
        }
    if protocol.endswith("SSL"):
        try:
            context = ssl.create_default_context(cafile=security.get("ssl_ca_file"))
            if "ssl_cert_file" in security:
                # A password in any case: without one OpenSSL asks the terminal for it.
                context.load_cert_chain(
                    security["ssl_cert_file"],
                    security.get("ssl_key_file"),
                    security.get("ssl_key_password", ""),
                )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"the certificate files of the Kafka connection cannot be used: {error}"
            ) from error
        settings["ssl_context"] = context
    return settings


class KafkaClient:
    """Sends requests to brokers; knows which broker leads which partition.

    Questions and writes use a connection each, so that a megabyte on its way does not hold up a question.
    """

    def __init__(self, servers: str, within_s: float, settings: dict[str, Any]) -> None:
        self.servers = servers
        self.within_s = within_s
        self._settings = settings
        self._client: Any = None
        self._leaders: dict[tuple[str, int], int] = {}

    async def connect(self) -> None:
        """Reach any broker of the list, trying again until the deadline.

        Raises BrokerUnavailable, and ConfigError at once where user, password or certificate is refused.
        """
        last: errors.KafkaError | None = None
        try:
            async with asyncio.timeout(self.within_s):
                while self._client is None:
                    client: Any = AIOKafkaClient(**self._settings)
                    try:
                        await client.bootstrap()
                        self._client = client
                    except errors.KafkaError as error:
                        last = error
                        await self._check_refused()
                        await asyncio.sleep(RECONNECT_S)
                    finally:
                        if self._client is None:
                            await client.close()
        except TimeoutError as late:
            raise BrokerUnavailable(
                f"no Kafka broker could be used at {self.servers} within {self.within_s:g} s: "
                "is it running, and are address and security settings right?"
            ) from last or late

    async def _check_refused(self) -> None:
        """Raise ConfigError if a broker refuses us: the client only logs why it could not connect."""
        settings = {name: value for name, value in self._settings.items() if name != "bootstrap_servers"}
        for server in self._settings["bootstrap_servers"]:
            host, _, port = server.rpartition(":")
            try:
                connection: Any = AIOKafkaConnection(host, int(port), **settings)
                await connection.connect()
                connection.close()
            except REFUSED as error:
                raise ConfigError(f"Kafka at {server} cannot be used with these settings: {error}") from error
            except (OSError, errors.KafkaError, TimeoutError):
                continue

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def check_open(self) -> None:
        """Raise LogError before `connect` and after `close`."""
        if self._client is None:
            raise LogError(f"the log on Kafka at {self.servers} is not open")

    async def ask(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, tried again while its error may pass. Raises LogError about `what`."""
        self.check_open()
        last: errors.KafkaError | None = None
        try:
            async with asyncio.timeout(self.within_s):
                while True:
                    try:
                        return await attempt()
                    except errors.KafkaError as error:
                        if not error.retriable:
                            raise turned(what, error) from error
                        last = error
                        await self.look_again(error)
        except TimeoutError as late:
            raise self.unanswered(what, last) from last or late

    def unanswered(self, what: str, last: errors.KafkaError | None) -> LogError:
        """The error for a deadline that passed; `last` is what went wrong on the way."""
        if isinstance(last, errors.UnknownTopicOrPartitionError):
            return turned(what, last)
        reason = f" (last: {last})" if last else ""
        return BrokerUnavailable(
            f"{what}: no answer from Kafka at {self.servers} within {self.within_s:g} s{reason}"
        )

    async def look_again(self, error: errors.KafkaError) -> None:
        """Wait a little after a failed attempt, and forget what the error says is no longer true."""
        self._leaders.clear()
        if isinstance(error, UNREACHABLE):
            # Every broker may have come back under another address: ask the first ones again where the
            # cluster is.
            self.check_open()
            with contextlib.suppress(errors.KafkaError):
                await self._client.bootstrap()
        await asyncio.sleep(RETRY_S)

    async def send(self, request: Any, node: int | None = None, *, write: bool = False) -> Any:
        """One request to one broker (any, if `node` is None); its response. Raises aiokafka's errors."""
        self.check_open()
        if node is None:
            node = self._client.get_random_node()
        group = ConnectionGroup.DEFAULT if write else ConnectionGroup.COORDINATION
        return await self._client.send(node, request, group=group)

    async def metadata(self, topics: list[str] | None) -> Any:
        """Fresh metadata of some topics (None: all). Asking never creates a topic."""
        response = await self.send(MetadataRequest(topics, allow_auto_topic_creation=False))
        if all(not code for code, *_ in response.topics):  # else it logs an error, about a question of ours
            self._client.cluster.update_metadata(response)  # brokers may have come and gone
        for _, topic, _, partitions in response.topics:
            for _, partition, leader, *_ in partitions:
                self._leaders[topic, partition] = leader
        return response

    async def leader(self, topic: str, partition: int) -> int:
        """The broker that leads a partition. Raises aiokafka's errors where there is none just now."""
        if self._leaders.get((topic, partition), -1) < 0:
            await self.metadata([topic])
        leader = self._leaders.get((topic, partition))
        if leader is None:
            raise errors.UnknownTopicOrPartitionError(f"{topic}/{partition}")
        if leader < 0:
            raise errors.LeaderNotAvailableError(f"{topic}/{partition}")
        return leader

    async def coordinator(self, group: str) -> int:
        """The broker that keeps a group's offsets. Raises aiokafka's errors."""
        self.check_open()
        return await self._client.coordinator_lookup(CoordinationType.GROUP, group)


def check(code: int, about: str) -> None:
    """Raise aiokafka's error for an error code of a response."""
    if code:
        raise errors.for_code(code)(about)


def turned(what: str, error: Exception) -> LogError:
    """aiokafka's error as ours; raise it `from` the original."""
    if isinstance(error, errors.UnknownTopicOrPartitionError):
        return TopicNotFound(f"{what}: the topic or partition does not exist")
    if isinstance(error, UNREACHABLE):
        return BrokerUnavailable(f"{what}: {error}")
    if isinstance(error, REFUSALS):
        return RecordRefused(f"{what}: {error}")
    ours = LogError(f"{what}: {error}")
    ours.retriable = bool(getattr(error, "retriable", False))
    return ours
