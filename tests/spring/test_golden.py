"""A request that Spring really sent, byte for byte: understood, and answered where Spring listens."""

import base64
import json

import numpy as np
import pytest
from driftline.stream.log import Headers, Record
from driftline.stream.messages import (
    Form,
    ReplyRoute,
    SearchRequest,
    correlation_of,
    decode_request,
    encode_error,
    read_route,
    reply_draft,
    reply_form,
)

from .spring import GOLDEN, REQUEST


def recorded(name: str) -> Record:
    given = json.loads(GOLDEN.read_text())[name]
    headers: Headers = tuple((header, base64.b64decode(value)) for header, value in given["headers"])
    value = base64.b64decode(given["value"])
    return Record("driftline.search", 0, 0, 1_700_000_000_000, given["key"], value, headers)


@pytest.mark.parametrize(("name", "partition"), [("partition", 1), ("group", None)])
def test_a_recorded_request(name: str, partition: int | None) -> None:
    """JSON without a content type, Spring's reply headers; the reply carries the same correlation id."""
    record = recorded(name)
    request = decode_request(record, dim=4, metric="l2", model=None, max_k=1000, max_ef=1000)
    assert isinstance(request, SearchRequest)
    asked = json.loads(REQUEST)
    assert request.vector is not None
    np.testing.assert_array_equal(request.vector, np.array(asked["vector"], np.float32))
    assert (request.k, request.include, request.form) == (asked["k"], set(asked["include"]), Form.JSON)
    assert reply_form(record) is Form.JSON

    route = read_route(record, "elsewhere")
    assert isinstance(route, ReplyRoute)
    assert (route.topic, route.partition) == ("driftline.replies", partition)
    assert route.correlation is not None
    assert len(route.correlation) == 16  # a UUID in binary
    draft = reply_draft(route, encode_error("unknown_key", "none", Form.JSON), Form.JSON)
    assert (draft.topic, draft.partition) == ("driftline.replies", partition)
    assert ("kafka_correlationId", route.correlation) in draft.headers
    assert correlation_of(record) == route.correlation
