# SPDX-License-Identifier: Apache-2.0
"""A guest with a plain vif=: ping both ways, IPv4 and IPv6, with small and large packets; xentop counts them."""

from netback.lab.host import DOM0, DOM0_6, Lab

SMOKE = True
SIZES = (56, 1400, 8000)


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    for size in SIZES:
        await guest(f"ping -c 3 -s {size} {DOM0}")
        await lab.dom0(f"ping -c 3 -s {size} {guest.address}")
    await guest(f"ping -6 -c 3 {DOM0_6}")
    await lab.dom0(f"ping -6 -c 3 {guest.address6}")
    listed = await lab.dom0("xl network-list g1")
    assert " 4 " in listed, f"xl network-list does not show Connected:\n{listed}"
    out, into = await shown(lab, "g1")
    assert min(out, into) > sum(SIZES) * 6 // 1024, f"xentop shows {out} KiB from the guest, {into} to it"
    (device,) = await lab.netback.list()
    assert (device["backend"], device["frontend"]) == ("Connected", "Connected"), device
    assert device["counters"]["tx_errors"] == device["counters"]["rx_errors"] == 0, device["counters"]


async def shown(lab: Lab, guest: str) -> tuple[int, int]:
    """xentop's columns NETTX and NETRX, in KiB."""
    columns = await lab.dom0(f"xentop -b -i 1 | awk '$1 == \"{guest}\" {{print $11, $12}}'")
    first, second = map(int, columns.split())
    return first, second
