# SPDX-License-Identifier: Apache-2.0
"""The platform contract suite under pytest in dom0, with dom0 as both ends: every test passes."""

import asyncio
import shutil
from pathlib import Path

import netback
from netback.lab.host import Lab
from netback.lab.machine import LabError

BACKEND = "none"
SMOKE = True
TESTS = Path(netback.__file__).parents[2] / "tests"


async def run(lab: Lab) -> str:
    return await run_tests(lab, "tests/platforms/real_contract.py")


async def run_tests(lab: Lab, path: str) -> str:
    """Run a file of tests under pytest in dom0; returns its last line, with no test skipped."""
    if not (TESTS.parent / path).exists():
        raise LabError("this suite is in a checkout's tests/: run this from a checkout")
    await asyncio.to_thread(_share, lab.machine.directory / "tests")
    pytest = "python3 -P -m pytest -q -c /dev/null --rootdir /lab -o asyncio_mode=auto -p no:cacheprovider"
    output = await lab.dom0(f"cd /lab && {pytest} {path}", seconds=300)
    count = output.strip().splitlines()[-1]
    assert "passed" in count, output
    assert "skipped" not in count, output
    return count


def _share(place: Path) -> None:
    shutil.copytree(TESTS, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
