"""Live counts: after any sequence of insertions, updates, deletions, re-encodings and upkeep, the code counts
of each frame are those of the rows that survive."""

import numpy as np
from driftline import OnlineIndex
from driftline.index.tile import TileParameters
from driftline.native import bin_counts
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 12
KEYS = 40

rng = np.random.default_rng(0)
WORLDS = rng.normal(size=(2, 500, DIM)).astype(np.float32) * np.float32([[[1]], [[4]]]) + np.float32(
    [[[0]], [[3]]]
)

keys = st.lists(st.integers(0, KEYS - 1), min_size=1, max_size=15)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), keys, st.integers(0, 1)),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("upkeep")),
        st.tuples(st.just("reencode"), st.integers(0, 1)),
        st.tuples(st.just("write"), st.integers(0, 1)),
    ),
    max_size=25,
)


def index_of_two_frames(live: dict[int, np.ndarray]) -> OnlineIndex:
    """An index with rows of the first world in a frame for it, and a frame for the second; `live` is told."""
    index = OnlineIndex(DIM, compress_after=KEYS)
    x = WORLDS[0][:KEYS]
    index.upsert(np.arange(KEYS), x)
    live.update(enumerate(x))
    while index.maintain(1.0):
        pass
    frames = index._frames
    like = frames.write.parameters
    assert like is not None
    moments = [of.astype(np.float64) for of in (WORLDS[1].mean(axis=0), WORLDS[1].var(axis=0))]
    frames.open(TileParameters.fit(*moments, rotation_seed=like.rotation_seed))
    return index


def check_counts(index: OnlineIndex, live: dict[int, np.ndarray]) -> None:
    rows = index.get(np.arange(KEYS))
    assert {key for key, row in enumerate(rows) if row is not None} == set(live)
    for frame, parameters in index._frames.tiles:
        own = [live[key] for key, row in enumerate(rows) if row is not None and row.frame == frame.number]
        coded = parameters.encode(np.array(own, np.float32).reshape(-1, DIM))
        np.testing.assert_array_equal(index._core.frame_counts(frame.lane)[0], bin_counts(coded))


@settings(deadline=None, max_examples=60)
@given(operations)
def test_live_counts_are_those_of_what_survives(sequence: list[tuple]) -> None:
    """Compared after every operation, by encoding the surviving rows anew."""
    live: dict[int, np.ndarray] = {}
    index = index_of_two_frames(live)
    taken = KEYS
    for name, *arguments in sequence:
        tiles = [frame for frame, _ in index._frames.tiles]
        if name == "upsert":
            which, world = arguments
            x = WORLDS[world][np.arange(taken, taken + len(which)) % 500]
            taken += len(which)
            index.upsert(np.array(which), x)
            live.update(zip(which, x, strict=True))
        elif name == "delete":
            index.delete(np.array(arguments[0]))
            for key in arguments[0]:
                live.pop(key, None)
        elif name == "upkeep":
            index.maintain(1.0)
        elif name == "reencode":
            index._core.reencode(0, tiles[arguments[0] % len(tiles)].lane)
        else:
            index._frames.write_in(tiles[arguments[0] % len(tiles)])
        check_counts(index, live)
    index.check()
