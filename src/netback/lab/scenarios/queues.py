# SPDX-License-Identifier: Apache-2.0
"""A guest with two processors gets two queues by itself; TCP flows both ways use both, and so after every change.

It keeps them over kill -9 of the backend and has them again after save and restore.
"""

from netback.lab.host import Guest, Lab
from netback.lab.tools import iperf, serve_iperf

RINGS = {"tx", "rx", "tx-q1", "rx-q1"}
FLOWS = 16
"""TCP flows of a transfer: that all of them hash to one queue is improbable (2 ** -15)."""


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", vcpus=2)
    keys = f"/local/domain/{guest.domid}/device/vif/0"
    assert (await lab.dom0(f"xenstore-read {keys}/multi-queue-num-queues")).strip() == "2"
    await lab.dom0(f"xenstore-exists {keys}/queue-1/event-channel-rx")
    await carries(lab, guest)
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await guest.reachable()
    assert "Disabled" not in await guest("dmesg | grep -i vif || true")
    await carries(lab, guest)
    await lab.dom0("xl save g1 /tmp/g1.save", seconds=180)
    await lab.dom0("xl restore /tmp/g1.save; rm /tmp/g1.save", seconds=180)
    guest = await lab.find("g1", guest.number)
    await guest.reachable()
    await carries(lab, guest)


async def carries(lab: Lab, guest: Guest) -> None:
    """Frames pass both ways through both queues."""
    await serve_iperf(guest)
    before = await slots(lab)
    for way in ("", "-R"):
        flow = await iperf(guest, f"{way} -P {FLOWS}")
        assert flow.bits > 1e6, f"TCP {way}: {flow}"
    after = await slots(lab)
    assert set(after) == RINGS, after
    used = {ring: (after[ring] - before[ring]) % 2**32 for ring in RINGS}
    assert all(used.values()), f"slots used: {used}"


async def slots(lab: Lab) -> dict[str, int]:
    """How many slots of each ring of the guest's vif were answered."""
    (device,) = await lab.netback.list()
    assert device["queues"] == 2, device
    return {ring: indices["rsp_prod"] for ring, indices in device["rings"].items()}
