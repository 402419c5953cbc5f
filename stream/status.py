"""What a running service says about itself: counters it keeps, and the status they become."""

import os
from collections import Counter
from dataclasses import dataclass, field

from ..index.hits import FrameRows, Stats
from .memory_limit import anonymous_bytes

__all__ = ["Counters", "GatewayStatus", "RecallStatus", "SnapshotStatus", "Status", "memory_of"]


@dataclass(slots=True)
class Counters:
    """What happened since the service started. Only the event loop writes them."""

    records: int = 0  # of the vectors topic, applied or rejected
    upserted: int = 0  # rows changed; a record identical to what is held changes nothing
    deleted: int = 0  # keys that were live
    contested: int = 0  # records whose key another partition's record held
    rejected: Counter[str] = field(default_factory=Counter[str])  # records and requests, by reason code
    searches: int = 0  # requests answered with hits
    failed: Counter[str] = field(default_factory=Counter[str])  # requests answered with an error, by code
    partial: int = 0  # of the searches, those that a gateway answered without some partitions
    expired: int = 0  # requests whose deadline passed; not answered
    unroutable: int = 0  # replies whose topic does not exist; dead-lettered


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """The newest snapshot."""

    id: int
    age_s: float
    live: int
    bytes: int  # raw vectors apart


@dataclass(frozen=True, slots=True)
class RecallStatus:
    """The canary's newest window."""

    k: int
    ef: int  # of the searches that it speaks of
    recall: float
    low: float  # of the 95 % interval
    high: float
    queries: int
    age_s: float


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """What was asked of all shards together, since the start."""

    searches: int  # requests answered with hits
    partial: int  # of those, without the hits of some partitions
    failed: dict[str, int]  # requests answered with an error, by code
    expired: int
    unroutable: int
    waiting_requests: int
    absent: tuple[int, ...]  # partitions that let the last request pass


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a service."""

    version: str
    pid: int
    uptime_s: float
    ready: bool  # the index is what the topic says, as far as can be known, within ingest.ready_lag
    log: str
    topic: str
    dim: int | None  # None until the first vector, where no dimension is configured
    metric: str
    embedding_model: str | None
    live: int
    digest: str | None  # of the live set (index/digest.py); None until the first vector
    applied: dict[int, int]  # partition -> next offset
    lag: dict[int, int] | None  # records not applied yet, by partition; None: the log does not answer
    frames: tuple[FrameRows, ...]
    reencoding: bool  # rows wait to move to another frame
    fit_loss: float | None  # squared error of the codes / the least possible; None while rows are floats
    ef: int  # of searches that do not say
    recall: RecallStatus | None  # None before the first window
    snapshot: SnapshotStatus | None
    records_since_snapshot: int
    paused: bool  # ingestion, since the process is above memory_limit, or the disk refuses
    waiting_requests: int
    parked_requests: int  # of those, the ones that wait for offsets
    records: int
    upserted: int
    deleted: int
    contested: int
    deletes_forgotten: int  # remembered too short, there were too many
    rejected: dict[str, int]
    dead_letters_pending: int
    dead_letters_refused: int
    searches: int
    failed: dict[str, int]
    expired: int
    unroutable: int
    memory: dict[str, int]  # bytes by part; `resident` and `anonymous` are the process's
    gateway: GatewayStatus | None  # None: no gateway runs inside


def memory_of(stats: Stats | None) -> dict[str, int]:
    """Bytes in RAM: of the process, and by part of the index."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    process = {"resident": resident, "anonymous": anonymous_bytes()}
    return {**process, **({} if stats is None else stats.bytes)}
