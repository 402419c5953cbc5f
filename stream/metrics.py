"""The metrics of a service in Prometheus' text format; docs/operations.md lists them.

`METRICS` says what there is, `samples` where each comes from. A metric without a value now (recall before
the first window of the canary, say) is there with no sample.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector

from ..index.reencode import Progress
from .measures import Histogram, Measures
from .status import Status

__all__ = ["CONTENT_TYPE", "METRICS", "Metric", "exposition"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "driftline_"


@dataclass(frozen=True, slots=True)
class Metric:
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    label: str | None = None


METRICS = {
    # how it stands
    "info": Metric("gauge", "1, with the version as its label.", "version"),
    "uptime_seconds": Metric("gauge", "Since the service started."),
    "ready": Metric(
        "gauge", "1 when /readyz says so: caught up, and within ingest.ready_lag of the log's end."
    ),
    "live_vectors": Metric("gauge", "Vectors that answer searches."),
    "memory_bytes": Metric(
        "gauge", "resident and anonymous: of the process; the others: by part of the index.", "part"
    ),
    # ingestion
    "applied_offset": Metric("gauge", "Next offset to apply.", "partition"),
    "lag_records": Metric(
        "gauge", "Offsets from there to the log's end; missing while the log does not answer.", "partition"
    ),
    "records_total": Metric("counter", "Records of the vectors topic, applied or rejected."),
    "upserted_total": Metric("counter", "Rows that were new or different."),
    "deleted_total": Metric("counter", "Live keys deleted."),
    "rejected_total": Metric(
        "counter", "Records and requests that went to the dead-letter topic, by reason.", "code"
    ),
    "dead_letters_pending": Metric(
        "gauge", "Dead letters and drift events that the broker has not acknowledged."
    ),
    "paused": Metric(
        "gauge", "1 while ingestion waits: the process is above memory_limit, or the disk refuses."
    ),
    "apply_seconds": Metric("histogram", "Putting one batch into the index."),
    "delay_seconds": Metric(
        "histogram", "From the timestamp of a batch's newest record until it could be found."
    ),
    # searches
    "searches_total": Metric("counter", "Requests answered with hits."),
    "search_errors_total": Metric("counter", "Requests answered with an error, by its code.", "code"),
    "search_expired_total": Metric("counter", "Requests not answered since their deadline had passed."),
    "unroutable_total": Metric("counter", "Requests without a way back; dead letters."),
    "search_seconds": Metric("histogram", "One search in its thread, its reply encoded."),
    "answer_seconds": Metric(
        "histogram", "One request from being read to its reply encoded, waiting included."
    ),
    "requests": Metric("gauge", "Requests held now: running, or waiting for offsets."),
    "requests_parked": Metric("gauge", "Of those, the ones that wait for offsets."),
    # recall, drift, re-encoding
    "search_ef": Metric("gauge", "Width of searches that do not say."),
    "recall": Metric(
        "gauge", "The canary's newest window: the mean, and the ends of its 95 % interval.", "bound"
    ),
    "recall_age_seconds": Metric("gauge", "Since that window."),
    "fit_loss": Metric("gauge", "Squared error of the codes / the least possible, newest window; 1 is best."),
    "frame_rows": Metric("gauge", "Rows of each encoder frame that is alive.", "frame"),
    "reencoding": Metric("gauge", "1 while rows wait to move to another frame."),
    "reencode_slabs": Metric("gauge", "Slabs that the re-encode under way surveys, then moves.", "state"),
    # snapshots
    "snapshot_age_seconds": Metric("gauge", "Of the newest snapshot."),
    "snapshot_bytes": Metric("gauge", "Of the newest snapshot, raw vectors apart."),
    "snapshot_unsaved_records": Metric("gauge", "Records that a crash would replay."),
}

Samples = Iterator[tuple[str, str, float]]  # name, the label's value, value


def exposition(status: Status, progress: Progress | None, measures: Measures) -> bytes:
    """All metrics, and those of the process as every Prometheus client has them."""
    return generate_latest(_Collected(status, progress, measures))


class _Collected:
    """A collector as prometheus_client knows them, of one moment."""

    def __init__(self, status: Status, progress: Progress | None, measures: Measures) -> None:
        self._found: dict[str, list[tuple[str, float]]] = {name: [] for name in METRICS}
        for name, label, value in samples(status, progress):
            self._found[name].append((label, value))
        self._measures = measures

    def collect(self) -> Iterable[Family]:
        for name, metric in METRICS.items():
            if metric.kind == "histogram":
                histogram: Histogram = getattr(self._measures, name.removesuffix("_seconds"))
                yield _histogram_family(PREFIX + name, metric.meaning, histogram)
                continue
            kind = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
            family = kind(PREFIX + name, metric.meaning, labels=[metric.label] if metric.label else [])
            for label, value in self._found[name]:
                family.add_metric([label] if metric.label else [], value)
            yield family
        yield from ProcessCollector(registry=None).collect()


def _histogram_family(name: str, meaning: str, histogram: Histogram) -> Family:
    counts = histogram.value()
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return HistogramMetricFamily(name, meaning, list(zip(bounds, counts, strict=True)), histogram.sum)


def samples(status: Status, progress: Progress | None) -> Samples:
    """What a status says, as samples of METRICS."""
    yield "info", status.version, 1
    yield "uptime_seconds", "", status.uptime_s
    yield "ready", "", status.ready
    yield "live_vectors", "", status.live
    yield from _labelled("memory_bytes", status.memory)
    yield from _labelled("applied_offset", status.applied)
    yield from _labelled("lag_records", status.lag or {})
    yield "records_total", "", status.records
    yield "upserted_total", "", status.upserted
    yield "deleted_total", "", status.deleted
    yield from _labelled("rejected_total", status.rejected)
    yield "dead_letters_pending", "", status.dead_letters_pending
    yield "paused", "", status.paused
    yield "searches_total", "", status.searches
    yield from _labelled("search_errors_total", status.failed)
    yield "search_expired_total", "", status.expired
    yield "unroutable_total", "", status.unroutable
    yield "requests", "", status.waiting_requests
    yield "requests_parked", "", status.parked_requests
    yield "search_ef", "", status.ef
    if status.recall is not None:
        recall = status.recall
        yield from _labelled("recall", {"mean": recall.recall, "low": recall.low, "high": recall.high})
        yield "recall_age_seconds", "", recall.age_s
    if status.fit_loss is not None:
        yield "fit_loss", "", status.fit_loss
    for frame in status.frames:
        yield "frame_rows", str(frame.frame), frame.rows
    yield "reencoding", "", status.reencoding
    if progress is not None:
        yield from _labelled("reencode_slabs", {"done": progress.slabs_done, "all": progress.slabs})
    if status.snapshot is not None:
        yield "snapshot_age_seconds", "", status.snapshot.age_s
        yield "snapshot_bytes", "", status.snapshot.bytes
    yield "snapshot_unsaved_records", "", status.records_since_snapshot


def _labelled(name: str, values: Mapping[str, float] | Mapping[int, float]) -> Samples:
    for label, value in values.items():
        yield name, str(label), value
