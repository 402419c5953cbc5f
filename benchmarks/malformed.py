"""Do malformed records disturb anything?

As many malformed records as good ones, of many kinds, mixed at random on a real Kafka; half of the malformed
ones carry the key of a good one. Each malformed record must come out as exactly one dead letter with the
reason it was made for, each good one must be found over topics by its own vector, and the service must live.
The metric is cosine and the embedding model is configured, so that zero vectors and those of other models are
among them.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import msgpack
import numpy as np
from driftline.stream.clients import SearchClient
from driftline.stream.feeding import progress_bar
from driftline.stream.log import Draft, Headers, Log, Position, open_log
from report import parser, report
from running import LONG_S, Service, add_log_flag, place, read_all, until
from vectors import Vectors, load_vectors

TOPIC, LETTERS = "driftline.vectors", "driftline.dead-letters"
MODEL = "model-a"
JSON, MSGPACK, BARE = (
    (("content-type", f"application/{kind}".encode()),) for kind in ("json", "msgpack", "octet-stream")
)
PLAIN = (("content-type", b"text/plain"),)
APPEND = 500
AT_ONCE = 64
K, EF = 10, 128  # near-duplicates are many in real data, and each record is to be found, not most of them

# value, headers, and a key where it is the key that is wrong
Made = tuple[bytes | None, Headers, bytes | None]


def bare(row: Vectors) -> bytes:
    return row.astype("<f4").tobytes()


def changed(row: Vectors, value: float) -> Vectors:
    out = row.copy()
    out[len(row) // 2] = value
    return out


def packed(**fields: object) -> bytes:
    return msgpack.packb(fields)


def text(**fields: object) -> bytes:
    return json.dumps(fields).encode()


# What is wrong -> the code it must be refused with; value and headers, made from a good vector.
KINDS: dict[str, tuple[str, Callable[[Vectors], tuple[bytes | None, Headers]]]] = {
    "JSON cut short": ("undecodable_value", lambda v: (text(vector=v.tolist())[:-9], JSON)),
    "JSON that is no object": ("undecodable_value", lambda v: (json.dumps(v.tolist()).encode(), JSON)),
    "msgpack cut short": ("undecodable_value", lambda v: (packed(vector=bare(v))[:-9], MSGPACK)),
    "bytes of no format": ("undecodable_value", lambda v: (b"\xc1" + bare(v), ())),
    "empty value": ("undecodable_value", lambda v: (b"", MSGPACK)),
    "content type text/plain": ("unknown_content_type", lambda v: (bare(v), PLAIN)),
    "schema registry framing": ("schema_registry_framing", lambda v: (b"\0\0\0\0\7" + bare(v), ())),
    "bare, a component short": ("wrong_dimension", lambda v: (bare(v[:-1]), BARE)),
    "JSON, a component too many": ("wrong_dimension", lambda v: (text(vector=[*v.tolist(), 0]), JSON)),
    "msgpack, f4 called f2": ("wrong_dimension", lambda v: (packed(vector=bare(v), dtype="f2"), MSGPACK)),
    "NaN": ("not_finite", lambda v: (packed(vector=bare(changed(v, np.nan))), MSGPACK)),
    "infinity": ("not_finite", lambda v: (bare(changed(v, np.inf)), BARE)),
    "beyond float32": ("not_finite", lambda v: (text(vector=[*v[1:].tolist(), 1e39]), JSON)),
    "too long": ("vector_too_long", lambda v: (bare(changed(v, 3e38)), BARE)),
    "zero vector": ("zero_vector", lambda v: (bare(0 * v), BARE)),
    "empty key": ("empty_key", lambda v: (bare(v), BARE)),
    "key of 512 bytes": ("oversized_key", lambda v: (bare(v), BARE)),
    "delete of a key of 512 bytes": ("oversized_key", lambda v: (None, ())),
    "no vector": ("no_vector", lambda v: (packed(attributes={"a": 1}), MSGPACK)),
    "misspelt field": ("unknown_field", lambda v: (packed(vector=bare(v), atributes={}), MSGPACK)),
    "text among the numbers": ("bad_vector", lambda v: (text(vector=["1.0", *v[1:].tolist()]), JSON)),
    "dtype f8": ("bad_vector", lambda v: (packed(vector=bare(v), dtype="f8"), MSGPACK)),
    "attributes as a list": ("bad_attributes", lambda v: (packed(vector=bare(v), attributes=[1]), MSGPACK)),
    "another embedding model": ("other_model", lambda v: (bare(v), (*BARE, ("embedding-model", b"other")))),
    "empty embedding-model": ("bad_header", lambda v: (bare(v), (*BARE, ("embedding-model", b"")))),
    "message format 2": ("unknown_version", lambda v: (bare(v), (*BARE, ("driftline-version", b"2")))),
}
# Where it is the key that is wrong.
KEYS = {"empty key": b"", "key of 512 bytes": b"k" * 512, "delete of a key of 512 bytes": b"k" * 512}


def records(base: Vectors, seed: int) -> tuple[list[Draft], list[str | None]]:
    """Good and malformed records, mixed, and what is wrong with each (None: nothing)."""
    draw = np.random.default_rng(seed)
    kinds = list(KINDS)
    drafts: list[Draft] = []
    wrong: list[str | None] = []
    for number in draw.permutation(2 * len(base)).tolist():
        row = number // 2
        if number % 2 == 0:
            drafts.append(Draft(TOPIC, b"%d" % row, bare(base[row]), BARE))
            wrong.append(None)
            continue
        kind = kinds[row % len(kinds)]
        value, headers = KINDS[kind][1](base[row])
        key = b"%d" % draw.integers(len(base)) if draw.random() < 0.5 else b"bad %d" % row
        drafts.append(Draft(TOPIC, KEYS.get(kind, key), value, headers))
        wrong.append(kind)
    return drafts, wrong


async def letters(log: Log) -> dict[int, tuple[str, str, bytes | None]]:
    """Offset of the record -> code, sentence and value of its dead letter; there may be only one."""
    found: dict[int, tuple[str, str, bytes | None]] = {}
    for letter in await read_all(log, LETTERS):
        reasons = {name.removeprefix("__connect.errors."): value.decode() for name, value in letter.headers
                   if name.startswith("__connect.errors.")}  # fmt: skip
        offset = int(reasons["offset"])
        assert offset not in found, f"two dead letters for offset {offset}"
        code = reasons["exception.class.name"].removeprefix("driftline.")
        found[offset] = (code, reasons["exception.message"], letter.value)
    return found


async def searchable(log: Log, base: Vectors) -> int:
    """How many good records are found by their own vector; one as near as that counts, for duplicates."""
    found = 0
    waiting = iter(range(len(base)))
    async with SearchClient(log) as client:
        with progress_bar() as progress:
            bar = progress.add_task("asking", total=len(base), note="")

            async def one_after_another() -> None:
                nonlocal found
                for row in waiting:
                    reply = await client.search(base[row], k=K, ef=EF, deadline_ms=60_000)
                    twins = (hit for hit in reply.hits if hit.distance < 1e-6)
                    found += any((base[int(hit.id)] == base[row]).all() for hit in twins)
                    progress.advance(bar)

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(one_after_another())
    return found


async def produce(log: Log, drafts: list[Draft]) -> list[Position]:
    positions: list[Position] = []
    with progress_bar() as progress:
        bar = progress.add_task("feeding", total=len(drafts), note="")
        for first in range(0, len(drafts), APPEND):
            positions += await log.append(drafts[first : first + APPEND])
            progress.update(bar, completed=len(positions))
    return positions


def main() -> None:
    flags = parser(__doc__, queries=False)
    add_log_flag(flags)
    flags.set_defaults(limit=10_000)
    flags.add_argument("--seed", type=int, default=0, help="of the mixture (default: 0)")
    options = flags.parse_args()
    base = load_vectors(options.base, options.limit)
    drafts, wrong = records(base, options.seed)

    async def run(url: str, service: Service) -> None:
        async with open_log(url) as log:
            positions = await produce(log, drafts)
            status = await asyncio.to_thread(until, service.caught_up, "everything applied", LONG_S)
            expected = {p.offset: (kind, draft.value) for p, kind, draft
                        in zip(positions, wrong, drafts, strict=True) if kind is not None}  # fmt: skip
            await asyncio.to_thread(
                until, lambda: not (service.status() or {"dead_letters_pending": 1})["dead_letters_pending"],
                "every dead letter acknowledged", LONG_S,
            )  # fmt: skip
            found = await letters(log)
            reached = await searchable(log, base)
        right = Counter(
            kind
            for offset, (kind, value) in expected.items()
            if offset in found
            and found[offset][0] == KINDS[kind][0]
            and found[offset][1]
            and found[offset][2] == value
        )
        alive = service.status()
        sent = Counter(kind for kind, _ in expected.values())
        passed = right == sent and found.keys() == expected.keys() and reached == len(base) == status["live"]
        figures = {
            "good": len(base), "malformed": len(expected), "dead_letters": len(found),
            "with_the_right_reason": right.total(), "searchable": reached, "live": status["live"],
            "alive": alive is not None, "by_code": status["rejected"], "passed": passed,
        }  # fmt: skip
        rows = [[kind, KINDS[kind][0], sent[kind], right[kind]] for kind in KINDS]
        rows += [
            ["all malformed", "", sent.total(), right.total()],
            ["dead letters", "", "", len(found)],
            ["good, live", "", len(base), status["live"]],
            ["good, found over topics", "", len(base), reached],
            ["service", "", "", "alive" if alive else "DEAD"],
        ]
        title = f"{len(base):,} good and {len(expected):,} malformed records"
        report(title, ["", "code", "sent", "as it must be"], rows, figures, options)
        raise SystemExit(not passed)

    settings = {"index__dim": base.shape[1], "index__metric": "cosine", "index__embedding_model": MODEL}
    with (
        place(options.log) as (directory, url),
        Service(directory, log=url, topics__create=True, **settings) as service,
    ):
        service.start()
        asyncio.run(run(url, service))


if __name__ == "__main__":
    main()
