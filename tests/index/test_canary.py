"""The recall canary: the sample, the budget, the interval, and what it tells of a real index."""

import numpy as np
import pytest
from driftline.errors import InvalidInput
from driftline.index.canary import Canary, CanarySettings, interval
from driftline.index.events import CanaryWindow
from driftline.index.hits import Witnessed
from driftline.index.online import OnlineIndex

WINDOWS = 2000


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Index:
    """Answers with as many right hits as the query's first component says, and takes its time."""

    def __init__(self, cpu: Clock | None = None, seconds: float = 0.0) -> None:
        self.cpu, self.seconds = cpu, seconds
        self.asked: list[tuple[int, int, bool]] = []

    def witness(self, queries: np.ndarray, k: int, ef: int, *, rescore: bool, raw: bool) -> Witnessed:
        assert rescore
        self.asked.append((len(queries), ef, raw))
        if self.cpu is not None:
            self.cpu.now += self.seconds
        best = np.tile(np.arange(k, dtype=np.float32), (len(queries), 1))
        found = np.where(best < queries[:, :1], best, np.float32(k + 1))
        return Witnessed(np.sort(found, axis=1), best, best if raw else None)


def checked(canary: Canary, index: Index, ef: int = 64) -> CanaryWindow:
    while True:
        window = canary.step(index, ef)
        if window is not None:
            return window


def offered(canary: Canary, hits: list[int]) -> None:
    for right in hits:
        canary.offer(np.float32([right]))


# ---- the interval


def skew(mean: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Recalls of n queries whose misses come together: each query has a chance of its own to lose a hit."""
    chance = rng.beta(0.3, 0.3 * mean / (1 - mean), n)
    return 1 - rng.binomial(10, chance) / 10


@pytest.mark.parametrize("mean", [0.9, 0.95, 0.98, 0.995, 0.999, 0.9998])
def test_the_interval_holds_the_truth(mean: float):
    """At least 93 % of windows of 200 queries hold the mean of all, in steps of 0.1 near 1; and
    it tells something: the median width is that of the spread, or of one miss."""
    rng = np.random.default_rng(round(mean * 1e4))
    everything = skew(mean, 200_000, rng)
    truth = everything.mean()
    found = np.array([interval(rng.choice(everything, 200)) for _ in range(WINDOWS)])
    low, high = found.T
    assert ((low <= truth) & (truth <= high)).mean() >= 0.93
    assert np.median(high - low) < max(1.2 * 2 * 1.96 * everything.std() / np.sqrt(200), 0.024)
    assert ((low >= 0) & (low <= high) & (high <= 1)).all()


def test_the_interval_at_its_ends():
    """All found, none found and all the same leave room on the other side; more queries leave less."""
    low, high = interval(np.ones(200))
    assert high == 1
    assert 0.97 < low < 0.985
    assert interval(np.ones(2000))[0] > 0.997
    low, high = interval(np.zeros(200))
    assert low == 0
    assert 0.015 < high < 0.03
    low, high = interval(np.full(200, 0.9))
    assert 0.84 < low < 0.89 < 0.91 < high < 0.94


# ---- the sample and the budget


def test_a_window_is_a_sample_of_all_queries_since_the_last():
    """The mean over many windows is that of everything offered, not of its beginning or end; nothing is asked
    before there are enough."""
    canary, index = Canary(CanarySettings(sample=30, budget=1, every_seconds=0)), Index()
    offered(canary, [10] * 29)
    assert canary.step(index, 64) is None
    assert not index.asked
    offered(canary, [10])
    assert checked(canary, index).recall == 1
    found: list[float] = []
    for _ in range(200):
        offered(canary, [10] * 100 + [0] * 100 + [5] * 100)
        found.append(checked(canary, index).recall)
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_a_query_is_copied():
    """The memory of a request is given up after its answer."""
    canary, query = Canary(CanarySettings(sample=30, budget=1, every_seconds=0)), np.float32([10])
    for _ in range(30):
        canary.offer(query)
    query[:] = 0
    assert checked(canary, Index()).recall == 1


def test_the_budget_is_kept():
    """Batches of 16 that take 0.1 s each, at 5 %: two seconds apart, and the window says so."""
    cpu, clock = Clock(), Clock()
    canary = Canary(CanarySettings(sample=40, budget=0.05, every_seconds=0), clock=clock, cpu=cpu)
    index = Index(cpu, 0.1)
    offered(canary, [10] * 40)
    windows: list[CanaryWindow] = []
    for second in np.arange(0, 10, 0.25):
        clock.now = float(second)
        assert canary.due == (second % 2 == 0 and second < 6)
        windows += [window for window in [canary.step(index, 64)] if window]
        assert cpu.now <= 0.05 * (second + 2) + 1e-9
    assert [asked[0] for asked in index.asked] == [16, 16, 8]
    assert windows[0].cpu_share == pytest.approx(0.05)


def test_windows_keep_their_distance():
    """However fast queries come and however cheap they are."""
    clock = Clock()
    canary = Canary(CanarySettings(sample=30, budget=1), clock=clock, cpu=Clock())
    index, found = Index(), list[float]()
    for second in np.arange(0, 185, 0.5):
        clock.now = float(second)
        offered(canary, [10] * 30)
        if canary.step(index, 64):
            found.append(clock.now)
    assert found == [0.5, 60.5, 120.5, 180.5]


def test_without_a_budget_nothing_is_checked():
    """A budget of 0 switches the canary off."""
    canary, index = Canary(CanarySettings(sample=30, budget=0)), Index()
    offered(canary, [10] * 60)
    assert not canary.due
    assert canary.step(index, 64) is None
    assert not index.asked


def test_a_window_is_of_one_ef_and_some_are_of_raw_vectors():
    """An ef that changes counts from the next window on; one window in ten, the first of them, is checked by
    raw vectors too."""
    canary, index = Canary(CanarySettings(sample=30, budget=1, every_seconds=0)), Index()
    windows: list[CanaryWindow] = []
    for ef in range(64, 84):
        offered(canary, [9] * 30)
        assert canary.step(index, ef) is None
        window = canary.step(index, ef + 100)
        assert window is not None
        windows.append(window)
    assert [window.ef for window in windows] == list(range(64, 84))
    assert [i for i, window in enumerate(windows) if window.raw_recall is not None] == [0, 10]
    assert windows[0].raw_recall == windows[0].recall == pytest.approx(0.9)


@pytest.mark.parametrize(
    "wrong", [{"sample": 29}, {"k": 0}, {"budget": 1.5}, {"every_seconds": -1}, {"budget": -0.1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]):
    """Each by its name."""
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        CanarySettings(**wrong)  # pyright: ignore[reportArgumentType]


# ---- with an index


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("raw", ["memory", None])
def test_recall_of_an_index(metric: str, raw: str | None):
    """What the canary tells is what search and exact say of the same queries, with raw vectors or codes."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 24)).astype(np.float32)
    index = OnlineIndex(24, metric, m=4, ef_construction=20, raw=raw, compress_after=1000)  # pyright: ignore[reportArgumentType]
    index.upsert(np.arange(4000), x)
    while index.maintain(1):
        pass
    queries = rng.normal(size=(50, 24)).astype(np.float32)
    hits, truth = index.search(queries, 10, 12), index.exact(queries, 10)
    expected = np.mean([len({*a} & {*b}) / 10 for a, b in zip(hits.keys, truth.keys, strict=True)])
    canary = Canary(CanarySettings(sample=50, budget=1, every_seconds=0))
    for query in queries:
        canary.offer(query)
    window = None
    while window is None:
        window = canary.step(index, 12)
    assert 0.3 < expected < 0.99
    assert window.recall == window.raw_recall == pytest.approx(expected, abs=1e-9)
    assert window.low < expected < window.high


def test_recall_where_fewer_are_live():
    """Of three rows, the three nearest are all there is to find; of none, nothing is missed."""
    index = OnlineIndex(4)
    query = np.ones((2, 4), np.float32)
    assert index.witness(query).recalls().tolist() == [1, 1]
    index.upsert([b"a", b"b", b"c"], np.eye(3, 4, dtype=np.float32))
    witnessed = index.witness(query, raw=True)
    assert witnessed.recalls().tolist() == witnessed.recalls(exact=True).tolist() == [1, 1]
    for wrong in ({"k": 0}, {"ef": 0}):
        with pytest.raises(InvalidInput):
            index.witness(query, **wrong)
    with pytest.raises(InvalidInput):
        index.witness(np.ones((1, 5), np.float32))
