# SPDX-License-Identifier: Apache-2.0
"""netback's own frontend, in a guest's userspace, passes frames through Linux's xen-netback, QEMU's qnic and netback.

Linux's netfront is kept out of the guest; `netback guest --net tap:` gives its TCP/IP stack a link. Each backend serves
it in turn: ping with small and large packets and TCP, both ways. Then the vif closes in order.
"""

from netback.lab.bench.backends import BACKENDS, LabBackend
from netback.lab.host import DOM0, Guest, Lab
from netback.lab.machine import LabError
from netback.lab.tools import iperf, serve_iperf

BACKEND = "none"
WALK = (
    *("backend InitWait", "frontend Connected", "backend Connected"),
    *("frontend Closing", "backend Closing", "frontend Closed", "backend Closed"),
)


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", vif=(), python=True, more="netback.nofront")
    await serve_iperf(guest)
    for backend in BACKENDS:
        await guest("setsid netback guest --net tap:net0 >>/run/front 2>&1 & echo $! >/run/front.pid")
        try:
            async with backend.serving(guest):
                await passes(guest)
                await guest(
                    "kill $(cat /run/front.pid); while [ -e /sys/class/net/net0 ]; do sleep 0.1; done"
                )
        except LabError as error:
            output = await guest("cat /run/front", check=False)
            raise LabError(f"through {backend.name}: {error}\nthe frontend printed:\n{output}") from error
        await closed(guest, backend)


async def passes(guest: Guest) -> None:
    """Ping and TCP, both ways."""
    for size in (56, 1400, 8000):
        await guest(f"ping -c 3 -s {size} {DOM0}")
        await guest.lab.dom0(f"ping -c 3 -s {size} {guest.address}")
    for way in ("", "-R"):
        flow = await iperf(guest, way)
        assert flow.bits > 1e6, f"TCP {way}: {flow}"


async def closed(guest: Guest, backend: LabBackend) -> None:
    """The frontend saw every state in order and reported no error."""
    output = await guest("cat /run/front; rm /run/front")
    at = 0
    for state in WALK:
        at = output.find(state, at)
        assert at >= 0, f"through {backend.name} the frontend did not reach {state!r} in order:\n{output}"
    assert "Traceback" not in output, output
