# SPDX-License-Identifier: Apache-2.0
"""Builds this folder's C files with the system's compiler. Knows files, nothing of what they measure."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "out"
FLAGS = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror")


def build(source: str, *flags: str) -> Path:
    """The compiled file of one source, made anew where it is older."""
    made = OUT / Path(source).stem
    if not made.exists() or made.stat().st_mtime < (HERE / source).stat().st_mtime:
        OUT.mkdir(exist_ok=True)
        subprocess.run(["gcc", *FLAGS, *flags, str(HERE / source), "-o", str(made)], check=True)
    return made
