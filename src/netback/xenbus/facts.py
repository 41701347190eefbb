# SPDX-License-Identifier: Apache-2.0
"""Reads a device's nodes at both ends and returns them as Facts.

A guest can write anything into its own directory, so every value is parsed strictly: what xenbus.h does not
define counts as absent.
"""

import asyncio
from dataclasses import dataclass

from netback.abi.xenbus import XenbusState as State
from netback.errors import ConfigError
from netback.vif.features import parse_mac
from netback.xenbus.context import Context
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import MADE_BY, MAKER
from netback.xenbus.states import USING, Facts
from netback.xenstore.aio import Store, StoreError, StoreGone


async def read_backend(store: Store, name: DeviceName, node: str) -> str | None:
    """A node of the device's backend directory."""
    return await store.read_or(f"{name.backend}/{node}")


async def read_frontend(store: Store, frontend: str, node: str) -> str | None:
    """A node of the frontend's directory. A guest that revokes our right to read a node has, for us, removed
    it.
    """
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
    """The result of reading the store once."""

    facts: Facts
    made_here: bool
    """`netback attach` wrote the device's nodes."""
    script: str | None
    """The hotplug script, if the device has one."""
    hotplug_status: str | None
    """What it wrote."""

    @property
    def script_failed(self) -> bool:
        """`hotplug-status` is "error"."""
        return self.hotplug_status == "error"


_NODES = (MADE_BY, "frontend", "script", "hotplug-status", "online", "state")


class FactReader:
    """Reads one device's facts and remembers what a single reading cannot show."""

    def __init__(self, name: DeviceName, context: Context) -> None:
        self.frontend = ""
        """The frontend's directory, as our `frontend` node last named it."""
        self.theirs = State.UNKNOWN
        self._name, self._store, self._tracer = name, context.store, context.tracer
        self._refused = True  # Closing, perhaps a predecessor's, stays while the frontend is in USING
        self._domain_seen = False
        self._frontend_seen = False
        self._orphan: bool | None = None

    async def read(
        self, *, open: bool, attached: bool, broken: bool, elsewhere: bool, moved: bool
    ) -> Snapshot:
        """Read both ends; the arguments are what this process knows of the device. StoreError: a node cannot
        be read.

        A device exists once its state, `online` and `frontend` do. The frontend's state is requested first:
        acting on an older frontend state is safe, since its change wakes the device again; acting on an older
        `online` is not.
        """
        text, introduced, ours_read = await asyncio.gather(
            self._read_state(), self._introduced(), self._read_ours()
        )
        made_by, frontend, script, hotplug, online, state = ours_read
        if frontend and frontend != self.frontend:
            self.frontend, self._frontend_seen = frontend, False
            text = await self._read_state()
        exists = online is not None and bool(self.frontend)
        ours = State.parse(state) if exists else State.UNKNOWN
        dead = await self._is_dead(introduced, made_by == MAKER)
        wanted = exists and online == "1" and not dead
        self._note(ours, self._theirs(text, ours, wanted) if exists and not dead else State.UNKNOWN)
        facts = Facts(
            theirs=self.theirs,
            ours=ours,
            online=wanted,
            hotplug_done=script is None or hotplug == "connected",
            open=open,
            attached=attached,
            broken=broken,
            elsewhere=elsewhere,
            refused=self._refused,
            moved=moved,
        )
        return Snapshot(facts, made_by == MAKER, script, hotplug)

    async def _read_ours(self) -> list[str | None]:
        return await asyncio.gather(*(read_backend(self._store, self._name, node) for node in _NODES))

    async def _introduced(self) -> bool | None:
        """Whether the domain runs; None in a driver domain, which may not ask: there the frontend's directory
        shows it.
        """
        try:
            return await self._store.introduced(self._name.domid)
        except StoreError as error:
            if error.errno != "EACCES":
                raise
            return None

    async def _is_dead(self, introduced: bool | None, made_here: bool) -> bool:
        """Whether the device's domain ended. A domain never seen may still be starting, unless `attach` saw
        it running.
        """
        if self._orphan is None:
            self._orphan = made_here and await self._has_no_frontend()
        self._domain_seen |= introduced is True
        return self._orphan or (introduced is False and (self._domain_seen or made_here))

    async def _has_no_frontend(self) -> bool:
        """Whether the frontend's directory of a device that `attach` made is missing when this process first
        reads it.

        `attach` writes both directories at once, and the frontend's is removed with its domain. If it is
        missing, that domain ended while no backend ran, and another domain may have its domid now.
        """
        try:
            return bool(self.frontend) and await self._store.read_or(f"{self.frontend}/backend") is None
        except StoreError as error:
            if error.errno != "EACCES":
                raise
            return False

    async def _read_state(self) -> str | StoreError | None:
        """The frontend's state node, or the error that prevented reading it."""
        try:
            return await read_frontend(self._store, self.frontend, "state") if self.frontend else None
        except StoreGone:
            raise
        except StoreError as error:
            return error

    def _theirs(self, text: str | StoreError | None, ours: State, wanted: bool) -> State:
        """The frontend's state; Initialising while its directory has never been seen.

        A `frontend` that is not a path is the device's error. It must not keep a device that is being
        removed, so such a frontend then counts as gone.
        """
        if isinstance(text, StoreError):
            if wanted:
                raise text
            return State.UNKNOWN
        self._frontend_seen |= text is not None or ours not in (State.INITIALISING, State.INIT_WAIT)
        return State.parse(text) if self._frontend_seen else State.INITIALISING

    def refuse(self) -> None:
        """Connecting failed: do not try again while the frontend stays Connected or Reconfiguring."""
        self._refused = True

    def _note(self, ours: State, theirs: State) -> None:
        if theirs not in USING:
            self._refused = False
        elif ours is not State.CLOSING:
            self._refused = True
        if theirs is not self.theirs:
            self.theirs = theirs
            self._tracer.emit("xen_netdev_frontend_changed", self._name, int(theirs))
