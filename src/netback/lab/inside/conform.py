# SPDX-License-Identifier: Apache-2.0
"""Runs in dom0: plays the backends of `netback conform` for a guest's netfront, and writes the recording to a file.

    python3 -P -m netback.lab.inside.conform [--unpause] DOMID FILE ADDRESS [PROFILE]...

The host judges the recording. Here the store is seen by watches alone: what a transaction holds appears at once, and a
value that is replaced at once is not seen. Each profile has a device index of its own. With --unpause the guest is a
paused one, which is started once it has the device of the first profile: unikernels look for devices at their start
alone.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import CalledProcessError

from netback.abi.xenbus import XenbusState as State
from netback.conform import recording
from netback.conform.backend import Limits, PlayedBackend
from netback.conform.drive import Drive
from netback.conform.observation import Joined, Observation, StoreRequest
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


async def observe_device(
    platform: Platform,
    name: DeviceName,
    profile: BackendProfile,
    setting: Setting,
    start: Callable[[], Awaitable[object]] | None = None,
) -> Observation:
    """Play one backend for a guest, on any platform; the device is removed afterwards. `start` is awaited once the
    device is there.
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
        if start is not None:
            tasks.append(loop.create_task(_once_offered(store, name, start)))
        try:
            async with PlayedBackend(platform, name, profile, recorder, setting.limits, MAC) as backend:
                await Drive(backend, setting.ends, setting.seed).run()
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


async def _once_offered(store: Store, name: DeviceName, start: Callable[[], Awaitable[object]]) -> None:
    async with await store.watch(f"{name.backend}/state") as watch:
        async for path in watch:
            if await store.read_or(path) == str(int(State.INIT_WAIT)):
                await start()
                return


async def unpause(domid: int) -> None:
    """Start a paused domain. CalledProcessError: xl cannot."""
    process = await asyncio.create_subprocess_exec("xl", "unpause", str(domid))
    if code := await process.wait():
        raise CalledProcessError(code, "xl unpause")


async def main(
    domid: int, path: Path, address: str, profiles: Sequence[str], *, paused: bool = False
) -> None:
    chosen = [find_profile(name) for name in profiles] or PROFILES
    limits = replace(LIMITS, answer=BOOT) if paused else LIMITS
    setting = Setting(limits=limits, address4=str(IPv4Address(address)))
    start = partial(unpause, domid) if paused else None
    seen = []
    with XenPlatform() as platform:
        for index, profile in enumerate(chosen):
            name = DeviceName("vif", platform.domid, domid, str(index))
            seen.append(await observe_device(platform, name, profile, replace(setting, index=index), start))
            start = None
            print(f"{profile.name}: {len(seen[-1].events)} events", flush=True)
    recording.save(path, "frontend", seen)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--unpause"]
    asyncio.run(main(int(words[0]), Path(words[1]), words[2], words[3:], paused="--unpause" in sys.argv))
