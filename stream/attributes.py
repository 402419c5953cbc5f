"""Attributes: the small map that may travel with a vector, and the one byte form in which it is kept.

The form is msgpack with every map's keys in code point order, so that equal attributes are equal bytes and
an upsert of what is already there can be seen to be one. Only what JSON can say too is allowed, because
replies may be JSON.
"""

import math
from collections.abc import Mapping
from typing import cast

from .documents import MAX_ITEMS, SHOWN, Refused, pack, shown, unpack

__all__ = ["MAX_ATTRIBUTES_BYTES", "MAX_DEPTH", "pack_attributes", "unpack_attributes"]

MAX_ATTRIBUTES_BYTES = 64 << 10  # they are held beside every vector; a document belongs in a document store
MAX_DEPTH = 16  # maps and lists within each other

Items = list[object] | tuple[object, ...] | Mapping[object, object]

INT_RANGE = range(-(2**63), 2**64)  # what msgpack can hold


def pack_attributes(attributes: object) -> bytes | None:
    """The kept form of a map of attributes; None for None and for an empty map. Raises Refused."""
    if attributes is None:
        return None
    if not isinstance(attributes, Mapping):
        raise Refused(
            "bad_attributes", f"attributes is {shown(attributes)}; it must be a map of names to values"
        )
    if not attributes:
        return None
    ordered = canonical(cast(Mapping[object, object], attributes), "attributes", MAX_DEPTH)
    try:
        packed = pack(ordered)
    except UnicodeEncodeError:
        raise Refused("bad_attributes", "attributes hold a lone surrogate, which is not Unicode") from None
    if len(packed) > MAX_ATTRIBUTES_BYTES:
        raise Refused("bad_attributes", f"attributes take {len(packed)} bytes, over {MAX_ATTRIBUTES_BYTES}")
    return packed


def unpack_attributes(packed: bytes | None) -> dict[str, object]:
    """The map that `pack_attributes` packed; empty for None."""
    return {} if packed is None else cast(dict[str, object], unpack(packed))


def canonical(value: object, at: str, depth: int) -> object:
    """The same value with maps in key order. Raises Refused naming the place of what JSON cannot say."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if value in INT_RANGE:
            return value
        raise Refused("bad_attributes", f"{at} is an integer of more than 64 bits; send it as text")
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise Refused("bad_attributes", f"{at} is {value}, which JSON cannot say; send null")
    if isinstance(value, list | tuple | Mapping):
        return canonical_items(cast(Items, value), at, depth)
    raise Refused(
        "bad_attributes",
        f"{at} is of type {type(value).__name__}; attributes are text, numbers, booleans, null, lists, maps",
    )


def canonical_items(items: Items, at: str, depth: int) -> object:
    at = at[:200]  # a path of long names must not become a reason of a megabyte
    if depth == 0:
        raise Refused("bad_attributes", f"attributes are nested more than {MAX_DEPTH} deep")
    if len(items) > MAX_ITEMS:
        raise Refused("bad_attributes", f"{at} has {len(items)} items; at most {MAX_ITEMS} are kept")
    if not isinstance(items, Mapping):
        return [canonical(item, f"{at}[{i}]", depth - 1) for i, item in enumerate(items)]
    ordered: dict[str, object] = {}
    for name in items:
        if not isinstance(name, str):
            raise Refused("bad_attributes", f"{at} has the name {shown(name)}; names must be text")
        ordered[name] = canonical(items[name], f"{at}.{name[:SHOWN]}", depth - 1)
    return dict(sorted(ordered.items()))
