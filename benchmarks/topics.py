"""How good and how fast are answers over real topics, with raw-vector rescoring and without?

`driftline serve` with its default settings follows a real Kafka; `driftline feed` feeds the base to it;
queries are asked over topics, many at once and then one at a time. Then the service starts again from its
data directory with rescoring off, and they are asked again. Recall is against exact search: a hit counts if
it is as near as the true tenth.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from driftline.stream.clients import SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import open_log
from report import milliseconds, parser, report
from running import LONG_S, Service, add_log_flag, command, place, settled, until
from vectors import Vectors, file_and_array, kth_distances, load_vectors, recall

K = 10
DEADLINE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Asked:
    rows: list[list[int]]  # of each query's hits
    seconds: list[float]  # from request to reply
    elapsed: float


async def ask(url: str, queries: Vectors, at_once: int, what: str) -> Asked:
    """Ask every query, so many at once."""
    rows: list[list[int]] = [[] for _ in queries]
    seconds: list[float] = [0.0] * len(queries)
    waiting = iter(range(len(queries)))
    async with open_log(url) as log, SearchClient(log) as client:
        with progress_bar() as progress:
            bar = progress.add_task(what, total=len(queries), note="")

            async def one_after_another() -> None:
                for number in waiting:
                    asked = time.monotonic()
                    reply = await client.search(queries[number], k=K, deadline_ms=DEADLINE_MS)
                    seconds[number] = time.monotonic() - asked
                    rows[number] = [int(hit.id) for hit in reply.hits]
                    progress.advance(bar)

            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(one_after_another())
            return Asked(rows, seconds, time.monotonic() - began)


def middle_and_high(times: dict[str, float]) -> str:
    return f"{times['median_ms']}, {times['p99_ms']}"


def main() -> None:
    flags = parser(__doc__, ask=1000)
    add_log_flag(flags)
    flags.add_argument(
        "--at-once", type=int, default=64, metavar="N", help="in flight (default: %(default)s)"
    )
    flags.add_argument("--alone", type=int, default=200, metavar="N",
                       help="queries asked one at a time (default: %(default)s)")  # fmt: skip
    options = flags.parse_args()
    base = load_vectors(options.base, options.limit)
    queries = load_vectors(options.queries, options.ask)
    kth = kth_distances(base, queries, K)
    figures: dict[str, Any] = {"rows": len(base), "dim": base.shape[1], "queries": len(queries)}

    def measure(url: str, name: str) -> None:
        many = asyncio.run(ask(url, queries, options.at_once, f"asking, {options.at_once} at once"))
        alone = asyncio.run(ask(url, queries[: options.alone], 1, "asking, one at a time"))
        figures[name] = {
            "recall": recall(base, queries, kth, many.rows, K),
            "per_second": len(queries) / many.elapsed,
            "at_once": milliseconds(many.seconds),
            "alone": milliseconds(alone.seconds),
        }

    with place(options.log) as (directory, url):
        with Service(directory, log=url, topics__create=True) as service:
            service.start()
            file, array = file_and_array(options.base)
            began = time.monotonic()
            done = command(
                "feed", str(file), *(["--dataset", array] if array else []), "--limit", str(len(base)),
                "--log", url, "--json", timeout_s=LONG_S,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr)
            fed = json.loads(done.stdout)
            until(service.caught_up, "everything applied", LONG_S)
            applied_s = time.monotonic() - began
            status = settled(service)
            settled_s = time.monotonic() - began
            measure(url, "rescored")
            service.stop()
        with Service(directory, log=url, topics__create=True, search__rescore="false") as service:
            began = time.monotonic()
            service.start()
            restart_s = time.monotonic() - began
            measure(url, "codes_only")
            service.stop()
    figures |= {
        "feed_s": fed["seconds"], "feed_per_second": fed["per_second"], "applied_s": applied_s,
        "settled_s": settled_s, "restart_s": restart_s,
        "frames": status["frames"], "memory": status["memory"],
    }  # fmt: skip
    runs: list[dict[str, Any]] = [figures["rescored"], figures["codes_only"]]
    rows = [
        ["feed (driftline feed)", f"{fed['seconds']:,.1f} s", f"{fed['per_second']:,.0f}/s"],
        ["feed to all applied", f"{applied_s:,.1f} s", f"{len(base) / applied_s:,.0f}/s"],
        ["feed to all in its frame", f"{settled_s:,.1f} s", ""],
        ["restart to ready", f"{restart_s:,.1f} s", ""],
        [f"recall@{K}", *(f"{run['recall']:.4f}" for run in runs)],
        [f"answers a second, {options.at_once} at once", *(f"{run['per_second']:,.0f}" for run in runs)],
        ["  median, p99 ms", *(middle_and_high(run["at_once"]) for run in runs)],
        ["one at a time: median, p99 ms", *(middle_and_high(run["alone"]) for run in runs)],
    ]
    title = f"{len(base):,} x {base.shape[1]}, {len(queries):,} queries, {url.partition(':')[0]}"
    report(title, ["", "rescored (default)", "codes only"], rows, figures, options)


if __name__ == "__main__":
    main()
