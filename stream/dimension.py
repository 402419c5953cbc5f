"""The dimension of a collection that nobody configured: that of the first vector in its topic."""

from collections.abc import Sequence
from typing import cast

from .decode_hook import DecodeHook
from .documents import Form, Refused, Rejection, load_document, read_envelope
from .log import Record
from .messages import MAX_DIM, VectorBatch, decode_vectors, foreign_value

__all__ = ["claimed_dimension", "first_dimension", "rejections"]


def first_dimension(
    records: Sequence[Record], *, metric: str, model: str | None, hook: DecodeHook | None = None
) -> int | None:
    """Dimension of the first record that holds a usable vector; None where there is none."""
    for record in records:
        if _alone(record, metric, model, hook).keys:
            return claimed_dimension(record, hook)
    return None


def rejections(
    records: Sequence[Record], *, metric: str, model: str | None, hook: DecodeHook | None = None
) -> list[Rejection]:
    """What is wrong with records none of which shows a dimension; those without fault are deletes of
    nothing."""
    return [rejection for record in records for rejection in _alone(record, metric, model, hook).rejected]


def _alone(record: Record, metric: str, model: str | None, hook: DecodeHook | None) -> VectorBatch:
    dim = claimed_dimension(record, hook)
    return decode_vectors([record], dim=dim, metric=metric, model=model, hook=hook)


def claimed_dimension(record: Record, hook: DecodeHook | None = None) -> int:
    """The dimension that a vector or a request claims, 1 where it has none; never beyond the limits."""
    components = 1
    try:
        if record.value is not None and hook is not None:
            foreign = foreign_value(hook, record.value, record.headers, None)
            components = 1 if foreign is None else len(foreign[0]) // 4
        elif record.value is not None:
            form = read_envelope(record.headers).form_of(record.value)
            if form is Form.BARE:
                components = len(record.value) // 4
            else:
                document = load_document(record.value, form)
                vector = document.get("vector")
                if isinstance(vector, bytes):
                    components = len(vector) // (2 if document.get("dtype") == "f2" else 4)
                elif isinstance(vector, list):
                    components = len(cast("list[object]", vector))
    except Refused:
        pass  # decode_vectors will say why
    return min(max(components, 1), MAX_DIM)
