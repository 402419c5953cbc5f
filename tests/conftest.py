"""What every room's tests share: one real Kafka broker for the whole run."""

from collections.abc import Iterator

import pytest

from .kafka.broker import KafkaBroker


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A running broker; topics are the tests' own business, so every test uses names of its own.

    A test that stops or kills a broker starts one for itself: `KafkaBroker(tmp_path)`.
    """
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker
