# SPDX-License-Identifier: Apache-2.0
"""Builds the C files of this directory with the system's compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "out"
FLAGS = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror")


def build(source: str, *flags: str) -> Path:
    """The compiled file of a source, built again where it is older."""
    made = OUT / Path(source).stem
    if not made.exists() or made.stat().st_mtime < (HERE / source).stat().st_mtime:
        OUT.mkdir(exist_ok=True)
        subprocess.run(["gcc", *FLAGS, *flags, str(HERE / source), "-o", str(made)], check=True)
    return made
