"""Drift events as sentences: every kind, with and without a gain to tell."""

from dataclasses import fields
from typing import Any

import pytest
from driftline.index import events
from driftline.stream.drift_words import sentence

from .drift_history import alarm

WORST = (events.WorstDimension(dimension=240, psi=1.2, shift_sigmas=-1.1),)
TYPES = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
KINDS = [kind for kind in TYPES if hasattr(kind, "name")]  # without one: what kinds have in common
MEASURED = (events.CodeError(distribution="normal", rotation="random", error=4.1e-5, error_4_bits=0.0098),)
VALUES: dict[str, Any] = {"int": 3, "float": 1.25, "str": "drift", "bool": True}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gain", [1.25, None])
def test_every_event_is_a_sentence(kind: type[events.Event], gain: float | None) -> None:
    """Made from the fields that the index gives; nothing is printed raw."""
    values = {
        field.name: WORST
        if field.name == "worst"
        else MEASURED
        if field.name == "measured"
        else gain
        if "None" in str(field.type)
        else VALUES[getattr(field.type, "__name__", str(field.type))]
        for field in fields(kind)
    }
    text = sentence({"event": kind.name, "time_ms": 0, "topic": "t", **kind(**values).to_fields()})
    assert not text.startswith(kind.name)
    assert "None" not in text
    assert "{" not in text


def test_an_event_of_a_later_version_is_shown_as_it_is() -> None:
    """The drift topic may hold events this version does not know."""
    assert (
        sentence({"event": "drift.forecast", "time_ms": 0, "topic": "t", "rows": 3})
        == "drift.forecast: rows 3"
    )


def test_an_alarm_of_the_fit_loss_alone() -> None:
    """While a reference is learned no dimension can be named."""
    text = sentence(alarm(60, 2000, 1000, {}))
    assert text.endswith("noticed at row 2,000: fit loss 8.000")


def test_an_event_that_lacks_a_field() -> None:
    """Another version may have written it: no reason to show nothing at all."""
    assert sentence({"event": "frame.retired"}) == "frame.retired: not as this version tells it"
