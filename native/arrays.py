"""Between numpy and C: contiguous arrays in, pointers out, codes turned into exceptions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptIndex, InvalidInput
from ._core import ffi, lib

__all__ = ["Packed", "checked", "floats", "pack", "pointer"]

Packed = tuple[bytes, NDArray[np.uint64]]


def checked(code: int) -> None:
    """Raise what a negative code of the core means."""
    if code >= 0:
        return
    reason = ffi.string(lib.dl_strerror(code)).decode()
    if code == lib.DL_ENOMEM:
        raise MemoryError(reason)
    if code == lib.DL_ECORRUPT:
        raise CorruptIndex(reason)
    raise InvalidInput(reason)


def pointer(kind: str, array: NDArray[Any]) -> Any:
    """A C pointer to the array's first item; the array must outlive it."""
    return ffi.from_buffer(kind, array)


def floats(x: Any, dim: int | None = None) -> NDArray[np.float32]:
    """float32 [n, dim], contiguous; raises InvalidInput if it has another shape."""
    array = np.ascontiguousarray(x, np.float32)
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim):
        wanted = "[n, dim]" if dim is None else f"[n, {dim}]"
        raise InvalidInput(f"expected an array of shape {wanted}, got {list(array.shape)}")
    return array


def pack(items: Sequence[bytes]) -> Packed:
    """Byte strings as one, and their n + 1 offsets."""
    offsets = np.zeros(len(items) + 1, np.uint64)
    np.cumsum(np.fromiter(map(len, items), np.uint64, len(items)), out=offsets[1:])
    return b"".join(items), offsets
