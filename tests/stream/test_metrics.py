"""Probes and metrics: what they say of a real service, and that nobody waits for them."""

import asyncio
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from driftline.errors import LogError
from driftline.stream.applied import Applied
from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.http import Page, serve_http
from driftline.stream.log import Draft, open_log
from driftline.stream.log_end import LogEnd
from driftline.stream.measures import Histogram
from driftline.stream.metrics import METRICS
from prometheus_client.parser import text_string_to_metric_families

from ..kafka.broker import free_ports
from .running import Place, bare, eventually, gaussian, until

DIM = 8
ROWS = 200
PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """A service that listens, and the URL where it does."""
    directory = tmp_path_factory.mktemp("metrics")
    (port,) = free_ports(1)
    place = Place(f"local:{directory / 'log'}", "metrics", directory, index__dim=DIM, http__port=port,
                  canary__every_seconds=0, canary__sample=30, index__compress_after=100)  # fmt: skip
    with place.service.start():
        yield place, f"http://127.0.0.1:{port}"


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def values(text: str) -> dict[tuple[str, str], float]:
    """(sample's name, its label's value) -> value."""
    return {
        (sample.name, "".join(value for name, value in sample.labels.items() if name != "le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_of_a_service_at_work(served: tuple[Place, str]) -> None:
    """What was fed, refused, searched, and saved stands there; recall comes too."""
    place, url = served
    async with (
        open_log(place.url) as log,
        FeedClient(log, place.vectors) as feed,
        SearchClient(log, place.search, place.replies) as client,
    ):
        await log.append([Draft(place.vectors, b"bad", b"\xc1")])
        queries = gaussian(101, DIM, 2)
        token = await feed.upsert([f"v{row}" for row in range(ROWS)], gaussian(ROWS, DIM, 1))
        await client.search(queries[100], k=5, after=token)  # in one batch with its delete v0 would not count
        token = await feed.delete(["v0"])
        for row, query in enumerate(queries[:100]):
            await client.search(query, k=5, after=token if row == 0 else None)
        await log.append([Draft(place.search, None, b"\xc1")])
        await asyncio.to_thread(place.service.ask, "snapshot")
        needed = {
            ("driftline_recall", "mean"),
            ("driftline_snapshot_bytes", ""),
            ("driftline_search_errors_total", "undecodable_value"),
        }

        def complete() -> dict[tuple[str, str], float] | None:
            found = values(get(f"{url}/metrics")[1])
            return found if needed <= found.keys() else None

        found = await eventually(complete, "a window of the canary, and the rest")
    assert found["driftline_live_vectors", ""] == ROWS - 1
    assert found["driftline_records_total", ""] == ROWS + 2
    assert found["driftline_upserted_total", ""] == ROWS
    assert found["driftline_deleted_total", ""] == 1
    assert found["driftline_applied_offset", "0"] == ROWS + 2
    assert found["driftline_lag_records", "0"] == 0
    assert found["driftline_rejected_total", "undecodable_value"] == 1
    assert found["driftline_searches_total", ""] == found["driftline_search_seconds_count", ""] >= 100
    assert found["driftline_answer_seconds_sum", ""] >= found["driftline_search_seconds_sum", ""] > 0
    assert found["driftline_apply_seconds_count", ""] == found["driftline_delay_seconds_count", ""] > 0
    assert found["driftline_ready", ""] == 1
    assert found["driftline_recall", "low"] <= found["driftline_recall", "mean"] <= 1
    assert found["driftline_memory_bytes", "anonymous"] < found["driftline_memory_bytes", "resident"]
    assert sum(value for (name, _), value in found.items() if name == "driftline_frame_rows") >= ROWS - 1


def test_the_documentation_lists_every_metric(served: tuple[Place, str]) -> None:
    """docs/operations.md has a line for each with its kind, label and meaning, and names none besides; and a
    scrape has these and no others."""
    for name, metric in METRICS.items():
        label = f"`{metric.label}`" if metric.label else ""
        assert f"\n| `driftline_{name}` | {metric.kind} | {label} | {metric.meaning} |\n" in PAGE
    listed = set(re.findall(r"^\| `(driftline_\w+)` \|", PAGE, re.M))
    listed |= set(re.findall(r"`(process_\w+)`", PAGE))
    families = text_string_to_metric_families(get(f"{served[1]}/metrics")[1])
    scraped = {f"{family.name}{'_total' * (family.type == 'counter')}" for family in families}
    assert listed == scraped


def test_probes(served: tuple[Place, str]) -> None:
    """Alive and ready; a path that does not exist names those that do; other methods are refused."""
    _, url = served
    assert get(f"{url}/healthz") == (200, "ok\n")
    assert get(f"{url}/readyz?verbose") == (200, "ready\n")
    assert get(f"{url}/") == (404, "there are /metrics, /healthz, /readyz\n")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(urllib.request.Request(f"{url}/healthz", method="PUT"), timeout=10)


async def test_ready_goes_back(tmp_path: Path) -> None:
    """Far behind the log's end: not ready any more, with the reason; then ready again."""
    (port,) = free_ports(1)
    place = Place(f"local:{tmp_path / 'log'}", "back", tmp_path, index__dim=DIM, http__port=port,
                  ingest__ready_lag=100)  # fmt: skip
    url = f"http://127.0.0.1:{port}/readyz"
    with place.service.start():
        async with open_log(place.url) as log:
            drafts = [bare(place.vectors, b"%d" % row, [row] * DIM) for row in range(5000)]
            status, why = 200, ""
            async with asyncio.timeout(60):
                while status == 200:  # it may keep up with a few thousand
                    await log.append(drafts)
                    drafts = [replace(draft, key=(draft.key or b"") + b"x") for draft in drafts]
                    status, why = await asyncio.to_thread(get, url)
            assert status == 503
            assert re.fullmatch(r"not ready: \d+ records behind, ingest.ready_lag is 100\n", why)
            status, _ = await eventually(lambda: (answer := get(url))[0] == 200 and answer, "ready again")
        assert (place.service.status() or {})["ready"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /defect HTTP/1.0\r\n\r\n", 500),
        (b"HEAD /page HTTP/1.1\r\n\r\n", 200),
    ],
    ids=["nonsense", "too long", "page", "defect", "head"],
)
async def test_requests_as_they_come(sent: bytes, status: int) -> None:
    """Of any bytes one answer comes back, whole, and the connection ends."""

    async def page() -> Page:
        return Page(200, b"here\n")

    async def defect() -> Page:
        raise LogError("broken")

    (port,) = free_ports(1)
    logger = structlog.wrap_logger(structlog.ReturnLogger())
    async with serve_http("127.0.0.1", port, {"/page": page, "/defect": defect}, logger):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d" % (5 if sent.startswith(b"HEAD") else len(body)) in head
    assert bool(body) is not sent.startswith(b"HEAD")


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    """Said with the reason, and the service serves its topics all the same."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        place = Place(f"local:{tmp_path / 'log'}", "taken", tmp_path, index__dim=DIM, http__port=port)
        with place.service.start():
            (event,) = until(lambda: place.service.events("http.failed"), "said")
            assert event["port"] == port
            assert "in use" in event["reason"]
            assert place.service.stop() == 0


class SlowLog:
    """A log whose end is known after a while, and how often that was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()

    async def end_offsets(self, topic: str) -> dict[int, int]:
        self.asked += 1
        await self.answers.wait()
        if topic == "gone":
            raise LogError("no such topic")
        return {0: 10 * self.asked}


async def test_the_end_is_asked_once_for_many() -> None:
    """Who is content with an answer of the last second shares it; who is not gets a new one; None where the
    log fails."""
    log = SlowLog()
    end = LogEnd(log, "topic", Applied({0: 4}))  # type: ignore[arg-type]
    asking = [asyncio.create_task(end.lag(60.0)) for _ in range(10)]
    await asyncio.sleep(0)
    log.answers.set()
    assert await asyncio.gather(*asking) == [{0: 6}] * 10
    assert log.asked == 1
    assert await end.lag() == {0: 16}
    assert await LogEnd(log, "gone", Applied({0: 4})).offsets() is None  # type: ignore[arg-type]


def test_a_histogram_counts_what_is_at_most_a_bound() -> None:
    """Cumulative, a time that equals a bound included, the last for all."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 1.0, 7.0):
        histogram.update(seconds)
    assert histogram.value() == [2, 4, 5]
    assert histogram.sum == pytest.approx(8.65)
