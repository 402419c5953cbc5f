"""Intel's Scalable Vector Search: a Vamana graph over LVQ codes (scalable-vs on PyPI).

From 0.0.6 on it compresses on Intel's processors only, and ends the process elsewhere. 0.0.5, under the AGPL,
runs wherever its instructions are; it knows processors by name, so one is named for it as its manual says. It
was written for numpy 1 but runs with 2:

    pip install --no-deps scalable-vs==0.0.5 && pip install archspec toml
"""

import os
import tempfile
import time
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from . import Shape, Unavailable, Vectors, normalised

ALPHA = {"l2": 1.2, "ip": 0.95, "cosine": 0.95}  # what its manual recommends
K = 10  # that the prefetching is tuned for
WINDOW = 32  # while it is
TURNS = 5  # of searches with what was found, and without


class Svs:
    def __init__(self, shape: Shape, primary: int, residual: int, *, changing: bool = False) -> None:
        known = installed()
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
        if known >= (0, 0, 6) and primary < 16 and not intel:
            raise Unavailable(
                "scalable-vs 0.0.6 and later refuse LVQ on processors that are not Intel's; "
                "0.0.5 does not: pip install --no-deps scalable-vs==0.0.5 && pip install archspec toml"
            )
        if known < (0, 0, 6) and not intel:
            os.environ.setdefault("SVS_OVERRIDE_BACKEND", "icelake")  # AVX-512 with VNNI and VBMI
        os.environ["SVS_QUIET"] = "YES"  # no warning that icelake is not the newest
        import svs

        self.svs = svs
        self.bits = primary, residual
        # Of rows of length 1 for cosine: 0.0.5 has no codes for that.
        self.distance = svs.DistanceType.L2 if shape.metric == "l2" else svs.DistanceType.MIP
        self.shape = shape
        self.parameters = svs.VamanaBuildParameters(
            alpha=ALPHA[shape.metric],
            graph_max_degree=2 * shape.m,
            window_size=shape.ef_construction,
            max_candidate_pool_size=3 * shape.ef_construction,
            prune_to=2 * shape.m - 4,
        )

    def build(self, rows: Vectors) -> Generator[int]:
        rows = normalised(rows) if self.shape.metric == "cosine" else rows
        with tempfile.TemporaryDirectory(prefix="driftline-benchmark-") as directory:
            self.index = self.svs.Vamana.build(
                self.parameters,
                self.compressed(rows, directory),
                self.distance,
                num_threads=self.shape.threads,
            )
        yield len(rows)

    def compressed(self, rows: Vectors, directory: str) -> Any:
        primary, residual = self.bits
        if primary == 16:
            return rows.astype(np.float16)
        file = f"{directory}/rows.fvecs"  # its only way in to compression is a file
        self.svs.write_vecs(rows, file)
        data = self.svs.VectorDataLoader(file, self.svs.DataType.float32, dims=self.shape.dim)
        packing = self.svs.LVQStrategy.Turbo if primary == 4 else self.svs.LVQStrategy.Auto
        return self.svs.LVQLoader(data, primary, residual, padding=32, strategy=packing)

    def tune(self, queries: Vectors) -> None:
        """Its calibration, for prefetching only: the window is what the curve is drawn over.

        On a noisy machine what it finds may be slower than what it began with: the faster is kept.
        """
        self.prepare(WINDOW, self.shape.threads)
        first = self.index.search_parameters
        near, _ = self.index.search(queries, K)
        how = self.svs.VamanaCalibrationParameters()
        how.search_buffer_optimization = self.svs.VamanaSearchBufferOptimization.Disable
        how.use_existing_parameter_values = True
        found = self.index.experimental_calibrate(queries, near.astype(np.uint32), K, 0.9, how)
        seconds = {True: 0.0, False: 0.0}
        for turn in range(2 * TURNS):
            calibrated = turn % 2 == 0
            self.index.search_parameters = found if calibrated else first
            began = time.perf_counter()
            self.index.search(queries, K)
            seconds[calibrated] += time.perf_counter() - began
        self.index.search_parameters = found if seconds[True] < seconds[False] else first

    def prepare(self, ef: int, threads: int) -> None:
        self.index.num_threads = threads
        parameters = self.index.search_parameters
        parameters.buffer_config = self.svs.SearchBufferConfig(ef)
        self.index.search_parameters = parameters

    def search_one(self, query: Vectors, k: int) -> Any:
        return self.index.search(query, k)

    search_batch = search_one

    def keys(self, answer: Any) -> list[list[int]]:
        return answer[0].tolist()


def installed() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("scalable-vs").split(".")[:3])
    except PackageNotFoundError as error:
        raise Unavailable("scalable-vs is not installed") from error
