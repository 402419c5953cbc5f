"""The digest: by hand, incrementally, over restarts; and what a damaged row is found by."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from driftline.errors import CorruptIndex
from driftline.index.online import OnlineIndex
from driftline.native._core import lib
from driftline.snapshots.segments import FileRawVectors
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 5
Rows = dict[bytes, tuple[np.ndarray, bytes]]


def digest_by_hand(rows: Rows) -> int:
    """As docs/operations.md has it: nothing of driftline's."""
    digest = 0
    for key, (vector, attributes) in rows.items():
        row = len(key).to_bytes(4, "little") + key + len(attributes).to_bytes(4, "little") + attributes
        row += vector.astype("<f4").tobytes()
        digest += int.from_bytes(sha256(row).digest()[:16], "little")
    return digest % 2**128


def opened(path: Path) -> OnlineIndex:
    return OnlineIndex(DIM, m=4, ef_construction=20, raw=FileRawVectors(path, DIM, {}, segment_rows=40))


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


steps = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "again", "delete", "maintain", "restart"]),
        st.lists(st.integers(0, 30), min_size=1, max_size=25),
        st.sampled_from([1, 2]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(steps=steps, seed=st.integers(0, 100))
def test_the_digest_is_the_live_sets(tmp_path_factory: pytest.TempPathFactory, steps: list, seed: int):
    """After any upserts (new, changed, identical; keys twice; one or two threads), deletes, upkeep and
    restarts it is what a fold over a dict says, in memory as on disk; and check agrees."""
    path = tmp_path_factory.mktemp("raw")
    index, beside = opened(path), OnlineIndex(DIM, m=4, ef_construction=20)
    rows: Rows = {}
    for turn, (what, numbers, threads) in enumerate(steps):
        keys = [b"%d" % number for number in numbers]
        if what in ("upsert", "again"):
            x = rows_of(len(keys), seed if what == "again" else seed + turn)
            attributes = [b"a" * (number % 3) for number in numbers]
            for target in (index, beside):
                target.upsert(keys, x, attributes, threads=threads)
            rows |= {key: (row, a) for key, row, a in zip(keys, x, attributes, strict=True)}
        elif what == "delete":
            for target in (index, beside):
                target.delete(keys)
            rows = {key: row for key, row in rows.items() if key not in keys}
        elif what == "maintain":
            index.maintain(0.01)
        else:
            cut, raw = index.cut(), index._raw
            assert cut.digest == index.digest
            index = OnlineIndex.restore(cut, raw)
        assert index.digest == digest_by_hand(rows)
    assert beside.digest == digest_by_hand(rows)
    index.check()
    assert index.digest == digest_by_hand(rows)


def test_without_raw_vectors_there_is_none():
    """Codes are not what was sent; cuts say so too."""
    index = OnlineIndex(DIM, raw=None)
    index.upsert([b"a"], rows_of(1, 0))
    assert index.digest is None
    assert index.cut().digest is None
    assert OnlineIndex(DIM).digest == 0


def test_a_batch_that_fails_counts_as_far_as_it_came(tmp_path: Path):
    """Whichever allocation fails, of upserts or deletes, the digest is that of what is live."""
    x = rows_of(60, 0)
    keys = [b"%d" % number for number in range(60)]
    failures = 0
    for nth in range(0, 60, 3):
        index = opened(tmp_path / str(nth))
        index.upsert(keys[::2], rows_of(30, 1))
        for work in (partial(index.upsert, keys, x), partial(index.delete, keys[::3])):
            lib.dl_fail_after(nth)
            try:
                work()
            except MemoryError:
                failures += 1
            finally:
                lib.dl_fail_after(-1)
            index.check()
    assert failures > 3


def flip(offset: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with (path / "0.f32").open("r+b") as file:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    return damage


@pytest.mark.parametrize(("where", "offset"), [("vector", 8192 + 7 * 4 * DIM + 1), ("hash", 4096 + 7 * 16)])
def test_check_finds_a_damaged_row(tmp_path: Path, where: str, offset: int):
    """A flipped bit of a live row, or of its hash, is told with its key; one of a replaced row is not."""
    index = opened(tmp_path)
    index.upsert([b"%d" % number for number in range(20)], rows_of(20, 0))
    index.check()
    flip(offset)(tmp_path)
    with pytest.raises(CorruptIndex, match=r"key b'7' .* \(row 7 of segment 0\)"):
        index.check()
    flip(offset)(tmp_path)
    index.upsert([b"7"], rows_of(1, 1))
    while index.maintain(1.0):
        pass
    flip(offset)(tmp_path)
    index.check()


def test_check_finds_a_digest_that_is_not_the_live_sets(tmp_path: Path):
    """What writing counted wrongly is found; and a cut whose digest is not its rows' is not restored."""
    index = opened(tmp_path)
    index.upsert([b"a", b"b"], rows_of(2, 0))
    cut = index.cut()
    raw = index._raw
    assert raw is not None
    index._digest += 1
    with pytest.raises(CorruptIndex, match="the digest of the live rows is"):
        index.check()
    row = raw.append(rows_of(1, 1))
    assert row.tolist() == [2]
    flip(4096)(tmp_path)
    with pytest.raises(CorruptIndex, match="the digest of the rows is"):
        OnlineIndex.restore(cut, raw)
