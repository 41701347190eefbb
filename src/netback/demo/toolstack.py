# SPDX-License-Identifier: Apache-2.0
"""What a toolstack does for a guest's network device, and what anybody can see of it: nodes and states in the store.

Knows xenstore alone: no process of the demo.
"""

import asyncio
import time
from collections.abc import Callable

from netback.abi.xenbus import XenbusState as State
from netback.demo.report import Step
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import write_device
from netback.xenstore.aio import Store

KNOWN = {str(int(state)) for state in State}


async def plug(store: Store, name: DeviceName, net: str, mac: str) -> None:
    """Make both directories as `xl` does, in one transaction; both ends find themselves in state 1."""
    begin = str(int(State.INITIALISING))
    frontend = {"backend": name.backend, "backend-id": str(name.backend_domid), "mac": mac, "state": begin}
    backend = {
        "frontend": name.frontend,
        "frontend-id": str(name.domid),
        "online": "1",
        "mac": mac,
        "net": net,
        "state": begin,
    }
    await store.transact(lambda tx: write_device(store, name, frontend, backend, tx))


class Timeline:
    """The states of both ends, each change with its time, for as long as it is watched."""

    def __init__(self, store: Store, name: DeviceName, told: Callable[[Step], None]) -> None:
        self.steps: list[Step] = []
        self._store = store
        self._paths = (f"{name.backend}/state", f"{name.frontend}/state")
        self._told = told
        self._states = ("", "")
        self._begin = 0.0
        self._looks: asyncio.Queue[asyncio.Future[list[str | None]]] = asyncio.Queue()

    async def follow(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for path in self._paths:
                tasks.create_task(self._watch(path))
            while True:
                look = await self._looks.get()
                self._see(*map(_title, await look))

    async def _watch(self, path: str) -> None:
        """Look at both at once when one changed, so that little is missed and nothing is seen that never was."""
        async with await self._store.watch(path) as watch:
            async for _ in watch:
                look = asyncio.gather(*map(self._store.read_or, self._paths))
                look.add_done_callback(
                    lambda look: look.cancelled() or look.exception()
                )  # nobody may wait for it
                self._looks.put_nowait(look)

    def _see(self, backend: str, frontend: str) -> None:
        if (backend, frontend) == self._states or not (backend and frontend):
            return
        self._states = (backend, frontend)
        now = time.monotonic()
        self._begin = self._begin or now
        step = Step((now - self._begin) * 1000, backend, frontend)
        self.steps.append(step)
        self._told(step)


def _title(state: str | None) -> str:
    return State(int(state)).title if state in KNOWN else ""
