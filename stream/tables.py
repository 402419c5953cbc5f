"""Results as text for people: what the command line prints without --json."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .drift_words import sentence, time_of_day

__all__ = ["show"]

Result = Mapping[str, Any]


def show(kind: str, result: Result) -> None:
    """Print a result on standard output."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    SHOWN[kind](console, result)


def pairs(console: Console, rows: Mapping[str, object]) -> None:
    """Names and values, two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text("" if value is None else str(value)))
    console.print(table)


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def offsets_text(offsets: Mapping[Any, int] | None) -> str:
    """Partition -> offset, short."""
    return "unknown" if offsets is None else ", ".join(f"{p}: {offset:,}" for p, offset in offsets.items())


def frames_text(frames: Iterable[Result]) -> str:
    return ", ".join(f"{f['frame']} ({f['kind']}): {f['rows']:,} rows" for f in frames) or "none"


def loss_text(fit_loss: float | None) -> str:
    return "rows are floats" if fit_loss is None else f"{fit_loss:.3f}"


def _feed(console: Console, result: Result) -> None:
    console.print(
        f"fed {result['fed']:,} vectors to {result['topic']} in {result['seconds']:.1f} s "
        f"({result['per_second']:,.0f}/s); offsets after them: "
        + "; ".join(offsets_text(partitions) for partitions in result["after"].values()),
    )


def _search(console: Console, result: Result) -> None:
    for reply in result["replies"]:
        table = Table(title=Text(str(reply["query"])), title_justify="left", box=None, pad_edge=False)
        table.add_column("#", justify="right")
        table.add_column("id", style="cyan")
        table.add_column("distance", justify="right")
        table.add_column("attributes", overflow="fold")
        for rank, hit in enumerate(reply["hits"], 1):
            beside: Result = hit.get("attributes") or {}
            attributes = ", ".join(f"{name}: {value}" for name, value in beside.items())
            table.add_row(str(rank), Text(hit["id"]), f"{hit['distance']:.6g}", Text(attributes))
        console.print(table)
        if "partial" in reply:
            console.print(f"partial: without partitions {', '.join(map(str, reply['partial']))}")
    took = result["round_trip_ms"]
    if took:
        count = len(result["replies"])
        console.print(
            f"{count} answered; round trip median {took['median']} ms, longest {took['max']} ms",
        )


def _status(console: Console, result: Result) -> None:
    snapshot = result["snapshot"]
    taken = "none yet"
    if snapshot is not None:
        taken = f"{snapshot['id']}, {snapshot['live']:,} vectors, {snapshot['age_s']:.0f} s old"
    rejected = ", ".join(f"{code}: {count:,}" for code, count in result["rejected"].items())
    failed = ", ".join(f"{code}: {count:,}" for code, count in result["failed"].items())
    pairs(
        console,
        {
            "service": f"driftline {result['version']}, process {result['pid']}, "
            f"up {result['uptime_s']:.0f} s",
            "ready": "yes" if result["ready"] else "no, catching up",
            "log": result["log"],
            "topic": result["topic"],
            "collection": f"{result['live']:,} vectors, dim {result['dim'] or 'not known yet'}, "
            f"{result['metric']}, model {result['embedding_model'] or 'not named'}",
            "digest": result["digest"] or "none yet",
            "applied offsets": offsets_text(result["applied"]),
            "lag": offsets_text(result["lag"]),
            "frames": frames_text(result["frames"]),
            "fit loss": loss_text(result["fit_loss"]),
            "recall": _recall(result),
            "snapshot": f"{taken}; {result['records_since_snapshot']:,} records since",
            "records": f"{result['records']:,} ({result['upserted']:,} rows changed, "
            f"{result['deleted']:,} deleted)",
            "rejected": rejected or "none",
            "searches": f"{result['searches']:,} answered, {result['expired']:,} expired, "
            f"{result['unroutable']:,} with no way back, {result['waiting_requests']:,} waiting",
            "errors replied": failed or "none",
            **_gateway(result),
            "memory": ", ".join(f"{part} {megabytes(size)}" for part, size in result["memory"].items()),
        },
    )


def _gateway(result: Result) -> dict[str, str]:
    gateway = result["gateway"]
    if gateway is None:
        return {}
    absent = ", ".join(map(str, gateway["absent"]))
    said = f"{gateway['searches']:,} answered, {gateway['partial']:,} of them partial"
    return {"gateway": said + (f"; partitions {absent} do not answer" if absent else "")}


def _recall(result: Result) -> str:
    recall = result["recall"]
    if recall is None:
        return f"not measured yet; searches use ef {result['ef']}"
    return (
        f"{recall['recall']:.3f} ({recall['low']:.3f} to {recall['high']:.3f}) of {recall['k']} at ef "
        f"{recall['ef']}, {recall['age_s']:.0f} s ago; searches use ef {result['ef']}"
    )


def _snapshots(console: Console, result: Result) -> None:
    if not result["snapshots"]:
        console.print(f"no snapshot in {result['data_dir']} yet")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "created", "vectors", "size", "written", "took", "next offsets"):
        table.add_column(name, justify="left" if name in ("created", "next offsets") else "right")
    for info in result["snapshots"]:
        offsets = "; ".join(offsets_text(partitions) for partitions in info["offsets"].values())
        sizes = (megabytes(info["bytes"]), megabytes(info["bytes_written"]), f"{info['seconds']:.2f} s")
        table.add_row(str(info["id"]), info["created"], f"{info['live']:,}", *sizes, offsets)
    console.print(table)


def _verify(console: Console, result: Result) -> None:
    for problem in result["problems"]:
        console.print(Text(problem, style="red"))
    verdict = "is damaged" if result["problems"] else "is whole"
    console.print(
        f"snapshot {result['id']} ({megabytes(result['bytes'])}) {verdict}; read in {result['seconds']} s",
    )


def _pruned(console: Console, result: Result) -> None:
    removed, kept = (", ".join(map(str, result[name])) or "none" for name in ("removed", "kept"))
    console.print(f"snapshots removed: {removed}; kept: {kept}")


def _check(console: Console, result: Result) -> None:
    for problem in [*result.get("skipped", []), result["problem"]]:
        if problem is not None:
            console.print(Text(problem, style="red"))
    what = f"snapshot {result['snapshot']}" if "snapshot" in result else "the running index"
    verdict = "is in order" if result["problem"] is None else "is damaged"
    console.print(f"{what} {verdict}: {result['live']:,} vectors, checked in {result['seconds']} s")
    console.print(f"digest {result['digest']}")


def _taken(console: Console, result: Result) -> None:
    snapshot = result["snapshot"]
    if snapshot is None:
        console.print("nothing to keep yet: the collection has seen no vector")
    else:
        console.print(f"snapshot {snapshot['id']}: {snapshot['live']:,} vectors")


def _drift(console: Console, result: Result) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("time", no_wrap=True)
    table.add_column("event", style="cyan", no_wrap=True)
    table.add_column("what", overflow="fold")
    for event in result["events"]:
        table.add_row(time_of_day(event), event["event"], Text(sentence(event)))
    console.print(table if result["events"] else "no drift event yet")
    now = result["now"]
    if now is None:
        console.print("the service is not running here; frames and fit loss are its to tell")
        return
    loss, frames = loss_text(now["fit_loss"]), frames_text(now["frames"])
    pairs(console, {"vectors": f"{now['live']:,}", "fit loss": loss, "frames": frames})


def _reencode(console: Console, result: Result) -> None:
    moved = f"{result['slabs_done']:,} of {result['slabs']:,} slabs"
    states = {
        "idle": "nothing is being encoded anew",
        "waiting": "about to begin",
        "survey": f"{moved} surveyed: {result['reason']}",
        "moving": f"{moved} moved ({result['rows_done']:,} rows): {result['reason']}",
    }
    console.print(states[result["state"]] + ("; paused, --resume goes on" if result["paused"] else ""))
    last = result["last"]
    if result["state"] == "idle" and last is not None:
        console.print(f"the last one, {time_of_day(last)}: {sentence(last)}")


def _report(console: Console, result: Result) -> None:
    form = "%Y-%m-%d %H:%M:%S"
    start, end = (time.strftime(form, time.localtime(result[name] / 1000)) for name in ("from_ms", "to_ms"))
    alarms = sum(happening["event"] == "drift.detected" for happening in result["happenings"])
    period = f"{start} to {end}" if result["windows"] or result["happenings"] else "nothing told yet"
    console.print(
        f"{result['out']}: {period}; windows: {len(result['windows']):,}, changes noticed: {alarms:,}, "
        f"frames: {len(result['bands']):,}"
    )


def _aliases(console: Console, result: Result) -> None:
    named: Mapping[str, Mapping[str, str]] = result["aliases"]
    if not named:
        console.print("no aliases")
        return
    pairs(console, {alias: f"{of['collection']}, topic {of['vectors']}" for alias, of in named.items()})


SHOWN: dict[str, Callable[[Console, Result], None]] = {
    "alias": pairs,
    "aliases": _aliases,
    "check": _check,
    "config": pairs,
    "drift": _drift,
    "feed": _feed,
    "pruned": _pruned,
    "reencode": _reencode,
    "report": _report,
    "search": _search,
    "snapshot": pairs,
    "snapshots": _snapshots,
    "status": _status,
    "taken": _taken,
    "verify": _verify,
}
