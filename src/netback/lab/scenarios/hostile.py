# SPDX-License-Identifier: Apache-2.0
"""A guest whose frontend attacks the backend, beside a good guest under load: the good guest loses nothing.

The hostile guest runs netback.lab.inside.attacks. Each attack ends as its row says; the last one leaves the vif stopped
with an error node. netback's log stays short.
"""

import asyncio

from netback.lab.host import Lab
from netback.lab.tools import ping
from netback.lab.transfer import from_guest, to_guest

SMOKE = True
SIZE = 20_000_000
LINES = 60
"""Most log lines about the hostile vif: ten per ten seconds; the attacks take half a minute."""


async def run(lab: Lab) -> None:
    good = await lab.create("good")
    bad = await lab.create("bad", python=True, up=False, more="netback.nofront")
    attacks = asyncio.create_task(bad("python3 -P -m netback.lab.inside.attacks 2>&1", seconds=300))
    transfers = [await to_guest(good, SIZE, 7000), await from_guest(good, SIZE, 7001)]
    pings = 0
    while not attacks.done():
        echoes = await ping(good, "-c 20 -i 0.1 -W 10")
        assert echoes.received == echoes.sent, f"the good guest lost pings: {echoes}"
        pings += echoes.sent
    output = await attacks
    assert pings, "the attacks were over before the first ping"
    for transfer in transfers:
        await transfer.finish()
    vifs = {device["guest"]: device for device in await lab.netback.list()}
    assert vifs["bad"]["error"], vifs["bad"]
    assert vifs["bad"]["backend"] in ("Closing", "Closed"), f"{vifs['bad']}\n{output}"
    assert (vifs["good"]["backend"], vifs["good"]["error"]) == ("Connected", None), vifs["good"]
    counters = vifs["good"]["counters"]
    assert counters["tx_errors"] == counters["rx_errors"] == 0, counters
    lines = [line for line in lab.netback.log.splitlines() if f"vif{bad.domid}.0" in line]
    assert len(lines) < LINES, f"{len(lines)} lines about the hostile vif"
    await bad.destroy()
    await good.reachable()
