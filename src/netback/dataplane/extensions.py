# SPDX-License-Identifier: Apache-2.0
"""How the native part is compiled, for the package's own build and for the lab's."""

from pathlib import Path

FLAGS = (
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # CPython's own calling convention leaves parameters unused
    "-O3",
    "-fno-strict-aliasing",
    "-fno-semantic-interposition",
)
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}


def sources(plane: Path) -> list[Path]:
    """Every module of the native part, below the directory that holds it."""
    return sorted(plane.rglob("*.pyx"))
