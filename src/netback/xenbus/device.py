# SPDX-License-Identifier: Apache-2.0
"""One device: reads its facts from the store, and does what the table says.

Knows the nodes of both ends; states are decided in `states`, frames move in `vif`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netback.abi.xenbus import XenbusState as State
from netback.errors import ConfigError, NetbackError, PeerError
from netback.net.base import FdStore, Network
from netback.net.mtu import ETH_DATA_LEN
from netback.net.spec import open_network, parse_spec
from netback.net.tap import remove_made
from netback.observe.trace import LogBudget, Tracer
from netback.platforms.base import Platform
from netback.vif.features import KEYS, OFFER, VifConfig, agree, parse_mac
from netback.vif.vif import Vif
from netback.vif.workers import Workers
from netback.xenbus.names import DeviceName, remove_device, remove_empty
from netback.xenbus.states import Action, Facts, decide
from netback.xenstore.aio import Store, StoreError

log = logging.getLogger("netback.xenbus")

MADE_BY = "made-by"
"""The backend node that marks a device of the operator's: netback made its nodes, so netback removes them."""
MAKER = "netback"

_STEPS = 8
"""Actions in one go; no walk through the table is longer."""
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""When to try a missing network again; the last one for ever."""
_FAULTS = (NetbackError, OSError)
_RUNNING = (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)
_NEED_NIC = (Action.OFFER, Action.CONNECT, Action.ADOPT, Action.RECONFIGURE, Action.NOTHING)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all devices of a backend share."""

    store: Store
    platform: Platform
    workers: Workers
    tracer: Tracer
    journals: Path
    net_for: Callable[[DeviceName, str | None], Awaitable[str]]
    """The network of a device whose nodes name none, by its name and its MAC address."""
    fd_store: FdStore
    """Who has the descriptors of taps held while no backend runs."""
    networks: Mapping[str, Network]
    """Networks that are Python objects, by the spec that names them; they stay their owner's."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the store saw."""

    facts: Facts
    made: bool
    script_failed: bool


class _Moved(Exception):
    """Somebody else changed our state between the look and the leap: look again."""


def _state(text: str | None) -> State:
    """Strictly one of the header's numbers; anything else is as good as no state."""
    return State(int(text)) if text in {str(int(state)) for state in State} else State.UNKNOWN


class Device:
    """Wakes when its nodes change (`news`), and acts until the table has nothing more to do."""

    def __init__(self, name: DeviceName, around: Surroundings) -> None:
        self.name = name
        self.news = asyncio.Event()
        self.state = State.UNKNOWN
        self.frontend_state = State.UNKNOWN
        self.config: VifConfig | None = None
        self.vif: Vif | None = None
        self.error = ""
        self._around = around
        self._store = around.store
        self._loop = asyncio.get_running_loop()
        self._budget = LogBudget()
        self._retry: asyncio.TimerHandle | None = None
        self._tries = 0
        self._frontend = ""
        self._mtu: int | None = ETH_DATA_LEN  # as the frontend has it, untold
        self._refused = True  # a Closing stands, a predecessor's too, until the frontend answers it
        self._lived = False
        self._seen = False
        self._done = False
        self._actions: dict[Action, Callable[[Look], Awaitable[None]]] = {
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

    async def run(self) -> None:
        """Until the device is destroyed. Whatever goes wrong here stays here, except the store's end."""
        follower: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._done:
                    await self.news.wait()
                    self.news.clear()
                    await self._serve()
                    if self._frontend and follower is None:
                        follower = tasks.create_task(self._follow())
                if follower is not None:
                    follower.cancel()
        finally:
            self._release()

    async def _serve(self) -> None:
        try:
            await self._settle()
        except _FAULTS as error:
            if isinstance(error, StoreError) and error.errno == "EIO":
                raise
            await self._report(str(error))
        except Exception:  # a fault of ours in one device must not stop the others
            log.exception("%s: unexpected", self.name)

    async def _follow(self) -> None:
        """Every change of the frontend's state is news."""
        async with await self._store.watch(f"{self._frontend}/state") as watch:
            async for _ in watch:
                self.news.set()

    async def _settle(self) -> None:
        """Act until there is nothing to do. Each step looks anew, since everybody writes here."""
        for _ in range(_STEPS):
            look = await self._look()
            if self.vif is not None and self.vif.broken:
                await self._fail(self.vif.broken)
                continue
            if look.script_failed and look.facts.online and not self.error:
                await self._report(
                    f"the hotplug script failed: {await self._read('hotplug-error') or 'no reason given'}"
                )
            action = decide(look.facts)
            if action in _NEED_NIC and look.facts.online and look.facts.ours and self.vif is None:
                await self._realize()
            if look.facts.plugged and self.vif is not None:
                await self._tell_mtu(self.vif.network.mtu)
            if action is not Action.NOTHING:
                with suppress(_Moved):
                    await self._actions[action](look)
            if self._done or action in (Action.NOTHING, Action.REFUSE_RX):
                return
        self.news.set()  # somebody keeps changing it: go on when the others had their turn

    # ---- facts

    async def _look(self) -> Look:
        """A device is there when its state, `online` and `frontend` are."""
        ours, online, hotplug, script, made, frontend = await asyncio.gather(
            *map(self._read, ("state", "online", "hotplug-status", "script", MADE_BY, "frontend"))
        )
        self._frontend = self._frontend or (frontend or "")
        dead = await self._is_dead(made is not None)
        self.state = State.UNKNOWN if online is None or not self._frontend else _state(ours)
        self._frontend_is(State.UNKNOWN if dead else await self._their_state())
        facts = Facts(
            theirs=self.frontend_state,
            ours=self.state,
            online=online == "1" and not dead,
            plugged=script is None or hotplug == "connected",
            served=self.vif is not None and self.vif.connected,
            refused=self._refused,
        )
        return Look(facts, made == MAKER, hotplug == "error")

    async def _is_dead(self, made: bool) -> bool:
        """A domain that ended; one that we never saw may be still to come, unless the device is of our making."""
        try:
            introduced = await self._store.introduced(self.name.domid)
        except StoreError as error:
            if error.errno != "EACCES":
                raise
            return False  # a driver domain may not ask: to it, an end shows by the frontend's directory
        self._lived |= introduced
        return not introduced and (self._lived or made)

    async def _their_state(self) -> State:
        """A frontend whose directory nobody has written yet is still to come."""
        text = await self._read_frontend("state") if self._frontend else None
        self._seen |= text is not None or self.state not in (State.INITIALISING, State.INIT_WAIT)
        return _state(text) if self._seen else State.INITIALISING

    def _frontend_is(self, state: State) -> None:
        if state is not State.CONNECTED:
            self._refused = False
        elif self.state is not State.CLOSING:
            self._refused = True
        if state is not self.frontend_state:
            self.frontend_state = state
            self._around.tracer.hit("xen_netdev_frontend_changed", self.name, int(state))

    async def _read(self, node: str) -> str | None:
        return await self._store.read_or(f"{self.name.backend}/{node}")

    async def _read_frontend(self, node: str) -> str | None:
        """A guest may take away our right to read: then its node is as good as gone."""
        try:
            return await self._store.read_or(f"{self._frontend}/{node}")
        except StoreError as error:
            if error.errno != "EACCES":
                raise
            return None

    # ---- the NIC

    async def _realize(self) -> None:
        """Make the NIC: everything that a device needs before its frontend may know of it."""
        name, mac = self.name, await self._mac()
        spec = await self._read("net") or await self._around.net_for(name, mac)
        try:
            network = await self._open(spec, await self._link())
        except _FAULTS as error:
            if isinstance(error, PeerError | OSError):
                self._try_later()
            raise NetbackError(f"realization of net device {name.index} failed: {error}") from error
        self._tries = 0
        # a tap that was held shows what its guest was, not what it is
        if self.state not in _RUNNING or self.frontend_state not in _RUNNING:
            network.carrier(False)
        self._around.tracer.hit("xen_netdev_create", name)
        self.vif = Vif(
            str(name),
            name.domid,
            network,
            platform=self._around.platform,
            workers=self._around.workers,
            journal=self.journal,
            tracer=self._around.tracer,
            on_broken=lambda: self._loop.call_soon_threadsafe(self.news.set),
        )
        info = f"{name.kind} {name.index} of domain {name.domid}, mac {mac or 'not told'}, network {spec}"
        log.info("%s: %s", name, info)
        if rate := await self._read("rate"):
            said = f"{name}: rate={rate} is not enforced here: limit {network.name or 'its network'} with tc"
            self._budget.warn(log, said)
        self._around.tracer.hit("xen_netdev_realize", name, info, network.name)

    async def _link(self) -> str:
        """What a tap of its own is called. A script renames it to `vifname`, and fails where that name is taken."""
        vifname, script = await asyncio.gather(*map(self._read, ("vifname", "script")))
        return vifname if vifname and script is None else self.name.link

    async def _mac(self) -> str | None:
        """The address that the toolstack chose; a qnic must have one."""
        _ = self.name.index
        text = await self._read("mac")
        if text is None and self.name.kind == "vif":
            return None
        try:
            return parse_mac(text)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    async def _open(self, spec: str, link: str) -> Network:
        """Open the network aside, since a tap may be busy for a moment; an end of us meanwhile leaves none open."""
        if (network := self._around.networks.get(spec)) is not None:
            return network
        peer, device = parse_spec(spec), str(self.name)
        if peer.kind != "tap":
            self._around.fd_store.forget(device)
        held = self._around.fd_store.take(device)
        opening = asyncio.ensure_future(asyncio.to_thread(open_network, peer, name=link, held=held))
        try:
            network = await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(*_FAULTS):
                (await opening).close()
            raise
        if peer.kind == "tap":
            self._around.fd_store.keep(device, network.peer.fd)
        return network

    def _try_later(self) -> None:
        delay = _RETRY_SECONDS[min(self._tries, len(_RETRY_SECONDS) - 1)]
        self._tries += 1
        self._stop_retry()
        self._retry = self._loop.call_later(delay, self.news.set)

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    @property
    def journal(self) -> Path:
        """The file of its queue's journal, which outlives this process."""
        return self._around.journals / f"{self.name.kind}-{self.name.domid}-{self.name.number}"

    def _release(self) -> None:
        """Let go of everything in this process and touch nothing outside."""
        self._stop_retry()
        if self.vif is not None:
            self.vif.release()
            self._end_network(self.vif.network, gone=False)
            self.vif = None

    def _unrealize(self) -> None:
        """The NIC is gone."""
        self._around.fd_store.forget(str(self.name))
        if self.vif is None:
            self.journal.unlink(missing_ok=True)
            return
        self._disconnect()
        self.journal.unlink(missing_ok=True)
        self._end_network(self.vif.network, gone=True)
        self.vif = None
        self._around.tracer.hit("xen_netdev_unrealize", self.name)
        self._around.tracer.hit("xen_netdev_destroy", self.name)

    def _end_network(self, network: Network, *, gone: bool) -> None:
        if network in self._around.networks.values():
            return
        try:
            network.remove() if gone else network.close()
        except _FAULTS as error:
            log.warning("%s: network %s: %s", self.name, network.name, error)

    def _disconnect(self) -> None:
        self._around.tracer.hit("xen_netdev_disconnect", self.name)
        self.config = None
        if self.vif is not None:
            self.vif.disconnect()

    # ---- actions

    async def _offer(self, look: Look) -> None:
        if look.facts.served or look.facts.ours in _RUNNING:
            self._disconnect()
        await self._write_mac()
        await self._move(State.INIT_WAIT, OFFER)
        await self._clear_error()

    async def _write_mac(self) -> None:
        """The frontend reads its address on its own side; where a toolstack wrote it, or only it may, that is done."""
        mac = await self._read("mac")
        with suppress(StoreError):
            if mac is not None and await self._read_frontend("mac") is None:
                await self._store.write(f"{self._frontend}/mac", mac.lower())

    async def _tell_mtu(self, mtu: int | None) -> None:
        """The frontend reads the link's MTU on its own side. Stock scripts write it there, too, but with `vifname` they
        take the path from the new name; and none does for a link that is not of its making."""
        if mtu in (None, self._mtu):
            return
        self._mtu = mtu

        async def body(tx: int) -> None:
            told = await self._store.read_or(f"{self._frontend}/mtu", tx=tx)
            if told != str(mtu) and await self._store.read_or(f"{self._frontend}/state", tx=tx) is not None:
                await self._store.write(f"{self._frontend}/mtu", str(mtu), tx)

        with suppress(StoreError):  # as with the address, where only the toolstack may
            await self._store.transact(body)

    async def _connect(self, look: Look) -> None:
        """From Reconfigured it is the same connection, whose journal a predecessor may have left to be completed."""
        await self._attach(State.CONNECTED, adopt=look.facts.ours is State.RECONFIGURED)

    async def _adopt(self, look: Look) -> None:
        await self._attach(None, adopt=True)

    async def _reconfigure(self, look: Look) -> None:
        """The rings are the same ones: taken up again with what the frontend says now."""
        await self._attach(State.RECONFIGURED, adopt=True)

    async def _attach(self, state: State | None, *, adopt: bool) -> None:
        """Connect, say so, serve: in this order, so that a kill in between leaves rings that nobody has answered on."""
        self._disconnect()
        try:
            vif = await self._connected(adopt)
            if state is not None:
                await self._move(state)
            vif.serve()
        except PeerError as error:
            await self._lose_network(error)
        except _FAULTS as error:
            await self._fail(str(error))
        except BaseException:
            self._disconnect()
            raise
        else:
            await self._clear_error()

    async def _connected(self, adopt: bool) -> Vif:
        if self.vif is None:
            raise PeerError("no network")
        values = await asyncio.gather(*map(self._read_frontend, KEYS))
        config = agree(dict(zip(KEYS, values, strict=True)), self.name.kind)
        await self.vif.connect(config, adopt=adopt)
        self.config = config
        names = (config.tx_ring_ref, config.rx_ring_ref, config.event_channel)
        self._around.tracer.hit("xen_netdev_connect", self.name, *names)
        return self.vif

    async def _refuse_rx(self, look: Look) -> None:
        if self.vif is not None:
            self.vif.refuse_rx()

    async def _closing(self, look: Look) -> None:
        self._disconnect()
        if look.facts.ours is not State.CLOSING:
            await self._move(State.CLOSING)

    async def _closed(self, look: Look) -> None:
        self._disconnect()
        await self._move(State.CLOSED)

    async def _destroy(self, look: Look) -> None:
        """What we made goes; a toolstack's directories are its own to remove."""
        self._done = True
        self._unrealize()
        await self._remove_tap()
        await self._clear_error()
        if look.made:
            await remove_device(self._store, self.name, self._frontend)
            return
        for node in OFFER:
            await self._store.rm(f"{self.name.backend}/{node}", missing_ok=True)

    async def _forget(self, look: Look) -> None:
        self._done = True
        self._unrealize()
        await self._remove_tap()
        await self._clear_error()

    async def _remove_tap(self) -> None:
        """What an earlier process made for a device that was on its way out when we came: we never opened it."""
        with suppress(*_FAULTS):
            spec = parse_spec(
                await self._read("net") or await self._around.net_for(self.name, await self._mac())
            )
            if spec.kind == "tap":
                await asyncio.to_thread(remove_made, spec.link or await self._link())

    # ---- faults

    async def _fail(self, reason: str) -> None:
        """This vif stops: reason to the error node and the log, Closing. All others live."""
        self._disconnect()
        if self.vif is not None:
            self.vif.network.carrier(False)
        await self._report(reason)
        if self.state not in (State.CLOSING, State.CLOSED, State.UNKNOWN):
            await self._move(State.CLOSING)

    async def _lose_network(self, error: PeerError) -> None:
        """Somebody removed the link, no fault of the guest's: it is made or found again, and no state changes."""
        self._disconnect()
        self._release()
        self._around.fd_store.forget(str(self.name))
        self._try_later()
        await self._report(str(error))

    async def _report(self, reason: str) -> None:
        """Tell it once, however often the device is looked at before it is mended."""
        if reason != self.error:
            self._budget.warn(log, f"{self.name}: {reason}")
        self.error = reason
        with suppress(StoreError):
            await self._store.write(f"{self.name.errors}/error", reason)

    async def _clear_error(self) -> None:
        """Remove the error node, and what of its path is empty then."""
        self.error = ""
        await remove_empty(self._store, self.name.errors, 3)

    # ---- our state

    async def _move(self, state: State, keys: Mapping[str, str] | None = None) -> None:
        """Write our state, keys first, if it still is what we saw: a directory that is gone must not come back."""

        async def body(tx: int) -> None:
            path = self.name.backend
            if _state(await self._store.read_or(f"{path}/state", tx=tx)) is not self.state:
                raise _Moved
            for key, value in (keys or {}).items():
                await self._store.write(f"{path}/{key}", value, tx)
            await self._store.write(f"{path}/state", str(int(state)), tx)

        await self._store.transact(body)
        log.debug("%s: %s to %s", self.name, self.state.title, state.title)
        self.state = state
