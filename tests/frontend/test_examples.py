# SPDX-License-Identifier: Apache-2.0
"""The examples run as they stand, against the real backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

SAYS = {
    "connected_guest.py": [
        "host received: hello over shared rings",
        "guest received: hello over shared rings",
    ],
    "misbehaving_guest.py": ["request 1: OKAY", "request 2: ERROR", "backend: Closing"],
}


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line.rstrip() for line in done.stdout.splitlines()] == SAYS[name]
    assert "Traceback" not in done.stderr
