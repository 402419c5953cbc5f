"""What a file of vectors comes to, whatever its format: batches of ids, float32 rows and attributes."""

import operator
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput

__all__ = ["Source", "SourceBatch", "check_components", "id_bytes", "import_extra", "reading", "row_numbers"]

Vectors = NDArray[np.float32]

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    NotImplementedError,  # a compression or type that pyarrow or zipfile does not have
    zipfile.BadZipFile,
    zlib.error,
)
COMPONENTS = ("float16", "float32", "float64", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class SourceBatch:
    ids: list[bytes]
    vectors: Vectors  # [len(ids), dim], C-contiguous, a copy
    attributes: Sequence[dict[str, Any] | None] | None  # None: this file has none


@dataclass(frozen=True, slots=True)
class Source:
    """An open file of vectors."""

    rows: int | None  # None: not known before the end
    batches: Callable[[int], Iterator[SourceBatch]]  # of at most so many rows; InvalidInput for what is wrong


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turns what the readers of files raise on a damaged one into InvalidInput naming the file."""
    try:
        yield
    except InvalidInput:
        raise
    except UNREADABLE as wrong:
        raise InvalidInput(f"{path}: cannot be read: {wrong}") from wrong


def check_components(where: str, dtype: np.dtype[Any]) -> None:
    """Raises InvalidInput for components that are no numbers or would lose their values as float32."""
    if dtype.newbyteorder("=").name not in COMPONENTS:
        raise InvalidInput(f"{where}: components are {dtype}; they must be one of {', '.join(COMPONENTS)}")


def row_numbers(first: int, count: int) -> list[bytes]:
    return [b"%d" % row for row in range(first, first + count)]


def id_bytes(where: str, given: object) -> bytes:
    """An id as a key: text as UTF-8, integers as decimal text. Raises InvalidInput."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, str):
        try:
            return given.encode()
        except UnicodeEncodeError:
            pass
    elif not isinstance(given, bool) and hasattr(given, "__index__"):  # Python's and numpy's integers
        return b"%d" % operator.index(cast(SupportsIndex, given))
    raise InvalidInput(f"{where}: id {given!r:.80} must be text, bytes or an integer")


def import_extra(module: str, package: str, path: Path) -> Any:
    """A module that only some files need. Raises InvalidInput that says how to have it."""
    try:
        return import_module(module)
    except ImportError as missing:
        raise InvalidInput(
            f"{path}: reading {path.suffix} files needs {package}: pip install 'driftline[files]'"
        ) from missing
