"""Records and requests that were valid until something was done to them, and a service that gets them.

Half of the records are good. Of the others, and of all requests, some are valid ones with flipped bits in
value, key or headers, some have headers missing, doubled or exchanged, some are random documents or bytes.
Many of them are still valid. What must hold is that each is accounted for: a record is applied, or there is
one dead letter for it with a known code; a request is answered once, or its refusal is counted.
"""

import asyncio
import contextlib
import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from driftline import Row
from driftline.stream.log import Draft, Headers, Log, Reader, Record
from driftline.stream.messages import CODES, ReplyRoute, correlation_of, route_headers

from .running import Place, differences, eventually, read_all, reasons, until

__all__ = ["SETTINGS", "Tally", "fuzz_records", "fuzz_requests"]

DIM = 8
MODEL = "a"
LONG_S = 3600.0
REPLIES_S = 30.0  # for those that are under way when every request is dealt with
BATCH = 2000  # drafts appended at once
ODD = [0.0, 1.0, -1.5, 3e38, 1e-40, 1e39, float("nan"), float("inf"), 2**70, -1, "1", None, True, [], {}]
TYPES = [
    b"application/json", b"application/msgpack", b"application/octet-stream", b"text/plain",
    b"application/json; charset=latin-1", b"", b"\xff",
]  # fmt: skip
NAMES = ["vector", "dtype", "attributes", "k", "ef", "key", "after", "filter", "include", "deadline_ms", "z"]
MORE_HEADERS = [
    ("Content-Type", TYPES[1]), ("embedding-model", b"b"), ("driftline-version", b"1"),
    ("driftline-version", b"2"), ("x", b"\xff"), *(("content-type", kind) for kind in TYPES),
]  # fmt: skip
SETTINGS: dict[str, object] = {
    "index__dim": DIM, "index__metric": "cosine", "index__embedding_model": MODEL, "index__m": 8,
    "index__ef_construction": 16, "search__deadline_ms": 60_000, "logging__level": "error",
    "drift__window_rows": 100_000,
}  # fmt: skip

Tell = Callable[[int], None]
Message = tuple[bytes | None, Headers]  # value and headers


@dataclass(slots=True)
class Tally:
    """What was sent, and what became of it."""

    good: int = 0
    fuzzed: int = 0
    codes: Counter[str] = field(default_factory=Counter[str])  # of dead letters, or of error replies
    answered: int = 0  # requests
    expired: int = 0
    wrong: list[str] = field(default_factory=list[str])


def valid_record(draw: random.Random) -> Message:
    vector = [draw.gauss(0, 1) for _ in range(DIM)]
    packed = struct.pack(f"<{DIM}f", *vector)
    model = (("embedding-model", MODEL.encode()),) if draw.random() < 0.3 else ()
    attributes = {"year": draw.randrange(1900, 2100), "tags": ["a", "b"], "x": {"y": None, "z": 1.5}}
    match draw.randrange(4):
        case 0:
            return packed, (("content-type", TYPES[2]), *model)
        case 1:
            document: dict[str, Any] = {"vector": vector, "attributes": attributes}
            return json.dumps(document).encode(), (("content-type", TYPES[0]), *model)
        case 2:
            halves = np.array(vector, "<f2").tobytes()
            return msgpack.packb({"vector": halves, "dtype": "f2"}), (("content-type", TYPES[1]), *model)
        case _:
            return msgpack.packb({"vector": packed, "attributes": attributes}), model


def valid_request(draw: random.Random) -> Message:
    vector = [draw.gauss(0, 1) for _ in range(DIM)]
    document: dict[str, Any] = {"k": draw.randrange(1, 20), "deadline_ms": 20_000}
    as_json = draw.random() < 0.5
    if draw.random() < 0.8:
        document["vector"] = vector if as_json else struct.pack(f"<{DIM}f", *vector)
    else:
        document["key"] = f"g{draw.randrange(1000)}"
    for name, value in (
        ("ef", draw.randrange(1, 100)),
        ("include", ["attributes", "vector"]),
        ("filter", {"year": {"gte": draw.randrange(1900, 2100)}, "tags": "a"}),
    ):
        if draw.random() < 0.3:
            document[name] = value
    kind = TYPES[0] if as_json else TYPES[1]
    return json.dumps(document).encode() if as_json else msgpack.packb(document), (("content-type", kind),)


def flipped(data: bytes, draw: random.Random) -> bytes:
    """With one to eight bits changed, mostly one."""
    changed = bytearray(data or b"\0")
    for _ in range(draw.choice([1, 1, 1, 2, 4, 8])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def document(draw: random.Random, depth: int = 4) -> Any:
    """Something that JSON and msgpack can hold, mostly."""
    if depth == 0 or draw.random() < 0.5:
        return draw.choice(ODD) if depth == 0 else draw.choice([*ODD, draw.random(), "text"])
    if draw.random() < 0.5:
        return [document(draw, depth - 1) for _ in range(draw.randrange(5))]
    return {draw.choice(NAMES): document(draw, depth - 1) for _ in range(draw.randrange(4))}


def fuzzed(message: Message, draw: random.Random) -> Message:
    """A valid message with something done to it."""
    value, headers = message
    value = value or b""
    match draw.randrange(9):
        case 0 | 1:
            return flipped(value, draw), headers
        case 2:
            return value[: draw.randrange(len(value) + 1)], headers
        case 3:  # a header missing, doubled, damaged, or another type named
            at = draw.randrange(len(headers)) if headers else 0
            return value, (*headers[:at], *headers[at + 1 :])
        case 4:
            return value, (*headers, *headers, draw.choice(MORE_HEADERS))
        case 5:
            at = draw.randrange(len(headers) + 1)
            return value, tuple(
                (name, flipped(data, draw)) if place == at else (name, data)
                for place, (name, data) in enumerate(headers)
            )
        case 6:
            return draw.randbytes(draw.randrange(80)), headers
        case 7:  # with the vector of another length, or with odd numbers in it
            numbers = [draw.choice([*ODD, 0.5, 0.25]) for _ in range(draw.choice([DIM, DIM, DIM - 1, 0, 70]))]
            made = {"vector": numbers, **({"attributes": document(draw)} if draw.random() < 0.3 else {})}
        case _:
            made = {draw.choice(NAMES): document(draw) for _ in range(draw.randrange(6))}
    try:
        packed = msgpack.packb(made) if draw.random() < 0.5 else json.dumps(made).encode()
    except (OverflowError, ValueError):
        packed = json.dumps(made).encode()
    return packed, () if draw.random() < 0.5 else headers


def fuzzed_key(draw: random.Random, goods: int) -> bytes | None:
    """Of a good record, of no other, or one that cannot be."""
    if draw.random() < 0.03:
        return draw.choice([b"", b"k" * 512, flipped(b"g%d" % draw.randrange(goods + 1), draw)])
    return b"g%d" % draw.randrange(goods + 1) if draw.random() < 0.3 else b"f%d" % draw.randrange(10**6)


async def fuzz_records(log: Log, place: Place, count: int, seed: int, tell: Tell) -> Tally:
    """Feed so many fuzzed records among as many good ones, and account for each. The service runs.

    The vectors topic must have one partition.
    """
    draw, tally = random.Random(seed), Tally()
    before = rejections(place)
    last: dict[bytes, bytes | None] = {}  # key -> what its last record that was applied holds
    # By offset: key, and the vector of a good record, b"" for what a fuzzed one may hold, None for a delete.
    made: list[tuple[bytes | None, bytes | None]] = []
    while tally.fuzzed < count:
        drafts: list[Draft] = []
        for _ in range(min(BATCH, count - tally.fuzzed)):
            vector = struct.pack(f"<{DIM}f", *(draw.gauss(0, 1) for _ in range(DIM)))
            good = Draft(
                place.vectors, b"g%d" % tally.good, vector, (("content-type", TYPES[2]),), partition=0
            )
            value, headers = fuzzed(valid_record(draw), draw)
            key = fuzzed_key(draw, tally.good)
            value = None if draw.random() < 0.01 else value
            bad = Draft(place.vectors, key, value, headers, partition=0)
            drafts += [good, bad]
            made += [(good.key, vector), (key, value and b"")]
            tally.good += 1
            tally.fuzzed += 1
        positions = await log.append(drafts)
        assert [position.offset for position in positions] == list(range(len(made) - len(drafts), len(made)))
        tell(tally.fuzzed)
    await eventually(place.service.caught_up, "everything applied", LONG_S)
    await eventually(lambda: acknowledged(place), "dead letters acknowledged", LONG_S)
    rejected = await letters(log, place, tally)
    for offset, (key, vector) in enumerate(made):
        if offset in rejected:
            if vector:
                tally.wrong.append(f"a good record was rejected: {offset}")
        elif key is not None:
            last[key] = vector
    counted = rejections(place) - before
    if counted != tally.codes:
        tally.wrong.append(f"counted {dict(counted)}, dead letters {dict(tally.codes)}")
    assert place.service.stop() == 0
    live = {key: vector for key, vector in last.items() if vector is not None}
    tally.wrong += await asyncio.to_thread(differences, place.service, live, same, dim=DIM, metric="cosine")
    return tally


def stated(place: Place) -> dict[str, Any]:
    """The service's status; it may be long in coming, where the broker is slow to say how its log ends."""
    return until(place.service.status, "its status", LONG_S)


def rejections(place: Place) -> Counter[str]:
    return Counter(stated(place)["rejected"])


def acknowledged(place: Place) -> bool:
    return not stated(place)["dead_letters_pending"]


async def letters(log: Log, place: Place, tally: Tally) -> set[int]:
    """Offsets of the vectors topic that have a dead letter; each one, with a known code and a reason."""
    found: set[int] = set()
    reader = await log.reader({(place.letters, 0): 0})
    end = (await log.end_offsets(place.letters))[0]
    while reader.position(place.letters, 0) < end:
        for letter in await reader.fetch():
            why = reasons(letter)
            if why["topic"] != place.vectors:
                continue
            code, offset = why["exception.class.name"].removeprefix("driftline."), int(why["offset"])
            if offset in found or code not in CODES or not why["exception.message"]:
                tally.wrong.append(f"dead letter of {offset}: {why}")
            found.add(offset)
            tally.codes[code] += 1
    await reader.close()
    return found


def same(row: Row, vector: bytes) -> bool:
    """b"" stands for any vector."""
    return vector in (b"", row.vector.tobytes())


async def fuzz_requests(log: Log, place: Place, count: int, seed: int, tell: Tell) -> Tally:
    """Ask so many fuzzed requests, and account for each. The service runs."""
    draw, tally = random.Random(seed), Tally()
    ends = await log.end_offsets(place.replies)
    reader = await log.reader({(place.replies, 0): ends[0]})
    before = handled(place)
    replied: Counter[bytes] = Counter()
    awaited: set[bytes] = set()
    while tally.fuzzed < count:
        drafts: list[Draft] = []
        for _ in range(min(BATCH, count - tally.fuzzed)):
            correlation = draw.randbytes(16)  # no few flipped bits make it another one
            route = route_headers(ReplyRoute(place.replies, 0, correlation))
            value, headers = fuzzed(valid_request(draw), draw)
            if draw.random() < 0.2:
                _, route = fuzzed((None, route), draw)
            else:
                awaited.add(correlation)
            drafts.append(Draft(place.search, None, value, (*headers, *route)))
            tally.fuzzed += 1
        await log.append(drafts)
        sent = tally.fuzzed

        def done(sent: int = sent) -> bool:
            return sum(handled(place)[name] - before[name] for name in before) >= sent

        await eventually(done, "every request dealt with", LONG_S)
        await gather(log, reader, place, replied, tally)
        tell(tally.fuzzed)
    after = handled(place)
    tally.expired = after["expired"] - before["expired"]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REPLIES_S):
            while len(awaited - replied.keys()) > tally.expired:
                await gather(log, reader, place, replied, tally)
    await reader.close()
    tally.answered = after["searches"] - before["searches"]
    status = stated(place)
    if "internal_error" in status["failed"]:
        tally.wrong.append(f"{status['failed']['internal_error']} internal errors")
    unanswered = awaited - replied.keys() - await refused(log, place)
    twice = [correlation for correlation in awaited if replied[correlation] > 1]
    if len(unanswered) > tally.expired or twice:
        tally.wrong.append(f"{len(unanswered)} without a reply, {tally.expired} expired, {len(twice)} twice")
    return tally


async def refused(log: Log, place: Place) -> set[bytes]:
    """Correlation ids of the requests that have a dead letter: of a broker too slow to say where to reply."""
    return {
        correlation_of(letter) or b""
        for letter in await read_all(log, place.letters)
        if reasons(letter)["topic"] == place.search
    }


def handled(place: Place) -> dict[str, int]:
    """Requests that the service is done with, by what became of them."""
    status = stated(place)
    failed = Counter(status["failed"])
    del failed["reply_too_large"]  # answered too
    return {
        "searches": status["searches"],
        "failed": failed.total(),
        "expired": status["expired"],
        "nowhere": status["rejected"].get("bad_reply_route", 0),
    }


async def gather(log: Log, reader: Reader, place: Place, replied: Counter[bytes], tally: Tally) -> None:
    """Read replies up to the end of their topic now."""
    end = (await log.end_offsets(place.replies))[0]
    while reader.position(place.replies, 0) < end:
        for reply in await reader.fetch():
            replied[correlation_of(reply) or b""] += 1
            code = error_code(reply)
            if code is not None:
                tally.codes[code] += 1
                if code not in CODES:
                    tally.wrong.append(f"a reply with the code {code}")


def error_code(reply: Record) -> str | None:
    value = reply.value or b""
    document: Any = json.loads(value) if value[:1] == b"{" else msgpack.unpackb(value, strict_map_key=False)
    return document["error"]["code"] if "error" in document else None
