# SPDX-License-Identifier: Apache-2.0
"""A guest with a plain vif= pings dom0 and is pinged, IPv4 and IPv6, with small and large packets."""

from netback.lab.lab import DOM0, DOM0_6, Lab

SMOKE = True


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    for size in (56, 1400, 8000):
        await guest(f"ping -c 3 -s {size} {DOM0}")
        await lab.dom0(f"ping -c 3 -s {size} {guest.address}")
    await guest(f"ping -6 -c 3 {DOM0_6}")
    await lab.dom0(f"ping -6 -c 3 {guest.address6}")
    listed = await lab.dom0("xl network-list g1")
    assert " 4 " in listed, f"xl network-list does not show Connected:\n{listed}"
    (device,) = await lab.netback.list()
    assert (device["backend"], device["frontend"]) == ("Connected", "Connected"), device
    assert device["counters"]["tx_errors"] == device["counters"]["rx_errors"] == 0, device["counters"]
