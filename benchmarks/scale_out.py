"""Do three shards behind a gateway answer as one instance does, and what when one of them is killed?

Three `driftline serve`, two partitions each of a topic with six on a real Kafka, and `driftline gateway`
before them; beside them one instance that holds all partitions of the same topic. The same queries are asked
of both. Then one shard is killed (SIGKILL) while queries are asked without a pause, and started again: how
long answers were partial, whether each was flagged, how long each took, and that each request had exactly one
reply. Recall is against exact search: a hit counts if it is as near as the true tenth.
"""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from driftline.stream.clients import FeedClient, SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import open_log
from report import milliseconds, parser, report
from running import LONG_S, Service, add_log_flag, place, read_all, settled, until
from vectors import Vectors, kth_distances, load_vectors, recall

from tests.stream.fleet import PARTITIONS, SHARDS, Fleet

K = 10
FEED = 1000  # vectors appended at once
DEADLINE_MS = 5000  # the default of the service: what a partial answer waits for at most
SAME = 0.005  # of recall
QUIET = 50  # whole answers running: the fleet is whole again


async def feed(url: str, topic: str, base: Vectors) -> None:
    async with open_log(url) as log, FeedClient(log, topic) as client:
        with progress_bar() as progress:
            bar = progress.add_task("feeding", total=len(base), note="")
            for first in range(0, len(base), FEED):
                rows = range(first, min(first + FEED, len(base)))
                await client.upsert([str(row) for row in rows], base[rows.start : rows.stop])
                progress.advance(bar, len(rows))


async def ask(
    url: str, search: str, replies: str, queries: Vectors, at_once: int, what: str
) -> dict[str, Any]:
    """Ask every query, so many at once."""
    hits: list[list[int]] = [[] for _ in queries]
    seconds = [0.0] * len(queries)
    partial = 0
    waiting = iter(range(len(queries)))
    async with open_log(url) as log, SearchClient(log, search, replies) as client:
        with progress_bar() as progress:
            bar = progress.add_task(what, total=len(queries), note="")

            async def one_after_another() -> None:
                nonlocal partial
                for number in waiting:
                    asked = time.monotonic()
                    reply = await client.search(queries[number], k=K, deadline_ms=60_000)
                    seconds[number] = time.monotonic() - asked
                    hits[number] = [int(hit.id) for hit in reply.hits]
                    partial += bool(reply.partial)
                    progress.advance(bar)

            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(one_after_another())
            took = time.monotonic() - began
    return {"hits": hits, "seconds": seconds, "per_second": len(queries) / took, "partial": partial}


async def outage(fleet: Fleet, queries: Vectors, away_s: float) -> list[dict[str, Any]]:
    """Every answer from before a kill until all are whole again, one after the other; the shard is started
    again so long after it was killed."""
    service = fleet.shards[1].service
    answers: list[dict[str, Any]] = []
    began = time.monotonic()
    killed = restarted = None
    whole = 0
    async with open_log(fleet.url) as log, SearchClient(log, fleet.search, fleet.replies) as client:
        while whole < QUIET or restarted is None:
            now = time.monotonic() - began
            if killed is None and len(answers) >= QUIET:
                await asyncio.to_thread(service.kill)
                killed = now
            elif killed is not None and restarted is None and now - killed >= away_s:
                service.start(ready=False)
                restarted = now
            asked = time.monotonic()
            reply = await client.search(queries[len(answers) % len(queries)], k=K, deadline_ms=DEADLINE_MS)
            ended = time.monotonic()
            found = [int(hit.id) for hit in reply.hits]
            answers.append(
                {
                    "at_s": asked - began, "took_s": ended - asked, "partial": list(reply.partial),
                    "applied": sorted(reply.applied[fleet.vectors]), "hits": found,
                    "killed": killed is not None, "restarted": restarted is not None,
                }
            )  # fmt: skip
            whole = 0 if reply.partial or restarted is None else whole + 1
    return answers


async def replies_each(fleet: Fleet) -> Counter[int]:
    """How many requests had how many replies."""
    async with open_log(fleet.url) as log:
        asked = [dict(r.headers)["kafka_correlationId"] for r in await read_all(log, fleet.search)]
        sent = Counter(dict(r.headers)["kafka_correlationId"] for r in await read_all(log, fleet.replies))
    return Counter(sent[correlation] for correlation in asked)


def alone(fleet: Fleet, directory: Path, dim: int) -> Service:
    """The instance that holds all partitions."""
    directory.mkdir()
    return Service(
        directory, log=fleet.url, topics__vectors=fleet.vectors, topics__search="one.search",
        topics__replies="one.replies", topics__drift="one.drift", topics__dead_letters="one.letters",
        topics__create=True, broker__group="one", index__dim=dim,
    )  # fmt: skip


def main() -> None:
    flags = parser(__doc__)
    add_log_flag(flags)
    flags.add_argument("--ask", type=int, default=1000, metavar="N", help="queries (default: %(default)s)")
    flags.add_argument(
        "--at-once", type=int, default=16, metavar="N", help="in flight (default: %(default)s)"
    )
    flags.add_argument("--alone", type=int, default=200, metavar="N",
                       help="queries asked one at a time (default: %(default)s)")  # fmt: skip
    flags.add_argument("--away", type=float, default=8.0, metavar="S",
                       help="from the kill to the restart (default: %(default)s)")  # fmt: skip
    options = flags.parse_args()
    base = load_vectors(options.base, options.limit)
    queries = load_vectors(options.queries, options.ask)
    kth = kth_distances(base, queries, K)
    dim = base.shape[1]
    measured: dict[str, dict[str, Any]] = {}

    def measure(name: str, url: str, search: str, replies: str) -> None:
        many = asyncio.run(ask(url, search, replies, queries, options.at_once, f"asking {name}"))
        single = asyncio.run(ask(url, search, replies, queries[: options.alone], 1, f"asking {name}, alone"))
        measured[name] = {
            "recall": recall(base, queries, kth, many.pop("hits"), K),
            "per_second": many["per_second"],
            "partial": many["partial"] + single["partial"],
            "at_once": milliseconds(many["seconds"]),
            "alone": milliseconds(single["seconds"]),
        }

    with place(options.log) as (directory, url), Fleet(url, "fleet", directory, index__dim=dim) as fleet:
        asyncio.run(feed(url, fleet.vectors, base))
        until(fleet.caught_up, "all shards have applied everything", LONG_S)
        live = [settled(shard.service)["live"] for shard in fleet.shards]
        measure("three shards", url, fleet.search, fleet.replies)
        with alone(fleet, directory / "one", dim) as one:
            one.start(ready=False)
            settled(one)
            measure("one instance", url, "one.search", "one.replies")
            one.stop()
        answers = asyncio.run(outage(fleet, queries, options.away))
        replies = asyncio.run(replies_each(fleet))

    lost = list(SHARDS[1])
    partial = [answer for answer in answers if answer["partial"]]
    # Partial, and no other, are those without the shard's partitions or from before it had caught up.
    flagged = all(
        answer["partial"] == lost or (not answer["partial"] and answer["applied"] == list(range(PARTITIONS)))
        for answer in answers
    )
    ends = [answer for answer in answers if answer["restarted"]]
    whole_s = next(a["at_s"] for a in ends if not a["partial"]) - ends[0]["at_s"]
    places = [number % len(queries) for number, answer in enumerate(answers) if not answer["partial"]]
    hits = [answer["hits"] for answer in answers if not answer["partial"]]
    whole = recall(base, queries[places], kth[places], hits, K)
    three, one_ = measured["three shards"], measured["one instance"]
    passed = (
        three["recall"] >= one_["recall"] - SAME
        and not three["partial"]
        and bool(partial)
        and flagged
        and whole >= one_["recall"] - SAME
        and set(replies) == {1}
    )
    figures = {
        "rows": len(base), "dim": dim, "queries": len(queries), "live": live, **measured,
        "outage": {
            "answers": len(answers), "partial": len(partial), "flagged": flagged,
            "first_partial_s": partial[0]["took_s"] if partial else None,
            "partial_ms": milliseconds([answer["took_s"] for answer in partial[1:] or partial]),
            "whole_after_restart_s": whole_s,
            "recall_whole": whole,
        },
        "replies_each": dict(replies), "passed": passed,
    }  # fmt: skip
    out: Any = figures["outage"]
    rows = [
        [f"recall@{K}", f"{three['recall']:.4f}", f"{one_['recall']:.4f}"],
        [f"answers a second, {options.at_once} at once", *(f"{m['per_second']:,.0f}" for m in (three, one_))],
        ["  median, p99 ms", *(middle_and_high(m["at_once"]) for m in (three, one_))],
        ["one at a time: median, p99 ms", *(middle_and_high(m["alone"]) for m in (three, one_))],
        ["vectors of each shard", ", ".join(f"{count:,}" for count in live), f"{len(base):,}"],
        ["one shard killed: answers, of them partial", f"{out['answers']:,}, {out['partial']:,}", ""],
        ["  flagged with its partitions, and no other", str(out["flagged"]), ""],
        ["  first partial answer took", f"{out['first_partial_s']:.2f} s", ""],
        ["  later ones: median, p99 ms", middle_and_high(out["partial_ms"]), ""],
        ["  restart to whole answers", f"{whole_s:.2f} s", ""],
        [f"  recall@{K} of the others", f"{whole:.4f}", ""],
        ["requests by number of replies", ", ".join(f"{n} x {count:,}" for n, count in replies.items()), ""],
    ]
    title = f"{len(base):,} x {dim}, {PARTITIONS} partitions, {len(queries):,} queries: " + (
        "as one instance" if passed else "NOT as one instance"
    )
    report(title, ["", "three shards", "one instance"], rows, figures, options)
    raise SystemExit(not passed)


def middle_and_high(times: dict[str, float]) -> str:
    return f"{times['median_ms']}, {times['p99_ms']}"


if __name__ == "__main__":
    main()
