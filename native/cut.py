"""A cut of the core: its head and slabs as they were when it began, saved one by one."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ._core import ffi, lib
from .arrays import checked, pointer

__all__ = ["NEVER", "CoreCut"]

NEVER = 2**64 - 1  # no version


class CoreCut:
    """One open cut. An index has at most one; a second is InvalidInput until `close`, or until the first is
    garbage.

    Slabs are saved by any thread, one call at a time. What writers change meanwhile is kept in memory until
    it is saved.
    """

    def __init__(self, ix: Any, known: dict[int, int]) -> None:
        """`ix`: the core's index. known: versions of slabs that the caller has, from the cut before or as
        they were loaded."""
        versions = np.full(1 + max(known, default=-1), NEVER, np.uint64)
        for number, version in known.items():
            versions[number] = version
        out = ffi.new("dl_cut **")
        checked(lib.dl_cut_begin(ix, pointer("uint64_t[]", versions), len(versions), out))
        self._ix = ix  # which must outlive the cut
        self._cut: Any = ffi.gc(out[0], lib.dl_cut_end)
        self._one_at_a_time = threading.Lock()
        head, size = ffi.new("uint8_t **"), ffi.new("size_t *")
        lib.dl_cut_head(self._cut, head, size)
        self.head: bytes = ffi.buffer(head[0], size[0])[:]
        slabs = lib.dl_cut_slabs(self._cut)
        stands = np.empty(slabs, np.uint64)
        forms = np.empty(slabs, np.uint8)
        lib.dl_cut_forms(self._cut, pointer("uint64_t[]", stands), pointer("uint8_t[]", forms))
        self.versions: NDArray[np.uint64] = stands
        self._forms = forms

    def __len__(self) -> int:
        """How many slabs there are."""
        return len(self._forms)

    def is_same(self, slab: int) -> bool:
        """Whether the slab is as the caller has it."""
        return bool(self._forms[slab] == lib.DL_SAME)

    def is_delta(self, slab: int) -> bool:
        """Whether it is saved as what changed since the version that the caller has."""
        return bool(self._forms[slab] == lib.DL_DELTA)

    def save(self, slab: int) -> bytes:
        """The bytes of a slab that is not the same, each once. MemoryError: nothing more can be saved."""
        out, size = ffi.new("uint8_t **"), ffi.new("size_t *")
        with self._one_at_a_time:
            if self._cut is None:
                raise InvalidInput("the cut is closed")
            checked(lib.dl_cut_save(self._cut, slab, out, size))
        data = ffi.buffer(out[0], size[0])[:]
        lib.dl_free(out[0])
        return data

    def close(self) -> None:
        """Nothing is kept for it any more."""
        with self._one_at_a_time:
            cut, self._cut = self._cut, None
            if cut is not None:
                ffi.release(cut)
