"""How near do tile codes come to the vectors they stand for, and what do they cost?

First the laws alone: mean squared error of every prefix on samples of the unit normal law, beside the
published encoder's, and on a lognormal law beside the best companding error. Then real vectors: error of a
code relative to the variance of the vectors, flat recall@10 (exact search over decoded codes, no graph and no
rescoring), and CPU seconds of learning and of coding all rows, one thread each. --codes names others: faiss's
scalar quantizers (sq8, sq4), and its k-means with one dimension a segment (pq, with M = d), in the same run.
Last, what a distance takes in a pass over codes of 8 bits, all queries at once: an index's tiles, and pq's.

    python benchmarks/tile.py --base sift128_base.npy --queries sift128_query.npy --codes auto sq8 sq4 pq
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from driftline import OnlineIndex
from driftline.index.encoder import TileEncoder
from driftline.index.laws import SPREAD
from report import machine, parser, show, write
from vectors import Vectors, kth_distances, load_vectors, recall

K = 10
BLOCK = 64  # queries at once
SLICE = 65_536  # samples at once
PASSED, TOGETHER, ROUNDS = 10_000, 16, 5  # rows and queries of a pass, and passes
LOG_SIGMA = 0.8

ENCODERS: dict[str, dict[str, Any]] = {
    "published": {"distribution": "normal", "spread": 1.0, "rotation": "none"},
    "published-rotated": {"distribution": "normal", "spread": 1.0, "rotation": "random"},
    "normal": {"distribution": "normal", "rotation": "none"},
    "normal-rotated": {"distribution": "normal", "rotation": "random"},
    "auto": {},
    "lattice": {"distribution": "lattice"},
}
USUAL = [name for name in ENCODERS if name != "lattice"]  # which not all vectors have
PEERS = ("sq8", "sq4", "pq")
STATED = {1: (0.3634, 0.379), 2: (0.1244, 0.147), 4: (0.00981, 0.0237), 8: (0.0000413, 0.000812)}


def nearest(rows: Vectors, queries: Vectors) -> list[list[int]]:
    """Row numbers of the K nearest by squared distance, by brute force."""
    squares = np.einsum("ij,ij->i", rows, rows)
    found: list[list[int]] = []
    for start in range(0, len(queries), BLOCK):
        distances = squares - 2 * queries[start : start + BLOCK] @ rows.T
        found.extend(np.argpartition(distances, K, axis=1)[:, :K].tolist())
    return found


def squared_errors(encoder: TileEncoder, samples: Vectors) -> dict[int, float]:
    """By bits, the mean squared error of one dimension's samples."""
    totals = dict.fromkeys(STATED, 0.0)
    for start in range(0, len(samples), SLICE):
        rows = samples[start : start + SLICE]
        codes = encoder.encode(rows)
        for bits in totals:
            difference = rows.astype(np.float64) - encoder.decode(codes, bits)
            totals[bits] += float(np.sum(difference**2))
    return {bits: total / len(samples) for bits, total in totals.items()}


def laws(count: int, seed: int) -> dict[str, Any]:
    """Errors on samples of the laws, and what they should be."""
    normal = np.random.default_rng(seed).standard_normal((count, 1), np.float32)
    figures: dict[str, Any] = {"samples": count}
    for name, spread in (("ours", SPREAD), ("published", 1.0)):
        encoder = TileEncoder(1, "normal", spread, "none")
        encoder.update(normal)
        encoder.fit()
        figures[name] = squared_errors(encoder, normal)
    skewed = np.exp(LOG_SIGMA * normal)
    encoder = TileEncoder(1, "lognormal")
    encoder.update(skewed)
    encoder.fit()
    # The integral of p^(1/3), to the third power, / (12 * 256^2).
    best = 3**0.5 * np.pi / 2 * LOG_SIGMA**2 * np.exp(2 * LOG_SIGMA**2) / 256**2
    found = squared_errors(encoder, skewed)[8]
    figures["lognormal"] = {
        "log_sigma": LOG_SIGMA,
        "error_8": found,
        "companding": best,
        "ratio": found / best,
    }
    return figures


class Ours:
    """A TileEncoder as the peers are: learned from all rows, one code, two precisions."""

    def __init__(self, name: str, dim: int, seed: int) -> None:
        self.encoder = TileEncoder(dim, seed=seed, **ENCODERS[name])
        self.bits = (8, 4)

    def learn(self, base: Vectors) -> None:
        self.encoder.update(base)
        self.encoder.fit()

    def encode(self, base: Vectors) -> Any:
        return self.encoder.encode(base)

    def decode(self, codes: Any, bits: int) -> Vectors:
        return self.encoder.decode(codes, bits)


class Faiss:
    """One of faiss's codes: scalar quantizers of 8 and 4 bits, and k-means for each dimension by itself."""

    def __init__(self, name: str, dim: int) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        kinds = faiss.ScalarQuantizer
        self.codec: Any = (
            faiss.ProductQuantizer(dim, dim, 8)
            if name == "pq"
            else kinds(dim, kinds.QT_8bit if name == "sq8" else kinds.QT_4bit)
        )
        self.bits = (4,) if name == "sq4" else (8,)

    def learn(self, base: Vectors) -> None:
        self.codec.train(base)

    def encode(self, base: Vectors) -> Any:
        return self.codec.compute_codes(base)

    def decode(self, codes: Any, bits: int) -> Vectors:
        return self.codec.decode(codes)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def distance_ns(base: Vectors, queries: Vectors, names: list[str]) -> dict[str, float]:
    """Processor time of a distance between a query and a code of 8 bits; the least of ROUNDS passes."""
    rows, asked = base[:PASSED], queries[:TOGETHER]
    index = OnlineIndex(rows.shape[1], m=2, ef_construction=1, raw=None, compress_after=len(rows))
    index.upsert(np.arange(len(rows)), rows)
    while index.maintain(1.0):
        pass
    passes: dict[str, Callable[[], Any]] = {"tile": lambda: index.witness(asked, K, ef=1)}
    if "pq" in names:
        import faiss

        peer: Any = faiss.IndexPQ(rows.shape[1], rows.shape[1], 8)
        peer.pq.cp.niter = peer.pq.cp.min_points_per_centroid = 1  # no distance depends on how good a code is
        peer.train(rows[:256])
        peer.add(rows)
        passes["pq"] = lambda: peer.search(asked, K)
    return {
        name: min(cpu_seconds(work)[0] for _ in range(ROUNDS)) / (len(rows) * len(asked)) * 1e9
        for name, work in passes.items()
    }


def measure(base: Vectors, queries: Vectors, options: argparse.Namespace) -> list[dict[str, Any]]:
    kth = kth_distances(base, queries, K)
    variance = float(base.var(axis=0, dtype=np.float64).sum())
    results: list[dict[str, Any]] = []
    for name in options.codes:
        dim = base.shape[1]
        code = Faiss(name, dim) if name in PEERS else Ours(name, dim, options.seed)
        learned, _ = cpu_seconds(lambda code=code: code.learn(base))
        coded, codes = cpu_seconds(lambda code=code: code.encode(base))
        result: dict[str, Any] = {"code": name, "learn_s": learned, "encode_s": coded}
        for bits in code.bits:
            rows = code.decode(codes, bits)
            result[f"error_{bits}"] = float(((rows - base) ** 2).mean(dtype=np.float64)) * dim / variance
            result[f"recall_{bits}"] = recall(base, queries, kth, nearest(rows, queries), K)
        results.append(result)
    return results


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--asked", type=int, metavar="N", help="use only so many queries (default: all)")
    flags.add_argument("--samples", type=int, default=4_000_000, help="of each law (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of the rotation and the samples")
    flags.add_argument(
        "--codes",
        nargs="+",
        choices=[*ENCODERS, *PEERS],
        default=USUAL,
        metavar="CODE",
        help="of %(choices)s; pq takes minutes (default: all of ours but lattice)",
    )
    options = flags.parse_args()
    theory = laws(options.samples, options.seed)
    show(
        f"mean squared error on {options.samples:,} samples of the unit normal law",
        ("bits", "ours", "stated", "published", "stated"),
        [
            (str(bits), theory["ours"][bits], ours, theory["published"][bits], published)
            for bits, (ours, published) in STATED.items()
        ],
    )
    lognormal = theory["lognormal"]
    print(f"lognormal, log-sigma {LOG_SIGMA}: {lognormal['ratio']:.3f} of the best companding error\n")
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.asked)
    results = measure(base, queries, options)
    columns = ("error_8", "recall_8", "error_4", "recall_4", "learn_s", "encode_s")
    show(
        f"{len(base):,} x {base.shape[1]}, {len(queries):,} queries; error / variance, flat recall@{K}",
        ("code", "8 bit: error", "recall", "4 bit: error", "recall", "learn, s", "encode, s"),
        [(result["code"], *(result.get(column, "") for column in columns)) for result in results],
    )
    took = distance_ns(base, queries, options.codes)
    print("ns of a distance to a code of 8 bits:", ", ".join(f"{name} {ns:.1f}" for name, ns in took.items()))
    write(
        {"flags": vars(options), "machine": machine(), "laws": theory, "codes": results, "distance_ns": took},
        options,
    )


if __name__ == "__main__":
    main()
