"""How near do tile codes come to the vectors they stand for?

For the published encoder and ours, without and with the random rotation: mean squared error of a code
relative to the variance of the vectors, and flat recall@10: exact search over decoded codes, no graph and no
rescoring. Then what learning and coding cost on one core.

    python benchmarks/tile.py --base sift128_base.npy --queries sift128_query.npy --limit 100000
"""

import argparse
import time

import numpy as np
from driftline.index.encoder import TileEncoder
from driftline.index.laws import SPREAD
from report import parser, report
from vectors import Vectors, kth_distances, load_vectors, recall

K = 10
BLOCK = 64  # queries at once

ENCODERS = {
    "published": {"spread": 1.0, "rotation": "none"},
    "published, rotated": {"spread": 1.0, "rotation": "random"},
    "spread sqrt(3)": {"spread": SPREAD, "rotation": "none"},
    "spread sqrt(3), rotated": {"spread": SPREAD, "rotation": "random"},
}


def nearest(rows: Vectors, queries: Vectors) -> list[list[int]]:
    """Row numbers of the K nearest by squared distance, by brute force."""
    squares = np.einsum("ij,ij->i", rows, rows)
    found: list[list[int]] = []
    for start in range(0, len(queries), BLOCK):
        distances = squares - 2 * queries[start : start + BLOCK] @ rows.T
        found.extend(np.argpartition(distances, K, axis=1)[:, :K].tolist())
    return found


def measure(base: Vectors, queries: Vectors, options: argparse.Namespace) -> list[dict[str, object]]:
    kth = kth_distances(base, queries, K)
    variance = float(base.var(axis=0, dtype=np.float64).sum())
    results: list[dict[str, object]] = []
    for name, arguments in ENCODERS.items():
        encoder = TileEncoder(base.shape[1], seed=options.seed, **arguments)
        times = [time.perf_counter()]
        encoder.update(base)
        times.append(time.perf_counter())
        encoder.fit()
        times.append(time.perf_counter())
        codes = encoder.encode(base)
        times.append(time.perf_counter())
        learned, fitted, coded = np.diff(times)
        result: dict[str, object] = {"encoder": name}
        for bits in (8, 4, 2, 1):
            rows = encoder.decode(codes, bits)
            error = float(((rows - base) ** 2).mean(dtype=np.float64)) * base.shape[1] / variance
            result |= {
                f"error_{bits}": error,
                f"recall_{bits}": recall(base, queries, kth, nearest(rows, queries), K),
            }
        gigabytes = base.nbytes / 1e9
        results.append(
            result
            | {
                "update_gb_per_s": gigabytes / learned,
                "fit_us": fitted * 1e6,
                "encode_gb_per_s": gigabytes / coded,
            }
        )
    return results


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--asked", type=int, default=1000, metavar="N", help="use only so many of the queries")
    flags.add_argument("--seed", type=int, default=0, help="of the rotation")
    options = flags.parse_args()
    base, queries = load_vectors(options.base, options.limit), load_vectors(options.queries, options.asked)
    results = measure(base, queries, options)
    report(
        f"{len(base):,} x {base.shape[1]}, {len(queries):,} queries; error / variance, flat recall@{K}",
        ("encoder", "8 bit: error", "recall", "4 bit: error", "recall", "2 bit", "1 bit", "encode GB/s"),
        [
            (
                result["encoder"],
                result["error_8"],
                result["recall_8"],
                result["error_4"],
                result["recall_4"],
                result["recall_2"],
                result["recall_1"],
                result["encode_gb_per_s"],
            )
            for result in results
        ],
        {"encoders": results},
        options,
    )


if __name__ == "__main__":
    main()
