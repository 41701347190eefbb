# SPDX-License-Identifier: Apache-2.0
"""One run of a frontend: an emulated Xen of its own, the command as a process, a domain, the device, the drive.

Nothing of it is left behind: every process that the command started is ended with it, whatever its session.
"""

import asyncio
import logging
import os
import shlex
import signal
import tempfile
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

from netback.abi.grant_table import ENTRY, TYPE_MASK
from netback.conform.backend import Limits, PlayedBackend
from netback.conform.drive import Drive
from netback.conform.frames import Addresses
from netback.conform.observation import Ended, Exited, Observation, Remains
from netback.conform.profiles import BackendProfile
from netback.conform.recorder import Recorder, RecordingStore
from netback.errors import PlatformError
from netback.platforms.emulated import EmulatedPlatform, Emulator, print_env
from netback.platforms.emulated.client import Handle
from netback.platforms.emulated.events import AttachedHandles
from netback.platforms.emulated.memory import Mapping
from netback.platforms.emulated.protocol import Op, PortState
from netback.process import adopting_orphans, children, end_descendants
from netback.xenbus.names import DeviceName

log = logging.getLogger("netback.conform")

MAC = "00:16:3e:5e:00:02"
HOST_MAC = "02:00:00:5e:00:01"
_TICK = 0.02
OUTPUT_BYTES = 2000
"""Bytes of the command's last output that are kept."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same in every run of a command."""

    command: str = ""
    """For `sh -c`; empty: the caller brings the frontend."""
    index: int = 0
    seed: int = 1
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    address4: str = "192.0.2.2"
    """The guest's address; the host's is the one before it, as below."""
    address6: str = "2001:db8::2"

    @property
    def ends(self) -> Addresses:
        """Addresses of the drive's packets."""
        guest4, guest6 = IPv4Address(self.address4), IPv6Address(self.address6)
        return Addresses(
            _mac(MAC), _mac(HOST_MAC), guest4.packed, (guest4 - 1).packed, guest6.packed, (guest6 - 1).packed
        )


async def observe(profile: BackendProfile, setting: Setting, frontend: "Bring | None" = None) -> Observation:
    """Run the frontend once with a backend of this profile and return what was seen.

    `frontend(directory)`, a context, brings the frontend in place of the setting's command.
    """
    recorder = Recorder()
    loop = asyncio.get_running_loop()
    joined: asyncio.Queue[int] = asyncio.Queue()
    store = RecordingStore(
        recorder,
        lambda domid: _call(loop, joined, domid),
        conflict=profile.conflicts,
    )
    domid = 0
    with tempfile.TemporaryDirectory(prefix="netback-conform-") as name:
        directory = Path(name)
        async with Emulator(directory, store), (frontend or _command(setting, recorder))(directory) as gone:
            domid = await _first(joined, gone, setting.limits.join)
            if domid:
                await _drive(directory, domid, profile, setting, recorder, gone)
                recorder.add(store.load(domid))
            if Ended(domid) in recorder.events:
                with suppress(TimeoutError):  # its process is about to end, too, by itself
                    await asyncio.wait_for(gone.wait(), setting.limits.settle)
    return Observation(
        profile.name, dict(profile.offer), domid, setting.index, MAC, setting.seed, recorder.events
    )


def _call(loop: asyncio.AbstractEventLoop, joined: "asyncio.Queue[int]", domid: int) -> None:
    with suppress(RuntimeError):  # the run is over
        loop.call_soon_threadsafe(joined.put_nowait, domid)


async def _first(joined: "asyncio.Queue[int]", gone: asyncio.Event, seconds: float) -> int:
    """The first domain that joins; 0 if none does in time, or before the command ends."""
    first, ended = asyncio.ensure_future(joined.get()), asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((first, ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return first.result() if first.done() else 0
    finally:
        for wait in (first, ended):
            wait.cancel()
        await asyncio.wait((first, ended))


async def _drive(
    directory: Path,
    domid: int,
    profile: BackendProfile,
    setting: Setting,
    recorder: Recorder,
    gone: asyncio.Event,
) -> None:
    device = DeviceName("vif", 0, domid, str(setting.index))
    with EmulatedPlatform(directory) as platform:
        try:
            async with PlayedBackend(platform, device, profile, recorder, setting.limits, MAC) as backend:
                driving = asyncio.ensure_future(Drive(backend, setting.ends, setting.seed).run())
                ended = asyncio.ensure_future(_after(gone, setting.limits.settle))
                try:
                    await asyncio.wait({driving, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if driving.done():
                        driving.result()
                finally:
                    for task in (driving, ended):
                        task.cancel()
                    await asyncio.wait({driving, ended})
                    backend.close_rings()
                if Ended(domid) not in recorder.events:
                    recorder.add(await _remains(directory, domid, backend, setting.limits.settle))
        except PlatformError as error:
            if not gone.is_set() and error.errno not in ("ESRCH", "ENOENT"):  # the domain may end at any time
                raise


async def _after(gone: asyncio.Event, seconds: float) -> None:
    """Wait until the command has ended, and a moment, so that the drive sees its last states."""
    await gone.wait()
    await asyncio.sleep(seconds)


async def _remains(directory: Path, domid: int, backend: PlayedBackend, seconds: float) -> Remains:
    """Look at the grant table and the ports of a frontend whose device is Closed, until it has released all."""
    seen = Remains(0, [])
    handles = AttachedHandles(directory, domid)
    end = time.monotonic() + seconds
    try:
        with suppress(PlatformError):  # the domain ends, and everything with it
            handle = handles.attach()
            while True:
                seen = _look(handle, domid, backend.frontend_ports)
                if seen == Remains(0, []) or time.monotonic() > end:
                    break
                await asyncio.sleep(_TICK)
    finally:
        handles.close()
    return seen


def _look(handle: Handle, domid: int, ports: Sequence[int]) -> Remains:
    states = {port: handle.request(Op.STATUS, number=port)[0].status for port in ports}
    reply, (memfd,) = handle.request(Op.MEMORY, domid)
    try:
        table = Mapping(memfd, 0, reply.grant_pages)
    finally:
        os.close(memfd)
    raw = b"".join(bytes(table.view(page)) for page in range(reply.grant_pages))
    table.close()
    grants = sum(bool(flags & TYPE_MASK) for flags, _, _ in ENTRY.iter_unpack(raw))
    return Remains(grants, [port for port, state in states.items() if state != PortState.CLOSED])


Bring = Callable[[Path], AbstractAsyncContextManager[asyncio.Event]]
"""From the directory of an emulated Xen to a context in which the frontend runs; it yields an event for its end."""


def _command(setting: Setting, recorder: Recorder) -> Bring:
    @asynccontextmanager
    async def run(directory: Path) -> AsyncIterator[asyncio.Event]:
        gone = asyncio.Event()
        shown = shlex.split(print_env(directory))[1].split("=", 1)
        before = children()
        with adopting_orphans(), _Output() as output:
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *("/bin/sh", "-c", setting.command),
                    stdin=DEVNULL,
                    stdout=output.writer,
                    stderr=STDOUT,
                    env={**os.environ, shown[0]: shown[1]},
                    start_new_session=True,
                )
            )
            watching = asyncio.ensure_future(_wait(starting, gone))
            try:
                await asyncio.wait({starting})  # a cancelled start would leave the command's children
                process = starting.result()
                output.close_writer()
                yield gone
                sent = await _stop(process, gone, setting.limits.end)
            except BaseException:
                await _stop(await starting, gone, 0.0)
                raise
            finally:
                output.close_writer()
                if left := await end_descendants(before):
                    log.warning(
                        "netback: the frontend's command left processes that SIGKILL did not end: %s",
                        ", ".join(map(str, left)),
                    )
                with suppress(TimeoutError):  # such a process may hold the pipe
                    await asyncio.wait_for(output.ended.wait(), setting.limits.end)
                watching.cancel()
        code = process.returncode if process.returncode is not None else 0
        recorder.add(Exited(code, sent, output.text()))

    return run


class _Output:
    """The pipe of the command's output; keeps the last bytes.

    It is not asyncio's: Process.wait() would wait for that pipe's end, too, which a child of the command may put off.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._last = bytearray()
        self.ended = asyncio.Event()
        """Every process that could write has ended."""

    def __enter__(self) -> Self:
        os.set_blocking(self._reader, False)
        asyncio.get_running_loop().add_reader(self._reader, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        self.close_writer()

    def close_writer(self) -> None:
        """Close this process's own end. May be called again."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def text(self) -> str:
        """The last output."""
        return bytes(self._last).decode(errors="replace").strip()

    def _take(self) -> None:
        data = os.read(self._reader, 65536)
        self._last += data
        del self._last[:-OUTPUT_BYTES]
        if not data:
            self.ended.set()
            asyncio.get_running_loop().remove_reader(self._reader)


async def _wait(starting: "asyncio.Future[Process]", gone: asyncio.Event) -> None:
    await asyncio.wait({starting})
    if starting.exception() is None:
        await starting.result().wait()
        gone.set()


async def _stop(process: Process, gone: asyncio.Event, seconds: float) -> int:
    """End the command: SIGTERM, then SIGKILL. Returns the signal that it needed, 0 for none."""
    sent = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        if gone.is_set():
            break
        sent = int(number)
        with suppress(ProcessLookupError, PermissionError):  # it may have become another user's
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), seconds if number == signal.SIGTERM else 10.0)
    return sent


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
