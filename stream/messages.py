"""All that is said on the topics, message format 1: the face of the modules that hold one message each.

vector_messages.py   the vectors topic: vectors and deletes
search_messages.py   the search topic: requests
replies.py           the replies topic: hits and errors
reply_route.py       where a reply goes
dead_letters.py      the dead-letter topic
decode_hook.py       values of other formats, by a function of the user's
attributes.py        the map beside a vector
documents.py         bytes to fields, within bounds

Nothing here does IO. Decoders never raise on what a record contains; encoders raise InvalidInput. The
reference for people who write producers in other languages is docs/messages.md.
"""

from .attributes import MAX_ATTRIBUTES_BYTES, pack_attributes, unpack_attributes
from .dead_letters import dead_letter
from .documents import FORMAT_VERSION, MAX_VALUE_BYTES, Form, Rejection
from .replies import Hit, Reply, decode_reply, encode_error, encode_reply
from .reply_route import ReplyRoute, correlation_of, read_route, reply_draft, route_headers
from .search_messages import (
    DEFAULT_K,
    INCLUDABLE,
    MAX_DEADLINE_MS,
    Offsets,
    SearchRequest,
    decode_request,
    encode_request,
    reply_form,
)
from .vector_messages import (
    MAX_DIM,
    MAX_KEY_BYTES,
    VectorBatch,
    Vectors,
    decode_vectors,
    encode_delete,
    encode_vector,
    foreign_value,
)

__all__ = [
    "CODES",
    "DEFAULT_K",
    "FORMAT_VERSION",
    "INCLUDABLE",
    "MAX_ATTRIBUTES_BYTES",
    "MAX_DEADLINE_MS",
    "MAX_DIM",
    "MAX_KEY_BYTES",
    "MAX_VALUE_BYTES",
    "Form",
    "Hit",
    "Offsets",
    "Rejection",
    "Reply",
    "ReplyRoute",
    "SearchRequest",
    "VectorBatch",
    "Vectors",
    "correlation_of",
    "dead_letter",
    "decode_reply",
    "decode_request",
    "decode_vectors",
    "encode_delete",
    "encode_error",
    "encode_reply",
    "encode_request",
    "encode_vector",
    "foreign_value",
    "pack_attributes",
    "read_route",
    "reply_draft",
    "reply_form",
    "route_headers",
    "unpack_attributes",
]

# Every code that a dead letter or an error reply may carry. Codes are stable; sentences are not.
CODES = {
    # either topic
    "bad_header": "a header that concerns the value is malformed",
    "bad_vector": "the vector is no array of numbers, or its dtype is unknown",
    "empty_key": "no key, or an empty one",
    "not_finite": "a component is NaN, infinite, or beyond float32",
    "other_model": "of another embedding model than the collection",
    "oversized_key": "the key is longer than 511 bytes",
    "oversized_value": "the value is longer than 1 MiB",
    "schema_registry_framing": "the value starts with byte 0, as a schema registry's serializer writes it",
    "undecodable_value": "the value is not what its content type says, or no map of fields",
    "unknown_content_type": "the content type is not one of the known ones",
    "unknown_field": "a field that does not exist; it is named",
    "unknown_version": "of a later message format",
    "vector_too_long": "the squared length of the vector is beyond float32",
    "wrong_dimension": "not the collection's number of components",
    "zero_vector": "zero, or too short to have a direction, under cosine",
    # vectors
    "bad_attributes": "attributes that JSON cannot say, or too many of them",
    "hook_failed": "topics.decode raised an error, or gave no vector and attributes",
    "no_vector": "a value without a vector",
    # requests
    "bad_field": "a field of the wrong type or form; it is named",
    "bad_filter": "a malformed filter, or one that names a field which no record has had",
    "bad_reply_route": "the reply headers are malformed: there is nowhere to reply",
    "deadline_ms_out_of_range": "deadline_ms is not from 1 to 600000",
    "ef_out_of_range": "ef is not from 1 to the service's limit",
    "k_out_of_range": "k is not from 1 to the service's limit",
    "no_query": "not exactly one of vector, key and key_base64",
    # answers of the service to requests that were understood
    "internal_error": "a fault of the service; its log holds the cause",
    "offset_unknown": "`after` names an offset that the log did not reach before the deadline",
    "reply_too_large": "the reply does not fit a record; ask for fewer hits, or without vectors",
    "too_busy": "too many requests wait for offsets; ask again later",
    "unavailable": "shards did not answer in time, and without them there is no answer",
    "unknown_key": "no live vector has this id",
    "unknown_offsets": "`after` names a topic that is not read here, or a partition that does not exist",
    "unknown_reply_topic": "the topic or partition named for the reply does not exist",
}
