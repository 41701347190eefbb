# SPDX-License-Identifier: Apache-2.0
"""A guest that sends every frame back to where it came from, as any known frontend: a subject for `netback conform`.

    netback conform --frontend 'python examples/reflecting_guest.py'
    netback conform --frontend 'python examples/reflecting_guest.py windows'

Its frames have the form in which they came, segmentation and blank checksums included.
"""

import asyncio
import os
import sys
from pathlib import Path

from netback.frontend import Frontend
from netback.frontend.profiles import find_profile
from netback.net.python import PythonNetwork
from netback.process import ended_by_signals, until_stopped

HEADER = 10  # bytes of the virtio_net_hdr before each frame


def reflect(message: bytes) -> bytes:
    """The same frame from its destination, or from this guest where that was a group, to its source."""
    header, frame = message[:HEADER], message[HEADER:]
    return header + frame[6:12] + frame[:6] + frame[12:]


async def serve(vif: Frontend, network: PythonNetwork) -> None:
    while True:
        await vif.connected()
        message = await network.recv()
        if not message[HEADER] & 1:  # else it went to a group, which is the source of no frame
            await network.send(reflect(message))


async def main(like: str) -> None:
    directory = Path(os.environ["XENSTORED_PATH"]).parent
    profile = find_profile(like)
    network, stop = PythonNetwork("reflected", vnet_hdr=True), asyncio.Event()
    with ended_by_signals(stop.set):
        async with Frontend(directory, network, config=profile.config, handshake=profile.handshake) as vif:
            await until_stopped(stop, serve(vif, network))
    network.remove()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "linux-6.12"))
