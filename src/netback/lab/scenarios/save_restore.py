# SPDX-License-Identifier: Apache-2.0
"""xl pause, unpause, save and restore: the guest continues with its vif."""

from netback.lab.host import Lab


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    await guest("(sleep 1000; true) & echo mark > /tmp/mark")
    await lab.dom0("xl pause g1")
    await lab.dom0(f"ping -c 3 -W 1 {guest.address}", check=False)
    await lab.dom0("xl unpause g1")
    await guest.reachable()
    await lab.dom0("xl save g1 /tmp/g1.save", seconds=180)
    await lab.dom0("xl restore /tmp/g1.save; rm /tmp/g1.save", seconds=180)
    again = await lab.find("g1", guest.number)
    assert (await again("cat /tmp/mark")).strip() == "mark"
    await again.reachable()
    await again("ping -c 3 10.0.0.1")
