"""Frame parameters for tests of the core, which knows nothing of distributions."""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from driftline import native
from driftline.native import Core, CoreCut, Tile

ROTATION_SEED = 77
SPREAD = math.sqrt(3)


def tile_of(x: np.ndarray, *, metric: str = "l2", rotated: bool = True, route_bits: int = 3) -> Tile:
    """A tile frame fitted to float32 [n, dim], as the core holds them."""
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1)[:, None]
    y = native.rotate(x, ROTATION_SEED) if rotated else x
    scale = np.maximum(y.std(axis=0), 1e-6).astype(np.float32)
    edges = np.float32([SPREAD * NormalDist().inv_cdf(k / 256) for k in range(1, 256)])
    return Tile(y.mean(axis=0), scale, edges, _table(256), _table(1 << route_bits), rotated)


def _table(size: int) -> np.ndarray:
    normal = NormalDist()
    edges = [-math.inf, *(SPREAD * normal.inv_cdf(k / size) for k in range(1, size)), math.inf]

    def density(z: float) -> float:
        return 0 if math.isinf(z) else normal.pdf(z)

    mass = [normal.cdf(b) - normal.cdf(a) for a, b in pairwise(edges)]
    first = [density(a) - density(b) for a, b in pairwise(edges)]
    return np.float32([m / p for m, p in zip(first, mass, strict=True)])


def core_of(
    x: np.ndarray,
    metric: str = "l2",
    *,
    m: int = 16,
    ef_construction: int = 100,
    route_bits: int = 3,
    tile: Tile | None,
) -> Core:
    """A core whose raw rows are x; frame 0 holds floats, frame 1 the tile, which is written in."""
    core = Core(x.shape[1], metric, m, ef_construction, route_bits, 0, ROTATION_SEED)
    core.attach(0, x.ctypes.data, len(x))
    core.open_frame(0, None)
    if tile is not None:
        core.open_frame(1, tile)
        core.write_frame(1)
    return core


def saved(core: Core) -> tuple[bytes, dict[int, tuple[int, bytes]]]:
    """The head and every slab with its version, as of now."""
    cut = core.cut({})
    slabs = {number: (int(cut.versions[number]), cut.save(number)) for number in range(len(cut))}
    cut.close()
    return cut.head, slabs


Stored = dict[int, tuple[int, list[bytes]]]
"""By slab its version, and its bytes when it was saved whole and its deltas since."""


def saved_since(core: Core, stored: Stored) -> tuple[bytes, Stored]:
    """The head, and `stored` brought up to now by a cut that saves what changed."""
    cut = core.cut({number: version for number, (version, _) in stored.items()})
    return cut.head, taken(cut, stored)


def taken(cut: CoreCut, stored: Stored) -> Stored:
    """The same, of a cut that was begun before."""
    slabs: Stored = {}
    for number in range(len(cut)):
        before = stored[number][1] if cut.is_same(number) or cut.is_delta(number) else []
        parts = before if cut.is_same(number) else [*before, cut.save(number)]
        slabs[number] = int(cut.versions[number]), parts
    cut.close()
    return slabs


def keys_of(numbers: np.ndarray | range) -> list[bytes]:
    return [b"key-%d" % number for number in numbers]


def distances(metric: str, x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """float64 [nq, n], as the core defines them."""
    x, q = x.astype(np.float64), q.astype(np.float64)
    if metric == "l2":
        return ((q[:, None] - x[None]) ** 2).sum(axis=2)
    if metric == "ip":
        return -(q @ x.T)
    return 1 - (q / np.linalg.norm(q, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
