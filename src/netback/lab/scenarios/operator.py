# SPDX-License-Identifier: Apache-2.0
"""What an operator does with the vifs of two guests: filters, a capture, explain, a picture of the rings, a switch.

Must hold: antispoof cuts off a guest that takes another address, and it alone, also after kill -9, until it has its own
again, and explain names the filter; a capture has every frame of a ping; two guests on a switch reach each other, with
large segments, also after kill -9.
"""

import json

from netback.lab.host import DOM0, Guest, Lab
from netback.lab.tools import serve_iperf

ADDRESSES = ("10.9.0.1", "10.9.0.2")
OTHER = "00:16:3e:00:01:99"
CAPTURE = "/lab/operator.pcapng"
FRAMES = 20


async def run(lab: Lab) -> None:
    one, two = await lab.create("g1"), await lab.create("g2")
    await captured(lab, one)
    await filtered(lab, one, two)
    await switched(lab, (one, two))


async def captured(lab: Lab, guest: Guest) -> None:
    """Frames of a ping that goes on until there are enough."""
    pinging = f"ping -q -i 0.2 {guest.address} >/dev/null & pinging=$!; "
    capture = f"netback capture {guest.vif} --count {FRAMES} -w {CAPTURE} 2>&1"
    said = await lab.dom0(f"{pinging}{capture}; kill $pinging", seconds=180)
    assert f"{FRAMES} frames captured, none lost" in said, said
    count = (
        "import struct, sys; data = open(sys.argv[1], 'rb').read(); at = n = 0\n"
        "while at < len(data):\n"
        " kind, size = struct.unpack_from('<II', data, at); n += kind == 6; at += size\n"
        "print(n)"
    )
    blocks = (await lab.dom0(f'python3 -c "{count}" {CAPTURE}')).strip()
    assert blocks == str(FRAMES), f"{FRAMES} frames captured, {blocks} in the file"
    rings = await lab.netback(f"rings {guest.vif}")
    assert "tx: 0 of 256 pending" in rings, rings


async def filtered(lab: Lab, one: Guest, two: Guest) -> None:
    """The first guest takes another MAC address, and its own again."""
    await lab.netback(f"set {one.vif} --filter antispoof")
    await one.reachable()
    own = (await one("cat /sys/class/net/eth0/address")).strip()
    await take(one, OTHER)
    assert not await answers(one), "a guest with another address got an answer through"
    await two.reachable()
    await lab.netback.stop("KILL")
    await lab.netback.start()
    assert not await answers(one), "the filter is gone after kill -9"
    await one(f"ping -c 3 -W 1 {DOM0}", check=False)
    text = await lab.dom0(f"netback explain {one.vif} --json", check=False)
    assert "antispoof-drops" in {finding["rule"] for finding in json.loads(text)["findings"]}, text
    await take(one, own)
    await one.reachable()
    await lab.netback(f"set {one.vif} --no-filters")
    await one.reachable()


async def take(guest: Guest, address: str) -> None:
    """Give the guest's link another MAC address."""
    await guest(f"ip link set eth0 down && ip link set eth0 address {address} && ip link set eth0 up")


async def answers(guest: Guest) -> bool:
    return await guest.lab.succeeds(f"ping -c 3 -W 1 {guest.address}")


async def switched(lab: Lab, guests: tuple[Guest, Guest]) -> None:
    """A second vif each, on a switch of netback's own."""
    names = []
    for guest, address in zip(guests, ADDRESSES, strict=True):
        names.append((await lab.netback(f"attach {guest.name} --net switch:lan")).strip())
        await guest.up(link="eth1", address=address)
    one, two = guests
    await one(f"ping -c 3 {ADDRESSES[1]}")
    await serve_iperf(two)
    result = json.loads(await one(f"iperf3 -J -c {ADDRESSES[1]} -t 3", seconds=60))
    bits = result["end"]["sum_received"]["bits_per_second"]
    assert bits > 20e6, f"{bits / 1e6:.1f} Mbit/s between guests on a switch"
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await one(f"ping -c 3 {ADDRESSES[1]}")
    listed = await lab.netback("list")
    assert listed.count("switch:lan/") == 2, listed
    for name, guest in zip(names, guests, strict=True):
        index = name.rpartition(".")[2]
        await lab.netback(f"detach {guest.name} --index {index}")
