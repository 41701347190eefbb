# SPDX-License-Identifier: Apache-2.0
"""Reads a device's nodes at both ends and states them as Facts.

A guest writes its own directory as it likes, so every value is read strictly: what is not exactly as xenbus.h has it
counts as absent.
"""

import asyncio
from dataclasses import dataclass

from netback.abi.xenbus import XenbusState as State
from netback.errors import ConfigError
from netback.vif.features import parse_mac
from netback.xenbus.context import Context
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import MADE_BY, MAKER
from netback.xenbus.states import Facts
from netback.xenstore.aio import Store, StoreError


async def read_backend(store: Store, name: DeviceName, node: str) -> str | None:
    """A node of the device's backend directory."""
    return await store.read_or(f"{name.backend}/{node}")


async def read_frontend(store: Store, frontend: str, node: str) -> str | None:
    """A node of the frontend's directory; a guest that takes our right to read it away has, to us, removed it."""
    try:
        return await store.read_or(f"{frontend}/{node}")
    except StoreError as error:
        if error.errno != "EACCES":
            raise
        return None


async def read_mac(store: Store, name: DeviceName) -> str | None:
    """The MAC address that the toolstack chose. ConfigError: it is malformed, or missing on a qnic."""
    _ = name.index
    text = await read_backend(store, name, "mac")
    if text is None and name.kind == "vif":
        return None
    try:
        return parse_mac(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one reading of the store found."""

    facts: Facts
    made_here: bool
    """`netback attach` wrote the device's nodes."""
    script_failed: bool
    """`hotplug-status` is "error"."""


class FactReader:
    """Reads one device's facts, and remembers what a single reading cannot show."""

    def __init__(self, name: DeviceName, context: Context) -> None:
        self.frontend = ""
        """The frontend's directory, as the backend's first said."""
        self.theirs = State.UNKNOWN
        self._name, self._store, self._tracer = name, context.store, context.tracer
        self._refused = True  # a Closing stands, a predecessor's as well, until the frontend leaves Connected
        self._domain_seen = False
        self._frontend_seen = False

    async def read(self, *, attached: bool) -> Snapshot:
        """Read both ends. A device exists once its state, `online` and `frontend` do.

        `attached`: this process has the rings.
        """
        state, online, hotplug, script, made_by, frontend = await asyncio.gather(
            *(
                read_backend(self._store, self._name, node)
                for node in ("state", "online", "hotplug-status", "script", MADE_BY, "frontend")
            )
        )
        self.frontend = self.frontend or (frontend or "")
        dead = await self._is_dead(made_by is not None)
        ours = State.UNKNOWN if online is None or not self.frontend else State.parse(state)
        self._note(ours, State.UNKNOWN if dead else await self._read_theirs(ours))
        facts = Facts(
            theirs=self.theirs,
            ours=ours,
            online=online == "1" and not dead,
            hotplug_done=script is None or hotplug == "connected",
            attached=attached,
            refused=self._refused,
        )
        return Snapshot(facts, made_by == MAKER, hotplug == "error")

    async def _is_dead(self, made_here: bool) -> bool:
        """Whether the domain ended. A domain never seen may still be coming, unless `attach` checked that it ran."""
        try:
            introduced = await self._store.introduced(self._name.domid)
        except StoreError as error:
            if error.errno != "EACCES":
                raise
            return False  # a driver domain may not ask: it sees the end by the frontend's directory
        self._domain_seen |= introduced
        return not introduced and (self._domain_seen or made_here)

    async def _read_theirs(self, ours: State) -> State:
        """The frontend's state; Initialising while its directory has never been seen."""
        text = await read_frontend(self._store, self.frontend, "state") if self.frontend else None
        self._frontend_seen |= text is not None or ours not in (State.INITIALISING, State.INIT_WAIT)
        return State.parse(text) if self._frontend_seen else State.INITIALISING

    def _note(self, ours: State, theirs: State) -> None:
        if theirs is not State.CONNECTED:
            self._refused = False
        elif ours is not State.CLOSING:
            self._refused = True
        if theirs is not self.theirs:
            self.theirs = theirs
            self._tracer.hit("xen_netdev_frontend_changed", self._name, int(theirs))
