# SPDX-License-Identifier: Apache-2.0
"""netback attach and detach without a toolstack, on a real domain, for both device types, repeatedly.

Each device passes frames. After its detach nothing is left and nothing grows. A device that is attached when the domain
ends goes with the domain.
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
    """Attach and detach a second NIC, beside xl's, with its own network."""
    name = (await lab.netback(f"attach g1 --type {kind} --net tap:{TAP}")).strip()
    await lab.dom0(f"ip addr add 10.9.0.1/24 dev {TAP}; ip link set {TAP} up")
    await guest.up(link="eth1", address="10.9.0.2")
    await guest.reachable("10.9.0.2")
    await guest("ping -c 3 -s 4000 10.9.0.1")
    index = name.rpartition(".")[2]  # without it the name would be ambiguous: xl's vif is also g1's
    assert (await lab.netback(f"detach g1 --type {kind} --index {index}")).strip() == name
    await gone(lab, guest, kind, TAP)
    await guest(f"ping -c 1 {DOM0}")


async def gone(lab: Lab, guest: Guest, kind: str, tap: str) -> None:
    """Wait until the tap and netback's nodes are gone; xl's vif stays."""
    await lab.until(lambda: lab.succeeds(f"! ip link show {tap} 2>/dev/null"), "the tap goes with its device")
    made = f"xenstore-ls -f /local/domain/0/backend/{kind}/{guest.domid} 2>/dev/null | grep made-by"
    await lab.until(lambda: lab.succeeds(f"! {made}"), "so do its nodes")
