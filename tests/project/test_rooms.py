"""The rooms: who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

from .conftest import ROOT

ROOMS = ("native", "index", "snapshots", "stream")  # a room imports itself and the rooms before it
# A library, and the only files that may import it: a room's, or one file.
ONLY = {
    "lmdb": "snapshots/environment.py",
    "cffi": "native/",
    "aiokafka": "stream/",
    "asyncio": "stream/",
    "pyroaring": "index/",
}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file of the package imports, relative names spelled out: `driftline.index.hits`."""
    here = ("driftline", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*start, *((node.module,) if node.module else ())))
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)  # a submodule, or a name in it
    return found


def test_every_room_has_sources() -> None:
    """Covers the reader itself: a moved room must not make the other tests pass by reading nothing."""
    for room in ROOMS:
        assert any(path.is_relative_to(ROOT / room) for path in SOURCES), room


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    """Covers the direction stream -> snapshots -> index -> native: no file imports a room above its own."""
    room = path.relative_to(ROOT).parts[0]
    above = ROOMS[ROOMS.index(room) + 1 :]
    wrong = [name for name in imports(path) for other in above
             if name == f"driftline.{other}" or name.startswith(f"driftline.{other}.")]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_place(path: Path) -> None:
    """Covers one door per library: LMDB, cffi, Kafka and asyncio are each imported in one place only."""
    name = path.relative_to(ROOT).as_posix()
    wrong = [library for library, place in ONLY.items() if not name.startswith(place)
             if any(module.split(".")[0] == library for module in imports(path))]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if not path.is_relative_to(ROOT / "native")],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_only_native_says_ffi(path: Path) -> None:
    """Covers the C doorway: no other room uses a name `ffi` or reaches the compiled module."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "ffi" not in names
    assert not [module for module in imports(path) if module.startswith("driftline.native._core")]
