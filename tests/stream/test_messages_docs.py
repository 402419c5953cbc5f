"""docs/messages.md says what the code does: its codes, its examples, its limits."""

import re
from pathlib import Path

import pytest
from driftline.errors import SearchFailed
from driftline.stream.log import Record
from driftline.stream.messages import (
    CODES,
    FORMAT_VERSION,
    MAX_ATTRIBUTES_BYTES,
    MAX_DEADLINE_MS,
    MAX_DIM,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    Reply,
    SearchRequest,
    decode_reply,
    decode_request,
    decode_vectors,
)

DOCS = (Path(__file__).parents[2] / "docs" / "messages.md").read_text()


def examples(kind: str) -> list[Record]:
    found = re.findall(rf"^```json {kind}\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    assert found
    return [Record("topic", 0, 0, 0, b"key", text.encode(), ()) for text in found]


def test_every_code_is_in_the_table() -> None:
    """The table of codes and CODES are the same set."""
    documented = re.findall(r"^\| `([a-z_0-9]+)` +\|", DOCS.partition("## Codes")[2], re.MULTILINE)
    assert sorted(documented) == sorted(CODES)


def test_the_examples_decode() -> None:
    """Each JSON example is what its heading says it is."""
    batch = decode_vectors(examples("vector"), dim=4, metric="cosine", model=None)
    assert (batch.keys, batch.rejected) == ([b"key"], [])
    for request in examples("request"):
        decoded = decode_request(request, dim=4, metric="cosine", model=None, max_k=1000, max_ef=4096)
        assert isinstance(decoded, SearchRequest), decoded
    answer, error, partial = examples("reply")
    assert decode_reply(partial).partial == (2, 3)
    reply = decode_reply(answer)
    assert isinstance(reply, Reply)
    assert [hit.id for hit in reply.hits] == [b"user-1", b"\xff\x00"]
    with pytest.raises(SearchFailed, match="k is 0"):
        decode_reply(error)


def test_the_limits_are_those_of_the_code() -> None:
    """The numbers in the text are those that are enforced."""
    for said in (
        f"message format {FORMAT_VERSION}.",
        f"1 to {MAX_KEY_BYTES} bytes",
        f"1 to {MAX_DEADLINE_MS}",
        f"at most {MAX_DIM}\ndimensions",
        f"at most {MAX_VALUE_BYTES >> 20} MiB",
        f"at most {MAX_ATTRIBUTES_BYTES >> 10} KiB",
    ):
        assert said in DOCS
