# SPDX-License-Identifier: Apache-2.0
"""Forks backends, so that hundreds of them can be killed in a minute: `python -m tests.crash.launcher FD DIRECTORY`.

What it forks from has imported everything and opened nothing: a backend gets the directory, its configuration and the
network sockets that somebody else holds (descriptors of this process), and nothing of the backend before it. Each
order on the socket FD is JSON; its answer is the new process's pidfd.
"""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from netback.daemon import Backend, BackendConfig
from netback.daemon.config import Config
from netback.daemon.service import serve
from netback.daemon.systemd.logs import set_up_log
from netback.dataplane.journal import arm_kill
from netback.demo.namespaces import die_with
from netback.demo.networks import InheritedNetwork
from netback.platforms.emulated import EmulatedPlatform

INHERITED = "inherited:"
"""How a device's `net` node names one of the sockets: by its descriptor's number."""


async def serve_sockets(directory: Path, fds: Sequence[int], workers: int | None) -> None:
    """What `netback run` does, with networks that it has no words for."""
    set_up_log()
    networks = {f"{INHERITED}{fd}": InheritedNetwork(fd) for fd in fds}
    with EmulatedPlatform(directory) as platform:
        async with Backend(platform, BackendConfig(directory, networks=networks, workers=workers)) as backend:
            await backend.wait()


def be_backend(directory: Path, fds: Sequence[int], net: str | None, workers: int | None, after: int) -> None:
    """Until killed from outside, or at the `after`-th kill point of the data plane."""
    arm_kill(after)
    if net is not None:
        asyncio.run(
            serve(directory, lambda: EmulatedPlatform(directory), lambda: Config(net=net, workers=workers))
        )
    else:
        asyncio.run(serve_sockets(directory, fds, workers))


def launch(orders: socket.socket, directory: Path) -> None:
    """Until whoever gives the orders is gone, and then no backend is left."""
    children: dict[int, int] = {}
    while order := orders.recv(1 << 16):
        pid = os.fork()
        if pid == 0:
            die_with(os.getppid())
            orders.close()
            be_backend(directory, **json.loads(order))
            os._exit(1)
        children[pid] = os.pidfd_open(pid)
        socket.send_fds(orders, [b"started"], [children[pid]])
        bury(children)
    for pidfd in children.values():
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def bury(children: dict[int, int]) -> None:
    """Those that are dead."""
    for pid in tuple(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            os.close(children.pop(pid))


if __name__ == "__main__":
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        launch(control, Path(sys.argv[2]))
