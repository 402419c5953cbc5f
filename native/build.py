"""Compiles the C core. driftline.h is the one list of declarations: cffi reads it too."""

import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = (
    "memory", "pages", "locks", "kernels", "kernels_avx2", "kernels_avx512", "kernels_neon", "rotate", "tile",
    "statistics", "epoch", "keys", "slabs", "probe", "heaps", "walk", "filtered", "refine", "growth", "link",
    "tree", "frames", "survey", "index", "evacuate", "upkeep", "search", "witness", "check", "cut", "store",
    "rebase",
)  # fmt: skip
HEADERS = ("driftline", "internal", "kernels", "hadamard", "store", "walk")


def declarations() -> str:
    """The header without what cffi does not read: comments and preprocessor lines."""
    text = re.sub(r"/\*.*?\*/", "", (HERE / "driftline.h").read_text(), flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "driftline.native._core",
    '#include "driftline.h"',
    # relative to the project's root, where setuptools runs: a distribution must not name absolute paths
    sources=[f"native/{name}.c" for name in SOURCES],
    depends=[f"native/{name}.h" for name in HEADERS],
    include_dirs=["native"],
    libraries=["m"],
    py_limited_api=True,
    extra_compile_args=[
        "-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wextra",
        "-Wshadow", "-Wno-unused-parameter", "-Wno-missing-field-initializers",
    ] if sys.platform != "win32" else [],
)  # fmt: skip
