# SPDX-License-Identifier: Apache-2.0
"""Two guests on dom0's bridge: ping and TCP both ways between them."""

import json

from netback.lab.host import Lab
from netback.lab.tools import serve_iperf


async def run(lab: Lab) -> None:
    one, two = await lab.create("g1"), await lab.create("g2")
    await one(f"ping -c 3 {two.address}")
    await two(f"ping -6 -c 3 {one.address6}")
    await serve_iperf(two)
    for way in ("", "-R"):
        result = json.loads(await one(f"iperf3 -J -c {two.address} -t 3 {way}", seconds=40))
        bits = result["end"]["sum_received"]["bits_per_second"]
        assert bits > 20e6, f"{way}: {bits / 1e6:.1f} Mbit/s between guests"
