"""Arrays as bytes of a stated shape, and back: how this room's statistics are stored.

| value   | stored as                                                                                     |
|---------|-----------------------------------------------------------------------------------------------|
| array   | its items, C order, little-endian; type and shape follow from the field and the dimension     |
| message | msgpack map with `kind` (what it is), `version` (1) and the fields that the writing class lists |

Bytes read back are hostile: whatever does not have the expected type, length or range is CorruptIndex.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex

__all__ = [
    "array_bytes",
    "array_of",
    "arrays_of",
    "field",
    "items",
    "mapping",
    "message",
    "message_of",
    "number",
]

T = TypeVar("T")
codec: Any = msgpack  # ships no types


def array_bytes(array: NDArray[Any]) -> bytes:
    """The items of an array, little-endian."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def array_of(state: Mapping[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new array of field `name`, finite; -1 as first length means any."""
    data = field(state, name, bytes)
    row = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    rows = shape[0] if shape[0] >= 0 else len(data) // row
    if len(data) != rows * row:
        raise CorruptIndex(f"{name} holds {len(data)} bytes, not {rows} x {row}")
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(rows, *shape[1:])
    if not np.isfinite(array).all():
        raise CorruptIndex(f"{name} holds a value that is not finite")
    return array.astype(dtype)


def arrays_of(state: Mapping[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> list[NDArray[Any]]:
    """The arrays of field `name`, a list of what `array_of` reads."""
    return [array_of({name: data}, name, dtype, shape) for data in items(state, name)]


def field(state: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Field `name`, which must be of type `kind`."""
    value = state.get(name)
    if type(value) is not kind:
        raise CorruptIndex(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def items(state: Mapping[str, Any], name: str) -> list[Any]:
    """Field `name`, which must be a list."""
    return cast("list[Any]", field(state, name, list))


def mapping(value: Any, what: str) -> dict[str, Any]:
    """`value`, which must be a map with text keys."""
    if not isinstance(value, dict):
        raise CorruptIndex(f"{what} is {type(value).__name__}, not a map")
    return cast("dict[str, Any]", value)


def number(state: Mapping[str, Any], name: str, least: float, most: float) -> float:
    """Field `name`, which must be a number in a range."""
    value = state.get(name)
    if type(value) not in (int, float) or not least <= cast(float, value) <= most:
        raise CorruptIndex(f"{name} is {value!r}, not a number from {least:g} to {most:g}")
    return cast(float, value)


def message(kind: str, fields: Mapping[str, Any]) -> bytes:
    """A message of version 1."""
    return cast(bytes, codec.packb({"kind": kind, "version": 1, **fields}))


def message_of(kind: str, data: bytes) -> dict[str, Any]:
    """The fields of a message that must be of this kind."""
    try:
        fields: Any = codec.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as cause:
        raise CorruptIndex(f"{kind}: not a message: {cause}") from cause
    known = mapping(fields, kind)
    if known.get("kind") != kind or known.get("version") != 1:
        raise CorruptIndex(f"expected {kind} version 1, found {known.get('kind')!r} {known.get('version')!r}")
    return known
