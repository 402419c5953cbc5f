"""What the demo plays with: its data, and a service in a process of its own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DriftlineError
from .control import ServiceUnreachable, ask

__all__ = ["Child", "Data"]

DATA = Path(__file__).parent / "demo_data"
START_S = 60.0

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Data:
    vectors: Vectors  # [rows, 384], unit length
    domain: NDArray[np.uint8]  # [rows], 0 then 1
    texts: list[str]
    questions: list[str]
    queries: Vectors

    @classmethod
    def load(cls) -> Self:
        arrays = np.load(DATA / "demo384.npz")
        texts = json.loads((DATA / "demo384_texts.json").read_text("utf-8"))
        vectors, queries = arrays["base"].astype(np.float32), arrays["query"].astype(np.float32)
        return cls(vectors, arrays["source"], texts["base"], texts["query"], queries)

    def exact(self, live: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
        """The k nearest live rows of every query, by brute force; [queries, k]."""
        distances = 1 - self.queries @ self.vectors.T
        distances[:, ~live] = np.inf
        return np.argsort(distances, axis=1, kind="stable")[:, :k]


class Child:
    """`driftline serve` as a process of its own, as an operator runs it."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self._output = directory / "serve.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start and wait until it is ready; the seconds that took. Raises DriftlineError."""
        began = time.monotonic()
        program = [sys.executable, "-c", "from driftline.stream.cli import main; main()"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
        plain["DRIFTLINE_HTTP__PORT"] = "0"  # a service of this machine's may have the port
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*program, "serve", "--data-dir", str(self.data_dir), "--metric", "cosine"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=plain,
            )  # fmt: skip
        while not self.status().get("ready"):
            if self._process.poll() is not None or time.monotonic() - began > START_S:
                said = self._output.read_text(errors="replace")[-2000:]
                raise DriftlineError(f"the demo's service did not start; it said:\n{said}")
            time.sleep(0.02)
        return time.monotonic() - began

    def status(self) -> dict[str, Any]:
        try:
            return ask(self.data_dir, "status")
        except ServiceUnreachable:
            return {}

    def kill(self) -> None:
        """As a crash would: no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
