# SPDX-License-Identifier: Apache-2.0
"""No toolstack: netback attach and detach on a real domain, for both device types, over and over.

Each device passes frames; nothing is left of it then, nothing grows, and what is attached when the domain ends goes
with it.
"""

from netback.lab.host import DOM0, Guest, Lab
from netback.lab.tools import held

SMOKE = True
ROUNDS = (2, 20)
KINDS = ("vif", "qnic")
TAP = "nb0"


async def run(lab: Lab, rounds: int) -> None:
    guest = await lab.create("g1")
    for kind in KINDS:
        await cycle(lab, guest, kind)
    before = await held(lab)
    for _ in range(rounds):
        for kind in KINDS:
            await cycle(lab, guest, kind)
    after = await held(lab)
    assert after == before, f"after {rounds} cycles {after}, before {before}"
    for number, kind in enumerate(KINDS):
        await lab.netback(f"attach g1 --type {kind} --net tap:{TAP}{number}")
    await guest.destroy()
    for number, kind in enumerate(KINDS):
        await gone(lab, guest, kind, f"{TAP}{number}")


async def cycle(lab: Lab, guest: Guest, kind: str) -> None:
    """A second NIC, beside the one of xl's, with a network of its own."""
    name = (await lab.netback(f"attach g1 --type {kind} --net tap:{TAP}")).strip()
    await lab.dom0(f"ip addr add 10.9.0.1/24 dev {TAP}; ip link set {TAP} up")
    await guest.up(link="eth1", address="10.9.0.2")
    await guest.reachable("10.9.0.2")
    await guest("ping -c 3 -s 4000 10.9.0.1")
    index = name.rpartition(".")[2]  # xl's vif is g1's, too
    assert (await lab.netback(f"detach g1 --type {kind} --index {index}")).strip() == name
    await gone(lab, guest, kind, TAP)
    await guest(f"ping -c 1 {DOM0}")


async def gone(lab: Lab, guest: Guest, kind: str, tap: str) -> None:
    """Tap and nodes; a vif of xl's stays."""
    await lab.until(lambda: lab.succeeds(f"! ip link show {tap} 2>/dev/null"), "the tap goes with its device")
    made = f"xenstore-ls -f /local/domain/0/backend/{kind}/{guest.domid} 2>/dev/null | grep made-by"
    await lab.until(lambda: lab.succeeds(f"! {made}"), "so do its nodes")
