# SPDX-License-Identifier: Apache-2.0
"""iperf3 both ways: TCP over IPv4 and IPv6, UDP with small and large datagrams."""

from netback.lab.host import Lab
from netback.lab.tools import iperf, serve_iperf

SMOKE = True
PACKETS = 300
"""Datagrams per second: a loaded machine emulates 800 small ones."""


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    await serve_iperf(guest)
    for way in ("", "-R"):
        for address in (guest.address, guest.address6):
            flow = await iperf(guest, way, address=address)
            assert flow.bits > 50e6, f"TCP {way} {address}: {flow}"
        for size in (64, 1400):
            flow = await iperf(guest, f"{way} -u -l {size} -b {8 * size * PACKETS}", seconds=2)
            assert flow.lost < 0.2, f"UDP {way} {size}: {flow}"
    (device,) = await lab.netback.list()
    assert device["counters"]["tx_errors"] == device["counters"]["rx_errors"] == 0, device["counters"]
