"""Re-encoding by hand, paused, resumed, cancelled, cut in the middle: what moves, what is told, what comes
back."""

import math

import numpy as np
import pytest
from driftline import DriftSettings, InvalidInput, OnlineIndex
from driftline.index.cut import Cut
from driftline.index.events import (
    Event,
    FrameOpened,
    FrameRetired,
    ReencodeCancelled,
    ReencodeDeclined,
    ReencodeFinished,
    ReencodePaused,
    ReencodeResumed,
    ReencodeStarted,
)
from driftline.index.packing import message, message_of
from driftline.index.raw import MemoryRawVectors
from driftline.index.reencode import mixture
from driftline.index.tile import TileParameters
from driftline.native import FRAMES, SLAB

DIM = 16
ROWS = 8 * SLAB
WORLDS = DriftSettings(window_rows=256)
DEAF = DriftSettings(alpha=1e-12, loss_limit=math.inf)  # no alarm, so that only a hand starts anything


def settle(index: OnlineIndex) -> None:
    while index.maintain(1.0):
        pass


def moving(index: OnlineIndex, slabs: int) -> None:
    """Go on until so many slabs have moved."""
    while (at := index.reencode_progress()).state != "moving" or at.slabs_done < slabs:
        assert index.maintain(0.0), "it ended before"


def raw_of(index: OnlineIndex) -> MemoryRawVectors:
    raw = index._raw
    assert isinstance(raw, MemoryRawVectors)
    return raw


def rows_of(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


@pytest.fixture
def stale() -> OnlineIndex:
    """An index whose frame was fitted to a narrow world that is gone, and coded everything since."""
    index = OnlineIndex(
        DIM, m=4, ef_construction=20, raw=MemoryRawVectors(DIM), compress_after=200, drift=DEAF
    )
    index.upsert(np.arange(200), rows_of(0, 200))
    settle(index)
    index.upsert(np.arange(200, ROWS), 5 * rows_of(1, ROWS - 200) + 3)
    settle(index)
    assert [frame.frame for frame in index.stats().frames] == [1]
    index.take_events()
    return index


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events if event.name != "reencode.progress"]


def test_by_hand(stale: OnlineIndex):
    """A frame opens for what comes in, every slab that gains moves, and it becomes as much better as was
    said; meanwhile it can be watched, and nothing is waiting afterwards."""
    stale.reencode(now=True)
    assert stale.reencode_progress().state == "waiting"
    assert stale.stats().reencoding
    seen = []
    while stale.maintain(0.0):
        seen.append(stale.reencode_progress())
    states = [at.state for at in seen]
    assert sorted(set(states), key=states.index) == ["survey", "moving"]
    moved = [at.slabs_done for at in seen if at.state == "moving"]
    assert moved == sorted(moved)
    assert moved[-1] == seen[-1].slabs == ROWS // SLAB
    assert seen[-1].rows_done == ROWS
    assert seen[-1].expected_gain is not None
    assert stale.reencode_progress().state == "idle"
    assert not stale.stats().reencoding
    events = stale.take_events()
    assert names(events) == ["frame.opened", "reencode.started", "reencode.finished", "frame.retired"]
    finished = next(event for event in events if isinstance(event, ReencodeFinished))
    assert finished.predicted_gain == seen[-1].expected_gain
    assert finished.measured_gain == pytest.approx(finished.predicted_gain, rel=0.1)
    assert [frame.frame for frame in stale.stats().frames] == [2]
    stale.check()


def test_searches_end_as_in_a_fresh_index():
    """When to end is learnt from codes: after a re-encode from the new ones, so that `ef` means as much as
    in an index that had them from the beginning."""
    x = rows_of(1, 4 * SLAB)
    old, new = (OnlineIndex(DIM, m=8, ef_construction=80, compress_after=500, drift=DEAF) for _ in range(2))
    old.upsert(np.arange(500), x[:500] / 4)
    new.upsert(np.arange(500), x[:500])
    for index in (old, new):
        settle(index)
        index.upsert(np.arange(len(x)), x)
        settle(index)
    assert growth(old) < 0.9 * growth(new)
    old.reencode(now=True)
    settle(old)
    assert growth(old) == pytest.approx(growth(new), rel=0.1)


def growth(index: OnlineIndex) -> float:
    """How distances grow with rank, as it stands at the end of a saved head."""
    return float(np.frombuffer(index._core.cut({}).head[-4:], np.float32)[0])


def test_by_hand_where_nothing_is_to_be_gained(stale: OnlineIndex):
    """It is said what was expected, no frame opens and no slab moves."""
    stale.reencode(now=True)
    settle(stale)
    stale.take_events()
    stale.reencode()
    settle(stale)
    events = stale.take_events()
    assert names(events) == ["reencode.declined"]
    assert isinstance(events[0], ReencodeDeclined)
    assert events[0].expected_gain == pytest.approx(1.0, abs=0.02)


def test_now_takes_what_is_less_than_the_setting():
    """A gain below `min_gain` is declined, and taken when asked for now."""
    x = rows_of(1, 4 * SLAB)
    index = OnlineIndex(DIM, compress_after=100, drift=DriftSettings(alpha=1e-12, min_gain=1000))
    index.upsert(np.arange(100), 0.3 * x[:100])
    settle(index)
    index.upsert(np.arange(100, len(x)), x[100:])
    index.reencode()
    settle(index)
    assert index.frame == 1
    index.reencode(now=True)
    settle(index)
    assert index.frame == 2
    assert len(index.stats().frames) == 1


def test_nothing_moves_while_it_is_paused(stale: OnlineIndex):
    """The same slab for ever, and upkeep is idle; when it is resumed it ends as if nothing had been."""
    stale.reencode(now=True)
    moving(stale, 3)
    stale.pause_reencode()
    stale.pause_reencode()
    at = stale.reencode_progress()
    assert at.paused
    assert not stale.maintain(1.0)
    assert stale.reencode_progress().slabs_done == at.slabs_done
    assert stale.stats().reencoding
    stale.check()
    stale.resume_reencode()
    stale.resume_reencode()
    settle(stale)
    stale.check()
    events = stale.take_events()
    assert names(events) == [
        "frame.opened", "reencode.started", "reencode.paused", "reencode.resumed", "reencode.finished",
        "frame.retired",
    ]  # fmt: skip
    for event in events:
        if isinstance(event, ReencodePaused | ReencodeResumed):
            assert (event.slabs_done, event.slabs) == (3, ROWS // SLAB)
    assert [frame.frame for frame in stale.stats().frames] == [2]


def test_what_begins_while_it_is_paused_waits():
    """Drift found during a pause gives new vectors their frame, and moves nothing until it is resumed."""
    index = OnlineIndex(DIM, compress_after=1000, drift=DriftSettings(window_rows=256))
    index.upsert(np.arange(3000), rows_of(0, 3000))
    settle(index)
    index.pause_reencode()
    index.upsert(np.arange(3000, 6000), 9 * rows_of(1, 3000))
    settle(index)
    assert index.frame == 2
    assert [frame.rows for frame in index.stats().frames] == [6000, 0]
    index.upsert(np.arange(6000, 6100), 9 * rows_of(2, 100))
    assert [frame.rows for frame in index.stats().frames] == [6000, 100]
    index.resume_reencode()
    settle(index)
    assert index.stats().frames[1].rows > 3000
    index.check()


def test_cancelled(stale: OnlineIndex):
    """What has moved stays, the rest too; it is told, and another one moves what is left. A pause ends."""
    stale.reencode(now=True)
    moving(stale, 4)
    stale.pause_reencode()
    stale.cancel_reencode()
    settle(stale)
    assert stale.reencode_progress().state == "idle"
    assert not stale.reencode_progress().paused
    cancelled = stale.take_events()[-1]
    assert isinstance(cancelled, ReencodeCancelled)
    assert (cancelled.slabs_done, cancelled.slabs, cancelled.rows_done) == (4, ROWS // SLAB, 4 * SLAB)
    assert [frame.rows for frame in stale.stats().frames] == [ROWS - 4 * SLAB, 4 * SLAB]
    stale.check()
    stale.reencode(now=True)
    settle(stale)
    assert [frame.rows for frame in stale.stats().frames] == [ROWS]


def test_cancelling_nothing_says_nothing(stale: OnlineIndex):
    """Nor does it keep upkeep busy."""
    stale.cancel_reencode()
    settle(stale)
    assert not stale.take_events()


def test_asking_twice_is_told(stale: OnlineIndex):
    """One that is under way ends loudly: for every start there is an end, and all slabs arrive."""
    stale.reencode(now=True)
    moving(stale, 4)
    stale.reencode(now=True)
    settle(stale)
    events = names(stale.take_events())
    assert events.count("reencode.started") == 2
    assert events.count("reencode.cancelled") == events.count("reencode.finished") == 1
    assert [frame.rows for frame in stale.stats().frames] == [ROWS]


def test_refused():
    """Without raw vectors, and while rows are floats, with the reason."""
    bare = OnlineIndex(DIM, raw=None, compress_after=100)
    bare.upsert(np.arange(200), rows_of(0, 200))
    settle(bare)
    with pytest.raises(InvalidInput, match="raw vectors"):
        bare.reencode()
    young = OnlineIndex(DIM)
    young.upsert(np.arange(10), rows_of(0, 10))
    with pytest.raises(InvalidInput, match="floats"):
        young.reencode(now=True)


def restored(index: OnlineIndex, cut: Cut) -> OnlineIndex:
    raw = index._raw
    assert raw is not None
    return OnlineIndex.restore(cut, raw, DEAF)


def test_a_cut_in_the_middle_goes_on(stale: OnlineIndex):
    """Slabs that had moved stay, the others move, for the same reason; and it ends."""
    stale.reencode(now=True)
    moving(stale, 5)
    other = restored(stale, stale.cut())
    assert other.reencode_progress().state == "survey"
    assert other.reencode_progress().reason == "asked for by hand"
    settle(other)
    other.check()
    (started,) = [event for event in other.take_events() if isinstance(event, ReencodeStarted)]
    assert started.slabs == ROWS // SLAB - 5
    assert [frame.rows for frame in other.stats().frames] == [ROWS]


@pytest.mark.parametrize("hand", ["pause", "cancel", "ask", "nothing"])
def test_a_cut_keeps_what_was_wanted_by_hand(stale: OnlineIndex, hand: str):
    """Paused stays paused, cancelled does not begin again, asked is answered, nothing is nothing: though the
    step that acts on it had not come."""
    if hand in ("pause", "cancel"):
        stale.reencode(now=True)
        moving(stale, 5)
    if hand == "pause":
        stale.pause_reencode()
    elif hand == "cancel":
        stale.cancel_reencode()
    elif hand == "ask":
        stale.reencode(now=True)
    other = restored(stale, stale.cut())
    assert other.reencode_progress().paused == (hand == "pause")
    settle(other)
    rows = {frame.frame: frame.rows for frame in other.stats().frames}
    untouched = {1: ROWS - 5 * SLAB, 2: 5 * SLAB}
    assert rows == {"pause": untouched, "cancel": untouched, "ask": {2: ROWS}, "nothing": {1: ROWS}}[hand]
    assert other.stats().reencoding == (hand == "pause")
    other.resume_reencode()
    settle(other)
    other.check()
    if hand == "pause":
        assert [frame.rows for frame in other.stats().frames] == [ROWS]


def test_a_cut_of_before_such_things_were_said(stale: OnlineIndex):
    """Nothing is known of what was under way: all slabs are surveyed, and nothing is wanted by hand."""
    cut = stale.cut()
    state = message_of("index", cut.state)
    for name in ("reencode", "paused", "asked"):
        del state["follower"][name]
    other = restored(stale, Cut(cut.chunks, message("index", state), cut.segments, cut.live))
    assert other.reencode_progress().state == "survey"
    settle(other)
    assert [frame.rows for frame in other.stats().frames] == [ROWS]
    assert not other.take_events()


def handing_over() -> OnlineIndex:
    """A fourth world has come, its frame is open, and the slabs of another have begun to leave."""
    index = OnlineIndex(DIM, m=4, ef_construction=20, raw=MemoryRawVectors(DIM), drift=WORLDS)
    for batch in range(8 * 12):
        world = batch // 12
        x = rows_of(batch, 250) * 4.0**world + world
        index.upsert(np.arange(250 * batch, 250 * batch + 250), x)
        while index.maintain(0.0):
            if index._follower._reencoder.leaving is not None:
                moving(index, 1)
                return index
    raise AssertionError("no frame had to go")


def frames_of(index: OnlineIndex) -> list[int]:
    return [frame.frame for frame in index.stats().frames]


def test_a_frame_opens_before_another_goes():
    """What comes in is coded in the new frame at once; then a lane is free again."""
    index = handing_over()
    opened = [event.frame for event in index.take_events() if isinstance(event, FrameOpened)][-1]
    assert index.frame == opened
    assert len(frames_of(index)) == FRAMES
    settle(index)
    assert len(frames_of(index)) == FRAMES - 1
    assert index.frame == opened
    index.check()


def test_a_cut_while_a_frame_goes():
    """What is restored in the middle empties the same frame."""
    index = handing_over()
    other = OnlineIndex.restore(index.cut(), raw_of(index), WORLDS)
    index.take_events()
    assert frames_of(other) == frames_of(index)
    for one in (index, other):
        settle(one)
        one.check()
        assert len([event for event in one.take_events() if isinstance(event, FrameRetired)]) == 1
    assert frames_of(other) == frames_of(index)


def test_a_cut_of_when_frames_waited_for_a_lane():
    """The frame that waited is not kept: what comes in gets one that suits it once a lane is free."""
    index = handing_over()
    cut = index.cut()
    state = message_of("index", cut.state)
    lanes = {number: lane for number, lane, _ in state["frames"]["alive"]}
    waiting = state["frames"]["alive"][-1][2]
    leaving = state["follower"]["reencode"]["leaving"]
    state["frames"]["write"] = next(
        lane for number, lane in lanes.items() if number not in (leaving, index.frame)
    )
    state["follower"] |= {"coming": waiting, "gain": 2.0}
    other = OnlineIndex.restore(
        Cut(cut.chunks, message("index", state), cut.segments, cut.live), raw_of(index), WORLDS
    )
    assert other.frame != index.frame
    settle(other)
    assert other.frame >= index.frame
    other.check()


def test_asked_by_hand_while_a_frame_goes():
    """It goes all the same."""
    index = handing_over()
    leaving = index._follower._reencoder.leaving
    assert leaving is not None
    index.reencode(now=True)
    settle(index)
    assert leaving.number not in frames_of(index)
    assert len(frames_of(index)) == FRAMES - 1
    index.check()


def test_cancelled_while_a_frame_goes():
    """It stays; for the next world there must be room first, and then its frame opens."""
    index = handing_over()
    frames = frames_of(index)
    index.cancel_reencode()
    settle(index)
    assert not index.stats().reencoding
    assert frames_of(index) == frames
    before = index.frame
    key = 100_000
    for batch in range(12):
        index.upsert(np.arange(key, key + 250), rows_of(batch, 250) * 0.02 - 1)
        key += 250
        settle(index)
    assert index.frame > before
    assert len(frames_of(index)) < FRAMES
    index.check()


def test_only_what_is_in_the_way_moves_while_recall_holds():
    """The canary says that older rows may keep their codes: those of the frame that goes may not."""
    index = OnlineIndex(DIM, m=4, ef_construction=20, raw=MemoryRawVectors(DIM), drift=WORLDS)
    index.heed(False)
    for batch in range(4 * 12):
        world = batch // 12
        x = rows_of(batch, 250) * 4.0**world + world
        index.upsert(np.arange(250 * batch, 250 * batch + 250), x)
        settle(index)
    assert len(frames_of(index)) == FRAMES - 1
    started = [event for event in index.take_events() if isinstance(event, ReencodeStarted)]
    assert len(started) == 2, "from floats, and out of the way"
    index.check()


def test_a_mixture_is_that_of_the_rows_it_stands_for():
    """Mean and variance of worlds of very unequal size, from as many rows of each; the histogram in their
    proportions."""
    large, small = rows_of(1, 1000), rows_of(2, 1000) + 10
    like = TileParameters.fit(np.zeros(DIM), np.ones(DIM))
    fitted = mixture([(large, 900_000), (small, 100_000)], like)
    everything = np.concatenate([np.tile(large, (9, 1)), small]).astype(np.float64)
    np.testing.assert_allclose(fitted.mean, everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(fitted.scale, everything.std(axis=0), rtol=1e-5)
    assert fitted.rows == 1111
    assert fitted.counts.sum() == 1111 * DIM
