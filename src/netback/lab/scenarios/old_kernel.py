# SPDX-License-Identifier: Apache-2.0
"""A guest of Linux 6.1: ping, and TCP both ways."""

from netback.lab.host import Lab
from netback.lab.tools import iperf, serve_iperf


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", kernel="6.1")
    assert (await guest("uname -r")).startswith("6.1.")
    await lab.dom0(f"ping -c 3 -s 4000 {guest.address}")
    await serve_iperf(guest)
    for way in ("", "-R"):
        flow = await iperf(guest, way)
        assert flow.bits > 20e6, f"TCP {way}: {flow}"
