"""The filter language: what it means, against an evaluator that is written from the table alone, and what it
refuses."""

import json
import math
from typing import Any

import msgpack
import numpy as np
import pytest
from driftline import InvalidInput
from driftline.index.attributes import Attributes
from driftline.index.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, Or, parse_filter, without_field
from driftline.index.payloads import MAX_LIST, MAX_TEXT, items_of, pack_items, payload_of
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = ("a", "b", "né")
LONG = "x" * (MAX_TEXT + 1)

scalars = st.sampled_from(
    [0, 1, 2, 3, 1.0, 1.5, -1, 2**63, -(2**63), 2**53 + 1, 2.0**53, True, False, "", "1", "a", "b", "ä", "z"]
)
unseen = st.sampled_from([None, LONG, {"a": 1}, [], [None], [[1]], [1] * (MAX_LIST + 1), b"1"])
rows = st.dictionaries(st.sampled_from(NAMES), scalars | st.lists(scalars, max_size=3) | unseen)
numbers = scalars.filter(lambda value: not isinstance(value, (bool, str)))
texts = scalars.filter(lambda value: isinstance(value, str))
orders = st.sampled_from(["gt", "gte", "lt", "lte"])
tests = st.one_of(
    st.dictionaries(orders, numbers, min_size=1),
    st.dictionaries(orders, texts, min_size=1),
    st.fixed_dictionaries({"eq": scalars}, optional={"in": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"in": st.lists(scalars, max_size=4)}, optional={"gte": numbers, "lt": numbers}),
    st.fixed_dictionaries({"exists": st.booleans()}),
)
conditions = st.dictionaries(st.sampled_from(NAMES), scalars | tests, max_size=2)
filters = st.recursive(
    conditions,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "and": st.lists(inner, max_size=3),
            "or": st.lists(inner, max_size=3),
            "not": inner,
            "a": scalars | tests,
        },
    ),
    max_leaves=6,
)


def kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) and len(value) <= MAX_TEXT else None


def equal(one: object, other: object) -> bool:
    return kind(one) == kind(other) and one == other


def holds(test: str, wanted: Any, item: Any) -> bool:
    if test == "eq":
        return equal(item, wanted)
    if test == "in":
        return any(equal(item, value) for value in wanted)
    if kind(item) != kind(wanted):
        return False
    return {"gt": item > wanted, "gte": item >= wanted, "lt": item < wanted, "lte": item <= wanted}[test]


def expected(document: dict[str, Any], row: dict[str, Any]) -> bool:
    """The table of docs/messages.md, read aloud."""
    return all(expected_part(name, value, row) for name, value in document.items())


def expected_part(name: str, value: Any, row: dict[str, Any]) -> bool:
    if name == "and":
        return all(expected(part, row) for part in value)
    if name == "or":
        return any(expected(part, row) for part in value)
    if name == "not":
        return not expected(value, row)
    under = row.get(name)
    listed = under if isinstance(under, list) else [under]
    items = [item for item in listed if kind(item)] if len(listed) <= MAX_LIST else []
    if not isinstance(value, dict):
        return any(equal(item, value) for item in items)
    if "exists" in value:
        return value["exists"] == bool(items)
    return any(all(holds(test, wanted, item) for test, wanted in value.items()) for item in items)


def packed(row: dict[str, Any]) -> bytes:
    return msgpack.packb(row) if row else b""


KNOWN = packed(dict.fromkeys(NAMES, "known"))  # one row with every name, so that no field is unknown


@settings(max_examples=300, deadline=None)
@given(filters, st.lists(rows, max_size=8))
def test_a_filter_means_what_the_table_says(document: dict[str, Any], table: list[dict[str, Any]]):
    """matches() row by row, and bitmap() for all slots at once, against the evaluator over plain dicts."""
    chosen = parse_filter(document)
    payloads = [packed(row) for row in table]
    assert [chosen.matches(items_of(payload)) for payload in payloads] == [
        expected(document, r) for r in table
    ]
    index = Attributes()
    index.put([*range(len(table)), len(table)], [*payloads, KNOWN])
    index.slots = len(table) + 3
    wanted = [slot for slot, row in enumerate(table) if expected(document, row)]
    beyond = [dict.fromkeys(NAMES, "known"), {}, {}]  # the last two: slots that nothing was put into
    wanted += [slot for slot, row in enumerate(beyond, len(table)) if expected(document, row)]
    assert list(chosen.bitmap(index)) == wanted


@settings(max_examples=100, deadline=None)
@given(filters, rows, st.sampled_from(NAMES))
def test_a_filter_without_a_field(document: dict[str, Any], row: dict[str, Any], name: str):
    """It means what the filter does for rows without that field, and names it no more."""
    left = without_field(parse_filter(document), name)
    without = {other: value for other, value in row.items() if other != name}
    assert left.matches(items_of(packed(row))) == expected(document, without)
    index = Attributes()
    index.put([0], [packed({other: "known" for other in NAMES if other != name})])
    left.bitmap(index)  # which refuses a field that no row has


@given(filters)
def test_equal_documents_are_equal_filters(document: dict[str, Any]):
    """Filters are looked up by value: what JSON carries over is equal and hashes alike, and true is not 1."""
    again = parse_filter(json.loads(json.dumps(document)))
    assert again == parse_filter(document)
    assert hash(again) == hash(parse_filter(document))
    assert parse_filter(again) is again
    assert parse_filter({"a": True}) != parse_filter({"a": 1})
    assert parse_filter({"a": 1.0}) == parse_filter({"a": {"in": [1]}})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "filter is None; it must be a map"),
        ([{"a": 1}], "filter is of type list; it must be a map"),
        ("a = 1", "filter is 'a = 1'; it must be a map"),
        ({1: 2}, "filter has the name of type int; names must be text"),
        ({"a": None}, r'filter\.a is null; for rows without it say {"exists": false}'),
        ({"a": [1, 2]}, r'filter\.a is a list; for one of several values say {"in"'),
        ({"a": {}}, r"filter\.a has no operator; there are eq, in, gt"),
        ({"a": {"gte": 1, "ne": 2}}, r"filter\.a has the operator 'ne'; there are eq"),
        ({"a": {"in": 1}}, r"filter\.a\.in is of type int; it must be a list"),
        ({"a": {"in": [1, None]}}, r"filter\.a\.in\[1\] is null"),
        ({"a": {"in": [{}]}}, r"filter\.a\.in\[0\] is of type dict; it must be a finite number"),
        ({"a": {"gt": True}}, r"filter\.a: true and false have no order"),
        ({"a": {"gt": 1, "lt": "b"}}, r"filter\.a: its bounds are a number and a text"),
        ({"a": {"gt": math.nan}}, r"filter\.a\.gt is nan; it must be a finite number"),
        ({"a": math.inf}, r"filter\.a is inf; it must be a finite number"),
        ({"a": b"1"}, r"filter\.a is of type bytes"),
        ({"a": LONG}, r"filter\.a is a text of 257 characters; filters see at most 256"),
        ({"a": "\ud800"}, r"filter\.a: a lone surrogate"),
        ({"\ud800": 1}, r"filter\.'\\ud800': a lone surrogate"),
        ({"a": {"exists": 1}}, r"filter\.a\.exists must be true or false"),
        ({"a": {"exists": True, "gt": 1}}, r"filter\.a\.exists must be true or false, and stand alone"),
        ({"and": {"a": 1}}, r"filter\.and is of type dict; it must be a list of filters"),
        ({"or": [{"a": 1}, {"b": {"lt": None}}]}, r"filter\.or\[1\]\.b\.lt is null"),
        ({"not": [{"a": 1}]}, r"filter\.not is of type list; it must be a map"),
    ],
)
def test_a_bad_filter_is_refused_with_its_place(document: object, says: str):
    """Everything that is no filter: InvalidInput with the path inside it and what would be right."""
    with pytest.raises(InvalidInput, match=says):
        parse_filter(document)


def test_filters_are_bounded():
    """As many conditions, values and levels as the docs allow, and not one more."""
    assert isinstance(parse_filter({"or": [{"a": 1}] * (MAX_CONDITIONS - 1)}), Or)
    with pytest.raises(InvalidInput, match="at most 64 conditions"):
        parse_filter({"or": [{"a": 1}] * MAX_CONDITIONS})
    parse_filter({"a": {"in": list(range(MAX_VALUES))}})
    with pytest.raises(InvalidInput, match="at most 4096 values"):
        parse_filter({"a": {"in": list(range(MAX_VALUES - 1))}, "b": {"in": [1, 2]}})
    deep: dict[str, Any] = {"a": 1}
    for _ in range(MAX_DEPTH - 1):
        deep = {"not": deep}
    parse_filter(deep)
    with pytest.raises(InvalidInput, match="more than 16 deep"):
        parse_filter({"not": deep})
    for _ in range(5000):  # deeper than Python's stack
        deep = {"not": deep}
    with pytest.raises(InvalidInput, match="more than 16 deep"):
        parse_filter(deep)


documents = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3) | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["and", "or", "not", "a", "in", "eq", "gt", "lte", "exists"])
            | st.text(max_size=2),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(documents)
def test_no_document_raises_anything_else(document: object):
    """What comes from a topic: a filter that can be asked of any row, or InvalidInput that can be encoded."""
    try:
        chosen = parse_filter(document)
    except InvalidInput as wrong:
        str(wrong).encode()  # a reply holds it
    else:
        assert chosen.matches({}) in (True, False)


@given(st.binary(max_size=40) | documents.map(lambda document: _packable(document)))
def test_opaque_bytes_hold_nothing(payload: bytes):
    """Any bytes beside a vector: items by name, or none; never an exception."""
    for name, items in items_of(payload).items():
        assert isinstance(name, str)
        assert items


def _packable(document: object) -> bytes:
    try:
        return msgpack.packb(document)
    except (OverflowError, UnicodeEncodeError):
        return b""


def test_mappings_are_packed_one_way():
    """Equal attributes are equal bytes, whatever their order; numpy's scalars are numbers; none is empty."""
    assert payload_of({"b": 1, "a": ["x", None]}) == payload_of({"a": ("x", None), "b": np.int64(1)})
    assert msgpack.unpackb(payload_of({"b": 1, "a": True})) == {"a": True, "b": 1}
    assert pack_items([None, {}, b"", b"opaque", {"a": np.float32(0.5)}]) == [
        b"", b"", b"", b"opaque", msgpack.packb({"a": 0.5}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({1: 2}, "attributes of row 1: a name must be text, not int"),
        ({"a": {"b": 1}}, "attributes of row 1: 'a' is of type dict"),
        ({"a": [1, [2]]}, r"'a'\[1\] is of type list"),
        ({"a": math.nan}, "'a' is nan, which JSON cannot say"),
        ({"a": 2**64}, "more than 64 bits"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"a": [0] * 4097}, "4097 items; at most 4096"),
        ({str(i): 0 for i in range(4097)}, "4097 names; at most 4096"),
        ({"a": "x" * (1 << 24)}, "at most 16777215 are kept"),
    ],
)
def test_a_bad_mapping_is_refused_by_row_and_name(attributes: Any, says: str):
    """What a mapping may not hold: InvalidInput that names the row and the place."""
    with pytest.raises(InvalidInput, match=says):
        pack_items([None, attributes])
