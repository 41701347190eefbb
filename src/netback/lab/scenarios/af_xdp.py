# SPDX-License-Identifier: Apache-2.0
"""AF_XDP's tests under pytest in dom0, whose kernel tells late what it took of a TX ring (before Linux 6.17)."""

from netback.lab.host import Lab
from netback.lab.scenarios.contract import run_tests

BACKEND = "none"


async def run(lab: Lab) -> str:
    return await run_tests(lab, "tests/net/test_af_xdp.py")
