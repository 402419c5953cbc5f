"""The share of a core that re-encoding takes, on clocks that the test turns."""

import pytest
from driftline import InvalidInput
from driftline.index.budget import Budget


class World:
    """A thread that works while its budget says so, on a machine that leaves it a part of its time."""

    def __init__(self, share: float, floor: float) -> None:
        self.now = self.worked = 0.0
        self.budget = Budget(share, floor, clock=lambda: self.now, processor=lambda: self.worked)

    def run(self, seconds: float, *, left: float = 1.0, step: float = 0.01, late: float = 0.0) -> float:
        """Processor time / time of so many seconds. late: after each pause, seconds until it is noticed."""
        began, worked = self.now, self.worked
        while self.now < began + seconds:
            if not self.budget.due:
                self.now += self.budget.wait_s(0.1) + late
                continue
            with self.budget.step():
                self.worked += step
                self.now += step / left
        return (self.worked - worked) / (self.now - began)


@pytest.mark.parametrize("step", [0.001, 0.01, 0.3])
def test_alone_it_takes_its_share(step: float):
    """However long the steps are."""
    seconds = max(10.0, 1000 * step)
    for share in (0.25, 1.0):
        assert World(share, 0.05).run(seconds, step=step) == pytest.approx(share, rel=0.05)


def test_load_slows_it():
    """In proportion to what the others leave it; when they go it recovers within some steps."""
    world = World(0.25, 0.05)
    assert world.run(60, left=0.5) == pytest.approx(0.125, rel=0.05)
    assert world.budget.share == pytest.approx(0.125, rel=0.05)
    assert world.run(60, left=0.3) == pytest.approx(0.075, rel=0.05)
    world.run(5)
    assert world.run(60) == pytest.approx(0.25, rel=0.05)


def test_load_never_stops_it():
    """The floor holds however little is left, as long as the machine gives that much."""
    world = World(0.25, 0.05)
    assert world.run(600, left=0.06) == pytest.approx(0.05, rel=0.1)
    assert world.budget.share == 0.05


def test_pauses_that_last_too_long_are_made_up_for():
    """A busy event loop comes late to each step, and the share is kept all the same."""
    assert World(0.25, 0.05).run(60, late=0.01) == pytest.approx(0.25, rel=0.05)


def test_rest_is_not_saved_up():
    """After an idle hour there is no hour of work at full speed."""
    world = World(0.25, 0.05)
    world.run(1)
    world.now += 3600
    assert world.run(2) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("share", "floor"), [(0.0, 0.0), (0.2, 0.3), (1.5, 0.1), (0.5, -0.1), (0.5, 0.0)])
def test_what_a_budget_may_be(share: float, floor: float):
    """A floor above zero, a share up to one core."""
    with pytest.raises(InvalidInput, match="floor"):
        Budget(share, floor)
