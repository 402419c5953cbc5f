"""Fuzzed records and requests on a real Kafka; `make fuzz-topics` is the long form."""

from pathlib import Path

import pytest
from driftline.stream.log import open_log

from ..kafka.broker import KafkaBroker
from .fuzzing import SETTINGS, fuzz_records, fuzz_requests
from .running import Place

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("seed", [3])
async def test_everything_is_accounted_for(kafka: KafkaBroker, tmp_path: Path, seed: int) -> None:
    """A record is applied or has one dead letter with a reason, a request is answered or counted; no good
    record is lost, and the service lives."""
    url = f"kafka:{kafka.bootstrap}"
    place = Place(url, "fuzz", tmp_path, **SETTINGS)
    with place.service.start():
        async with open_log(url) as log:
            asked = await fuzz_requests(log, place, 2000, seed, lambda _: None)
            assert asked.wrong == []
            assert asked.answered > 100
            assert len(asked.codes) > 10
            fed = await fuzz_records(log, place, 5000, seed, lambda _: None)
    assert fed.wrong == []
    assert 500 < fed.codes.total() < fed.fuzzed
    assert len(fed.codes) > 10
