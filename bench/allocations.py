# SPDX-License-Identifier: Apache-2.0
"""Counts heap allocations while frames cross a ring: none, in the steady state.

Run as a module in a process with allocations.c preloaded, it prints one number for each shape and direction.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

from .native import HERE, build
from .report import Row
from .rig import SHAPES, Ring

WARM = 20
FILLS = 500
PART = "allocations"


def per_frame(ring: Ring) -> float:
    """Calls of malloc, calloc and realloc for each frame, including those of this loop."""
    count = ctypes.CDLL(None).allocations
    count.restype = ctypes.c_uint64
    for fill in range(WARM + FILLS):
        if fill == WARM:
            before: int = count()
        ring.fill()
        while ring.worker.step(ring.queue):
            pass
    after: int = count()
    ring.check()
    return float(after - before) / (FILLS * ring.shape.frames)


def measure_alone() -> list[Row]:
    preload = os.environ | {"LD_PRELOAD": str(build("allocations.c", "-shared", "-fPIC"))}
    command = (sys.executable, "-m", f"{__package__}.allocations")
    output = subprocess.run(
        command, env=preload, cwd=HERE.parent, check=True, capture_output=True, text=True
    ).stdout
    rows = [Row(PART, name, "a frame", {"netback": [value]}) for name, value in json.loads(output).items()]
    return [row.judged("0", row.median("netback") < 1 / FILLS) for row in rows]


if __name__ == "__main__":
    print(
        json.dumps(
            {
                f"{way} {name}": per_frame(Ring(shape, tx=way == "TX"))
                for way in ("TX", "RX")
                for name, shape in SHAPES.items()
            }
        )
    )
