"""The demo: what a newcomer runs first."""

import json

from .running import command


def test_the_demo_shows_the_whole_path() -> None:
    """Every question answered as exactly as it should be, drift seen where the second domain begins,
    nothing lost."""
    done = command("demo", "--json", timeout_s=110)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fed"] == 10_500
    assert found["ask"]["questions"] == 40
    assert found["ask"]["recall_at_10"] >= 0.97
    detected = [event for event in found["drift"]["events"] if event["event"] == "drift.detected"]
    assert [event["since_rows_seen"] for event in detected] == [6000]
    crash = found["crash"]
    assert crash["live_after"] == crash["live_before"] == 10_400
    assert crash["same_answers"] == 40


def test_the_demo_reads_well_without_a_terminal() -> None:
    """Plain text, hits beside the exact answers, no escape codes, nothing on standard error."""
    done = command("demo", timeout_s=110)
    assert done.returncode == 0
    assert "Nothing was lost." in done.stdout
    assert "remove deprecated methods" in done.stdout
    assert "drift.detected" in done.stdout
    assert "\x1b" not in done.stdout
    assert not done.stderr
