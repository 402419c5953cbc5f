"""The drift monitor: what it finds and does not, on seeded streams and the real one of the demo; state;
gains."""

import math
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
from driftline import CorruptIndex, DriftSettings, InvalidInput
from driftline.index.drift import DriftMonitor, expected_gain
from driftline.index.events import DriftDetected, DriftWindow
from driftline.index.reference import normal_score, student_tail
from driftline.index.tile import TileParameters
from driftline.native import rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, wasserstein_distance
from scipy.stats import t as student

DEMO = Path(__file__).parents[2] / "stream" / "demo_data" / "demo384.npz"
GOLDEN = Path(__file__).parent / "golden"
SEED = 7  # of rotations


def gaussian(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def bursts(rows: int, dim: int, seed: int) -> np.ndarray:
    """Stationary, but in runs of about 100 rows that share an offset of half a sigma."""
    rng = np.random.default_rng(seed)
    starts = rng.random(rows) < 1 / 100
    offsets = rng.normal(scale=0.5, size=(int(starts.sum()) + 1, dim))
    return (rng.normal(size=(rows, dim)) + offsets[np.cumsum(starts)]).astype(np.float32)


def watch(
    rows: np.ndarray, monitor: DriftMonitor | None = None, follow: bool = True
) -> Iterator[DriftWindow | DriftDetected]:
    """What a monitor finds in a stream whose first frame is fitted after 1,000 rows, and (`follow`) a new one
    at alarms."""
    monitor = monitor or DriftMonitor(rows.shape[1], rotation_seed=SEED)
    frame = None
    for start in range(0, len(rows), 250):
        for event in monitor.update(rows[start : start + 250], frame):
            if isinstance(event, DriftDetected) and follow:
                frame = monitor.fit()
            yield event
        if frame is None and monitor.rows_seen >= 1000:
            frame = monitor.fit()


def alarms(rows: np.ndarray, follow: bool = True) -> list[DriftDetected]:
    return [event for event in watch(rows, follow=follow) if isinstance(event, DriftDetected)]


def windows(rows: np.ndarray) -> list[DriftWindow]:
    return [event for event in watch(rows) if isinstance(event, DriftWindow)]


# ---- what is found


def test_demo_stream() -> None:
    """Real: glosses, then commit subjects from row 6,000. One alarm before a window's rows have passed, named
    in original coordinates."""
    rows = np.load(DEMO)["base"].astype(np.float32)
    (alarm,) = alarms(rows)
    assert (alarm.since_rows_seen, alarm.rows_seen, alarm.differs) == (6_000, 6_750, "distribution")
    assert alarm.kind == "abrupt"
    assert alarm.p_value < 0.001
    assert alarm.drifted_share > 0.5
    shift = (rows[6_000:6_750].mean(axis=0) - rows[:6_000].mean(axis=0)) / (rows[:6_000].std(axis=0) + 1e-3)
    for worst in alarm.worst:
        assert worst.shift_sigmas == pytest.approx(shift[worst.dimension], abs=0.15)
        assert worst.psi > 0.25


def test_small_shift() -> None:
    """A quarter sigma in a tenth of the dimensions is found within 5,000 rows."""
    rows = gaussian(20_000, 128)
    rows[10_000:, 40:53] += 0.25
    (alarm,) = alarms(rows)
    assert alarm.since_rows_seen >= 10_000
    assert alarm.rows_seen <= 15_000
    assert {worst.dimension for worst in alarm.worst} <= set(range(40, 53))


def test_scale_change() -> None:
    """A spread wider by 15 % is found within 5,000 rows, though no mean moves."""
    rows = gaussian(20_000, 64)
    rows[10_000:] *= 1.15
    (alarm,) = alarms(rows)
    assert 10_000 <= alarm.since_rows_seen < alarm.rows_seen <= 15_000
    assert alarm.mean_shift_sigmas < 0.1


def test_fit_loss_raises_the_alarm_even_while_the_reference_is_learned() -> None:
    """Four times as wide soon after an alarm: no test is made then, but the loss against the window before
    tells."""
    rows = gaussian(20_000, 32)
    rows[8_000:] += 1.0
    rows[11_000:] *= 4
    first, second = alarms(rows)
    assert first.rows_seen == 8_750
    assert (second.rows_seen, second.differs, second.kind) == (13_750, "fit_loss", "abrupt")
    assert second.fit_loss > 2
    assert second.p_value == 1.0


def test_one_change_is_one_alarm() -> None:
    """The alarm is not repeated, whether or not anybody opens a new frame."""
    rows = gaussian(30_000, 32)
    rows[8_000:] = rows[8_000:] * 3 + 1
    for follow in (True, False):
        assert [alarm.rows_seen for alarm in alarms(rows, follow)] == [8_750]


def test_new_frame_fits_what_came_after_the_change() -> None:
    """What `fit` returns after an alarm is not a mixture of the worlds before and after."""
    rows = gaussian(9_000, 32)
    rows[6_000:] = rows[6_000:] * 3 + 5
    monitor = DriftMonitor(32, rotation_seed=None)
    frame = None
    for start in range(0, 9_000, 500):
        found = monitor.update(rows[start : start + 500], frame)
        frame = frame or monitor.fit()
        if any(isinstance(event, DriftDetected) for event in found):
            break
    fitted = monitor.fit()
    np.testing.assert_allclose(fitted.mean, 5, atol=0.5)
    np.testing.assert_allclose(fitted.scale, 3, rtol=0.15)
    assert fitted.rows >= 250
    assert fitted.error(rows[8_000:]) < 1.1 * TileParameters.fit(np.full(32, 5.0), np.full(32, 9.0)).error(
        rows[8_000:]
    )
    assert expected_gain(frame, fitted, monitor.recent()) > 5


def test_mean_shift_does_not_saturate() -> None:
    """A dimension that moves ten sigmas is said to have moved ten, beyond the outermost bin."""
    rows = gaussian(9_000, 8)
    rows[8_000:, 2] += 10.0
    (*_, moved) = windows(rows)
    assert moved.worst[0].shift_sigmas == pytest.approx(10.0, abs=0.2)
    assert moved.mean_shift_sigmas == pytest.approx(10 / math.sqrt(8), abs=0.1)


@pytest.mark.parametrize("change", range(8_010, 9_010, 90))
def test_overwhelming_evidence_waits_for_no_window(change: int) -> None:
    """A change anywhere in a window is an alarm before a window's rows have passed, once no more than a part
    of one chunk is of the old world; the frame is fitted to new rows only."""
    rows = gaussian(10_500, 32)
    rows[change:] += 1.0
    monitor = DriftMonitor(32, rotation_seed=None)
    frame = TileParameters.fit(np.zeros(32), np.ones(32))
    found = monitor.update(rows, frame)
    (alarm,) = [event for event in found if isinstance(event, DriftDetected)]
    assert 500 < alarm.rows_seen - change < 1_000
    assert (alarm.rows_seen % 250, alarm.kind) == (0, "abrupt")
    assert alarm.since_rows_seen <= change + 250
    reports = [event for event in found if isinstance(event, DriftWindow)]
    assert np.cumsum([report.rows for report in reports]).tolist() == [
        report.rows_seen - 1_000 for report in reports
    ]
    monitor = DriftMonitor(32, rotation_seed=None)
    monitor.update(rows[: alarm.rows_seen], frame)
    np.testing.assert_allclose(monitor.fit().mean, 1.0, atol=0.2)
    assert monitor.fit().rows == 500


def test_few_rows_are_all_taken() -> None:
    """Where only a sample of the rows is kept, all of those are that stand out, so that the frame after an
    alarm is fitted to no fewer."""
    rows = gaussian(8_000, 1_000)
    rows[7_100:] += 1.0
    monitor = DriftMonitor(1_000, rotation_seed=SEED)
    frame = TileParameters.fit(np.zeros(1_000), np.ones(1_000), rotation_seed=SEED)
    (alarm,) = [event for event in monitor.update(rows, frame) if isinstance(event, DriftDetected)]
    assert (alarm.rows_seen, len(monitor.recent())) == (7_750, 500 + 250 // 4 + 1)


def test_in_bursts_three_windows_of_four_must_differ() -> None:
    """Nothing is overwhelming there; but one window that looks like the old world does not begin the count
    anew."""
    rows = bursts(24_000, 32, seed=4)
    for start in (18_000, 20_000, 21_000):
        rows[start : start + 1_000] += 2.0
    monitor = DriftMonitor(32, DriftSettings(loss_limit=100), rotation_seed=SEED)
    (alarm,) = [event for event in watch(rows, monitor) if isinstance(event, DriftDetected)]
    assert (alarm.since_rows_seen, alarm.rows_seen, alarm.differs) == (18_000, 22_000, "distribution")


def test_dimensions_that_come_alive_are_found() -> None:
    """A stream whose rows hardly differed begins to vary: that its chunks scatter more than they used to does
    not hide it."""
    rows = gaussian(12_000, 16)
    rows[:8_000] *= 1e-4
    rows[:, 0] = gaussian(12_000, 1, seed=1)[:, 0]
    (alarm,) = alarms(rows)
    assert (alarm.since_rows_seen, alarm.kind) == (8_000, "scale")


def test_a_large_loss_is_an_alarm_at_once() -> None:
    """In a bursty stream three windows must differ, unless codes are far worse than they could be."""
    rows = bursts(14_000, 32, seed=4)
    rows[10_000:] *= 4
    (alarm,) = alarms(rows)
    assert (alarm.rows_seen, alarm.kind) == (12_000, "scale")
    rows = bursts(14_000, 32, seed=4)
    rows[9_700:] *= 4  # so that the window before the alarm, to which the refit is made, has seen it
    (alarm,) = alarms(rows)
    assert (alarm.rows_seen, alarm.kind) == (11_000, "scale")


def test_kinds() -> None:
    """Gradual, abrupt and a change of scale are told apart; a world whose frame is alive returns."""
    ramp = np.clip((np.arange(60_000) - 20_000) / 30_000, 0, 1)[:, None].astype(np.float32)
    told = {
        "gradual": gaussian(60_000, 24) + ramp * 0.7,
        "abrupt": gaussian(30_000, 24, seed=1) + 0.5 * (np.arange(30_000) >= 20_300)[:, None],
        "scale": gaussian(30_000, 24, seed=2) * (1 + 0.15 * (np.arange(30_000) >= 20_000)[:, None]),
    }
    for kind, rows in told.items():
        first, *_ = alarms(rows)
        assert (kind, first.kind) == (kind, kind)
        assert first.rows_seen > 20_000
    rows = gaussian(40_000, 24, seed=3)
    rows[8_000:20_000] = rows[8_000:20_000] * 2 + 3
    monitor = DriftMonitor(24, rotation_seed=None)
    old = TileParameters.fit(np.zeros(24), np.ones(24))
    new = TileParameters.fit(np.full(24, 3.0), np.full(24, 4.0))
    kinds = [
        event.kind
        for part, frame, others in ((rows[:14_000], old, []), (rows[14_000:], new, [old]))
        for event in monitor.update(part, frame, others)
        if isinstance(event, DriftDetected)
    ]
    assert kinds == ["abrupt", "returning"]


def test_every_dimension_is_told() -> None:
    """What an event holds of every dimension, packed, is what the monitor has of them: scipy's numbers."""
    rows = gaussian(9_000, 8)
    rows[8_000:, 2] += 0.3
    monitor = DriftMonitor(8, rotation_seed=None)
    frame = TileParameters.fit(np.zeros(8), np.ones(8))
    assert monitor.dimensions is None
    found = [event for event in monitor.update(rows, frame) if isinstance(event, DriftWindow)]
    known = monitor.dimensions
    assert known is not None
    for packed, values in ((found[-1].scores, known.scores), (found[-1].psis, known.psis)):
        np.testing.assert_allclose(np.frombuffer(b64decode(packed), "<f2"), values, rtol=1e-3, atol=1e-6)
    assert (found[0].scores, found[0].reference_rows) == ("", 0)
    unbinned = [wasserstein_distance(rows[:8_000, d], rows[8_000:, d]) for d in range(8)]
    np.testing.assert_allclose(known.wassersteins, unbinned, atol=0.02)
    assert known.shifts[2] == pytest.approx(0.3, abs=0.05)
    assert known.psis.argmax() == known.jensen_shannons.argmax() == 2


@pytest.mark.parametrize("size", [17, 250, 1_000])
def test_windows_end_with_time_too(size: int) -> None:
    """A window ends once it is a minute old and has 64 rows, or when it is full; told no time, only then.
    What is found does not hang on the batches in which rows of one time come."""
    rows = gaussian(12_000, 6)
    rows[9_000:] += 1.0
    frame = TileParameters.fit(np.zeros(6), np.ones(6), rotation_seed=SEED)
    monitor = DriftMonitor(6, DriftSettings(window_seconds=60), rotation_seed=SEED)
    found = []
    for minute, part in enumerate(np.split(rows, range(300, 12_000, 300))):
        for start in range(0, 300, size):
            found += monitor.update(part[start : start + size], frame, now_ms=60_000 * minute)
    reports = [event for event in found if isinstance(event, DriftWindow)]
    (alarm,) = [event for event in found if isinstance(event, DriftDetected)]
    still = [report for report in reports if report.rows_seen <= 9_000]
    assert {report.rows for report in still} == {300}
    assert {report.seconds for report in still} == {60.0}
    assert 8_900 <= alarm.since_rows_seen <= 9_000
    assert alarm.rows_seen <= 9_600
    monitor = DriftMonitor(6, DriftSettings(window_seconds=60), rotation_seed=SEED)
    reports = monitor.update(rows[:3_000], frame)
    assert [(report.rows, report.seconds) for report in reports] == [(1_000, None)] * 2


def test_few_rows_do_not_make_a_window() -> None:
    """A window that is old enough waits until it has 64 rows."""
    monitor = DriftMonitor(4, DriftSettings(window_seconds=1), rotation_seed=None)
    frame = TileParameters.fit(np.zeros(4), np.ones(4))
    ends = []
    for second, row in enumerate(gaussian(400, 4)):
        ends += [(second, event.rows) for event in monitor.update(row[None], frame, now_ms=2_000 * second)]
    assert ends == [(128, 64), (192, 64), (256, 64), (320, 64), (384, 64)]


@given(st.floats(0, 200), st.floats(1, 2_000))
def test_student_tail(t: float, freedom: float) -> None:
    """Student's tail is scipy's."""
    assert student_tail(t, freedom) == pytest.approx(student.sf(t, freedom), rel=1e-6, abs=1e-290)


# ---- what is not


@pytest.mark.parametrize("law", ["normal", "laplace", "lognormal"])
def test_false_alarms(law: str) -> None:
    """On stationary independent rows no alarm; 1 % of the windows differ: more than 6 of 150 would be odd."""
    rng = np.random.default_rng(3)
    rows = {
        "normal": rng.normal,
        "laplace": rng.laplace,
        "lognormal": lambda size: rng.lognormal(0, 0.8, size),
    }[law](size=(154_000, 24))
    found = list(watch(rows.astype(np.float32)))
    assert not [event for event in found if isinstance(event, DriftDetected)]
    assert sum(event.p_value < 0.01 for event in found) <= 6


def test_bursts_are_not_drift() -> None:
    """Rows in bursts scatter the means of windows; the scatter is measured, and raises no alarm."""
    found = list(watch(bursts(80_000, 48, seed=5)))
    assert not [event for event in found if isinstance(event, DriftDetected)]
    tested = [event for event in found if isinstance(event, DriftWindow) and event.reference_rows]
    assert np.median([window.inflation for window in tested]) > 5


def test_long_bursts_move_all_dimensions_at_once() -> None:
    """The stated rate holds in bursts of many dimensions too, of which the features alone call 9 of 46
    windows different."""
    tested = [window for window in windows(bursts(50_000, 128, seed=2)) if window.reference_rows]
    assert len(tested) > 40
    assert sum(window.p_value < 0.01 for window in tested) <= 2


def test_independent_rows_are_not_inflated() -> None:
    """The inflation of independent rows is 1, and a constant or nearly constant dimension does not matter."""
    rows = gaussian(30_000, 16)
    rows[:, 3] = 0.5
    rows[:, 5] = np.random.default_rng(1).random(30_000) < 2e-4
    tested = [window for window in windows(rows) if window.reference_rows]
    assert np.median([window.inflation for window in tested]) < 1.2
    assert min(window.p_value for window in tested) > 1e-4
    assert max(window.fit_loss for window in tested) < 1.1


def test_windows_report() -> None:
    """Numbers of a stationary window are near nothing, those of a moved one are what they should be."""
    rows = gaussian(9_000, 8)
    rows[8_000:, 2] += 1.0
    *_, still, moved = windows(rows)
    assert (still.rows, still.rows_seen, moved.rows, moved.rows_seen) == (1_000, 8_000, 750, 8_750)
    assert still.psi < 0.05
    assert still.differs == ""
    assert moved.differs == "distribution"
    assert moved.detected
    assert moved.drifted_share == pytest.approx(1 / 8)
    assert moved.worst[0].dimension == 2
    assert moved.worst[0].shift_sigmas == pytest.approx(1.0, abs=0.1)
    # Of two unit normal laws one sigma apart it is 1.
    assert moved.worst[0].psi == pytest.approx(1.0, abs=0.3)
    assert moved.wasserstein_sigmas == pytest.approx(1 / 8, abs=0.03)
    assert moved.mean_shift_sigmas == pytest.approx(math.sqrt(1 / 8), abs=0.05)
    assert 0 < moved.jensen_shannon < 1 / 8
    assert moved.fit_loss >= 1
    assert moved.error == pytest.approx(moved.fit_loss * moved.best_error)


def test_normal_score() -> None:
    """The tail of Student's law as a normal deviate: within 0.3 of scipy's wherever windows are judged."""
    for freedom in (3.0, 4.0, 8.0, 15.0, 1e4):
        t = np.linspace(0.5, 12, 50)
        exact = norm.isf(student.sf(t, freedom))
        found = normal_score(t, np.full(50, freedom))
        near = exact < 7
        np.testing.assert_allclose(found[near], exact[near], atol=0.3)


# ---- the monitor as a part of an index


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=40), st.booleans())
def test_batches_do_not_matter(sizes: list[int], is_float: bool) -> None:
    """Windows, alarms and statistics are the same however the stream was cut into batches."""
    rows = gaussian(sum(sizes), 6, seed=len(sizes))
    rows[len(rows) // 2 :] += 1
    frame = None if is_float else TileParameters.fit(np.zeros(6), np.ones(6), rotation_seed=SEED)
    chosen = DriftSettings(window_rows=200)
    whole, cut = (DriftMonitor(6, chosen, rotation_seed=SEED) for _ in range(2))
    found = whole.update(rows, frame)
    pieces = np.split(rows, np.cumsum(sizes)[:-1])
    assert [event for piece in pieces for event in cut.update(piece, frame)] == found
    assert cut.fit().to_bytes() == whole.fit().to_bytes()
    assert cut.rows_seen == whole.rows_seen


@pytest.mark.parametrize("dim", [6, 1_000])  # where all rows of a window are kept, and one in four
def test_stored_rows_are_not_copied(dim: int) -> None:
    """Rows that stay where they lie give what copies give; copies do not change with the caller's array."""
    rows = gaussian(5_500, dim)
    frame = TileParameters.fit(np.zeros(dim), np.ones(dim), rotation_seed=SEED)
    stored, copied = (DriftMonitor(dim, rotation_seed=SEED) for _ in range(2))
    for piece in np.split(rows, range(330, 5_500, 330)):
        theirs = piece.copy()
        assert copied.update(theirs, frame) == stored.update(piece, frame, stored=True)
        theirs[:] = np.inf
    before = stored.recent()
    assert stored.fit().to_bytes() == copied.fit().to_bytes()
    np.testing.assert_array_equal(before, copied.recent())
    rows += 1
    np.testing.assert_array_equal(stored.recent(), before + 1)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 6_000))
def test_restart(at: int) -> None:
    """A monitor restored from its stored state goes on exactly as if nothing had happened, at any row."""
    rows = gaussian(6_000, 5)
    rows[3_000:] = rows[3_000:] * 1.5 + 1
    frame = TileParameters.fit(np.zeros(5), np.ones(5), rotation_seed=SEED)
    chosen = DriftSettings(window_rows=300, window_seconds=10)
    monitor = DriftMonitor(5, chosen, rotation_seed=SEED)
    monitor.update(rows[:at], frame, now_ms=0)
    stored = msgpack.packb(monitor.state())
    restored = DriftMonitor.from_state(msgpack.unpackb(stored), chosen)
    assert msgpack.packb(restored.state()) == stored
    found, wanted = (each.update(rows[at:], frame, now_ms=20_000) for each in (restored, monitor))
    assert found == wanted
    assert msgpack.packb(restored.state()) == msgpack.packb(monitor.state())
    assert restored.fit().to_bytes() == monitor.fit().to_bytes()


def golden_monitor() -> DriftMonitor:
    monitor = DriftMonitor(3, DriftSettings(window_rows=64), rotation_seed=None)
    monitor.update(gaussian(390, 3), TileParameters.fit(np.zeros(3), np.ones(3)))
    return monitor


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_stored_form(version: int) -> None:
    """Every version is read as it was written, and goes on; before 3 the reference held other things, and is
    learned anew."""
    stored = msgpack.unpackb((GOLDEN / f"drift_version_{version}.msgpack").read_bytes())
    restored = DriftMonitor.from_state(stored, DriftSettings(window_rows=64))
    monitor = golden_monitor()
    assert restored.rows_seen == monitor.rows_seen == 384
    frame = TileParameters.fit(np.zeros(3), np.ones(3))
    assert restored.recent().tobytes() == monitor.recent().tobytes()
    assert restored.fit().to_bytes() == monitor.fit().to_bytes()
    found, wanted = (each.update(gaussian(60, 3, seed=1), frame) for each in (restored, monitor))
    assert found == (wanted if version >= 3 else [])
    later = restored.update(gaussian(64 * 5, 3, seed=2), frame)
    assert isinstance(later[-1], DriftWindow)
    assert later[-1].reference_rows > 0


def test_version_1_held_rows_rotated() -> None:
    """They come back in original coordinates, to float32's rounding."""
    monitor = DriftMonitor(5, DriftSettings(window_rows=64), rotation_seed=SEED)
    monitor.update(gaussian(200, 5), None)
    state = monitor.state()
    rows = [np.frombuffer(chunk, np.float32).reshape(-1, 5) for chunk in state["recent"].pop("rows")]
    state["recent"]["sample"] = [rotate(chunk, SEED).tobytes() for chunk in rows]
    restored = DriftMonitor.from_state({**state, "version": 1}, DriftSettings(window_rows=64))
    np.testing.assert_allclose(restored.recent(), monitor.recent(), atol=1e-5)


def test_other_settings_after_a_restart() -> None:
    """With windows of another length the reference is learned anew; the statistics for a fit stay."""
    monitor = golden_monitor()
    stored = msgpack.unpackb(msgpack.packb(monitor.state()))
    restored = DriftMonitor.from_state(stored, DriftSettings(window_rows=100))
    np.testing.assert_allclose(restored.fit().mean, monitor.fit().mean, atol=0.1)
    assert restored.update(gaussian(99, 3), TileParameters.fit(np.zeros(3), np.ones(3))) == []


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_hostile_state(data: st.DataObject) -> None:
    """A field that is missing or of another kind, length or range is refused as corrupt, wherever it lies."""
    state = msgpack.unpackb((GOLDEN / "drift_version_4.msgpack").read_bytes())
    inside = state
    while True:
        names = sorted(inside)
        name = data.draw(st.sampled_from(names))
        if isinstance(inside[name], dict) and data.draw(st.booleans()):
            inside = inside[name]
            continue
        break
    inside[name] = data.draw(st.sampled_from([None, -1, "x", b"123", [b"1"], {}, float("nan")]))
    try:
        monitor = DriftMonitor.from_state(state, DriftSettings(window_rows=64))
    except CorruptIndex:
        return
    monitor.update(gaussian(200, 3), TileParameters.fit(np.zeros(3), np.ones(3)))


def test_while_rows_are_floats() -> None:
    """Nothing is reported, everything learned: the test begins with the first window in a frame."""
    rows = gaussian(9_000, 12)
    rows[8_000:] += 1
    monitor = DriftMonitor(12, rotation_seed=SEED)
    assert monitor.update(rows[:7_000], None) == []
    frame = monitor.fit()
    still, moved, alarm = monitor.update(rows[7_000:], frame)
    assert isinstance(still, DriftWindow)
    assert isinstance(moved, DriftWindow)
    assert isinstance(alarm, DriftDetected)
    assert still.reference_rows == 7_000
    assert (still.differs, moved.differs) == ("", "distribution")


def test_fit_with_few_rows() -> None:
    """A frame can be fitted to rows that fill no chunk yet; without any row it cannot."""
    monitor = DriftMonitor(4, rotation_seed=SEED)
    with pytest.raises(InvalidInput, match="no row"):
        monitor.fit()
    assert monitor.excess() == math.inf
    rows = gaussian(40, 4) * 2 + 3
    monitor.update(rows, None)
    fitted = monitor.fit()
    assert fitted.rows == len(monitor.recent()) == 40
    np.testing.assert_allclose(monitor.recent(), rows, atol=1e-5)
    np.testing.assert_allclose(fitted.decode(fitted.encode(rows)), rows, atol=1.0)


def test_excess() -> None:
    """A thousand rows make a code within 2 % of the best if they are independent, not if they are bursts."""
    found = []
    for rows in (gaussian(1_000, 32), bursts(1_000, 32, seed=1)):
        monitor = DriftMonitor(32, rotation_seed=SEED)
        monitor.update(rows, None)
        found.append(monitor.excess())
    assert found[0] < 0.02 < found[1]


def test_another_live_frame_counts_in_the_fit_loss() -> None:
    """The fit loss compares with the best frame that is alive, not with a refit only."""
    rows = gaussian(1_000, 8)
    narrow = TileParameters.fit(np.zeros(8), np.full(8, 0.09), rotation_seed=SEED)
    right = TileParameters.fit(np.zeros(8), np.ones(8), rotation_seed=SEED)
    reports = []
    for others in ([], [right]):
        monitor = DriftMonitor(8, rotation_seed=SEED)
        monitor.update(rows, None)
        (report, *_) = monitor.update(gaussian(1_000, 8, seed=2) * 0.98, narrow, others)
        reports.append(report)
    assert reports[0].fit_loss > 5
    assert reports[1].best_error <= reports[0].best_error
    with pytest.raises(InvalidInput, match="rotation"):
        DriftMonitor(8, rotation_seed=None).update(rows, right)


def test_expected_gain() -> None:
    """Error in one frame / error in the other, at four bits or eight; 1 between equal ones, infinite from
    nothing."""
    rows = gaussian(4_000, 8) * 3
    one = TileParameters.fit(np.zeros(8), np.ones(8))
    other = TileParameters.fit(np.zeros(8), np.full(8, 9.0))
    gains = {bits: expected_gain(one, other, rows, bits) for bits in (4, 8)}
    assert expected_gain(one, other, rows) == gains[4]
    assert 5 < gains[4] < gains[8]
    assert expected_gain(other, one, rows, 8) == pytest.approx(1 / gains[8])
    assert expected_gain(one, one, rows) == 1
    assert expected_gain(one, one, np.empty((0, 8), np.float32)) == 1


def test_settings_that_are_refused() -> None:
    """Each setting out of range is named."""
    for name, value in {
        "window_rows": 63,
        "alpha": 0.0,
        "reference_windows": 2,
        "loss_limit": 0.9,
        "min_gain": math.nan,
        "forget_rows": 0,
        "window_seconds": 0.0,
    }.items():
        with pytest.raises(InvalidInput, match=name):
            DriftSettings(**{name: value})


def test_events_are_plain() -> None:
    """`to_fields` holds only what JSON can: numbers, text, lists."""
    found = list(watch(np.concatenate([gaussian(7_000, 8), gaussian(3_000, 8) * 2])))
    assert {event.name for event in found} == {"drift.window", "drift.detected"}
    for event in found:
        fields = event.to_fields()
        assert msgpack.unpackb(msgpack.packb(fields))["rows_seen"] == fields["rows_seen"]
        assert {type(value) for value in fields.values()} <= {int, float, str, bool, tuple, type(None)}
