"""What else could make tile codes better, and by how much?

Three refinements of the rotated normal code, each at the same number of bits: error relative to the variance
of the vectors, and flat recall@10 (see benchmarks/tile.py).

- length: each decoded row is stretched by the factor that brings it nearest to the row itself (of the kind
  that RaBitQ and TurboQuant store), kept as a float32 beside the code: fewer bits can only do worse.
- calibrated: each coordinate has edges and places of its own, by Lloyd's algorithm on a sample of rows: as
  good as any calibration from quantiles can become.
- pairs: two coordinates share eight bits, one of 256 points placed by Lloyd's algorithm on the normal law in
  two dimensions: a tile encoder of two variables.

    python benchmarks/refinements.py --base sift128_base.npy --queries sift128_query.npy --limit 50000
"""

import argparse
from typing import Any

import numpy as np
from driftline.index.tile import TileParameters
from driftline.native import rotate
from numpy.typing import NDArray
from report import machine, parser, show, write
from tile import K, nearest
from vectors import Vectors, kth_distances, load_vectors, recall

SAMPLE = 8_192  # rows that a calibration sees
ROUNDS = 30  # of Lloyd's algorithm
POINTS = 256  # for a pair of coordinates
DRAWS = 65_536  # of the normal law in two dimensions


def stretched(rows: Vectors, decoded: Vectors) -> Vectors:
    """Each decoded row times the factor of least squared error; both centred."""
    squares = np.einsum("ij,ij->i", decoded, decoded)
    return decoded * (np.einsum("ij,ij->i", rows, decoded) / np.maximum(squares, 1e-30))[:, None]


def calibrated(rows: Vectors, decoded: Vectors, sample: NDArray[np.int64]) -> Vectors:
    """Every coordinate by a scalar code of its own, begun from the places of `decoded`."""
    result = np.empty_like(rows)
    for d in range(rows.shape[1]):
        values = np.sort(rows[sample, d].astype(np.float64))
        places = np.unique(decoded[:, d]).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        for _ in range(ROUNDS):
            ends = np.searchsorted(values, (places[1:] + places[:-1]) / 2)
            ends = np.concatenate([[0], ends, [len(values)]])
            counts = np.diff(ends)
            places = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), places)
        result[:, d] = places[np.searchsorted((places[1:] + places[:-1]) / 2, rows[:, d])]
    return result


def closest(points: Vectors, codebook: Vectors) -> NDArray[np.int64]:
    """Which point of the codebook is nearest to each of float32 [n, 2]."""
    lengths = np.einsum("ij,ij->i", codebook, codebook)
    return np.concatenate(
        [
            np.argmin(lengths - 2 * points[start : start + DRAWS] @ codebook.T, axis=1)
            for start in range(0, len(points), DRAWS)
        ]
    )


def pair_codebook(seed: int) -> Vectors:
    """float32 [256, 2]: points for the unit normal law in two dimensions."""
    draws = np.random.default_rng(seed).standard_normal((DRAWS, 2), np.float32)
    codebook = draws[:POINTS] * np.float32(3**0.5 / 2)
    for _ in range(2 * ROUNDS):
        codes = closest(draws, codebook)
        counts = np.maximum(np.bincount(codes, minlength=POINTS), 1)
        sums = [np.bincount(codes, draws[:, i].astype(np.float64), POINTS) for i in range(2)]
        codebook = (np.stack(sums, axis=1) / counts[:, None]).astype(np.float32)
    return codebook


def measure(base: Vectors, queries: Vectors, options: argparse.Namespace) -> list[dict[str, Any]]:
    kth = kth_distances(base, queries, K)
    rows, asked = rotate(base, options.seed), rotate(queries, options.seed)
    mean, variance = rows.mean(axis=0, dtype=np.float64), rows.var(axis=0, dtype=np.float64)
    parameters = TileParameters.fit(mean, variance)
    rows, asked = rows - parameters.mean, asked - parameters.mean
    parameters = TileParameters.fit(np.zeros_like(mean), variance)
    sample = np.random.default_rng(options.seed).permutation(len(rows))[:SAMPLE]
    results: list[dict[str, Any]] = []

    def add(name: str, bits: int, decoded: Vectors) -> None:
        error = float(np.square(decoded - rows).sum(dtype=np.float64)) / len(rows) / float(variance.sum())
        found = recall(base, queries, kth, nearest(decoded, asked), K)
        results.append({"code": name, "bits": bits, "error": error, "recall": found})

    for bits in (4, 8):
        decoded = parameters.decode(parameters.encode(rows), bits)
        add("tile", bits, decoded)
        add("length", bits, stretched(rows, decoded))
        add("calibrated", bits, calibrated(rows, decoded, sample))
    unit = (rows / parameters.scale).reshape(-1, 2)
    codebook = pair_codebook(options.seed)
    pairs = codebook[closest(unit, codebook)].reshape(rows.shape) * parameters.scale
    add("pairs", 4, pairs)
    add("pairs, length", 4, stretched(rows, pairs))
    return results


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--asked", type=int, metavar="N", help="use only so many queries (default: all)")
    flags.add_argument("--seed", type=int, default=0, help="of the rotation and the samples")
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.asked)
    if base.shape[1] % 2:
        raise SystemExit("pairs need an even number of dimensions")
    results = measure(base, queries, options)
    show(
        f"{len(base):,} x {base.shape[1]}, {len(queries):,} queries; error / variance, flat recall@{K}",
        ("code", "bits", "error", "recall"),
        [(result["code"], result["bits"], result["error"], result["recall"]) for result in results],
    )
    write({"flags": vars(options), "machine": machine(), "codes": results}, options)


if __name__ == "__main__":
    main()
