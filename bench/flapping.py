# SPDX-License-Identifier: Apache-2.0
"""The load that flapping guests put on one that reloads its driver: `python -m bench.flapping [COUNT]`.

It prints the time of a reload alone, beside COUNT vifs (8) whose guest writes a node that the backend does not watch,
and beside as many whose guest writes its states: the last two differ by the backend's reaction. Each row has the
backend's processor time as a part of a core.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from netback.abi.xenbus import XenbusState as State
from netback.frontend import Guest, Script
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.xenbus.attach import attach
from netback.xenstore.aio import Store

RELOADS = 10
TICK = 1 / os.sysconf("SC_CLK_TCK")


async def flap(directory: Path, count: int, node: str) -> None:
    """Write a node of each vif's frontend, the states of a reload in turn, and read the backend's answer."""
    async with (
        Guest(directory, name="flaps") as guest,
        await Store.connect(directory / STORE_SOCKET) as store,
    ):
        names = [await attach(store, guest.domid, "null") for _ in range(count)]
        print("ready", flush=True)
        while True:
            for state in (State.INITIALISING, State.CONNECTED, State.CLOSING, State.CLOSED):
                for name in names:
                    await guest.store.write(f"{name.frontend}/{node}", str(int(state)))
                    await guest.store.read(f"{name.backend}/state")
            await asyncio.sleep(0.005)


async def reload(script: Script) -> float:
    """Milliseconds from Closed to Connected."""
    begin = time.monotonic()
    for state, answer in ((State.CLOSED, State.CLOSED), (State.INITIALISING, State.INIT_WAIT)):
        await script.set_state(state)
        await script.backend(answer)
    await script.open_rings()
    await script.connect()
    return (time.monotonic() - begin) * 1000


async def measure(label: str, script: Script, backend: int) -> None:
    begin, busy, times = time.monotonic(), processor_seconds(backend), list[float]()
    for _ in range(RELOADS):
        times.append(await reload(script))
        await asyncio.sleep(1)
    load = (processor_seconds(backend) - busy) / (time.monotonic() - begin)
    print(f"{label:32} median {median(times):7.1f} ms  most {max(times):7.1f} ms  backend {load:.2f} core")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


@contextmanager
def running(*arguments: str, ready: str) -> Iterator[int]:
    """Start a process of this program; return its id once a line of its output has `ready`."""
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            if not any(ready in line for line in process.stdout):
                raise RuntimeError(f"{' '.join(command)} ended")
            yield process.pid
        finally:
            process.kill()


async def main(count: int) -> None:
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        where = ("--dir", str(directory))
        undo.enter_context(running("netback", "emulate", *where, ready="emulated Xen"))
        backend = undo.enter_context(
            running("netback", "run", "--platform", "emulated", *where, ready="serving")
        )
        async with Guest(directory, name="honest") as guest, Script(guest) as script:
            async with await Store.connect(directory / STORE_SOCKET) as store:
                await attach(store, guest.domid, "null")
            await script.offered()
            await script.connect()
            await measure("alone", script, backend)
            for node, label in (("unwatched", "writing another node"), ("state", "flapping")):
                with running("bench.flapping", str(directory), str(count), node, ready="ready"):
                    await measure(f"beside {count} vifs {label}", script, backend)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        asyncio.run(flap(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    else:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
