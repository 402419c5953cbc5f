"""One answer from those of several shards.

| header          | value                              | meaning                                           |
|-----------------|------------------------------------|---------------------------------------------------|
| driftline-shard | text, like "driftline.vectors:0,2" | the topic of vectors, and the partitions of it,   |
|                 |                                    | that a shard's reply, or error, speaks for        |

A shard answers for the partitions that it holds. An answer is whole when every partition of the topic was
answered for by a shard that has caught up with it, and partial otherwise; so nobody has to be told how many
shards there are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import InvalidInput, SearchFailed
from .documents import Refused, find_header
from .log import Headers, Record
from .messages import Hit, Reply, decode_reply

__all__ = ["Answer", "answered", "merged", "read_answer", "shard_header"]

SHARD_HEADER = "driftline-shard"
# Errors that are a shard's own state, and not the request's fault: others may still answer.
STATES = frozenset({"internal_error", "reply_too_large", "too_busy", "unavailable"})

Home = Callable[[bytes], int]  # key -> the partition that producers send it to


@dataclass(frozen=True, slots=True)
class Answer:
    """What one shard said."""

    topic: str
    partitions: frozenset[int]
    reply: Reply | Refused

    @property
    def about_itself(self) -> bool:
        """Whether it says that this shard cannot answer now, whatever others can."""
        return isinstance(self.reply, Refused) and self.reply.code in STATES

    @property
    def ends(self) -> bool:
        """Whether no other shard need be heard: a fault of the request, or the vector that was looked up."""
        if isinstance(self.reply, Refused):
            return not self.about_itself and self.reply.code != "unknown_key"
        return self.reply.query is not None


def shard_header(topic: str, partitions: Iterable[int]) -> Headers:
    """The header by which a reply says for which vectors it speaks."""
    return ((SHARD_HEADER, f"{topic}:{','.join(map(str, sorted(partitions)))}".encode()),)


def read_answer(record: Record) -> Answer:
    """The answer in a record that a shard sent. Raises InvalidInput for anything else."""
    header = find_header(record.headers, SHARD_HEADER) or b""
    try:
        topic, _, listed = header.decode().partition(":")
        partitions = frozenset(int(number) for number in listed.split(",") if number)
    except ValueError:
        raise InvalidInput(f"header {SHARD_HEADER} is {header!r:.80}: no list of partitions") from None
    try:
        return Answer(topic, partitions, decode_reply(record))
    except SearchFailed as failed:
        return Answer(topic, partitions, Refused(failed.code, failed.reason))


def answered(answers: Iterable[Answer]) -> frozenset[int]:
    """The partitions that answers speak of."""
    return frozenset[int]().union(*(answer.partitions for answer in answers))


def merged(answers: Sequence[Answer], topic: str, partitions: Sequence[int], k: int, home: Home) -> Reply:
    """The reply that answers of several shards come to; `took_us` is left to the caller.

    Raises Refused with what one of them said about the request, or, where none has hits, about itself.
    """
    replies: list[tuple[Answer, Reply]] = []
    states: list[Refused] = []
    for answer in sorted(answers, key=lambda answer: min(answer.partitions, default=-1)):
        if isinstance(answer.reply, Reply):
            replies.append((answer, answer.reply))
        elif answer.about_itself:
            states.append(answer.reply)
        else:
            raise answer.reply
    behind = set[int]().union(*(reply.partial for _, reply in replies))
    partial = sorted((set(partitions) - answered(answer for answer, _ in replies)) | behind)
    if not replies:
        raise states[0] if states else Refused("unavailable", f"no shard of {topic} answered in time")
    if not partial:
        _check_fields([reply for _, reply in replies])
    applied: dict[int, int] = {}
    for _, reply in replies:
        for partition, offset in reply.applied.get(topic, {}).items():
            applied[partition] = min(offset, applied.get(partition, offset))
    return Reply(
        hits=_nearest(replies, k, home),
        applied={topic: dict(sorted(applied.items()))},
        frame=max(reply.frame for _, reply in replies),
        took_us=0,
        partial=partial,
    )


def _nearest(replies: Iterable[tuple[Answer, Reply]], k: int, home: Home) -> list[Hit]:
    """The k nearest hits, each key once.

    A key that several shards hold has moved between partitions: the shard whose partition its records go to
    now is the one that knows its newest vector.
    """
    found: dict[bytes, list[tuple[Answer, Hit]]] = {}
    for answer, reply in replies:
        for hit in reply.hits:
            found.setdefault(hit.id, []).append((answer, hit))
    hits: list[Hit] = []
    for key, several in found.items():
        at_home = [hit for answer, hit in several if len(several) > 1 and home(key) in answer.partitions]
        hits.append(min(at_home or [hit for _, hit in several], key=lambda hit: hit.distance))
    return sorted(hits, key=lambda hit: (hit.distance, hit.id))[:k]


def _check_fields(replies: Sequence[Reply]) -> None:
    """Raise Refused for a field of the filter that no vector of any shard has had."""
    nowhere = set(replies[0].unknown).intersection(*(reply.unknown for reply in replies))
    if nowhere:
        name = min(nowhere)[:64]
        raise Refused("bad_filter", f"filter: unknown field {name!r}; no vector has had it")
