"""Keys as users write them and as the core holds them: bytes, str (UTF-8) or integers (8 bytes,
big-endian)."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput

__all__ = ["Key", "KeyKind", "Keys"]

Key = bytes | str | int
KeyKind = str  # "bytes", "str" or "int"

MAX_KEY_BYTES = 511


class Keys:
    """One collection's kind of key, fixed by the first ones that are stored."""

    def __init__(self, kind: KeyKind | None = None) -> None:
        self.kind = kind

    def encode(self, keys: Sequence[Key] | NDArray[Any], *, fix: bool = False) -> list[bytes]:
        """The keys as bytes; with `fix` their kind is this collection's from now on.

        InvalidInput for keys of another kind, an empty one or one over 511 bytes.
        """
        kind = _kind_of(keys)
        if kind is None:
            return []
        if self.kind not in (None, kind):
            raise InvalidInput(f"this index has {self.kind} keys, got {kind}")
        if kind == "int":
            encoded = _encode_integers(keys)
        elif kind == "str":
            encoded = [key.encode() for key in cast(Sequence[str], keys)]
        else:
            encoded = list(map(bytes, cast(Sequence[bytes], keys)))
        for key in encoded:
            if not 1 <= len(key) <= MAX_KEY_BYTES:
                raise InvalidInput(f"a key must be 1 to {MAX_KEY_BYTES} bytes, got {len(key)}: {key[:40]!r}")
        if fix:
            self.kind = kind
        return encoded

    def decode(self, keys: list[bytes]) -> list[Key]:
        """The keys in the kind that users gave them in."""
        if self.kind == "str":
            return [key.decode() for key in keys]
        if self.kind == "int":
            return cast(list[Key], np.frombuffer(b"".join(keys), ">i8").tolist())
        return cast(list[Key], keys)

    def decode_each(self, lists: list[list[bytes]]) -> list[list[Key]]:
        """`decode` of each list."""
        if self.kind == "bytes":
            return cast(list[list[Key]], lists)
        return [self.decode(keys) for keys in lists]


def _kind_of(keys: Sequence[Key] | NDArray[Any]) -> KeyKind | None:
    if isinstance(keys, (bytes, str)):
        raise InvalidInput("keys must be a sequence of keys, not one key")
    if len(keys) == 0:
        return None
    if isinstance(keys, np.ndarray) and keys.dtype.kind in "iu":
        return "int"
    kinds = {
        "bytes" if isinstance(key, (bytes, bytearray, memoryview)) else
        "str" if isinstance(key, str) else
        "int" if isinstance(key, (int, np.integer)) and not isinstance(key, bool) else
        type(key).__name__
        for key in keys
    }  # fmt: skip
    if len(kinds) == 1 and (kind := next(iter(kinds))) in ("bytes", "str", "int"):
        return kind
    raise InvalidInput(f"keys must be all bytes, all str or all integers, got {', '.join(sorted(kinds))}")


def _encode_integers(keys: Sequence[Key] | NDArray[Any]) -> list[bytes]:
    try:
        array = np.asarray(keys)
        if array.ndim != 1 or (array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max):
            raise OverflowError
        data = array.astype(">i8", casting="same_kind" if array.dtype.kind == "i" else "unsafe").tobytes()
    except (OverflowError, TypeError):
        raise InvalidInput("integer keys must fit into 64 bits, in one dimension") from None
    return [data[i : i + 8] for i in range(0, len(data), 8)]
