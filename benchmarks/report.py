"""What every benchmark takes and gives: the flags they share, one table, one JSON file."""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from vectors import DEMO

__all__ = ["add_graph_flags", "machine", "milliseconds", "parser", "report", "show", "write"]


def parser(
    question: str | None, *, base: bool = True, queries: bool = True, ask: int | None = None
) -> argparse.ArgumentParser:
    """A parser with the shared flags; `question` is the script's docstring, `ask` how many of the queries are
    asked unless --ask says otherwise."""
    flags = argparse.ArgumentParser(
        description=question, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    vectors = "FILE.npy or FILE.npz:ARRAY (default: %(default)s)"
    if base:
        flags.add_argument("--base", default=f"{DEMO}:base", metavar="FILE", help=f"vectors, {vectors}")
        flags.add_argument("--limit", type=int, metavar="ROWS", help="use only so many of the vectors")
    if queries:
        flags.add_argument("--queries", default=f"{DEMO}:query", metavar="FILE", help=f"queries, {vectors}")
    if ask is not None:
        flags.add_argument("--ask", type=int, default=ask, metavar="N", help="queries (default: %(default)s)")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return flags


def add_graph_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--m", type=int, default=16, help="links per node (default: %(default)s)")
    flags.add_argument("--ef-construction", type=int, default=200, help="(default: %(default)s)")


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest of a list of times, in ms."""
    median, high, most = np.quantile(seconds, [0.5, 0.99, 1.0]) * 1000
    return {"median_ms": round(median, 2), "p99_ms": round(high, 2), "max_ms": round(most, 2)}


def report(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    figures: Mapping[str, Any],
    options: argparse.Namespace,
) -> None:
    """Print the table; write figures, flags and machine to --json."""
    show(title, header, rows)
    write({"flags": vars(options), "machine": machine(), "figures": figures}, options)


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; its first column holds names, the others figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def write(document: object, options: argparse.Namespace) -> None:
    """To --json, if it is given."""
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1, default=str) + "\n")


def machine() -> dict[str, object]:
    """Where, and of which commit (with a + when files differ from it)."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.machine(),
        "cores": len(cpu),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": git.stdout.strip() or None,
    }
