"""Configuration: read once, at the command line, into one frozen `Settings`.

Three layers, in rising order: a TOML file, `DRIFTLINE_*` environment variables, flags. Every setting has
one full name (`index.dim`): in the file it is key `dim` of table `[index]`, in the environment
`DRIFTLINE_INDEX__DIM`. The layers are flattened to full names before they are merged, so that a wrong name
or value can be reported with the source it came from. (pydantic-settings was tried for this: it drops
unknown variables and forgets which source a refused value came from.)
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import ConfigError

__all__ = ["Settings", "Sourced", "describe", "effective", "load", "load_collections", "secrets"]

PREFIX = "DRIFTLINE_"
NOT_SETTINGS = frozenset({"DRIFTLINE_CONFIG"})  # variables with the prefix that are no setting
DEFAULT_FILE = Path("driftline.toml")

# The topics of a collection that has a table, behind its name and a dot.
ROLES = {
    "vectors": "vectors",
    "search": "search",
    "replies": "replies",
    "dead_letters": "dead-letters",
    "drift": "drift",
    "shards": "shards",
    "shard_replies": "shard-replies",
}

SHARED = frozenset({"broker", "collection", "log", "logging", "stop_s"})  # what no table may say

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Partitions = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Section(BaseModel):
    # What was given stays out of pydantic's own messages: it may hold a password, and they are in tracebacks.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )


class Topics(Section):
    vectors: TopicName = "driftline.vectors"
    """The collection: key = id, value = vector, null value = delete. Compacted."""
    search: TopicName = "driftline.search"
    """Requests are read from here."""
    replies: TopicName = "driftline.replies"
    """Replies go here when a request names no reply topic."""
    dead_letters: TopicName = "driftline.dead-letters"
    """Records that could not be used, each with its reason."""
    drift: TopicName = "driftline.drift"
    """Drift windows, detections and re-encodes, as JSON."""
    shards: TopicName = "driftline.shards"
    """Where a gateway asks the shards of a collection; each of them reads all of it."""
    shard_replies: TopicName = "driftline.shard-replies"
    """Where shards answer gateways."""
    aliases: TopicName = "driftline.aliases"
    """Which collection each alias means, for gateways that answer for one. Compacted."""
    create: bool | None = None
    """Create missing topics. Unset: yes on the local log, no on Kafka."""
    partitions: Positive = 1
    """Partitions of a topic that is created."""
    retention: Literal["keep"] | None = None
    """keep: records of topics.vectors stay although its cleanup.policy has delete. Unset: such a topic is
    refused."""
    decode: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """A function, as package.module:name, that turns values of another format into vectors
    (docs/messages.md). Unset: values are driftline's own."""


class Index(Section):
    dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Dimension of the vectors. Unset: the data directory's, else that of the first vector in the topic."""
    metric: Literal["l2", "ip", "cosine"] = "l2"
    """l2 (squared Euclidean), ip (minus the inner product) or cosine (1 - cos)."""
    m: Annotated[int, Field(ge=2, le=128)] = 16
    """Links per node of the graph; twice as many on the lowest level."""
    ef_construction: Annotated[int, Field(ge=4, le=4096)] = 200
    """Width of the search that places a new vector."""
    route_bits: Literal[3, 5] | None = None
    """Bits of a code by which the graph is walked. Unset: 3, or 5 in few dimensions."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of levels and rotation."""
    embedding_model: str | None = None
    """Name of the model that made the vectors. Unset: the first one named by a record. Others are refused."""
    compress_after: Annotated[int, Field(ge=1)] | None = None
    """Rows after which vectors are held as codes. Unset: when the statistics suffice."""


class Search(Section):
    ef: Positive = 64
    """Width of a search that does not say."""
    ef_max: Positive = 4096
    """Largest ef a request may ask for."""
    recall_target: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Recall that the canary should find; beneath it search.ef is raised, or the index encoded anew. 0: it
    only measures."""
    ef_limit: Positive = 256
    """Up to which search.ef is raised for the sake of search.recall_target."""
    k_max: Positive = 1000
    """Largest k a request may ask for."""
    rescore: bool = True
    """Order the best candidates again by their raw vectors."""
    deadline_ms: Positive = 5000
    """A request not answered this long after its record's timestamp is dropped and counted. A request may
    say its own."""
    slow_ms: Annotated[float, Field(gt=0)] = 250.0
    """A search slower than this is logged as search.slow."""
    threads: Positive = 2
    """Searches that run at once."""
    waiting_max: Positive = 10_000
    """Requests held at once (running, or waiting for the offsets in `after`); beyond it the topic is read
    no further."""
    waiting_bytes: ByteSize = ByteSize(64 << 20)
    """Bytes of their records; beyond it the topic is read no further."""
    parked_max: Positive = 5000
    """Of those, requests that may wait for the offsets in `after`; further ones are answered too_busy. Below
    search.waiting_max, so that waiting ones hold up no others."""
    parked_bytes: ByteSize = ByteSize(32 << 20)
    """Bytes of their records; beyond it too_busy. Below search.waiting_bytes."""


class Ingest(Section):
    batch_records: Positive = 512
    """Records applied in one step."""
    queue_batches: Positive = 4
    """Decoded batches that may wait for the index."""
    queue_bytes: ByteSize = ByteSize(64 << 20)
    """Bytes of the records in them; beyond it the topic is read no further."""
    outbox_records: Positive = 10_000
    """Dead letters and drift events that may wait for the broker; beyond it ingestion waits."""
    outbox_bytes: ByteSize = ByteSize(64 << 20)
    """The same in bytes."""
    ready_lag: Annotated[int, Field(ge=0)] = 10_000
    """Ready means that no more records than this wait to be applied."""


class Snapshots(Section):
    every_records: Positive = 100_000
    """A snapshot is taken after this many records."""
    every_seconds: Seconds = 300.0
    """A snapshot is taken after this many seconds, if a record was applied or a re-encode went on, also by
    hand."""
    keep: Positive = 5
    """Snapshots kept."""
    on_damage: Literal["rebuild", "refuse"] = "rebuild"
    """When no snapshot is whole, or all are of an older format. rebuild: set them aside and read the topic
    from its beginning; refuse: do not start."""


class Drift(Section):
    # As DriftSettings of index/drift.py, which says why; repeated so that reading settings loads no index.
    window_rows: Annotated[int, Field(ge=64, le=10_000_000)] = 1000
    """Rows of a window that is compared with the reference."""
    alpha: Annotated[float, Field(ge=1e-12, le=0.5)] = 0.01
    """Chance that a window of unchanged data differs; an alarm needs two or three running, or one by far."""
    reference_windows: Annotated[int, Field(ge=3, le=16)] = 4
    """Windows that a reference is made of before anything is compared with it."""
    loss_limit: Annotated[float, Field(ge=1)] = 1.25
    """Fit loss from which a window differs."""
    min_gain: Annotated[float, Field(ge=1)] = 1.1
    """Least expected gain (squared error before / after) for which rows are encoded anew."""
    forget_rows: Annotated[float, Field(ge=1)] = 10_000.0
    """Rows after which an older row counts half in the statistics that a frame is fitted to."""
    window_seconds: Annotated[float, Field(ge=0.001)] | None = None
    """A window of 64 or more rows also ends at this age, by the records' timestamps. Unset: it does not."""


class Reencode(Section):
    budget: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of one core that re-encoding takes; less where searches and writes want it."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of one core that re-encoding takes under any load; at most reencode.budget."""


class Canary(Section):
    # As CanarySettings of index/canary.py.
    sample: Annotated[int, Field(ge=30, le=100_000)] = 200
    """Live queries of a window whose recall is measured."""
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    """Nearest neighbours that recall is measured of."""
    budget: Annotated[float, Field(ge=0, le=1)] = 0.04
    """Share of one core that measuring recall may take. 0: it is not measured."""
    every_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Windows begin at least so far apart."""


class Broker(Section):
    deadline_s: Seconds = 30.0
    """How long to try to reach the broker before giving up."""
    group: Annotated[str, Field(min_length=1)] = "driftline"
    """Consumer group under which offsets are committed, for lag tools."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Whether the connection is encrypted (SSL) and asks for a password (SASL)."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How the password is proven. PLAIN sends it: only with SASL_SSL."""
    sasl_username: Annotated[str, Field(min_length=1)] | None = None
    """User of the broker, with SASL."""
    sasl_password: SecretStr | None = None
    """The user's password. Not as a flag: those are seen by everybody on the machine."""
    sasl_password_file: Path | None = None
    """A file with the password, read when the connection is opened; instead of broker.sasl_password."""
    ssl_ca_file: Path | None = None
    """Certificates to trust, PEM. Unset: the system's."""
    ssl_cert_file: Path | None = None
    """This client's own certificate, PEM, where the broker asks for one."""
    ssl_key_file: Path | None = None
    """The key of that certificate, PEM. Unset: it stands in the certificate's file."""
    ssl_key_password: SecretStr | None = None
    """Password of the key, if it is encrypted. Not as a flag."""
    ssl_key_password_file: Path | None = None
    """A file with the key's password; instead of broker.ssl_key_password."""
    # Off: of float32 vectors zstd leaves 90 %, snappy all; a record takes 9 instead of 3 us to write (384
    # dimensions), a lone reply of 400 bytes 45 instead of 11 us. Vectors as JSON shrink to 44 % with zstd.
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Compression of what is written: vectors by `feed`, replies, dead letters, drift events. Any is read."""

    @model_validator(mode="after")
    def _whole(self) -> "Broker":
        """What is given belongs to the protocol: to forget the protocol must not look like safety."""
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        for name in ("sasl_password", "ssl_key_password"):
            if {name, f"{name}_file"} <= given:
                raise ValueError(f"broker.{name} and broker.{name}_file: give one of them")
        sasl, tls = self.security_protocol.startswith("SASL"), self.security_protocol.endswith("SSL")
        password = {"sasl_password", "sasl_password_file"}
        if sasl and not ("sasl_username" in given and given & password):
            raise ValueError(
                f"broker.security_protocol {self.security_protocol} needs broker.sasl_username, and "
                "broker.sasl_password or broker.sasl_password_file"
            )
        certificate = {name for name in given if name.startswith("ssl_")}
        stray: set[str] = set()
        if not sasl:
            stray |= given & {"sasl_username", *password}
        if not tls:
            stray |= certificate
        if stray:
            raise ValueError(
                f"{', '.join(f'broker.{name}' for name in sorted(stray))}: "
                f"means nothing while broker.security_protocol is {self.security_protocol}"
            )
        if certificate - {"ssl_ca_file"} and "ssl_cert_file" not in given:
            raise ValueError("a key needs the certificate it belongs to: broker.ssl_cert_file")
        return self


class Gateway(Section):
    inside: bool = False
    """serve runs a gateway too: it answers topics.search by asking all shards. One instance of a collection
    does this, or `driftline gateway` beside them."""
    behind: bool = False
    """This instance is asked through a gateway elsewhere, also if it holds all partitions."""
    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] | None = None
    """The gateway asks the collection that `driftline alias` has given this name. Unset: that of its own
    settings."""
    absent_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 250.0
    """How much longer than for the others a shard is waited for that let the last request pass."""


class Http(Section):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address on which /metrics, /healthz and /readyz are served. They know no passwords."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """Their port. 0: they are not served."""


class Logging(Section):
    format: Literal["auto", "json", "console"] = "auto"
    """auto: readable on a terminal, JSON lines elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Events below this level are not written."""


class Settings(Section):
    log: str | None = None
    """Where the topics are: local:DIRECTORY or kafka:HOST:PORT[,HOST:PORT...]. Unset:
    local:<data_dir>/log."""
    collection: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")] | None = None
    """The table [collections.NAME] that a command is about. Unset: serve serves all there are."""
    data_dir: Path = Path("driftline-data")
    """Snapshots, raw vectors and the control socket."""
    partitions: Literal["all"] | Partitions = "all"
    """all, or the partitions of topics.vectors that this instance holds, like [0, 2]: it is then one shard of
    several, and is asked through a gateway."""
    stop_s: Seconds = 50.0
    """A stop in order ends within this; a last snapshot that takes longer is given up, and the next start
    replays."""
    memory_limit: ByteSize | None = None
    """Anonymous memory of the process (mapped files apart) above which ingestion pauses, like 2GiB; it goes
    on below nine tenths of it. Searches are answered meanwhile."""
    topics: Topics = Topics()
    index: Index = Index()
    search: Search = Search()
    ingest: Ingest = Ingest()
    snapshots: Snapshots = Snapshots()
    drift: Drift = Drift()
    reencode: Reencode = Reencode()
    canary: Canary = Canary()
    broker: Broker = Broker()
    gateway: Gateway = Gateway()
    http: Http = Http()
    logging: Logging = Logging()

    @field_validator("log")
    @classmethod
    def _log_url(cls, value: str | None) -> str | None:
        scheme, _, rest = (value or "local:.").partition(":")
        if scheme not in ("local", "kafka") or not rest:
            raise ValueError("expected local:DIRECTORY or kafka:HOST:PORT[,HOST:PORT...]")
        return value

    @field_validator("partitions", mode="before")
    @classmethod
    def _list_of_partitions(cls, value: object) -> object:
        """From the environment and flags it comes as text, like [0, 2]."""
        if not isinstance(value, str) or value == "all":
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('expected "all" or a list of partitions like [0, 2]') from None

    @field_validator("partitions")
    @classmethod
    def _each_partition_once(cls, value: tuple[int, ...] | str) -> tuple[int, ...] | str:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError("a partition is named twice")
        return value if isinstance(value, str) else tuple(sorted(value))

    @model_validator(mode="after")
    def _distinct_topics(self) -> "Settings":
        names = [
            self.topics.vectors,
            self.topics.search,
            self.topics.replies,
            self.topics.dead_letters,
            self.topics.drift,
            self.topics.shards,
            self.topics.shard_replies,
            self.topics.aliases,
        ]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"topics must differ from each other; {name!r} is named twice")
        return self

    @model_validator(mode="after")
    def _floor_below_budget(self) -> "Settings":
        floor, budget = self.reencode.floor, self.reencode.budget
        if floor > budget:
            raise ValueError(f"reencode.floor = {floor} must be at most reencode.budget = {budget}")
        return self

    @model_validator(mode="after")
    def _parked_among_waiting(self) -> "Settings":
        search = self.search
        for kind in ("max", "bytes"):
            parked, waiting = getattr(search, f"parked_{kind}"), getattr(search, f"waiting_{kind}")
            if parked >= waiting:
                raise ValueError(
                    f"search.parked_{kind} = {parked} must be below search.waiting_{kind} = {waiting}"
                )
        return self

    @property
    def log_url(self) -> str:
        return self.log or f"local:{self.data_dir / 'log'}"

    def holds(self, partition: int) -> bool:
        """Whether this instance holds a partition of the vectors topic."""
        return self.partitions == "all" or partition in self.partitions

    @property
    def is_shard(self) -> bool:
        """Whether this instance is asked through a gateway, and not by clients."""
        return self.partitions != "all" or self.gateway.inside or self.gateway.behind

    @property
    def shard_group(self) -> str:
        """Consumer group in which a shard reads what gateways ask: one for each set of partitions, so that
        every shard reads all of it."""
        held = "all" if self.partitions == "all" else "-".join(map(str, self.partitions))
        return f"{self.broker.group}.shard.{held}"

    @property
    def creates_topics(self) -> bool:
        return self.log_url.startswith("local:") if self.topics.create is None else self.topics.create


@dataclass(frozen=True, slots=True)
class Sourced:
    """A value as given, and where: `driftline.toml`, `environment variable X`, `flag --x`."""

    value: object
    source: str


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Sourced] | None = None,
) -> Settings:
    """Settings from a file, the environment (default: this process's) and flags (full name -> value), in
    rising order; of one collection, where `collection` is among them.

    The file is `file`, else what DRIFTLINE_CONFIG names, else ./driftline.toml if it exists. Raises
    ConfigError.
    """
    given = _layers(file, environment, flags)
    chosen = given.get("collection")
    return _settings(given, None if chosen is None else str(chosen.value))


def load_collections(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Sourced] | None = None,
) -> list[Settings]:
    """As `load`, of every collection that has a table; where none has, or one is chosen, that alone."""
    given = _layers(file, environment, flags)
    names = _collections(given)
    if not names or "collection" in given:
        return [load(file, environment, flags)]
    return [_settings(given, name) for name in names]


def _layers(
    file: Path | None, environment: Mapping[str, str] | None, flags: Mapping[str, Sourced] | None
) -> dict[str, Sourced]:
    environment = os.environ if environment is None else environment
    if file is None and environment.get("DRIFTLINE_CONFIG"):
        file = Path(environment["DRIFTLINE_CONFIG"])
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    given: dict[str, Sourced] = {}
    if file is not None:
        given |= _from_file(file)
    given |= _from_environment(environment)
    given |= flags or {}
    allowed = describe()
    for name, sourced in given.items():
        own = _of_collection(name)
        if own is not None and own[1].partition(".")[0] in SHARED:
            raise ConfigError(f"{name} ({sourced.source}): {own[1]} is one for all collections")
        if (own[1] if own else name) not in allowed:
            raise ConfigError(f"{name} ({sourced.source}): no such setting; {_nearest(name, list(allowed))}")
    return given


def _of_collection(name: str) -> tuple[str, str] | None:
    """`collections.NAME.SETTING` as name and setting; None for a name of another kind."""
    table, _, rest = name.partition(".")
    collection, dot, setting = rest.partition(".")
    return (collection, setting) if table == "collections" and dot else None


def _collections(given: Mapping[str, Sourced]) -> list[str]:
    """The collections that have a table, in its order."""
    return list(dict.fromkeys(own[0] for own in map(_of_collection, given) if own is not None))


def _settings(given: Mapping[str, Sourced], collection: str | None) -> Settings:
    own = {name: found for name in given if (found := _of_collection(name)) is not None}
    plain = {name: sourced for name, sourced in given.items() if name not in own}
    if collection is None:
        return _validated(plain)
    names = _collections(given)
    if collection not in names:
        known = ", ".join(names) or "none"
        raise ConfigError(
            f"collection = {collection}: no table [collections.{collection}]; there are: {known}"
        )
    whole = _validated({name: sourced for name, sourced in plain.items() if name != "collection"})
    source = f"[collections.{collection}]"
    derived: dict[str, object] = {f"topics.{role}": f"{collection}.{name}" for role, name in ROLES.items()}
    derived["collection"] = collection
    derived["log"] = whole.log_url
    derived["data_dir"] = whole.data_dir / collection
    derived["http.port"] = whole.http.port and whole.http.port + names.index(collection)
    table = {setting: given[name] for name, (of, setting) in own.items() if of == collection}
    return _validated(plain | {name: Sourced(value, source) for name, value in derived.items()} | table)


def _validated(given: Mapping[str, Sourced]) -> Settings:
    nested: dict[str, Any] = {}
    for name, sourced in given.items():
        *section, key = name.split(".")
        into = nested.setdefault(section[0], {}) if section else nested
        into[key] = sourced.value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(given, dict(problem)) for problem in error.errors())) from error


def describe() -> dict[str, str]:
    """Full name of every setting -> what it means."""
    names: dict[str, str] = {}
    for key, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            for inner, about in info.annotation.model_fields.items():
                names[f"{key}.{inner}"] = " ".join((about.description or "").split())
        else:
            names[key] = " ".join((info.description or "").split())
    return names


def secrets() -> frozenset[str]:
    """Full names of the settings whose values are never shown."""
    return frozenset(
        f"{key}.{inner}"
        for key, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
        for inner, about in info.annotation.model_fields.items()
        if SecretStr in get_args(about.annotation)
    )


def effective(settings: Settings) -> dict[str, object]:
    """Full name of every setting -> its value as JSON can hold it; asterisks for a secret."""
    return dict(_flatten(cast("dict[str, object]", settings.model_dump(mode="json"))))


def _flatten(table: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(cast("Mapping[str, object]", value), f"{before}{key}.")
        else:
            yield before + key, value


def _from_file(file: Path) -> dict[str, Sourced]:
    try:
        table: dict[str, object] = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    sections = {"collections", *(name.split(".")[0] for name in describe() if "." in name)}
    for section in sections & table.keys():
        if not isinstance(table[section], Mapping):
            raise ConfigError(f"{section} ({file}): expected a table, [{section}]")
    return {name: Sourced(value, str(file)) for name, value in _flatten(table)}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Sourced]:
    allowed = {PREFIX + name.replace(".", "__").upper(): name for name in describe()}
    found: dict[str, Sourced] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        if variable not in allowed:
            raise ConfigError(
                f"environment variable {variable}: no such setting; {_nearest(variable, list(allowed))}"
            )
        found[allowed[variable]] = Sourced(value, f"environment variable {variable}")
    return found


def _nearest(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)
    return f"the nearest is {near[0]} (`driftline config` lists all)"


def _explain(given: Mapping[str, Sourced], problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    while name and name not in given:  # a union member's own name may be appended to the location
        name = name.rpartition(".")[0]
    reason = str(problem["msg"]).removeprefix("Value error, ")
    if not name:
        return reason
    value = given[name].value
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    if name in secrets():
        shown = "**********"
    return f"{name} = {shown} ({given[name].source}): {reason[0].lower() + reason[1:]}. {describe()[name]}"
