# SPDX-License-Identifier: Apache-2.0
"""An emulated guest with a connected vif, in five lines: emulated Xen, backend and frontend in this process.

    python examples/connected_guest.py

Frames from the guest arrive at the host's network, and frames from there at the guest. With your own backend in the
place of `Backend`, the guest tests it.
"""

import asyncio
import tempfile
from pathlib import Path

from netback.daemon import Backend, BackendConfig
from netback.frontend import Frontend
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform, Emulator

FRAME = bytes.fromhex("ffffffffffff 00163e000001 88b5") + b"hello over shared rings".ljust(46)


async def main(directory: Path, host: PythonNetwork) -> None:
    config = BackendConfig(directory, networks={"python:host": host})
    with Emulator(directory), EmulatedPlatform(directory) as platform:
        async with Backend(platform, config) as backend, Frontend(directory, PythonNetwork("guest")) as vif:
            await backend.attach(vif.guest.domid, "python:host")
            await vif.connected()
            await talk(vif, host)


async def talk(vif: Frontend, host: PythonNetwork) -> None:
    """Send a frame each way."""
    guest = vif.network
    assert isinstance(guest, PythonNetwork)
    await guest.send(FRAME)
    print("host received:", (await host.recv())[14:].decode())
    await host.send(FRAME)
    print("guest received:", (await guest.recv())[14:].decode())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(scratch) / "xen", PythonNetwork("host")))
