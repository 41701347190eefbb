# SPDX-License-Identifier: Apache-2.0
"""Emulated Xen, a backend, guests, vifs and network namespaces for other people's tests, as plain calls.

Nothing here needs an event loop in the test: one runs on a thread of its own. `netback.pytest_plugin` makes fixtures of
these classes; with unittest or a script each is a context manager. Every wait has an end, after which it raises
TimeoutError and says what was there instead.
"""

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from netback.abi import virtio_net
from netback.abi.xenbus import XenbusState
from netback.control import Client
from netback.control.schema import Details
from netback.daemon import Backend, BackendConfig
from netback.errors import ConfigError, NetbackError, PlatformError
from netback.frontend import Frontend
from netback.net.python import MAX_FRAME, PythonNetwork
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform, Emulator
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.process import die_with
from netback.xenbus.domains import await_domain
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store

SECONDS = 10.0
"""How long each wait takes at most, unless a call says otherwise."""

_FRAMES, _OFFLOADS = "python:frames", "python:offloads"
"""The specs of a test's own network: plain frames, or a virtio_net_hdr before each."""

T = TypeVar("T")


class _Loop:
    """An event loop on a thread of its own, until `close`."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(),), name="netback", daemon=True)
        self._thread.start()
        self._ready.wait()

    def call(self, work: Coroutine[Any, Any, T], seconds: float = SECONDS, what: str = "an answer") -> T:
        """Run a coroutine there and return its result. TimeoutError: not within `seconds`."""

        async def bounded() -> T:
            async with asyncio.timeout(seconds):
                return await work

        try:
            return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()
        except TimeoutError:
            raise TimeoutError(f"not within {seconds:g} s: {what}") from None

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()


class Port:
    """One end of a vif, as the network that is there: each call moves one Ethernet frame without its checksum.

    If the vif was made with `offloads`, a virtio_net_hdr (10 bytes, `netback.abi.virtio_net.HEADER`) precedes every
    frame, and a frame may have a blank checksum or 64 KiB to be segmented.
    """

    def __init__(self, network: Callable[[], PythonNetwork], name: str) -> None:
        self._network, self._name = network, name

    def send(self, frame: bytes, *, seconds: float = SECONDS) -> None:
        """Send a frame; waits for room. BrokenPipeError: the vif's end is closed."""
        sock = self._network().socket
        if not frame:
            raise ValueError(f"{self._name}: the frame is empty")
        end = time.monotonic() + seconds
        while True:
            with suppress(BlockingIOError):
                sock.send(frame)
                return
            self._wait(sock.fileno(), select.POLLOUT, end, f"room for a frame at {self._name}")

    def recv(self, *, seconds: float = SECONDS) -> bytes:
        """The next frame; waits for one. EOFError: the vif's end is closed and every frame was read."""
        sock = self._network().socket
        end = time.monotonic() + seconds
        while True:
            with suppress(BlockingIOError):
                frame = sock.recv(MAX_FRAME + virtio_net.HEADER.size)
                if not frame:
                    raise EOFError(f"{self._name}: the vif's end is closed")
                return frame
            self._wait(sock.fileno(), select.POLLIN, end, f"a frame at {self._name}")

    def frames(self, count: int, *, seconds: float = SECONDS) -> list[bytes]:
        """The next `count` frames, within `seconds` in all."""
        end = time.monotonic() + seconds
        return [self.recv(seconds=max(0.0, end - time.monotonic())) for _ in range(count)]

    def _wait(self, fd: int, events: int, end: float, what: str) -> None:
        poll = select.poll()
        poll.register(fd, events)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError(f"in vain: {what}")


class Namespace:
    """A network namespace that ends with its context, with loopback up.

    As root it belongs to this user namespace, else to a new one, in which its processes are root. PlatformError: the
    kernel refuses one.
    """

    def __enter__(self) -> Self:
        root = os.geteuid() == 0
        user = [] if root else ["--user", "--map-root-user"]
        script = "ip link set lo up && echo ready && exec cat"
        self._keeper = subprocess.Popen(
            ["unshare", "--net", *user, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with(os.getpid()),
        )
        self._prefix = ["nsenter", f"--target={self._keeper.pid}", "--net"]
        self._prefix += [] if root else ["--user", "--preserve-credentials"]
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "ready\n":
            _, said = self._keeper.communicate()
            raise PlatformError(f"no network namespace can be made here: {said.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.kill()
        self._keeper.communicate()

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` in this namespace."""
        return [*self._prefix, *words]

    def run(self, *words: str, seconds: float = SECONDS) -> str:
        """Run a command there and return what it printed. AssertionError: it failed; its output is the text."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


class Process:
    """A program that runs on an emulated Xen, such as a frontend; it ends with that, by SIGTERM or else SIGKILL."""

    def __init__(self, words: list[str], environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._log = log
        self.process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with(os.getpid()),
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it printed so far, both streams."""
        return Path(self._log.name).read_text(errors="replace")

    def wait(self, *, seconds: float = SECONDS) -> int:
        """Its exit code, once it ended."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it still runs after {seconds:g} s; it printed:\n{self.output}") from None

    def says(self, text: str, *, seconds: float = SECONDS) -> None:
        """Wait until its output has this text. AssertionError: it ended before."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"it ended without {text!r}; it printed:\n{self.output}"
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} is not in its output after {seconds:g} s:\n{self.output}")
            time.sleep(0.01)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """End it in order, or by force after a few seconds; may be called again."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        self.process.kill()
        self.process.wait()
        self._log.close()


class _Undone:
    """What a context manager has made is undone at its end."""

    _undo: ExitStack

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()


class Xen(_Undone):
    """An emulated Xen: a store and a hypervisor that processes join as domains (docs/emulated-xen.md).

    with Xen() as xen, ServedBackend(xen) as backend:
        frontend = xen.spawn("./my-frontend", str(xen.directory))
    """

    def __init__(self) -> None:
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._scratch = Path(tempfile.mkdtemp(prefix="xen-"))  # short: a socket's path has 107 bytes
            undo.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self.directory = self._scratch / "xen"
            undo.enter_context(Emulator(self.directory))
            self.loop = _Loop()
            undo.callback(self.loop.close)
            self._platform = undo.enter_context(EmulatedPlatform(self.directory))
            self.store: Store = self.loop.call(self._platform.open_store())
            undo.callback(lambda: self.loop.call(self.store.close()))
            self._undo = undo.pop_all()
        return self

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, in which the xenstore tools also find this store."""
        path = str(self.directory / STORE_SOCKET)
        return {**os.environ, "XENSTORED_PATH": path, "PYTHONUNBUFFERED": "1"}

    def spawn(self, *words: str, namespace: Namespace | None = None) -> Process:
        """Start a program, in a network namespace if one is named. `netback` alone is this netback's command."""
        command = [sys.executable, "-m", "netback", *words[1:]] if words[0] == "netback" else [*words]
        log = tempfile.NamedTemporaryFile(dir=self._scratch, delete=False)  # noqa: SIM115 (closed in Process.end)
        process = Process(namespace.command(*command) if namespace else command, self.environment, log)
        self._undo.callback(process.end)
        return process

    def join(self, name: str = "") -> EmulatedDomain:
        """Make a domain of this process: pages, grants, event channels, and a store connection by `open_store`."""
        return self._undo.enter_context(EmulatedDomain.join(self.directory, name=name))

    def read(self, path: str) -> str | None:
        """The value of a node with domain 0's rights; None: there is none."""
        return self.loop.call(self.store.read_or(path))

    def write(self, path: str, value: str) -> None:
        """Write a node with domain 0's rights."""
        self.loop.call(self.store.write(path, value))

    def list(self, path: str) -> list[str]:
        """The names of a node's children."""
        return self.loop.call(self.store.directory(path))

    def wait(self, path: str, *values: str, seconds: float = SECONDS) -> str:
        """Wait until a node has one of these values, and return it. TimeoutError names the last one."""
        seen: list[str | None] = [None]

        async def follow() -> str:
            async with await self.store.watch(path) as watch:
                async for _ in watch:
                    value = seen[0] = await self.store.read_or(path)
                    if value is not None and value in values:
                        return value
            raise PlatformError("the store is gone")

        try:
            return self.loop.call(follow(), seconds)
        except TimeoutError:
            raise TimeoutError(
                f"{path} is {seen[0]!r} after {seconds:g} s, not {' or '.join(map(repr, values))}"
            ) from None


class Device:
    """A vif as its backend sees it."""

    def __init__(self, backend: "ServedBackend", name: DeviceName) -> None:
        self._backend, self._name = backend, name
        self.name = str(name)
        """As in "vif1.0"."""
        self.host = Port(lambda: backend.network(self.name), f"{self.name}'s network")
        """The network behind it, unless `attach` named another one."""

    @property
    def states(self) -> tuple[str, str]:
        """The backend's and the frontend's xenbus states by name, as in ("Connected", "Initialised")."""
        status = self.show().device
        return status.backend or "Unknown", status.frontend or "Unknown"

    def connected(self, *, seconds: float = SECONDS) -> None:
        """Wait until both ends are Connected. TimeoutError names the states and the device's error."""
        wanted = str(int(XenbusState.CONNECTED))
        end = time.monotonic() + seconds
        try:
            for path in (self._name.frontend, self._name.backend):
                self._backend.xen.wait(f"{path}/state", wanted, seconds=max(0.0, end - time.monotonic()))
        except TimeoutError:
            back, front = self.states
            error = self.show().device.error
            raise TimeoutError(
                f"{self.name} is not connected after {seconds:g} s: the backend is {back}, the frontend {front}"
                + (f"; {error}" if error else "")
            ) from None

    def show(self) -> Details:
        """Everything that `netback show` tells: features and why not, counters, nodes."""
        return self._backend.client.show(self.name)

    def detach(self, *, seconds: float = SECONDS) -> bool:
        """Take it from its guest. False: the guest did not answer within `seconds`, so it was forced."""
        return self._backend.client.detach(self.name, seconds=seconds)


class ServedBackend:
    """netback's backend in this process, for domain 0 of an emulated Xen."""

    def __init__(self, xen: Xen, **config: Any) -> None:
        """`config` are fields of netback.daemon.BackendConfig, such as queues=4."""
        self.xen, self._config = xen, config
        self._networks: dict[str, PythonNetwork] = {}
        self._made = asyncio.Event()
        self._running = AsyncExitStack()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._forget()

    @property
    def client(self) -> Client:
        """A client of its control socket."""
        return self._client

    def attach(
        self,
        guest: int | str,
        net: str | None = None,
        *,
        offloads: bool = False,
        mac: str | None = None,
        seconds: float = SECONDS,
    ) -> Device:
        """Give a domain, by domid or name, a vif, and wait until the backend offers it.

        `net` is a spec, as of `netback attach --net`; without one the test itself is the network (Device.host).
        """
        spec = net or (_OFFLOADS if offloads else _FRAMES)
        what = f"the backend serves a vif of domain {guest}"
        return Device(self, self.xen.loop.call(self._attach(str(guest), spec, mac), seconds, what))

    def restart(self) -> None:
        """End the backend in order and start another one: guests notice nothing. Frames that the test has not received
        are lost; frames to a guest wait for its slots as before.
        """
        self._stop()
        former = {*self._networks}
        self._forget()
        self._start()
        self.xen.loop.call(self._reopened(former), what="the new backend opens the networks of its devices")

    def network(self, device: str) -> PythonNetwork:
        """The network that the test is for a device. ConfigError: `attach` named another one."""
        if device not in self._networks:
            raise ConfigError(f"{device} has a network of its own")
        return self._networks[device]

    async def _attach(self, guest: str, net: str, mac: str | None) -> DeviceName:
        domid = await await_domain(self._backend.store, guest)
        name = await self._backend.attach(domid, net, mac=mac)
        while net in (_FRAMES, _OFFLOADS) and str(name) not in self._networks:
            await self._next_network()
        return name

    async def _reopened(self, names: set[str]) -> None:
        """Wait for the networks of these devices, of those that still exist."""
        while names.intersection(map(str, self._backend.devices)) - self._networks.keys():
            await self._next_network()

    async def _next_network(self) -> None:
        self._made.clear()
        await self._made.wait()

    def _forget(self) -> None:
        for network in self._networks.values():
            network.remove()
        self._networks.clear()

    def _start(self) -> None:
        self.xen.loop.call(self._enter())
        self._client = Client(self.xen.directory)

    def _stop(self) -> None:
        self._client.close()
        self.xen.loop.call(self._running.aclose())

    async def _enter(self) -> None:
        networks = {_FRAMES: self._factory(offloads=False), _OFFLOADS: self._factory(offloads=True)}
        async with AsyncExitStack() as undo:
            platform = undo.enter_context(EmulatedPlatform(self.xen.directory))
            config = BackendConfig(self.xen.directory, networks=networks, **self._config)
            self._backend = await undo.enter_async_context(Backend(platform, config))
            self._running = undo.pop_all()

    def _factory(self, *, offloads: bool) -> Callable[[str], PythonNetwork]:
        def make(name: str) -> PythonNetwork:
            former = self._networks.get(name)
            if former is not None:
                former.remove()
            network = self._networks[name] = PythonNetwork(name, vnet_hdr=offloads)
            self._made.set()
            return network

        return make


class Guest(_Undone):
    """A domain with netback's own frontend, for a backend or a toolstack to serve: once the domain is given vif 0, by
    ServedBackend.attach or by a program, the frontend connects it by itself.
    """

    def __init__(self, xen: Xen, *, offloads: bool = False, name: str = "", **frontend: Any) -> None:
        """`frontend` are arguments of netback.frontend.Frontend, such as config=FrontConfig(sg=False)."""
        self.xen, self.name = xen, name
        self._offloads, self._arguments = offloads, frontend

    def __enter__(self) -> Self:
        network = PythonNetwork("guest", vnet_hdr=self._offloads)
        self.port = Port(lambda: network, f"{self.name or 'the guest'}'s network stack")
        """Its network stack, which the test is."""
        with ExitStack() as undo:
            undo.callback(network.remove)
            self.frontend = Frontend(self.xen.directory, network, name=self.name, **self._arguments)
            self.xen.loop.call(self.frontend.__aenter__())
            undo.callback(lambda: self.xen.loop.call(self.frontend.close()))
            self.domid = self.frontend.guest.domid
            self._undo = undo.pop_all()
        return self

    def connected(self, *, seconds: float = SECONDS) -> None:
        """Wait until frames can pass. TimeoutError names both states; BackendError: the backend cannot serve it."""
        self._until(self.frontend.connected(), "connected", seconds)

    def disconnected(self, *, seconds: float = SECONDS) -> None:
        """Wait until it has no rings. TimeoutError names both states."""
        self._until(self.frontend.disconnected(), "disconnected", seconds)

    def reload(self, *, seconds: float = SECONDS) -> None:
        """Close the vif in order and offer it again, as a driver that is reloaded does."""
        self._until(self.frontend.reload(), "reloaded", seconds)

    def _until(self, work: Coroutine[Any, Any, None], what: str, seconds: float) -> None:
        try:
            self.xen.loop.call(work, seconds)
        except TimeoutError:
            front, back = self.frontend.state.title, self.frontend.backend_state.title
            raise TimeoutError(
                f"domain {self.domid} is not {what} after {seconds:g} s: the frontend is {front}, the backend {back}"
            ) from None


class Vif(_Undone):
    """A connected vif of netback's own frontend: frames go in at `guest` and come out at `host`, and back."""

    def __init__(self, backend: ServedBackend, *, offloads: bool = False, **frontend: Any) -> None:
        """`frontend` are arguments of netback.frontend.Frontend, such as config=FrontConfig(sg=False)."""
        self._backend, self._offloads, self._arguments = backend, offloads, frontend

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            guest = undo.enter_context(Guest(self._backend.xen, offloads=self._offloads, **self._arguments))
            self.device = self._backend.attach(guest.domid, offloads=self._offloads)
            guest.connected()
            self.frontend, self.guest, self.host = guest.frontend, guest.port, self.device.host
            self._undo = undo.pop_all()
        return self


__all__ = ["Device", "Guest", "Namespace", "NetbackError", "Port", "Process", "ServedBackend", "Vif", "Xen"]
