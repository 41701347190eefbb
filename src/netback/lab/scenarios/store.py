# SPDX-License-Identifier: Apache-2.0
"""Our store and Debian's C xenstored answer the same requests alike, from dom0 and from a guest.

Each list of requests follows from its seed (netback.lab.inside.store_diff, which has the table of known differences).
"""

from netback.lab.host import Lab

ROUNDS = (2, 12)
"""Lists of some 300 requests, from each side."""
PLAY = "python3 -P -m netback.lab.inside.store_diff"


async def run(lab: Lab, rounds: int) -> str:
    guest = await lab.create("g1", python=True)
    # One processor for both ends: waking the other one for each of some thousand messages is what would take the time.
    await lab.dom0("taskset -cp 0 $(cat /run/xenstored.pid)")
    try:
        told = [
            await lab.dom0(
                f"taskset -c 0 {PLAY} /run/xenstored/socket --seeds 1-{rounds}", seconds=60 * rounds
            ),
            await guest(
                f"PYTHONPATH=/opt/netback/lib {PLAY} /dev/xen/xenbus --seeds 1-{rounds}", seconds=60 * rounds
            ),
        ]
    finally:
        await lab.dom0("taskset -cp 0-1 $(cat /run/xenstored.pid)")
    await lab.dom0(f"ping -c 3 {guest.address}")
    (lab.machine.directory / "differences.log").write_text("\n".join(told))  # the known ones, and how often
    return f"({'; '.join(text.strip().splitlines()[-1] for text in told)})"
