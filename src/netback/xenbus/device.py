# SPDX-License-Identifier: Apache-2.0
"""One device: reads its facts when its nodes change, and does what the table in `states` says.

Knows actions and the order of their writes; `facts` reads the nodes, `nic` has the network, frames move in `vif`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from netback.abi.xenbus import XenbusState as State
from netback.errors import NetbackError, PeerError
from netback.observe.trace import LogBudget
from netback.vif.features import KEYS, VifConfig, agree
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.facts import FactReader, Snapshot, read_backend, read_frontend
from netback.xenbus.names import DeviceName, remove_device, remove_empty
from netback.xenbus.nic import Nic
from netback.xenbus.states import Action, decide
from netback.xenstore.aio import StoreError

log = logging.getLogger("netback.xenbus")

_MAX_STEPS = 8
"""Actions in one go; no walk through the table is longer."""
_FAULTS = (NetbackError, OSError)
_RUNNING = (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)
_NEED_NIC = (Action.OFFER, Action.CONNECT, Action.ADOPT, Action.RECONFIGURE, Action.NOTHING)


class StateConflict(Exception):
    """Our state changed after it was read: read again."""


class Device:
    """Wakes when its nodes change (`news`), and acts until the table has nothing more to do."""

    def __init__(self, name: DeviceName, context: Context) -> None:
        self.name = name
        self.news = asyncio.Event()
        self.state = State.UNKNOWN
        self.config: VifConfig | None = None
        self.error = ""
        self._context = context
        self._store = context.store
        self._budget = LogBudget()
        self._reader = FactReader(name, context)
        self._nic = Nic(name, context, self._budget, self.news.set)
        self._done = False
        self._actions: dict[Action, Callable[[Snapshot], Awaitable[None]]] = {
            Action.OFFER: self._offer,
            Action.CONNECT: self._connect,
            Action.ADOPT: self._adopt,
            Action.REFUSE_RX: self._refuse_rx,
            Action.CLOSING: self._closing,
            Action.CLOSED: self._closed,
            Action.RECONFIGURE: self._reconfigure,
            Action.DESTROY: self._destroy,
            Action.FORGET: self._forget,
        }

    @property
    def frontend_state(self) -> State:
        """The frontend's state as last read."""
        return self._reader.theirs

    @property
    def vif(self) -> Vif | None:
        """The data path, once the network is open."""
        return self._nic.vif

    @property
    def journal(self) -> Path:
        """The file of its queue's journal, which outlives this process."""
        return self._nic.journal

    async def run(self) -> None:
        """Serve the device until it is destroyed. Every fault stays in this device, but for the store's end (EIO)."""
        follower: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._done:
                    await self.news.wait()
                    self.news.clear()
                    await self._serve()
                    if self._reader.frontend and follower is None:
                        follower = tasks.create_task(self._follow())
                if follower is not None:
                    follower.cancel()
        finally:
            await self._nic.close()

    async def _serve(self) -> None:
        try:
            await self._settle()
        except _FAULTS as error:
            if isinstance(error, StoreError) and error.errno == "EIO":
                raise
            await self._report(str(error))
        except Exception:  # an unexpected fault in one device must not end the others
            log.exception("%s: unexpected", self.name)

    async def _follow(self) -> None:
        """Every change of the frontend's state is news."""
        async with await self._store.watch(f"{self._reader.frontend}/state") as watch:
            async for _ in watch:
                self.news.set()

    async def _settle(self) -> None:
        """Act until the table has nothing to do. Each step reads again, since both ends and the toolstack write."""
        for _ in range(_MAX_STEPS):
            snapshot = await self._reader.read(attached=self.vif is not None and self.vif.connected)
            self.state = snapshot.facts.ours
            if self.vif is not None and self.vif.broken:
                await self._fail(self.vif.broken)
                continue
            if snapshot.script_failed and snapshot.facts.online and not self.error:
                reason = await read_backend(self._store, self.name, "hotplug-error")
                await self._report(f"the hotplug script failed: {reason or 'no reason given'}")
            action = decide(snapshot.facts)
            if action in _NEED_NIC and snapshot.facts.online and snapshot.facts.ours and self.vif is None:
                await self._nic.open(running=self.state in _RUNNING and self.frontend_state in _RUNNING)
            if snapshot.facts.hotplug_done:
                await self._nic.publish_mtu(self._reader.frontend)
            if action is not Action.NOTHING:
                with suppress(StateConflict):
                    await self._actions[action](snapshot)
            if self._done or action in (Action.NOTHING, Action.REFUSE_RX):
                return
        self.news.set()  # the nodes change all the time: go on after the other devices had their turn

    async def _disconnect(self) -> None:
        self._context.tracer.hit("xen_netdev_disconnect", self.name)
        self.config = None
        if self.vif is not None:
            await self.vif.disconnect()

    # ---- actions

    async def _offer(self, snapshot: Snapshot) -> None:
        if snapshot.facts.attached or snapshot.facts.ours in _RUNNING:
            await self._disconnect()
        await self._write_mac()
        await self._move(State.INIT_WAIT, self._context.offer)
        await self._clear_error()

    async def _write_mac(self) -> None:
        """Write the frontend's `mac`, which it reads on its own side, where the toolstack has not."""
        frontend = self._reader.frontend
        mac = await read_backend(self._store, self.name, "mac")
        with suppress(StoreError):  # in a driver domain only the toolstack may
            if mac is not None and await read_frontend(self._store, frontend, "mac") is None:
                await self._store.write(f"{frontend}/mac", mac.lower())

    async def _connect(self, snapshot: Snapshot) -> None:
        """From Reconfigured the connection is the same one, and a predecessor's journal may have to be completed."""
        await self._attach(State.CONNECTED, adopt=snapshot.facts.ours is State.RECONFIGURED)

    async def _adopt(self, snapshot: Snapshot) -> None:
        await self._attach(None, adopt=True)

    async def _reconfigure(self, snapshot: Snapshot) -> None:
        """Take up the same rings with the frontend's keys as they are now."""
        await self._attach(State.RECONFIGURED, adopt=True)

    async def _attach(self, state: State | None, *, adopt: bool) -> None:
        """Connect, write the state, serve: in this order, so that a kill in between leaves rings without a response."""
        await self._disconnect()
        try:
            vif = await self._connected(adopt)
            if state is not None:
                await self._move(state)
            await vif.serve()
        except PeerError as error:
            await self._lose_network(error)
        except _FAULTS as error:
            await self._fail(str(error))
        except BaseException:
            await self._disconnect()
            raise
        else:
            await self._clear_error()

    async def _connected(self, adopt: bool) -> Vif:
        if self.vif is None:
            raise PeerError("no network")
        frontend = self._reader.frontend
        values = await asyncio.gather(*(read_frontend(self._store, frontend, key) for key in KEYS))
        config = agree(dict(zip(KEYS, values, strict=True)), self.name.kind)
        await self.vif.connect(config, adopt=adopt)
        self.config = config
        for queue in config.queues:
            names = (queue.tx_ring_ref, queue.rx_ring_ref, queue.event_channel)
            self._context.tracer.hit("xen_netdev_connect", self.name, *names)
        return self.vif

    async def _refuse_rx(self, snapshot: Snapshot) -> None:
        if self.vif is not None:
            await self.vif.refuse_rx()

    async def _closing(self, snapshot: Snapshot) -> None:
        await self._disconnect()
        if snapshot.facts.ours is not State.CLOSING:
            await self._move(State.CLOSING)

    async def _closed(self, snapshot: Snapshot) -> None:
        await self._disconnect()
        await self._move(State.CLOSED)

    async def _destroy(self, snapshot: Snapshot) -> None:
        """Remove what netback made; a toolstack removes its own directories."""
        self._done = True
        await self._end()
        await self._nic.remove_unopened_tap()
        await self._clear_error()
        if snapshot.made_here:
            await remove_device(self._store, self.name, self._reader.frontend)
            return
        for node in self._context.offer:
            await self._store.rm(f"{self.name.backend}/{node}", missing_ok=True)

    async def _forget(self, snapshot: Snapshot) -> None:
        self._done = True
        await self._end()
        await self._nic.remove_unopened_tap()
        await self._clear_error()

    async def _end(self) -> None:
        if self.vif is not None:
            await self._disconnect()
        await self._nic.remove()

    # ---- faults

    async def _fail(self, reason: str) -> None:
        """Stop this vif: the reason goes to the error node and the log, our state to Closing."""
        await self._disconnect()
        self._nic.carrier_off()
        await self._report(reason)
        if self.state not in (State.CLOSING, State.CLOSED, State.UNKNOWN):
            await self._move(State.CLOSING)

    async def _lose_network(self, error: PeerError) -> None:
        """The link is gone, by no fault of the guest: it is opened again later, and no state changes."""
        await self._disconnect()
        await self._nic.lose_network()
        await self._report(str(error))

    async def _report(self, reason: str) -> None:
        """Log a reason once, however often the device is read before it is mended, and write the error node."""
        if reason != self.error:
            self._budget.warn(log, f"{self.name}: {reason}")
        self.error = reason
        with suppress(StoreError):
            await self._store.write(f"{self.name.errors}/error", reason)

    async def _clear_error(self) -> None:
        """Remove the error node and its parents where they are then empty."""
        self.error = ""
        await remove_empty(self._store, self.name.errors, 3)

    # ---- our state

    async def _move(self, state: State, keys: Mapping[str, str] | None = None) -> None:
        """Write keys, then our state, if that is still as read: a directory that was removed must not come back."""

        async def body(tx: int) -> None:
            path = self.name.backend
            if State.parse(await self._store.read_or(f"{path}/state", tx=tx)) is not self.state:
                raise StateConflict
            for key, value in (keys or {}).items():
                await self._store.write(f"{path}/{key}", value, tx)
            await self._store.write(f"{path}/state", str(int(state)), tx)

        await self._store.transact(body)
        log.debug("%s: %s to %s", self.name, self.state.title, state.title)
        self.state = state
