# SPDX-License-Identifier: Apache-2.0
"""The emulated Xen of one directory: its store and its hypervisor, from taking the lock to removing the last file.

This module manages the directory and the lifetimes; the two servers handle requests.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID, uuid5

from netback.abi.xs_wire import Op
from netback.directory import Directory
from netback.errors import ConfigError
from netback.platforms.emulated.hypervisor import Hypervisor
from netback.platforms.emulated.protocol import HYPERVISOR_SOCKET, STORE_SOCKET
from netback.platforms.emulated.server import HypervisorServer
from netback.platforms.emulated.store_socket import attach_store, serve_store
from netback.process import allow_descriptors, ended_by_signals
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet

CFLAGS = f"-I{Path(__file__).parents[2] / 'include'}"
"""The C compiler's flag for `#include "netback/emulated_xen.h"`."""

_LOCK = "lock"
_MACHINES = UUID("4c5b5e0e-5f5a-4f0c-9d5b-6e6574626163")
"""The namespace of guests' UUIDs: a guest that joins again under its name has the same one, as a toolstack's has."""


def print_env(directory: Path) -> str:
    """A line for a shell to evaluate, so that the xenstore tools find this store."""
    path = str((directory / STORE_SOCKET).absolute())
    return "export XENSTORED_PATH='" + path.replace("'", "'\\''") + "'"


async def emulate(directory: Path, ready: Callable[[], None] | None = None) -> None:
    """Serve until cancelled, or until SIGINT or SIGTERM in the main thread. `ready` is called when domains can join.

    ConfigError: the directory is not private, or another emulator serves it.
    """
    stop = asyncio.Event()
    with ended_by_signals(stop.set):
        await _serve(directory, stop, ready or (lambda: None))


async def _serve(
    directory: Path, stop: asyncio.Event, ready: Callable[[], None], store: Server | None = None
) -> None:
    allow_descriptors()
    domains = _Domains(store or Server())
    hypervisor = Hypervisor(domains.began, domains.ended)
    with Directory.open(directory) as place, _locked(place):
        place.socket_path(HYPERVISOR_SOCKET)  # the longer one
        try:
            with (
                closing(await serve_store(domains.store, place.listen(STORE_SOCKET))),
                closing(HypervisorServer(hypervisor, domains.attach, place)),
            ):
                ready()
                await stop.wait()
        finally:
            domains.store.close()
            await asyncio.sleep(0)  # the closed transports close their sockets in the loop's next iteration


class _Domains:
    """Shows domains in the store: home, name, domid, a guest's UUID, @introduceDomain and @releaseDomain."""

    def __init__(self, store: Server) -> None:
        self.store = store
        self._dom0 = self.store.connect(0, lambda _reply: None)
        self._attaching: set[asyncio.Task[None]] = set()
        self._machines: dict[int, str] = {}
        """The path under /vm of each guest, by domid."""
        self._describe(0, "Domain-0")

    def began(self, domid: int, name: str) -> None:
        self.store.introduce(domid)
        self._describe(domid, name)
        machine = self._machines[domid] = f"/vm/{uuid5(_MACHINES, name)}"
        self._send(Op.WRITE, f"/local/domain/{domid}/vm\0{machine}")
        self._send(Op.WRITE, f"{machine}/name\0{name}")
        self._send(Op.WRITE, f"{machine}/uuid\0{machine.rpartition('/')[2]}")

    def ended(self, domid: int) -> None:
        self._send(Op.RM, f"/local/domain/{domid}\0")
        machine = self._machines.pop(domid)
        if machine not in self._machines.values():
            self._send(Op.RM, f"{machine}\0")
        self.store.release(domid)

    def attach(self, domid: int) -> socket.socket:
        """Open a store connection and return the domain's end of it."""
        ours, theirs = socket.socketpair()
        task = asyncio.get_running_loop().create_task(attach_store(self.store, ours, domid))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)
        return theirs

    def _describe(self, domid: int, name: str) -> None:
        self._send(Op.WRITE, f"/local/domain/{domid}/name\0{name}")
        self._send(Op.WRITE, f"/local/domain/{domid}/domid\0{domid}")

    def _send(self, op: Op, payload: str) -> None:
        self._dom0.receive(Packet(op, 0, 0, payload.encode()).encode())


class Emulator:
    """Runs `emulate` on its own thread, for programs that also join: their requests block.

    with Emulator(directory):
        guest = EmulatedDomain.join(directory)

    `store` replaces the store's server, for a program that watches or alters its requests. The emulator's thread alone
    calls it.
    """

    def __init__(self, directory: Path, store: Server | None = None) -> None:
        self.directory = directory
        self._store = store
        self._ready: Future[None] = Future()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="emulator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                raise

    async def _main(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        await _serve(self.directory, stop, lambda: self._ready.set_result(None), self._store)


@contextmanager
def _locked(directory: Directory) -> Iterator[None]:
    """Take the directory's lock; at the exit remove it and the sockets. ConfigError: another emulator holds it."""
    lock = directory.try_lock(_LOCK)
    if lock is None:
        raise ConfigError(f"{directory.path}: another `netback emulate` serves this directory")
    try:
        yield
    finally:
        for name in (STORE_SOCKET, HYPERVISOR_SOCKET, _LOCK):
            directory.unlink(name)
        os.close(lock)
