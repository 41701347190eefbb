# SPDX-License-Identifier: Apache-2.0
"""A guest uses up its xenstore quota, takes away rights, spoils and removes its own frontend: only its own vif suffers.

Must hold: netback has no fault and logs little, a good guest beside it loses one ping at most, and the affected vif
works again once its frontend is repaired.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netback.lab.host import BRIDGE, Guest, Lab
from netback.lab.tools import echoes

MAC = "00:16:3e:67:00:01"
LINES = 40
"""Most log lines that netback may write in the whole scenario."""

ASK = """
import sys
from pathlib import Path
from netback.abi.xs_wire import Op
from netback.lab.inside.store_diff import reach
line = reach(Path("/dev/xen/xenbus"))
"""
FILL = """
number, answer = 0, ""
while answer in ("", "OK\\\\x00"):
    answer = line.ask(Op.WRITE, b"data/full/%d\\0x" % number)
    number += 1
print(answer)
"""
"""Write nodes until the quota refuses one."""


async def run(lab: Lab) -> None:
    good, bad = await lab.create("g1"), await lab.create("g2", python=True)
    before = len(lab.netback.log.splitlines())
    for spoil in (full, value, gone):
        async with pinged(good):
            await spoil(lab, bad)
    await rights(lab, bad)
    await good.reachable()
    lines = lab.netback.log.splitlines()[before:]
    assert len(lines) <= LINES, f"netback logged {len(lines)} lines:\n" + "\n".join(lines[-LINES:])


@asynccontextmanager
async def pinged(good: Guest) -> AsyncIterator[None]:
    """Ping the good guest during the context; one loss is allowed."""
    pinging = asyncio.create_task(good.lab.dom0(f"ping -q -i 0.2 {good.address}", seconds=400, check=False))
    yield
    await good.lab.dom0("pkill -INT -x ping")
    seen = echoes(await pinging)
    assert seen.received >= seen.sent - 1, f"the good guest's pings: {seen}"


async def ask(guest: Guest, op: str, payload: str) -> str:
    """Send one store request from the guest; `|` stands for NUL."""
    words = repr(payload.replace("|", "\0").encode())
    return await script(guest, f"print(line.ask(Op.{op}, {words}))")


async def script(guest: Guest, text: str) -> str:
    reply = await guest(f"python3 -P - <<'END'\n{ASK}{text}\nEND", seconds=180)
    return reply.strip()


async def full(lab: Lab, guest: Guest) -> None:
    """With the node quota used up a new vif's frontend cannot publish its rings; the first vif works on."""
    assert await script(guest, FILL) == "ENOSPC"
    await lab.dom0(f"xl network-attach {guest.name} mac={MAC} bridge={BRIDGE}", seconds=90)
    await guest.reachable()
    await ask(guest, "RM", "data/full|")
    await lab.dom0(f"xl network-detach {guest.name} {MAC}", seconds=90)
    await lab.dom0(f"xl network-attach {guest.name} mac={MAC} bridge={BRIDGE}", seconds=90)
    await connected(lab, guest, 1)
    await lab.dom0(f"xl network-detach {guest.name} {MAC}", seconds=90)


async def rights(lab: Lab, guest: Guest) -> None:
    """The guest revokes read access to its frontend: domain 0 ignores permissions, and a restart adopts the vif."""
    for node in ("", "/state", "/tx-ring-ref"):
        assert await ask(guest, "SET_PERMS", f"device/vif/0{node}|n{guest.domid}|") == "OK\\x00"
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await guest.reachable()
    await connected(lab, guest, 0)


async def value(lab: Lab, guest: Guest) -> None:
    """An invalid frontend state ends the connection; binding the driver again starts a new one."""
    for length, answer in ((3000, "ENOSPC"), (1000, "OK\\x00")):
        write = f"print(line.ask(Op.WRITE, b'device/vif/0/state\\0' + b'4' * {length}))"
        assert await script(guest, write) == answer
    await state(lab, guest, 0, "6")
    await guest("cd /sys/bus/xen/drivers/vif && echo vif-0 > unbind && echo vif-0 > bind")
    await connected(lab, guest, 0)
    await guest.up()
    await guest.reachable()


async def gone(lab: Lab, guest: Guest) -> None:
    """The frontend's directory is removed: Closed at once; the toolstack can then detach the vif and attach another."""
    assert await ask(guest, "RM", "device/vif/0|") == "OK\\x00"
    await state(lab, guest, 0, "6")
    await lab.dom0(f"xl network-detach {guest.name} 0", seconds=90, check=False)
    await lab.dom0(f"xl network-attach {guest.name} mac={MAC} bridge={BRIDGE}", seconds=90)
    await guest.up()
    await guest.reachable()


async def connected(lab: Lab, guest: Guest, index: int) -> None:
    await state(lab, guest, index, "4")


async def state(lab: Lab, guest: Guest, index: int, wanted: str) -> None:
    """Wait for a state of the backend."""
    node = f"/local/domain/0/backend/vif/{guest.domid}/{index}/state"
    await lab.until(
        lambda: lab.succeeds(f'test "$(xenstore-read {node})" = {wanted}'), f"{node} is {wanted}", seconds=60
    )
