"""Three shards of one collection and a gateway before them, as real processes."""

from pathlib import Path
from types import TracebackType
from typing import Self

from .running import Place, until

__all__ = ["PARTITIONS", "SHARDS", "Fleet"]

SHARDS = ((0, 1), (2, 3), (4, 5))
PARTITIONS = 6


class Fleet:
    """Topics of 6 partitions, three services that hold two each, and a gateway: a process of its own, or
    inside the first."""

    def __init__(
        self, url: str, name: str, directory: Path, *, inside: bool = False, **settings: object
    ) -> None:
        common = {
            "topics__shards": f"{name}.shards",
            "topics__shard_replies": f"{name}.shard-replies",
            "topics__partitions": PARTITIONS,
            **settings,
        }
        self.shards: list[Place] = []
        for number, held in enumerate(SHARDS):
            place = directory / f"shard-{number}"
            place.mkdir()
            more = {"gateway__inside": True} if inside and not number else {}
            self.shards.append(Place(url, name, place, partitions=list(held), **common, **more))
        place = directory / "gateway"
        place.mkdir()
        self.gateway = None if inside else Place(url, name, place, **common)
        self.vectors, self.search = self.shards[0].vectors, self.shards[0].search
        self.replies, self.url = self.shards[0].replies, url

    def __enter__(self) -> Self:
        try:
            for place in self.shards:
                place.service.start(ready=False)
            for place in self.shards:
                until(place.service.ready, "a shard is ready")
            if self.gateway is not None:
                gateway = self.gateway.service
                gateway.start(program="gateway", ready=False)
                until(lambda: gateway.events("gateway.serving"), "the gateway serves")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in (*self.shards, *filter(None, [self.gateway])):
            place.service.__exit__(kind, error, trace)

    def caught_up(self) -> bool:
        """Whether every shard has applied what its partitions hold."""
        return all(place.service.caught_up() for place in self.shards)
