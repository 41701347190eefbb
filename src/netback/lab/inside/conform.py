# SPDX-License-Identifier: Apache-2.0
"""Runs in dom0: plays the backends of `netback conform` for a guest's netfront, and writes the recording to a file.

    python3 -P -m netback.lab.inside.conform [--unpause] DOMID FILE ADDRESS SEED [PROFILE]...

The host judges the recording. Here the store is seen by watches alone: what a transaction holds appears at once, and a
value that is replaced at once is not seen. Each profile has a device index of its own. With --unpause the guest is a
paused one, which is started once it has the device of the first profile: unikernels look for devices at their start
alone.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import PIPE, CalledProcessError
from typing import Protocol, Self

from netback.abi.xenbus import XenbusState as State
from netback.conform import recording
from netback.conform.backend import Limits, PlayedBackend
from netback.conform.drive import Drive
from netback.conform.observation import Ended, Joined, Observation, StoreRequest
from netback.conform.profiles import PROFILES, BackendProfile, find_profile
from netback.conform.recorder import Recorder
from netback.conform.session import MAC, Setting
from netback.errors import printable
from netback.platforms.base import Platform
from netback.platforms.xen import XenPlatform
from netback.xenbus.names import DeviceName, remove_device
from netback.xenstore.aio import Store, StoreError

LIMITS = Limits(answer=20.0, settle=1.0, event=0.5)
"""For software emulation, where a guest takes its time."""
BOOT = 60.0
"""Seconds for an answer of a guest that may still be starting."""
_ENDED = frozenset("scd")
"""Flags of `xl list`: shutdown, crashed, dying."""


class WatchedStore:
    """Records what changes in a device's two directories, as far as watches show it."""

    def __init__(self, store: Store, name: DeviceName, recorder: Recorder) -> None:
        self._store, self._name, self._recorder = store, name, recorder
        self._toolstack = {
            f"{name.frontend}/{key}" for key in ("backend", "backend-id", "handle", "mac", "state")
        }
        """The keys that are made with the device: the first change of each is not the guest's."""

    async def follow(self, directory: str, domid: int, only: str = "") -> None:
        """Record each change below `directory` as a write of `domid`; with `only`, of this key alone."""
        async with await self._store.watch(f"{directory}/{only}" if only else directory) as watch:
            async for path in watch:
                if path in self._toolstack:
                    self._toolstack.discard(path)
                elif path != directory:
                    await self._record(path, domid)

    async def _record(self, path: str, domid: int) -> None:
        try:
            value = await self._store.read_or(path)
        except StoreError:
            value = None
        op = "RM" if value is None else "WRITE"
        self._recorder.add(StoreRequest(domid, op, printable(path), printable(value or "")))


class PausedGuest(Protocol):
    """A guest that is there and was not started yet."""

    async def start(self) -> None: ...

    async def has_ended(self) -> bool:
        """Asked whenever a domain ended."""


async def observe_device(
    platform: Platform,
    name: DeviceName,
    profile: BackendProfile,
    setting: Setting,
    guest: PausedGuest | None = None,
) -> Observation:
    """Play one backend for a guest, on any platform; the device is removed afterwards. `guest` is started once the
    device is there, and its end is the last thing that is seen of it.
    """
    recorder = Recorder()
    recorder.add(Joined(name.domid))
    async with await platform.open_store() as store:
        watched = WatchedStore(store, name, recorder)
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(watched.follow(name.frontend, name.domid)),
            loop.create_task(watched.follow(name.backend, 0, "state")),
        ]
        if guest is not None:
            tasks.append(loop.create_task(_once_offered(store, name, guest)))
        try:
            async with PlayedBackend(platform, name, profile, recorder, setting.limits, MAC) as backend:
                driving = loop.create_task(Drive(backend, setting.ends, setting.seed).run())
                ending = loop.create_task(_until_ended(store, guest))
                tasks += driving, ending
                await asyncio.wait({driving, ending}, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    recorder.add(Ended(name.domid))
                    driving.cancel()  # before its rings are closed
                    await asyncio.wait({driving})
                await asyncio.sleep(setting.limits.settle)  # the watches come behind
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await remove_device(store, name, name.frontend)
        for task in tasks:
            if not task.cancelled():
                task.result()
    return Observation(
        profile.name, dict(profile.offer), name.domid, setting.index, MAC, setting.seed, recorder.events
    )


async def _once_offered(store: Store, name: DeviceName, guest: PausedGuest) -> None:
    async with await store.watch(f"{name.backend}/state") as watch:
        async for path in watch:
            if await store.read_or(path) == str(int(State.INIT_WAIT)):
                await guest.start()
                return


async def _until_ended(store: Store, guest: PausedGuest | None) -> None:
    """Of a guest that was running before nothing is known."""
    async with await store.watch("@releaseDomain") as watch:
        async for _ in watch:
            if guest is not None and await guest.has_ended():
                return


@dataclass(frozen=True, slots=True)
class XlGuest:
    """A guest that `xl create -p` made."""

    domid: int

    async def start(self) -> None:
        """CalledProcessError: xl cannot."""
        await _xl("unpause", str(self.domid))

    async def has_ended(self) -> bool:
        """By its flags: it has shut down, crashed, or is being destroyed."""
        try:
            listed = await _xl("list", str(self.domid))
        except CalledProcessError:
            return True
        return not _ENDED.isdisjoint(listed.splitlines()[-1].split()[-2])


async def _xl(*words: str) -> str:
    process = await asyncio.create_subprocess_exec("xl", *words, stdout=PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise CalledProcessError(process.returncode, f"xl {words[0]}")
    return output.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Request:
    """What the host asks for: the words of the command line."""

    domid: int
    path: Path
    setting: Setting
    profiles: Sequence[BackendProfile]
    paused: bool = False

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """From [--unpause] DOMID FILE ADDRESS SEED [PROFILE]..."""
        paused = words[0] == "--unpause"
        domid, path, address, seed, *names = words[1:] if paused else words
        limits = replace(LIMITS, answer=BOOT) if paused else LIMITS
        setting = Setting(seed=int(seed), limits=limits, address4=str(IPv4Address(address)))
        chosen = [find_profile(name) for name in names] or PROFILES
        return cls(int(domid), Path(path), setting, chosen, paused)


async def main(request: Request) -> None:
    seen: list[Observation] = []
    with XenPlatform() as platform:
        for index, profile in enumerate(request.profiles):
            name = DeviceName("vif", platform.domid, request.domid, str(index))
            setting = replace(request.setting, index=index)
            guest = XlGuest(request.domid) if request.paused and not seen else None
            seen.append(await observe_device(platform, name, profile, setting, guest))
            print(f"{profile.name}: {len(seen[-1].events)} events", flush=True)
    recording.save(request.path, "frontend", seen)


if __name__ == "__main__":
    asyncio.run(main(Request.parse(sys.argv[1:])))
