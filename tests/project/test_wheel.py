"""The distributions: what is in them, and that the wheel works where nothing else is installed."""

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from .conftest import ROOT, Built, run


def test_the_sdist_holds_the_c_sources_and_no_tests(built: Built) -> None:
    """Covers MANIFEST.in: every C file and header is there; what cffi generates and the tests are not."""
    with tarfile.open(built.sdist) as archive:
        names = {PurePosixPath(name).relative_to(PurePosixPath(name).parts[0]).as_posix()
                 for name in archive.getnames()} - {"."}  # fmt: skip
    in_tree = {f"native/{path.name}" for path in (ROOT / "native").iterdir() if path.suffix in (".c", ".h")}
    assert in_tree - {"native/_core.c"} <= names
    assert "native/_core.c" not in names
    assert {"pyproject.toml", "setup.py", "native/build.py", "LICENSE", "NOTICE", "README.md"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "."))]


def test_the_wheel_holds_what_runs_and_nothing_else(built: Built) -> None:
    """Covers the wheel's list: rooms, abi3 extension, typing mark, demo data; no C, no tests, no setup.py."""
    assert built.wheel.name.split("-")[2:4] == ["cp311", "abi3"]
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    assert not [name for name in names if name.endswith((".c", ".h", ".o"))]
    assert not [name for name in names if "tests" in name or "conftest" in name or "setup" in name]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"driftline"}
    demo = "driftline/stream/demo_data/"
    assert {"driftline/py.typed", "driftline/native/_core.abi3.so", demo + "ORIGIN.md", demo + "demo384.npz",
            demo + "demo384_texts.json"} <= names  # fmt: skip
    in_tree = {f"driftline/{room}/{path.name}" for room in ("native", "index", "snapshots", "stream")
               for path in (ROOT / room).glob("*.py")}  # fmt: skip
    assert in_tree <= names


def test_the_command_line_and_the_library_work_in_a_clean_environment(clean_bin: Path) -> None:
    """Covers required dependencies: `driftline --help` and the public face need nothing of the developers."""
    helped = run(clean_bin / "driftline", "--help")
    for command in ("serve", "feed", "search", "status", "drift", "snapshots", "demo"):
        assert command in helped
    program = (
        "import driftline as dl, numpy as np\n"
        "ix = dl.OnlineIndex(8)\n"
        "x = np.eye(8, dtype=np.float32)\n"
        "ix.upsert([str(i) for i in range(8)], x)\n"
        "assert ix.search(x, k=1).keys == [[str(i)] for i in range(8)]\n"
        "assert '/site-packages/' in dl.__file__\n"
    )
    run(clean_bin / "python", "-I", "-W", "error", "-c", program)
