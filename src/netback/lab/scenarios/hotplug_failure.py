# SPDX-License-Identifier: Apache-2.0
"""A vif on a bridge that does not exist: xl reports it; netback writes an error node and one log line.

libxl leaves such a vif in place. Its error node, at the path of Linux's xenbus_dev_error, stays until the vif is
detached; afterwards neither is left, and netback logs nothing more.
"""

from netback.lab.host import Lab

REASON = "the hotplug script failed: Could not find bridge device nosuch"


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    seen = await lab.machine.run("xl network-attach g1 mac=00:16:3e:66:00:02 bridge=nosuch", seconds=90)
    assert seen.code != 0, "xl takes a bridge that does not exist"
    assert "Could not find bridge device nosuch" in seen.err, f"xl says something else: {seen}"
    error = f"/local/domain/0/error/backend/vif/{guest.domid}/1/error"
    await lab.until(lambda: lab.succeeds(f"test \"$(xenstore-read {error})\" = '{REASON}'"), "the error node")
    await lab.dom0(f"ping -c 3 {guest.address}")
    await lab.dom0("xl network-detach g1 1", seconds=90)
    await lab.until(
        lambda: lab.succeeds(
            "! xenstore-exists /local/domain/0/error/backend/vif && ! ls /sys/class/net | grep -q ^vif.*1$"
        ),
        "error node and link go with the vif",
    )
    lines = [line for line in lab.netback.log.splitlines() if REASON in line]
    assert len(lines) == 1, f"netback logged {lines}"
