"""Damage to a data directory and what becomes of it: the harness that tests and benchmarks share.

A script of writes stands for the topic: batches of inserts, updates and deletes, with the digest of the live
set after each by a plain fold. A directory with several snapshots is made from it, and damaged. Whoever then
recovers it loads what can be loaded and applies the rest of the script: what is live, before and after, must
have the fold's digest, and `check` must pass.
"""

import asyncio
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from driftline.errors import DriftlineError, SnapshotError, StorageRefused
from driftline.index.sources import pack_sources
from driftline.snapshots.segment_files import PAGE, ROW_HASH_BYTES, rows_at
from driftline.stream.config import Logging, Settings
from driftline.stream.events import make_logger
from driftline.stream.messages import VectorBatch
from driftline.stream.shard import Shard

__all__ = [
    "BRANCH",
    "DIM",
    "STRATA",
    "Damaged",
    "Script",
    "Worker",
    "flip",
    "make_copy",
    "make_directory",
    "recover",
    "settings_of",
    "strata",
    "truncate",
]

ROOT = Path(__file__).parent.parent.parent
DIM = 24
META, BRANCH, LEAF, OVERFLOW, FREE = "meta", "branch", "leaf", "overflow", "free list"
HEADERS, HASHES, ROWS = "segment header", "row hashes", "raw rows"
STRATA = (META, BRANCH, LEAF, OVERFLOW, FREE, HEADERS, HASHES, ROWS)


@dataclass(slots=True)
class Script:
    """Writes to be applied in order, each a batch of records of partition 0."""

    steps: int = 24
    rows: int = 120  # upserted in a step
    seed: int = 0
    batches: list[VectorBatch] = field(default_factory=list[VectorBatch])
    ends: list[int] = field(default_factory=lambda: [0])  # offsets before and behind each
    digests: list[str] = field(default_factory=lambda: [f"{0:032x}"])  # likewise

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        live: dict[bytes, bytes] = {}
        for _ in range(self.steps):
            new = [b"key %d" % number for number in draw.integers(0, self.steps * self.rows // 2, self.rows)]
            keys = list(dict.fromkeys(new))
            vectors = draw.normal(size=(len(keys), DIM)).astype(np.float32)
            old = [key for key in live if key not in keys and draw.random() < 0.05]
            start = self.ends[-1]
            sources = pack_sources([0] * len(keys), range(start, start + len(keys)), [0] * len(keys))
            end = start + len(keys) + len(old)
            gone = pack_sources([0] * len(old), range(start + len(keys), end), [0] * len(old))
            nothing: list[bytes | None] = [None] * len(keys)
            self.batches.append(
                VectorBatch(keys, vectors, nothing, sources, old, gone, {0: 0}, [], None, None)
            )
            live |= zip(keys, (vector.astype("<f4").tobytes() for vector in vectors), strict=True)
            for key in old:
                del live[key]
            self.ends.append(end)
            self.digests.append(digest(live))

    def left(self, offset: int) -> range:
        """The steps behind an offset, which is that of one of them."""
        return range(self.ends.index(offset), self.steps)


def digest(live: dict[bytes, bytes]) -> str:
    """As docs/operations.md has it, of rows without attributes."""
    rows = (len(key).to_bytes(4, "little") + key + bytes(4) + vector for key, vector in live.items())
    total = sum(int.from_bytes(sha256(row).digest()[:16], "little") for row in rows)
    return f"{total % 2**128:032x}"


def settings_of(directory: Path, keep: int) -> Settings:
    return Settings.model_validate(
        {
            "data_dir": directory,
            "index": {"dim": DIM, "m": 4, "ef_construction": 16, "compress_after": 500},
            "snapshots": {"keep": keep},
        }
    )


async def apply(shard: Shard, script: Script, steps: Sequence[int]) -> None:
    for step in steps:
        batch, end = script.batches[step], script.ends[step + 1]
        await shard.apply(batch, {0: end}, end - script.ends[step], {})
        assert shard.index is not None
        while await shard.beside(shard.index.maintain, 1.0):
            pass


async def commit(shard: Shard) -> None:
    pending = await shard.cut()
    assert pending is not None
    await shard.commit(pending)


def make_directory(directory: Path, script: Script, *, every: int = 3, keep: int = 5, rest: int = 2) -> None:
    """Apply the script with a snapshot after every so many steps, the last `rest` steps in none."""

    async def work() -> None:
        shard = await asyncio.to_thread(Shard.open, settings_of(directory, keep), make_logger(Logging()))
        for step in range(script.steps):
            await apply(shard, script, [step])
            if (step + 1) % every == 0 and step < script.steps - rest:
                await commit(shard)
        await asyncio.to_thread(shard.close)

    asyncio.run(work())


def recover(directory: Path, script: Script) -> dict[str, Any]:
    """Open a directory as the service does, and apply what is missing: what was said, and what is wrong."""
    said = io.StringIO()

    async def work() -> str | None:
        try:
            shard = await asyncio.to_thread(
                Shard.open, settings_of(directory, 5), make_logger(Logging(), said)
            )
        except DriftlineError as error:
            said.write(json.dumps({"event": "refused", "reason": str(error)}))
            return None
        try:
            return await whole(shard, script)
        finally:
            await asyncio.to_thread(shard.close)

    wrong = asyncio.run(work())
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    names = [event["event"] for event in events]
    outcome = "newest"
    for name, means in (
        ("snapshot.damaged", "older"), ("snapshots.set_aside", "rebuilt"), ("refused", "refused"),
    ):  # fmt: skip
        if name in names:
            outcome = means
    reasons = [event["reason"] for event in events if "reason" in event]
    return {"outcome": outcome, "wrong": wrong, "said": reasons}


async def whole(shard: Shard, script: Script) -> str | None:
    """What is wrong with a shard, before and after the rest of the script is applied."""
    offset = shard.offsets.get(0, 0)
    held = shard.digest
    if held != script.digests[script.ends.index(offset)]:
        return f"at offset {offset} the digest is {held}"
    await apply(shard, script, script.left(offset))
    if shard.digest != script.digests[-1]:
        return f"from offset {offset} to the end the digest came to {shard.digest}"
    index = shard.index
    assert index is not None
    await shard.beside(index.check)
    keys = index.keys()[::100]
    rows = index.get(keys)
    queries = np.stack([row.vector for row in rows if row is not None])
    nearest = [hits[0] for hits in index.exact(queries, k=1).keys]
    found = [hits[0] for hits in index.search(queries, k=1, ef=200).keys]
    if nearest != keys:
        return "a key is not its own nearest neighbour"
    right = sum(one == other for one, other in zip(found, keys, strict=True))
    return None if right >= 0.9 * len(keys) else f"{right} of {len(keys)} keys are found"  # a sparse graph


# ---- damage


@dataclass(frozen=True, slots=True)
class Damaged:
    """A place in a file: bytes `start` to `stop` hold what the stratum says."""

    file: str
    start: int
    stop: int


def strata(directory: Path) -> dict[str, list[Damaged]]:
    """Where the pages of each kind lie, and the parts of the segments. Of LMDB only live pages."""
    found: dict[str, list[Damaged]] = {stratum: [] for stratum in STRATA}
    name = "snapshots/data.mdb"
    data = (directory / name).read_bytes()
    for kind, page, pages in live_pages(data):
        found[kind].append(Damaged(name, page * PAGE, (page + pages) * PAGE))
    for file in sorted((directory / "segments").iterdir()):
        capacity = struct.unpack_from("<Q", file.read_bytes(), 24)[0]
        name = f"segments/{file.name}"
        used = min(capacity, 2000)  # of the rows at the front, that some snapshot names
        found[HEADERS].append(Damaged(name, 0, 48))
        found[HASHES].append(Damaged(name, PAGE, PAGE + used * ROW_HASH_BYTES))
        found[ROWS].append(Damaged(name, rows_at(capacity), rows_at(capacity) + used * 4 * DIM))
    return found


def live_pages(data: bytes) -> list[tuple[str, int, int]]:
    """(kind, page, pages) of all that the newest meta page reaches; the layout is that of LMDB 0.9."""
    found = [(META, 0, 1), (META, 1, 1)]

    def meta(page: int) -> tuple[int, ...]:  # transaction, root of the free list, root of the databases
        base = page * PAGE + 16
        places = (base + 24 + 2 * 48 + 8, base + 24 + 40, base + 24 + 48 + 40)
        return tuple(struct.unpack_from("<Q", data, at)[0] for at in places)

    def walk(page: int, free: bool) -> None:
        if page == 2**64 - 1:
            return
        flags, lower = struct.unpack_from("<HH", data, page * PAGE + 10)
        kind = FREE if free else BRANCH if flags & 1 else LEAF
        found.append((kind, page, 1))
        for place in struct.unpack_from(f"<{(lower - 16) // 2}H", data, page * PAGE + 16):
            node = page * PAGE + place
            low, high, node_flags, key = struct.unpack_from("<HHHH", data, node)
            if flags & 1:
                walk(low | high << 16 | node_flags << 32, free)
            elif node_flags & 2:  # a named database: its root
                walk(struct.unpack_from("<Q", data, node + 8 + key + 40)[0], free)
            elif node_flags & 1:  # a value on pages of its own
                first = struct.unpack_from("<Q", data, node + 8 + key)[0]
                pages = struct.unpack_from("<I", data, first * PAGE + 12)[0]
                found.append((FREE if free else OVERFLOW, first, pages))

    _, free, main = max(meta(0), meta(1))
    walk(free, True)
    walk(main, False)
    return found


def fill(directory: Path, script: Script, ballast: Path, *, kill: bool) -> dict[str, Any]:
    """Apply the script, with a snapshot after every third step, where the disk becomes full somewhere: what
    it said then, and what is wrong. Then either the process is killed, or the ballast is removed and the
    script goes on to its end."""
    said: list[str] = []

    def full(error: SnapshotError) -> None:
        said.append(f"{type(error).__name__}: {error}")
        if kill:
            sys.stdout.write(json.dumps({"outcome": "killed", "wrong": None, "said": said}) + "\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        ballast.unlink(missing_ok=True)

    async def work() -> str | None:
        try:
            shard = await asyncio.to_thread(Shard.open, settings_of(directory, 5), make_logger(Logging()))
        except SnapshotError as error:
            full(error)
            shard = await asyncio.to_thread(Shard.open, settings_of(directory, 5), make_logger(Logging()))
        try:
            for step in range(script.steps):
                try:
                    await apply(shard, script, [step])
                except StorageRefused as error:
                    full(error)
                    await apply(shard, script, [step])
                if step % 3 == 2:
                    try:
                        await commit(shard)
                    except SnapshotError as error:
                        full(error)
            try:
                await commit(shard)
            except SnapshotError as error:
                full(error)
                await commit(shard)
            return await whole(shard, script)
        finally:
            await asyncio.to_thread(shard.close)

    wrong = asyncio.run(work())
    return {"outcome": "went on" if said else "never full", "wrong": wrong, "said": said}


def flip(directory: Path, place: Damaged, draw: random.Random) -> str:
    """Change one bit there; which."""
    at, bit = draw.randrange(place.start, place.stop), draw.randrange(8)
    with (directory / place.file).open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 1 << bit]))
    return f"bit {bit} of byte {at} of {place.file}"


def truncate(directory: Path, draw: random.Random) -> str:
    """Cut one of the files off somewhere; which, and where."""
    files = [directory / "snapshots" / "data.mdb", *sorted((directory / "segments").iterdir())]
    file = draw.choice(files)
    used = file.stat().st_blocks * 512 if file.suffix == ".f32" else file.stat().st_size
    length = draw.randrange(used)
    with file.open("r+b") as opened:
        opened.truncate(length)
    return f"{file.relative_to(directory)} cut off at byte {length}"


def make_copy(source: Path, copy: Path) -> None:
    """A copy of a directory that nobody has open; segments stay sparse."""
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", source, copy], check=True)


# ---- recovering in a process that may die of it


class Worker:
    """A process that recovers copies of a directory, one after the other; another one when it dies."""

    def __init__(self, script: Script) -> None:
        self._arguments = [str(script.steps), str(script.rows), str(script.seed)]
        self._process: subprocess.Popen[str] | None = None

    def recover(self, source: Path, copy: Path, damage: Callable[[Path], str]) -> dict[str, Any]:
        """Copy the directory, damage the copy, and have it recovered: as `recover` says, or how it died."""
        make_copy(source, copy)
        return {"damage": damage(copy), **self.ask("recover", copy)}

    def ask(self, *asked: object) -> dict[str, Any]:
        """Have `recover` or `fill` called with these arguments."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.stream.damaging", *self._arguments], cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            result = json.loads(line)
            if result["outcome"] == "killed":
                self.close()
            return result
        code = self._process.wait()
        self.close()
        return {"outcome": "died", "wrong": f"the process ended with {code}", "said": []}

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None


def main() -> None:
    steps, rows, seed = map(int, sys.argv[1:])
    script = Script(steps, rows, seed)
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            if asked[0] == "recover":
                result = recover(Path(asked[1]), script)
            else:
                result = fill(Path(asked[1]), script, Path(asked[2]), kill=asked[3])
        except Exception as error:  # a defect: told as one
            result = {"outcome": "defect", "wrong": f"{type(error).__name__}: {error}", "said": []}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
