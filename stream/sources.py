"""Files of vectors, read a batch at a time: what `driftline feed` feeds.

| extension      | vectors                                 | `dataset` names                  | `ids` names  |
|----------------|-----------------------------------------|----------------------------------|--------------|
| .npy           | array [rows, dim], mapped               |                                  |              |
| .npz           | array [rows, dim], loaded               | an array; else the first of 2-d  | an array     |
| .fvecs, .bvecs | rows of int32 dim and float32 or uint8  |                                  |              |
| .hdf5, .h5     | dataset [rows, dim]                     | a dataset; else train, else 2-d  | a dataset    |
| .parquet       | column of lists of numbers              | a column; else vector            | a column; id |
| .jsonl         | field of the object on each line        | a field; else vector             | a field; id  |

Where nothing gives ids, they are row numbers from 0 as decimal text. Components may be float16, float32,
float64, int8 or uint8 and come out as float32. Attributes are the other columns of .parquet and the field
`attributes` of .jsonl.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..errors import InvalidInput
from .array_files import open_hdf5, open_npy, open_npz, open_vecs
from .row_files import open_jsonl, open_parquet
from .source import Source, SourceBatch

__all__ = ["Source", "SourceBatch", "open_source"]

READERS: dict[str, Callable[[Path, str | None, str | None], AbstractContextManager[Source]]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".fvecs": open_vecs,
    ".bvecs": open_vecs,
    ".hdf5": open_hdf5,
    ".h5": open_hdf5,
    ".parquet": open_parquet,
    ".jsonl": open_jsonl,
}


def open_source(
    path: Path, *, dataset: str | None = None, ids: str | None = None
) -> AbstractContextManager[Source]:
    """Open a file of vectors: `with open_source(path) as source: for batch in source.batches(1000): ...`.

    `dataset` and `ids` name the array, column or field of the vectors and of the ids. Raises InvalidInput for
    an extension that is not known, here, and for what is wrong in the file, on entering or while reading.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{path}: extension {path.suffix!r} is not one of {', '.join(READERS)}")
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file")
    return reader(path, dataset, ids)
