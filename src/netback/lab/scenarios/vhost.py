# SPDX-License-Identifier: Apache-2.0
"""A tap's frames through vhost-net under pytest in dom0: order over many switches, a killed owner, a tap that goes."""

from netback.lab.host import Lab
from netback.lab.scenarios.contract import run_tests

BACKEND = "none"


async def run(lab: Lab) -> str:
    return await run_tests(lab, "tests/net/real_vhost_net.py")
