"""The bitmaps of attributes and the bitsets made of them: against dicts and sets, through reuse of slots."""

import random
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline import InvalidInput
from driftline.index.attributes import BLOCK, MAX_FIELDS, Attributes
from driftline.index.bitset import bitset_of
from driftline.index.filters import parse_filter
from driftline.index.payloads import items_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap


def chosen(index: Attributes, document: dict[str, Any]) -> list[int]:
    return list(parse_filter(document).bitmap(index))


def by_hand(rows: dict[int, bytes], document: dict[str, Any]) -> list[int]:
    asked = parse_filter(document)
    return sorted(slot for slot, payload in rows.items() if asked.matches(items_of(payload)))


def test_slots_change_hands():
    """Random puts over the same slots and copies between them, few and many distinct values, lists too:
    every range and equality is what a dict of the last payloads says, and what left no trace is gone."""
    draw = random.Random(7)
    index = Attributes()
    rows: dict[int, bytes] = {}
    for _ in range(60):
        slots = draw.sample(range(3000), 200)
        payloads = [
            b"" if draw.random() < 0.2 else b"opaque" if draw.random() < 0.1 else msgpack.packb({
                "few": draw.randrange(3), "many": draw.choice([draw.randrange(4000), draw.random() * 4000]),
                "tags": draw.sample(["a", "b", "c", 1, True], draw.randrange(4)),
            }) for _ in slots
        ]  # fmt: skip
        index.put(slots, payloads)
        rows.update(zip(slots, payloads, strict=True))
        live, free = slots[:5], draw.sample(sorted(set(range(3000)) - set(slots)), 5)
        index.copy(zip(live, free, strict=True))
        rows.update((to, rows[source]) for source, to in zip(live, free, strict=True))
        low, high = sorted((draw.randrange(-10, 4100), draw.randrange(-10, 4100)))
        for document in (
            {"few": draw.randrange(4)}, {"many": {"gte": low, "lt": high}}, {"many": {"gt": low}},
            {"many": {"lte": high}}, {"many": {"exists": True}}, {"tags": "b"}, {"tags": 1}, {"tags": True},
            {"many": {"gt": high, "lt": low}}, {"tags": {"gte": "b"}}, {"few": {"in": [0, 2]}, "tags": "a"},
        ):  # fmt: skip
            assert chosen(index, document) == by_hand(rows, document), document
    index.put(list(rows), [None] * len(rows))
    for name in ("few", "many", "tags"):
        assert chosen(index, {name: {"exists": True}}) == []  # and the name is still known
    assert index.everything() == BitMap(range(3000))


@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_blocks_split_and_empty(order: str):
    """Far more distinct values than a block holds, added in several orders and taken away again."""
    count = 10 * BLOCK
    values = list(range(count))
    if order == "down":
        values.reverse()
    elif order == "mixed":
        random.Random(1).shuffle(values)
    index = Attributes()
    for at in range(0, count, 100):
        index.put(values[at : at + 100], [msgpack.packb({"n": value / 2}) for value in values[at : at + 100]])
    assert chosen(index, {"n": {"gte": 100, "lte": 200.5}}) == list(range(200, 402))
    index.put(values[: count // 2], [None] * (count // 2))
    left = sorted(values[count // 2 :])
    assert chosen(index, {"n": {"exists": True}}) == left
    assert chosen(index, {"n": {"lt": count / 3}}) == [value for value in left if value / 2 < count / 3]


def test_the_version_tells_whether_bits_changed():
    """What is made of the bitmaps is kept until their version grows: not by rows without attributes."""
    index = Attributes()
    index.put([3, 4], [None, b"opaque"])
    assert index.version == 0
    index.put([3], [msgpack.packb({"a": 1})])
    after = index.version
    assert after > 0
    index.put([5], [None])
    assert index.version == after
    index.put([3], [None])
    assert index.version > after
    after = index.version
    index.copy([(7, 8)])
    assert index.version == after


def test_unknown_fields_are_named():
    """The refusal names the unknown field and the known ones, not all of a thousand."""
    index = Attributes()
    with pytest.raises(InvalidInput, match="unknown field 'a'; no row has an attribute"):
        chosen(index, {"a": 1})
    index.put([0], [msgpack.packb({"year": 1, "lang": "en", "nothing": None})])
    with pytest.raises(InvalidInput, match=r"unknown field 'yaer'; known are 'lang', 'year'$"):
        chosen(index, {"or": [{"year": 1}, {"not": {"yaer": 1}}]})
    index.put([1], [msgpack.packb({f"f{i:04}": 1 for i in range(30)})])
    with pytest.raises(InvalidInput, match=r"'f0019' and 12 more$"):
        chosen(index, {"nothing": 1})


def test_fields_are_bounded():
    """A record can bring thousands of names; beyond the bound they are unknown, and never half known."""
    index = Attributes()
    index.put([0], [msgpack.packb({f"f{i}": i for i in range(MAX_FIELDS - 1)})])
    index.put([1], [msgpack.packb({"last": 1, "late": 1})])
    index.put([0], [None])
    index.put([2], [msgpack.packb({"late": 1, "last": 1})])
    assert chosen(index, {"last": 1}) == [1, 2]
    with pytest.raises(InvalidInput, match="unknown field 'late'"):
        chosen(index, {"late": 1})


@settings(deadline=None)
@given(
    st.sets(st.integers(0, 400_000), max_size=50),
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 90_000), st.integers(1, 7)), max_size=4),
    st.booleans(),
    st.integers(0, 200),
)
def test_bitsets_are_the_bitmaps(few: set[int], spans: list[tuple[int, int, int]], runs: bool, more: int):
    """Every kind of container - sparse, dense, runs, none - and sizes that end within a word."""
    slots = BitMap(few)
    for start, length, step in spans:
        slots |= BitMap(range(start, start + length, step))
    if runs:
        slots.run_optimize()
    size = (slots.max() + 1 if slots else 0) + more
    bits = bitset_of(slots, size)
    assert (bits.dtype, bits.shape) == (np.uint64, (-(-size // 64),))
    assert bits.flags.c_contiguous
    plain = np.unpackbits(bits.view(np.uint8), bitorder="little")
    np.testing.assert_array_equal(np.flatnonzero(plain), slots.to_array())
