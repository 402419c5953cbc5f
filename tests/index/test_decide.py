"""What drift and the canary together call for: the table, the search width, and an index that heeds it."""

import numpy as np
import pytest
from driftline.index.decide import Action, Aims, Width, decide, is_lost, next_width
from driftline.index.events import (
    CanaryWindow,
    DriftDetected,
    Event,
    FrameOpened,
    ReencodeDeclined,
    ReencodeFinished,
    ReencodeStarted,
)
from driftline.index.online import OnlineIndex

AIMS = Aims(recall=0.95, ef=64, ef_limit=256)
DIM = 16


def window(low: float, high: float, ef: int = 64) -> CanaryWindow:
    return CanaryWindow(200, 10, ef, (low + high) / 2, low, high, None, 0.05)


@pytest.mark.parametrize(
    ("drifted", "lost", "action"),
    [
        (False, None, Action.NOTHING),
        (False, False, Action.NOTHING),
        (True, False, Action.WARN),
        (False, True, Action.WIDEN),
        (True, True, Action.REENCODE),
        (True, None, Action.REENCODE),
    ],
)
def test_the_table(drifted: bool, lost: bool | None, action: Action):
    """Drift and loss, each way; without a canary, drift alone."""
    assert decide(drifted, lost) is action


def test_lost_is_beyond_doubt():
    """An interval that holds the target, or touches it, is no loss."""
    assert is_lost(window(0.90, 0.949), AIMS)
    assert not is_lost(window(0.90, 0.95), AIMS)
    assert not is_lost(window(0.96, 0.98), AIMS)


def test_the_width_goes_up_to_its_limit_and_no_further():
    """By half as much again each time; one that was configured wider than the limit is not narrowed."""
    width, seen = Width(64), list[int]()
    for _ in range(6):
        width = next_width(width, window(0.8, 0.9, width.ef), AIMS, Action.WIDEN)
        seen.append(width.ef)
    assert seen == [96, 144, 216, 256, 256, 256]
    wide = Aims(recall=0.95, ef=400, ef_limit=256)
    assert next_width(Width(400), window(0.8, 0.9, 400), wide, Action.WIDEN).ef == 400


def test_the_width_comes_down_with_hysteresis():
    """Only after three windows running with a quarter of the allowed misses, and never below what is
    configured; one window without room begins anew."""
    width = Width(96)
    for recall, ef in ((0.99, 96), (0.99, 96), (0.98, 96), (0.99, 96), (0.99, 96), (0.99, 64), (0.99, 64)):
        width = next_width(width, window(recall - 0.01, recall + 0.01, width.ef), AIMS, Action.NOTHING)
        assert width.ef == ef


def test_a_width_that_had_to_go_up_again_waits_longer():
    """Where one step less is always too little and one more is ample, steps become rare."""
    width, ups = Width(64), list[int]()
    for number in range(400):
        recall = 0.9 if width.ef < 96 else 0.999
        seen = window(recall - 0.01, min(recall + 0.01, 1.0), width.ef)
        after = next_width(width, seen, AIMS, decide(False, is_lost(seen, AIMS)))
        if after.ef > width.ef:
            ups.append(number)
        width = after
    waits = np.diff(ups)
    assert list(waits[:5]) == [7, 13, 25, 49, 97]
    assert set(waits[5:]) == {97}


def test_a_window_of_another_width_tells_nothing():
    """It was under way when the width changed."""
    width = Width(96, calm=2)
    assert next_width(width, window(0.8, 0.9, 64), AIMS, Action.WIDEN) == width


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("need", [40, 90, 150, 250])
def test_the_width_settles(power: float, need: int):
    """Where misses fall with a power of ef it comes to rest where the target is reached (or at the limit),
    whether it begins too narrow or too wide; the interval is 0.02 wide."""
    for start in (64, 256):
        width, ends = Width(start), set[int]()
        for number in range(1000):
            recall = max(1 - 0.05 * (need / width.ef) ** power, 0.02)
            seen = window(recall - 0.01, min(recall + 0.01, 1.0), width.ef)
            width = next_width(width, seen, AIMS, decide(False, is_lost(seen, AIMS)))
            if number >= 900:
                ends.add(width.ef)
        assert len(ends) == 1, ends
        assert 1 - 0.05 * (need / width.ef) ** power >= 0.94 or width.ef == AIMS.ef_limit


# ---- an index that heeds it


def drift(index: OnlineIndex) -> list[Event]:
    """6,000 rows of one distribution, then 6,000 of another."""
    x = np.random.default_rng(0).normal(size=(12_000, DIM)).astype(np.float32)
    x[6000:] = 3 * x[6000:] + 4
    for start in range(0, len(x), 250):
        index.upsert(np.arange(start, start + 250), x[start : start + 250])
        index.maintain(0.05)
    return settled(index)


def settled(index: OnlineIndex) -> list[Event]:
    while index.maintain(1.0):
        pass
    return index.take_events()


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def test_drift_without_recall_loss_warns():
    """New rows get a frame, older rows keep their codes, and that is said. Then recall is lost: rows of the
    new world that were coded in the old frame move, and no others."""
    index = OnlineIndex(DIM)
    index.heed(False)
    events = drift(index)
    at = names(events).index(DriftDetected.name)
    opened = [event.frame for event in events[at:] if isinstance(event, FrameOpened)]
    assert opened == [2] == [index.frame]
    declined = [event for event in events[at:] if isinstance(event, ReencodeDeclined)]
    assert [event.slabs for event in declined] == [len(range(0, declined[0].rows, 1024))]
    assert not [event for event in events[at:] if isinstance(event, ReencodeStarted)]
    assert index.drifted
    frames = {row.frame for row in index.get(np.arange(6000, 6250)) if row is not None}
    assert frames == {1}
    assert not index.maintain(0.01), "what is held back is no work that waits"

    index.heed(True)
    assert ReencodeFinished.name in names(settled(index))
    assert not index.drifted
    frames = [row.frame for row in index.get(np.arange(12_000)) if row is not None]
    assert set(frames[:5000]) == {1}
    assert set(frames[7000:]) == {2}
    index.check()


def test_when_queries_end_drift_decides_alone():
    """The canary that nobody asks any more says nothing, and what was held back goes on."""
    index = OnlineIndex(DIM)
    index.heed(False)
    drift(index)
    assert index.drifted
    index.heed(None)
    assert ReencodeFinished.name in names(settled(index))
    assert not index.drifted


def test_recall_lost_from_the_start_changes_nothing():
    """Both speak for encoding anew: the events are those of an index without a canary."""
    alone, index = OnlineIndex(DIM), OnlineIndex(DIM)
    index.heed(True)
    assert set(names(drift(index))) == set(names(drift(alone)))
    assert index.stats().frames == alone.stats().frames


def test_floats_become_codes_whatever_recall_is():
    """The first frame is no answer to drift."""
    index = OnlineIndex(DIM, compress_after=1000)
    index.heed(False)
    index.upsert(np.arange(3000), np.random.default_rng(0).normal(size=(3000, DIM)).astype(np.float32))
    assert ReencodeFinished.name in names(settled(index))
    assert [frame.kind for frame in index.stats().frames] == ["tile"]
