# SPDX-License-Identifier: Apache-2.0
"""xl network-attach, network-list and network-detach, repeatedly: nothing is left behind and nothing grows."""

from netback.lab.host import BRIDGE, Guest, Lab
from netback.lab.tools import held

SMOKE = True
ROUNDS = (10, 100)
MAC = "00:16:3e:66:00:01"


async def run(lab: Lab, rounds: int) -> None:
    guest = await lab.create("g1")
    await cycle(lab, guest)
    before, memory = await held(lab), await lab.netback.memory()
    for _ in range(rounds):
        await cycle(lab, guest)
    after, memory = await held(lab), await lab.netback.memory() - memory
    assert after == before, f"after {rounds} cycles {after}, before {before}"
    assert memory < 4096, f"{rounds} cycles took {memory} KiB"
    await lab.dom0(f"ping -c 3 {guest.address}")


async def cycle(lab: Lab, guest: Guest) -> None:
    await lab.dom0(f"xl network-attach {guest.name} mac={MAC} bridge={BRIDGE}")
    assert MAC in await lab.dom0(f"xl network-list {guest.name}")
    state = f"xenstore-read /local/domain/0/backend/vif/{guest.domid}/1/state"
    await lab.until(lambda: lab.succeeds(f'test "$({state})" = 4'), "the second vif connects")
    await lab.dom0(f"xl network-detach {guest.name} {MAC}")
    await lab.until(
        lambda: lab.succeeds(f"! xenstore-exists /local/domain/0/backend/vif/{guest.domid}/1"), "its nodes go"
    )
