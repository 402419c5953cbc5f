"""The filter language: which rows a search may answer with, by their attributes.

A filter is a document that JSON can say.

| document                               | holds for a row when                                            |
|----------------------------------------|-----------------------------------------------------------------|
| {"project": 1}                         | an item under `project` is 1; the same as {"project": {"eq": 1}} |
| {"project": {"in": [0, 1]}}            | an item is one of these; of none for []                         |
| {"year": {"gte": 2001, "lt": 2010}}    | one and the same item is within all bounds: gt, gte, lt, lte    |
| {"year": {"exists": true}}             | there is an item at all; false: there is none                   |
| {"project": 1, "year": 2001}           | each of these holds; {} holds for every row                     |
| {"and": [...]}, {"or": [...]}          | each of these filters holds, at least one does                  |
| {"not": {...}}                         | this filter does not hold                                       |

Items are what payloads.py lists: a list under a name gives each of its own. Where a name is missing every
comparison is false, so `not` of one holds. Numbers compare with numbers (1 and 1.0 are one), text with text
by code points, booleans are equal or not and have no order; items of another kind than asked for are passed
over. `and`, `or` and `not` are words of the language: attributes of these names cannot be asked for.

A filter may hold 64 conditions, 16 deep, and 4096 values, of at most 256 characters each.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pyroaring import BitMap

from ..errors import InvalidInput
from .payloads import BOOLEAN, MAX_TEXT, Bound, Item, Items, item_of

if TYPE_CHECKING:
    from .attributes import Attributes

__all__ = ["MAX_CONDITIONS", "MAX_DEPTH", "MAX_VALUES", "Among", "And", "Exists", "Filter", "Not", "Or",
           "Range", "parse_filter", "without_field"]  # fmt: skip

MAX_CONDITIONS = 64  # of one filter: each may cost milliseconds while it is compiled
MAX_VALUES = 4096  # after `in`, of one filter: as many as a message may list
MAX_DEPTH = 16  # filters within each other
SHOWN = 64  # characters of a foreign text that a reason repeats

OPERATORS = ("eq", "in", "gt", "gte", "lt", "lte", "exists")


@dataclass(frozen=True, slots=True)
class Among:
    """An item under the name is one of these."""

    name: str
    items: frozenset[Item]

    def matches(self, attributes: Items) -> bool:
        return not self.items.isdisjoint(attributes.get(self.name, ()))

    def bitmap(self, index: "Attributes") -> BitMap:
        return index.field(self.name).among(self.items)


@dataclass(frozen=True, slots=True)
class Range:
    """An item under the name lies between two bounds; `open_low`, `open_high`: without the bound itself."""

    name: str
    low: Bound
    open_low: bool
    high: Bound
    open_high: bool

    def holds(self, item: Item) -> bool:
        """Whether one item lies within."""
        return (self.low < item if self.open_low else self.low <= item) and (
            item < self.high if self.open_high else item <= self.high
        )

    def matches(self, attributes: Items) -> bool:
        return any(map(self.holds, attributes.get(self.name, ())))

    def bitmap(self, index: "Attributes") -> BitMap:
        return index.field(self.name).between(self.low, self.open_low, self.high, self.open_high)


@dataclass(frozen=True, slots=True)
class Exists:
    """There is an item under the name."""

    name: str

    def matches(self, attributes: Items) -> bool:
        return self.name in attributes

    def bitmap(self, index: "Attributes") -> BitMap:
        return index.field(self.name).present()


@dataclass(frozen=True, slots=True)
class And:
    """Each holds; of none, every row."""

    parts: tuple["Filter", ...]

    def matches(self, attributes: Items) -> bool:
        return all(part.matches(attributes) for part in self.parts)

    def bitmap(self, index: "Attributes") -> BitMap:
        if not self.parts:
            return index.everything()
        return BitMap.intersection(*(part.bitmap(index) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Or:
    """At least one holds; of none, no row."""

    parts: tuple["Filter", ...]

    def matches(self, attributes: Items) -> bool:
        return any(part.matches(attributes) for part in self.parts)

    def bitmap(self, index: "Attributes") -> BitMap:
        return BitMap().union(*(part.bitmap(index) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    part: "Filter"

    def matches(self, attributes: Items) -> bool:
        return not self.part.matches(attributes)

    def bitmap(self, index: "Attributes") -> BitMap:
        return index.everything() - self.part.bitmap(index)


Filter = Among | Range | Exists | And | Or | Not
"""What a document says. `matches(items)` decides for one row, `items_of` its payload; `bitmap(attributes)`
gives the slots of all, InvalidInput for a name that no row has. Equal filters are equal and hash alike."""


def parse_filter(document: object) -> Filter:
    """The filter that a document says; a filter itself is taken as it is.

    Raises InvalidInput with the path of what is wrong, as `filter.or[1].year`.
    """
    if isinstance(document, Among | Range | Exists | And | Or | Not):
        return document
    return Parser().filter(document, "filter", MAX_DEPTH)


def without_field(chosen: Filter, name: str) -> Filter:
    """What a filter comes to where no row has the field: each condition on it holds for none."""
    match chosen:
        case And(parts):
            return And(tuple(without_field(part, name) for part in parts))
        case Or(parts):
            return Or(tuple(without_field(part, name) for part in parts))
        case Not(part):
            return Not(without_field(part, name))
        case _:
            return Or(()) if chosen.name == name else chosen


class Parser:
    """Counts what one document holds as it goes."""

    def __init__(self) -> None:
        self.conditions = 0
        self.values = 0

    def filter(self, document: object, at: str, depth: int) -> Filter:
        at = at[:200]  # a path of long names must not become a reason of a megabyte
        if depth == 0:
            raise InvalidInput(f"{at}: filters are nested more than {MAX_DEPTH} deep")
        if not isinstance(document, Mapping):
            raise InvalidInput(
                f'{at} is {shown(document)}; it must be a map like {{"year": {{"gte": 2001}}}}'
            )
        return joined(And, tuple(self.parts(cast("Mapping[object, object]", document), at, depth)))

    def parts(self, document: Mapping[object, object], at: str, depth: int) -> Iterator[Filter]:
        for name, value in document.items():
            if not isinstance(name, str):
                raise InvalidInput(f"{at} has the name {shown(name)}; names must be text")
            here = f"{at}.{name[:SHOWN] if name.isprintable() else ascii(name[:SHOWN])}"
            unicode(name, here)
            if name == "not":
                self.count(here)
                yield Not(self.filter(value, here, depth - 1))
            elif name in ("and", "or"):
                self.count(here)
                if not isinstance(value, list | tuple):
                    raise InvalidInput(f"{here} is {shown(value)}; it must be a list of filters")
                listed = cast("list[object] | tuple[object, ...]", value)
                parts = [self.filter(part, f"{here}[{i}]", depth - 1) for i, part in enumerate(listed)]
                yield joined(And if name == "and" else Or, tuple(parts))
            else:
                self.count(here)
                yield self.condition(name, value, here)

    def count(self, at: str) -> None:
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            raise InvalidInput(f"{at}: a filter holds at most {MAX_CONDITIONS} conditions")

    def condition(self, name: str, value: object, at: str) -> Filter:
        if not isinstance(value, Mapping):
            if isinstance(value, list | tuple):
                raise InvalidInput(f'{at} is a list; for one of several values say {{"in": [...]}}')
            return Among(name, frozenset([asked(value, at)]))
        tests = cast("Mapping[object, object]", value)
        unknown = [test for test in tests if test not in OPERATORS]
        if unknown or not tests:
            found = f"the operator {shown(unknown[0])}" if unknown else "no operator"
            raise InvalidInput(f"{at} has {found}; there are {', '.join(OPERATORS)}")
        if "exists" in tests:
            if len(tests) > 1 or not isinstance(tests["exists"], bool):
                raise InvalidInput(f"{at}.exists must be true or false, and stand alone")
            return Exists(name) if tests["exists"] else Not(Exists(name))
        within = bounds(name, tests, at)
        chosen = self.chosen(tests, at)
        if chosen is None:
            assert within is not None, "some operator was given"
            return within
        return Among(name, chosen if within is None else frozenset(i for i in chosen if within.holds(i)))

    def chosen(self, tests: Mapping[object, object], at: str) -> frozenset[Item] | None:
        """What `eq` and `in` leave; None without them."""
        chosen = None
        if "in" in tests:
            listed = tests["in"]
            if not isinstance(listed, list | tuple):
                raise InvalidInput(f"{at}.in is {shown(listed)}; it must be a list of values")
            values = cast("list[object] | tuple[object, ...]", listed)
            self.values += len(values)
            if self.values > MAX_VALUES:
                raise InvalidInput(f"{at}.in: a filter holds at most {MAX_VALUES} values")
            chosen = frozenset([asked(item, f"{at}.in[{i}]") for i, item in enumerate(values)])
        if "eq" in tests:
            one = frozenset([asked(tests["eq"], f"{at}.eq")])
            chosen = one if chosen is None else one & chosen
        return chosen


def joined(how: Callable[[tuple[Filter, ...]], Filter], parts: tuple[Filter, ...]) -> Filter:
    return parts[0] if len(parts) == 1 else how(parts)


def bounds(name: str, tests: Mapping[object, object], at: str) -> Range | None:
    """The range of all of gt, gte, lt and lte that are given, the narrower where there are two."""
    given = {test: asked(tests[test], f"{at}.{test}") for test in ("gt", "gte", "lt", "lte") if test in tests}
    if not given:
        return None
    kinds = {kind for kind, _ in given.values()}
    if len(kinds) > 1:
        raise InvalidInput(f"{at}: its bounds are a number and a text; no item is both")
    kind = kinds.pop()
    if kind == BOOLEAN:
        raise InvalidInput(f"{at}: true and false have no order; say true, false or in")
    low: Bound = max((given[test] for test in ("gt", "gte") if test in given), default=(kind,))
    high: Bound = min((given[test] for test in ("lt", "lte") if test in given), default=(kind + 1,))
    return Range(name, low, given.get("gt") == low, high, given.get("lt") == high)


def asked(value: object, at: str) -> Item:
    """A value of a filter as an item. Raises InvalidInput."""
    item = item_of(value)
    if item is None and isinstance(value, str):
        raise InvalidInput(f"{at} is a text of {len(value)} characters; filters see at most {MAX_TEXT}")
    if isinstance(value, str):
        unicode(value, at)
    if value is None:
        raise InvalidInput(f'{at} is null; for rows without it say {{"exists": false}}')
    if item is None or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidInput(f"{at} is {shown(value)}; it must be a finite number, a text, true or false")
    return item


def unicode(text: str, at: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{at}: a lone surrogate, which is not Unicode") from None


def shown(foreign: object) -> str:
    if isinstance(foreign, str):
        return repr(foreign[:SHOWN]) + ("..." if len(foreign) > SHOWN else "")
    if foreign is None or isinstance(foreign, bool | float):
        return str(foreign)
    return f"of type {type(foreign).__name__}"
