# SPDX-License-Identifier: Apache-2.0
"""Runs in dom0: plays the backends of `netback conform` for a guest's netfront, and writes the recording to a file.

    python3 -P -m netback.lab.inside.conform DOMID FILE ADDRESS [PROFILE]...

The host judges the recording. Here the store is seen by watches alone: what a transaction holds appears at once, and a
value that is replaced at once is not seen. Each profile has a device index of its own.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

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
    platform: Platform, name: DeviceName, profile: BackendProfile, setting: Setting
) -> Observation:
    """Play one backend for a guest that runs, on any platform; the device is removed afterwards."""
    recorder = Recorder()
    recorder.add(Joined(name.domid))
    async with await platform.open_store() as store:
        watched = WatchedStore(store, name, recorder)
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(watched.follow(name.frontend, name.domid)),
            loop.create_task(watched.follow(name.backend, 0, "state")),
        ]
        try:
            async with PlayedBackend(platform, name, profile, recorder, setting.limits, MAC) as backend:
                await Drive(backend, setting.ends, setting.seed).run()
                await asyncio.sleep(setting.limits.settle)  # the watches come behind
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await remove_device(store, name, name.frontend)
    return Observation(
        profile.name, dict(profile.offer), name.domid, setting.index, MAC, setting.seed, recorder.events
    )


async def main(domid: int, path: Path, address: str, profiles: Sequence[str]) -> None:
    chosen = [find_profile(name) for name in profiles] or PROFILES
    setting = Setting(limits=LIMITS, address4=str(IPv4Address(address)))
    seen = []
    with XenPlatform() as platform:
        for index, profile in enumerate(chosen):
            name = DeviceName("vif", platform.domid, domid, str(index))
            seen.append(await observe_device(platform, name, profile, replace(setting, index=index)))
            print(f"{profile.name}: {len(seen[-1].events)} events", flush=True)
    recording.save(path, "frontend", seen)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
