# SPDX-License-Identifier: Apache-2.0
"""Forks backends, so that a test can kill hundreds of them in a minute: `python -m tests.crash.launcher FD DIRECTORY`.

The forking process has imported everything and opened nothing. A backend gets the directory, its configuration and
inherited network sockets, and nothing of the backend before it. Each order on the socket FD is JSON; its answer is the
new process's pidfd.
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
from netback.demo.networks import INHERITED, InheritedNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.process import die_with


async def serve_sockets(directory: Path, fds: Sequence[int], workers: int | None) -> None:
    """Do what `netback run` does, with networks that have no spec string."""
    set_up_log()
    networks = {f"{INHERITED}{fd}": InheritedNetwork(fd) for fd in fds}
    with EmulatedPlatform(directory) as platform:
        async with Backend(platform, BackendConfig(directory, networks=networks, workers=workers)) as backend:
            await backend.wait()


def be_backend(directory: Path, fds: Sequence[int], net: str | None, workers: int | None, after: int) -> None:
    """Serve until SIGKILL, or until the data plane reaches its `after`-th kill point."""
    arm_kill(after)
    if net is not None:
        asyncio.run(
            serve(directory, lambda: EmulatedPlatform(directory), lambda: Config(net=net, workers=workers))
        )
    else:
        asyncio.run(serve_sockets(directory, fds, workers))


def launch(orders: socket.socket, directory: Path) -> None:
    """Serve orders until the other end closes, then kill every backend."""
    children: dict[int, int] = {}
    while order := orders.recv(1 << 16):
        pid = os.fork()
        if pid == 0:
            die_with(os.getppid())()
            orders.close()
            be_backend(directory, **json.loads(order))
            os._exit(1)
        children[pid] = os.pidfd_open(pid)
        socket.send_fds(orders, [b"started"], [children[pid]])
        reap(children)
    for pidfd in children.values():
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def reap(children: dict[int, int]) -> None:
    """Reap the children that have ended."""
    for pid in tuple(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            os.close(children.pop(pid))


if __name__ == "__main__":
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        launch(control, Path(sys.argv[2]))
