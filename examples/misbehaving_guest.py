# SPDX-License-Identifier: Apache-2.0
"""A guest that follows a script, not the protocol: a valid frame, an invalid one, and one that closes the vif.

    python examples/misbehaving_guest.py

Tests of a backend can be written in this way, with direct access to ring pages, slots, indices, keys and states.
"""

import asyncio
import tempfile
from pathlib import Path

from netback.abi.netif import TX_REQUEST, Status, TxFlag
from netback.abi.xenbus import XenbusState
from netback.daemon import Backend, BackendConfig
from netback.frontend import Script
from netback.platforms.emulated import EmulatedPlatform, Emulator

FRAME = bytes.fromhex("ffffffffffff 00163e000001 88b5").ljust(60, b"x")


async def main(directory: Path) -> None:
    with Emulator(directory), EmulatedPlatform(directory) as platform:
        async with Backend(platform, BackendConfig(directory)) as backend, Script(directory) as script:
            await backend.attach(script.guest.domid, "null")
            await script.offered()
            await script.connect()
            await misbehave(script)


async def misbehave(script: Script) -> None:
    page = script.grant(FRAME)
    good = TX_REQUEST.pack(page.gref, 0, 0, 1, len(FRAME))
    revoked = TX_REQUEST.pack(page.gref + 1000, 0, 0, 2, len(FRAME))
    script.post(script.tx, good, revoked)
    await script.answered(script.tx, 2)
    for number, status in script.answers(script.tx, 0, 2):
        print(f"request {number}: {Status(status).name}")

    script.post(script.tx, *[TX_REQUEST.pack(page.gref, 0, TxFlag.MORE_DATA, 3, 14)] * 30, notify=True)
    print("backend:", (await script.backend(XenbusState.CLOSING, XenbusState.CLOSED)).title)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(scratch) / "xen"))
