# SPDX-License-Identifier: Apache-2.0
"""A guest on a network that netback joins by itself, here a packet socket on a link whose other end is in the bridge.

xl's script for it is vif-netback, of netback's package. Frames of all sizes and streams pass both ways, also after
kill -9, and no state changes.
"""

from netback.lab.host import Lab
from netback.lab.scenarios.kill import unchanged
from netback.lab.tools import know_each_other, unharmed
from netback.lab.transfer import from_guest, to_guest

SIZE = 20_000_000


async def run(lab: Lab) -> None:
    lab.netback.options = "--net packet:cable"
    await lab.netback.stop()
    await lab.netback.start()
    try:
        guest = await lab.create("g1", vif=("script=vif-netback",))
        await know_each_other(guest)
        shown = await lab.netback(f"show {guest.vif}")
        assert "a mapped ring for small frames" in shown, shown
        for size in (56, 1400, 9000, 60000):
            await lab.dom0(f"ping -c 5 -i 0.2 -s {size} {guest.address}")
        await lab.netback.stop("KILL")
        await lab.netback.start()
        for transfer in (await to_guest(guest, SIZE, 7000), await from_guest(guest, SIZE, 7001)):
            await transfer.finish()
        await unharmed(guest)
        await unchanged([guest])
        await guest.destroy()
    finally:
        lab.netback.options = ""
        await lab.netback.stop()
        await lab.netback.start()
