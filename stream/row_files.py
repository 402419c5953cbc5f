"""Files that hold a row at a time, with attributes: .parquet and .jsonl."""

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .source import Source, SourceBatch, check_components, id_bytes, import_extra, reading, row_numbers

__all__ = ["open_jsonl", "open_parquet"]

ID = "id"
VECTOR = "vector"
ATTRIBUTES = "attributes"


@contextmanager
def open_parquet(path: Path, dataset: str | None, ids: str | None) -> Generator[Source]:
    """A column of lists of one length, a column of ids, and what else there is as attributes."""
    pyarrow = import_extra("pyarrow", "pyarrow", path)
    parquet = import_extra("pyarrow.parquet", "pyarrow", path)
    with reading(path):
        file = parquet.ParquetFile(path)
    with file:
        schema = file.schema_arrow
        vector = dataset or VECTOR
        key = ids or (ID if ID in schema.names else None)
        for name in filter(None, (vector, key)):
            if schema.names.count(name) != 1:
                raise InvalidInput(f"{path}: has no single column {name!r}; it has {', '.join(schema.names)}")
        kind = schema.field(vector).type
        if not hasattr(kind, "value_type") or not pyarrow.types.is_nested(kind):
            raise InvalidInput(f"{path}: column {vector} is {kind}; vectors need lists of numbers")
        check_components(f"{path}: column {vector}", component_type(path, vector, kind))
        others = [name for name in schema.names if name not in (vector, key)]
        for name in others:
            check_attribute(pyarrow.types, f"{path}: column {name}", schema.field(name).type)

        def batches(most: int) -> Iterator[SourceBatch]:
            first, dim = 0, None
            with reading(path):
                for batch in file.iter_batches(most):
                    where = f"{path}: column {vector}, rows {first} to {first + batch.num_rows - 1}"
                    vectors = list_rows(where, batch.column(vector), dim)
                    dim = vectors.shape[1]
                    if key is None:
                        keys = row_numbers(first, len(vectors))
                    else:
                        given = batch.column(key).to_pylist()
                        keys = [id_bytes(f"{path}: row {first + i}", each) for i, each in enumerate(given)]
                    yield SourceBatch(keys, vectors, attribute_rows(batch, others) if others else None)
                    first += len(vectors)

        yield Source(file.metadata.num_rows, batches)


def component_type(path: Path, column: str, kind: Any) -> np.dtype[Any]:
    try:
        return np.dtype(kind.value_type.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        raise InvalidInput(f"{path}: column {column} is {kind}; vectors need lists of numbers") from None


def check_attribute(types: Any, where: str, kind: Any) -> None:
    """Raises InvalidInput for a column that attributes cannot hold: they hold what JSON can say."""
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_null, *texts)
    if types.is_struct(kind):
        for field in kind:
            check_attribute(types, where, field.type)
    elif types.is_dictionary(kind) or any(test(kind) for test in lists):
        check_attribute(types, where, kind.value_type)
    elif not any(test(kind) for test in plain):
        raise InvalidInput(f"{where}: {kind} cannot be an attribute; cast it to text or a number, or drop it")


def list_rows(where: str, column: Any, dim: int | None) -> NDArray[np.float32]:
    """A column of lists, all of one length, as float32 [rows, dim]."""
    values = column.flatten()
    if column.null_count or values.null_count:
        raise InvalidInput(f"{where}: a vector or a component is null")
    lengths = np.asarray(column.value_lengths())
    wanted = int(lengths[0]) if dim is None else dim
    if (lengths != wanted).any() or wanted == 0:
        row = int((lengths != wanted).argmax())
        raise InvalidInput(f"{where}: row {row} of these has {lengths[row]} components, others {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(values.to_numpy(zero_copy_only=False), np.float32).reshape(-1, wanted)


def attribute_rows(batch: Any, names: Sequence[str]) -> list[dict[str, Any] | None]:
    """Row by row, what the columns hold; a null is left out."""
    rows = cast(list[dict[str, Any]], batch.select(names).to_pylist())
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


@contextmanager
def open_jsonl(path: Path, dataset: str | None, ids: str | None) -> Generator[Source]:
    """{"id": ..., "vector": [...], "attributes": {...}} on each line; how many there are shows at the end."""
    with reading(path):
        file = path.open(encoding="utf-8")
    with file:

        def batches(most: int) -> Iterator[SourceBatch]:
            rows: list[Line] = []
            count, dim = 0, None
            file.seek(0)
            with reading(path):
                for number, text in enumerate(file, 1):
                    if not text.strip():
                        continue
                    where = f"{path}: line {number}"
                    line = read_line(where, text, count, dataset or VECTOR, ids)
                    dim = dim or len(line.vector)
                    if len(line.vector) != dim:
                        raise InvalidInput(f"{where}: {len(line.vector)} components, lines before it {dim}")
                    rows.append(line)
                    count += 1
                    if len(rows) == most:
                        yield join_lines(rows)
                        rows = []
            if rows:
                yield join_lines(rows)

        yield Source(None, batches)


@dataclass(frozen=True, slots=True)
class Line:
    id: bytes
    vector: NDArray[np.float32]
    attributes: dict[str, Any] | None


def read_line(where: str, text: str, count: int, vector: str, ids: str | None) -> Line:
    try:
        given: Any = json.loads(text)
    except (ValueError, RecursionError) as wrong:
        raise InvalidInput(f"{where}: is no JSON: {wrong}") from None
    if not isinstance(given, dict):
        raise InvalidInput(f"{where}: is no JSON object")
    row = cast(dict[str, Any], given)
    other = row.keys() - {vector, ids or ID, ATTRIBUTES}
    if other:
        raise InvalidInput(
            f"{where}: unknown field {min(other)!r:.80}; what is to be kept goes into {ATTRIBUTES}"
        )
    numbers: Any = row.get(vector)
    if (
        not isinstance(numbers, list)
        or not numbers
        or set(map(type, cast(list[Any], numbers))) - {int, float}
    ):
        raise InvalidInput(f"{where}: field {vector} must be a list of numbers")
    if ids is not None and ids not in row:
        raise InvalidInput(f"{where}: has no field {ids!r}")
    key = id_bytes(where, row[ids or ID]) if (ids or ID) in row else b"%d" % count
    attributes: Any = row.get(ATTRIBUTES)
    if attributes is not None and not isinstance(attributes, dict):
        raise InvalidInput(f"{where}: {ATTRIBUTES} must be an object")
    with np.errstate(over="ignore"):
        return Line(
            key, np.array(numbers, np.float64).astype(np.float32), cast(dict[str, Any] | None, attributes)
        )


def join_lines(lines: Sequence[Line]) -> SourceBatch:
    attributes = [line.attributes for line in lines]
    return SourceBatch(
        [line.id for line in lines],
        np.stack([line.vector for line in lines]),
        attributes if any(attributes) else None,
    )
