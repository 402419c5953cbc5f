"""The attributes beside a vector: the bytes that are kept of them, and the items in them that filters see.

| bytes         | meaning                                                                                   |
|---------------|-------------------------------------------------------------------------------------------|
| empty         | none                                                                                      |
| a msgpack map | filterable: what stands under its text names is seen as below                             |
| anything else | opaque: comes back with hits as it is, and counts as no attributes for filters            |

| under a name                                      | filters see                                           |
|---------------------------------------------------|-------------------------------------------------------|
| a number, a boolean, a text                       | that item                                             |
| a list of at most 256                             | each number, boolean and text in it                   |
| null, a map, bytes, NaN, a longer list            | nothing: as if the name were not there                |
| a text (or under a name) of over 256 characters   | nothing: as if it were not there                      |

The bytes that the index makes of a mapping are a msgpack map, names in code point order, so that equal
attributes are equal bytes and an upsert of what is already there can be seen to be one.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgpack
import numpy as np

from ..errors import InvalidInput

__all__ = [
    "BOOLEAN",
    "MAX_LIST",
    "MAX_TEXT",
    "NUMBER",
    "TEXT",
    "Attribute",
    "Bound",
    "Item",
    "Items",
    "Scalar",
    "item_of",
    "items_of",
    "pack_items",
    "payload_of",
]

Scalar = bool | int | float | str
Attribute = Scalar | list[Scalar] | tuple[Scalar, ...] | None  # what a name in a mapping may hold
Item = tuple[int, Scalar]  # kind and value: 1 and True are two items, 1 and 1.0 are one
Items = dict[str, tuple[Item, ...]]  # by name; no name without an item
Bound = tuple[int] | Item  # sorts among items: (kind,) before all of its kind, (kind + 1,) after them

BOOLEAN, NUMBER, TEXT = 0, 1, 2  # kinds; sorted items stand kind by kind

MAX_TEXT = 256  # characters: an item is kept once more, beside the payload; essays want a text search
MAX_LIST = 256  # items under one name: each costs some hundred bytes where no other row has it
MAX_ITEMS = 4096  # of a list or map inside a payload: a promise of more must not be allocated (16 MB of them)
MAX_PAYLOAD = (1 << 24) - 1  # bytes; the core's limit

codec: Any = msgpack  # ships no types


def item_of(value: object) -> Item | None:
    """The item that a value is; None for what filters do not see."""
    if isinstance(value, bool):
        return BOOLEAN, value
    if isinstance(value, int):
        return NUMBER, value
    if isinstance(value, float):
        return (NUMBER, value) if value == value else None
    if isinstance(value, str):
        return (TEXT, value) if len(value) <= MAX_TEXT else None
    return None


def items_of(payload: bytes | None) -> Items:
    """What filters see in the bytes beside a vector. Never raises: opaque bytes hold nothing."""
    if not payload:
        return {}
    try:
        document: Any = codec.unpackb(
            payload, strict_map_key=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS
        )
    except Exception:  # whatever foreign bytes do to the codec, they are no attributes
        return {}
    if not isinstance(document, dict):
        return {}
    seen: Items = {}
    for name, value in cast("dict[object, object]", document).items():
        if isinstance(name, str) and len(name) <= MAX_TEXT:
            items = items_under(value)
            if items:
                seen[name] = items
    return seen


def items_under(value: object) -> tuple[Item, ...]:
    if isinstance(value, list):
        listed = cast("list[object]", value)
        if len(listed) > MAX_LIST:
            return ()
        return tuple({item: None for item in map(item_of, listed) if item is not None})
    item = item_of(value)
    return () if item is None else (item,)


def pack_items(attributes: Iterable[bytes | Mapping[str, Attribute] | None]) -> list[bytes]:
    """The bytes to keep of each row's attributes, empty for none. Raises InvalidInput naming the row."""
    packed: list[bytes] = []
    for row, given in enumerate(attributes):
        if isinstance(given, Mapping):
            packed.append(payload_of(given, f"attributes of row {row}"))
        else:
            packed.append(given or b"")
    return packed


def payload_of(attributes: Mapping[str, Attribute], at: str = "attributes") -> bytes:
    """A mapping of names to scalars, or lists of them, as the bytes that are kept: empty for an empty one.

    None under a name is kept, and is not seen by filters. Raises InvalidInput, with `at` in front of the
    name, for any other value, NaN and infinity, an integer of more than 64 bits, over 4096 items, 16 MiB.
    """
    if not attributes:
        return b""
    plain: dict[str, object] = {}
    for name in cast("Mapping[object, object]", attributes):
        if not isinstance(name, str):
            raise InvalidInput(f"{at}: a name must be text, not {type(name).__name__}")
        plain[name] = plain_value(attributes[name], f"{at}: {name[:64]!r}")
    if len(plain) > MAX_ITEMS:
        raise InvalidInput(f"{at}: {len(plain)} names; at most {MAX_ITEMS} are kept")
    try:
        packed = cast(bytes, codec.packb(dict(sorted(plain.items()))))
    except OverflowError:
        raise InvalidInput(f"{at}: an integer of more than 64 bits; give it as text") from None
    except UnicodeEncodeError:
        raise InvalidInput(f"{at}: a lone surrogate, which is not Unicode") from None
    if len(packed) > MAX_PAYLOAD:
        raise InvalidInput(f"{at}: {len(packed)} bytes; at most {MAX_PAYLOAD} are kept")
    return packed


def plain_value(value: object, at: str) -> object:
    if isinstance(value, list | tuple):
        listed = cast("list[object] | tuple[object, ...]", value)
        if len(listed) > MAX_ITEMS:
            raise InvalidInput(f"{at} has {len(listed)} items; at most {MAX_ITEMS} are kept")
        return [plain_scalar(item, f"{at}[{i}]") for i, item in enumerate(listed)]
    return plain_scalar(value, at)


def plain_scalar(value: object, at: str) -> object:
    if isinstance(value, np.generic):
        value = cast(object, value.item())
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{at} is {value}, which JSON cannot say; give None")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidInput(
        f"{at} is of type {type(value).__name__}; attributes are text, numbers, booleans, None, lists of them"
    )
