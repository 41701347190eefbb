# SPDX-License-Identifier: Apache-2.0
"""What a toolstack does for a guest's network device, and what anybody can see of it: nodes and states in the store.

Knows xenstore alone: no process of the demo.
"""

import asyncio
import time
from collections.abc import Callable

from netback.abi.xenbus import XenbusState as State
from netback.demo.report import Step
from netback.platforms.store import Store
from netback.xenbus.names import DeviceName

KNOWN = {str(int(state)) for state in State}


async def plug(store: Store, name: DeviceName, net: str, mac: str) -> None:
    """Make both directories as `xl` does, in one transaction; both ends find themselves in state 1."""
    begin = str(int(State.INITIALISING))
    ends: dict[str, tuple[list[str], dict[str, str]]] = {
        name.frontend: (
            name.frontend_perms,
            {"backend": name.backend, "backend-id": str(name.backend_domid), "mac": mac, "state": begin},
        ),
        name.backend: (
            name.backend_perms,
            {
                "frontend": name.frontend,
                "frontend-id": str(name.domid),
                "online": "1",
                "mac": mac,
                "net": net,
                "state": begin,
            },
        ),
    }

    async def body(tx: int) -> None:
        for path, (perms, nodes) in ends.items():
            await store.mkdir(path, tx)
            await store.set_perms(path, perms, tx)
            for node, value in nodes.items():
                await store.write(f"{path}/{node}", value, tx)

    await store.transact(body)


class Timeline:
    """The states of both ends, each change with its time, for as long as it is watched."""

    def __init__(self, store: Store, name: DeviceName, told: Callable[[Step], None]) -> None:
        self.steps: list[Step] = []
        self._store = store
        self._paths = {"backend": f"{name.backend}/state", "frontend": f"{name.frontend}/state"}
        self._states = dict.fromkeys(self._paths, "")
        self._told = told
        self._begin = 0.0

    async def follow(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for side, path in self._paths.items():
                tasks.create_task(self._watch(side, path))

    async def _watch(self, side: str, path: str) -> None:
        async with await self._store.watch(path) as watch:
            async for _ in watch:
                self._see(side, await self._store.read_or(path))

    def _see(self, side: str, text: str | None) -> None:
        state = State(int(text)).title if text in KNOWN else ""
        if state == self._states[side]:
            return
        self._states[side] = state
        if not all(self._states.values()):
            return
        now = time.monotonic()
        self._begin = self._begin or now
        step = Step((now - self._begin) * 1000, self._states["backend"], self._states["frontend"])
        self.steps.append(step)
        self._told(step)
