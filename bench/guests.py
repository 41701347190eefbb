# SPDX-License-Identifier: Apache-2.0
"""Many idle guests in one process: `guests.py DIRECTORY FIRST_DOMID COUNT [NET]`.

It prints `connected` once all of them are, and keeps running.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from netback.frontend import Frontend
from netback.net.null import NullNetwork
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.xenbus.attach import attach
from netback.xenstore.aio import Store


async def main(directory: Path, first: int, count: int, net: str = "null") -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(await Store.connect(directory / STORE_SOCKET))
        vifs = []
        for domid in range(first, first + count):
            vifs.append(await stack.enter_async_context(Frontend(directory, NullNetwork(), domid=domid)))
            await attach(store, domid, net)
        for vif in vifs:
            await vif.connected()
        print("connected", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
