# SPDX-License-Identifier: Apache-2.0
"""netback's store and Debian's C xenstored give equal answers to equal requests, from dom0 and from a guest.

Each list of requests follows from its seed (netback.lab.inside.store_diff, which has the table of known differences).
"""

from netback.lab.host import Lab

ROUNDS = (2, 12)
"""Lists of about 300 requests, from each side."""
PLAY = "python3 -P -m netback.lab.inside.store_diff"


async def run(lab: Lab, rounds: int) -> str:
    guest = await lab.create("g1", python=True)
    # Both ends on one processor: waking a second one for each of about a thousand messages would dominate the time.
    await lab.dom0("taskset -cp 0 $(cat /run/xenstored.pid)")
    try:
        reports = [
            await lab.dom0(
                f"taskset -c 0 {PLAY} /run/xenstored/socket --seeds 1-{rounds}", seconds=60 * rounds
            ),
            await guest(f"{PLAY} /dev/xen/xenbus --seeds 1-{rounds}", seconds=60 * rounds),
        ]
    finally:
        await lab.dom0("taskset -cp 0-1 $(cat /run/xenstored.pid)")
    await lab.dom0(f"ping -c 3 {guest.address}")
    (lab.machine.directory / "differences.log").write_text(
        "\n".join(reports)
    )  # known differences with their counts
    return f"({'; '.join(text.strip().splitlines()[-1] for text in reports)})"
