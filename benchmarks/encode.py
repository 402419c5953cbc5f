"""How fast are statistics, codes and the rotation, on one core?

GB/s of float32 vectors, of what goes in or, where codes are decoded, of what comes out: median over rounds,
each of which does everything once, by processor time. Statistics, coding and rotation each by itself, then as
a TileEncoder has them together, with its check of every component.

    python benchmarks/encode.py --dims 128 384 784
"""

import time
from collections.abc import Callable

import numpy as np
from driftline.index.statistics import Moments
from driftline.index.tile import TileEncoder
from driftline.native import force_isa, isa, rotate, unrotate
from report import parser, report
from vectors import Vectors


def operations(x: Vectors, seed: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    dim = x.shape[1]
    plain = TileEncoder(dim, "normal", rotation="none")
    turned = TileEncoder(dim, "normal", rotation="random", seed=seed)
    for encoder in (plain, turned):
        encoder.update(x)
        encoder.fit()
    parameters = plain.parameters
    codes = parameters.encode_rotated(x)
    return {
        "statistics": lambda: Moments(dim).update(x),
        "encode": lambda: parameters.encode_rotated(x),
        "decode": lambda: parameters.decode_rotated(codes),
        "errors of rows": lambda: parameters.row_errors(x),
        "rotate": lambda: rotate(x, seed),
        "rotate back": lambda: unrotate(x, seed),
        "encoder: update": lambda: plain.update(x),
        "encoder: encode": lambda: plain.encode(x),
        "encoder: decode": lambda: plain.decode(codes),
        "encoder: update, rotated": lambda: turned.update(x),
        "encoder: encode, rotated": lambda: turned.encode(x),
        "encoder: decode, rotated": lambda: turned.decode(codes),
        "fit": lambda: turned.fit(),
    }


def measure(dim: int, megabytes: int, rounds: int, seed: int) -> dict[str, float]:
    """GB/s by operation; of the fit, microseconds."""
    rows = megabytes * 1_000_000 // (4 * dim)
    x = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    todo = operations(x, seed)
    times: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(rounds):
        for name, work in todo.items():
            began = time.process_time()
            work()
            times[name].append(time.process_time() - began)
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    fit = medians.pop("fit") * 1e6
    return {name: x.nbytes / 1e9 / median for name, median in medians.items()} | {"fit, in us": fit}


def main() -> None:
    flags = parser(__doc__, base=False, queries=False)
    flags.add_argument("--dims", type=int, nargs="+", default=[128, 384, 784], metavar="DIM")
    flags.add_argument("--megabytes", type=int, default=154, help="of vectors (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    flags.add_argument("--isa", help="kernels: scalar, avx2, avx512 or neon (default: the best here)")
    flags.add_argument("--seed", type=int, default=0, help="of the vectors and the rotation")
    options = flags.parse_args()
    if options.isa is not None:
        force_isa(options.isa)
    results = {dim: measure(dim, options.megabytes, options.rounds, options.seed) for dim in options.dims}
    report(
        f"GB/s of float32 on one core, {isa()} kernels",
        ("", *(f"d = {dim}" for dim in results)),
        [(name, *(result[name] for result in results.values())) for name in next(iter(results.values()))],
        {"isa": isa(), "gb_per_s": results},
        options,
    )


if __name__ == "__main__":
    main()
