# SPDX-License-Identifier: Apache-2.0
"""One device: reads its facts when its nodes change and performs the action that the table in `states` gives.

This module has the actions and the order of their writes. `facts` reads the nodes, `nic` owns the network,
`vif` moves the frames.

Every failure in a device is that device's error: it is logged, written to the error node, and tried again
after growing delays, or at once when a node of the device changes. Only the end of the store ends more than
the device.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.errors import (
    ConfigError,
    GoneError,
    GuestError,
    NetbackError,
    PeerError,
    PlatformError,
    printable,
)
from netback.observe.pcap import PcapState
from netback.observe.recorder import Recorder
from netback.observe.trace import LogBudget
from netback.vif.features import KEYS, LIVE, OFFERED, Limits, VifConfig, agree, queue_keys, read_live
from netback.vif.queue import BindError, queue_name
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.facts import FactReader, Snapshot, read_backend, read_frontend
from netback.xenbus.frontends import Frontends
from netback.xenbus.hotplug import Hotplug
from netback.xenbus.names import DeviceName, remove_device, remove_empty
from netback.xenbus.news import StateNews
from netback.xenbus.nic import Nic
from netback.xenbus.pace import Allowance, Backoff, Pace
from netback.xenbus.states import Action, Facts, decide
from netback.xenstore.aio import QUOTA_ERRNOS, StoreError, StoreGone

log = logging.getLogger("netback.xenbus")

MAX_REASON = 200
"""Maximum characters of a reason in the log and in the error node (docs/decisions.md, Store refusals)."""

_MAX_STEPS = 12
"""Maximum rounds in a row; no path through the table is longer."""
_LAST = (Action.DESTROY, Action.FORGET)
_RUNNING = (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)


class StateConflict(Exception):
    """Our state changed after it was read; read again."""


class ServedElsewhere(NetbackError):
    """Another process has the rings. It serves the device, so this process must not write its state."""


class Device:
    """Wakes when its nodes change (`news`) and acts until the table has nothing more to do."""

    def __init__(self, name: DeviceName, context: Context, frontends: Frontends, pace: Pace) -> None:
        self.name = name
        self.news = asyncio.Event()
        self.settings_changed = True
        """Whether the device's limits and filters must be read again. Set it before `news`."""
        self.state = State.UNKNOWN
        self.config: VifConfig | None = None
        self.error = ""
        """Why the device is not served, or served with a limitation; empty while it works."""
        self.rounds = 0
        """The number of times its nodes were read."""
        self.settled = False
        """Whether it has acted on everything that it has seen, and waits for news."""
        self._context, self._frontends, self._pace = context, frontends, pace
        self._store = context.store
        self._budget = LogBudget()
        self._allowance = Allowance()
        self._backoff = Backoff(self._try_again)
        self._reader = FactReader(name, context)
        self._nic = Nic(name, context, self._budget, self.news.set)
        self._hotplug = Hotplug(name, context, self._budget, self._nic, self.news.set)
        self._followed = ""
        self._unfollow: Callable[[], None] = _nothing
        self._fault = ""  # why the frontend's rings cannot be used, until the table has acted on it
        self._elsewhere = False
        self._of_qemu = False
        self._rewritten = False  # the frontend may have written its state since it was connected
        self._failed = False  # the error comes from the last round, not from a frontend
        self._noted = True  # an error node may exist, perhaps a predecessor's
        self._done = False
        self._announced: StateNews | None = None
        self._actions: dict[Action, Callable[[Snapshot], Awaitable[None]]] = {
            Action.OPEN: self._open,
            Action.OFFER: self._offer,
            Action.CONNECT: self._connect,
            Action.ADOPT: self._adopt,
            Action.REFUSE_RX: self._refuse_rx,
            Action.FAIL: self._fail,
            Action.CLOSING: self._closing,
            Action.CLOSED: self._closed,
            Action.RECONFIGURE: self._reconfigure,
            Action.RESUME: self._resume,
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

    async def apply_settings(self) -> Vif:
        """Read the device's limits and filters now, and return the data path with those in force.

        GoneError: its network was closed meanwhile. ConfigError, PeerError: its filters cannot be applied, so that no
        frame passes.
        """
        await self._nic.settings.read()
        if self.vif is None:
            raise GoneError(f"{self.name}: its network is gone")
        if (fault := self._nic.settings.filters.fault) is not None:
            raise fault
        return self.vif

    @property
    def pcap(self) -> PcapState | None:
        """How the file does in which its frames are kept; None if there is none."""
        return self._nic.settings.pcap.state

    @property
    def recording(self) -> str | None:
        """The file that has what led to its last fault; None if there is none."""
        return self._context.recordings.newest(str(self.name))

    @property
    def recorder(self) -> Recorder:
        """What records its data path and its frontend's keys."""
        return self._nic.settings.recorder

    @property
    def link_down(self) -> bool:
        """Whether an operator took its link down: no frame passes."""
        return self._nic.settings.link_down

    async def carrier(self) -> bool:
        """Whether the guest sees a carrier: its network is up, and no operator turned it off."""
        return await self._nic.published.carrier() == "1"

    @property
    def journal(self) -> Path:
        """The file of its queue's journal. It outlives this process."""
        return self._nic.journal

    async def run(self) -> None:
        """Serve the device until it is destroyed. StoreGone is the only fault that ends more than this device."""
        try:
            while not self._done:
                self.settled = not self.news.is_set()
                await self.news.wait()
                self.settled = False
                self.news.clear()
                await self._serve()
        finally:
            self._backoff.stop()
            self._unfollow()
            await self._hotplug.stop()
            await self._nic.close()
            if self._done:
                self._announce(gone=True)

    async def _serve(self) -> None:
        """Act once. An error is logged and reported as the device's, and the device is tried again."""
        try:
            await self._settle()
            await self._follow_live()
            try:
                await self._nic.check()
                self._nic.settings.filters.raise_fault()
            finally:
                if not self._done and not self._elsewhere:
                    await self._nic.published.publish_carrier()
        except StoreGone:
            raise
        except ServedElsewhere as error:
            self._note(str(error))
            self._backoff.fail()
        # no retry: a node, the configuration or a link must change first
        except (ConfigError, GoneError) as error:
            await self._report(str(error), failed=True)
        except (NetbackError, OSError) as error:
            await self._report(_reason(error), failed=True)
            self._backoff.fail()
        except Exception as error:  # a bug in one device must not end the others
            self._budget.warn(log, f"{self.name}: unexpected", exc_info=True)
            await self._report(f"unexpected: {type(error).__name__}: {error}", failed=True)
            self._backoff.fail()
        else:
            if not self._elsewhere:
                self._backoff.reset()
            if self._failed:
                await self._clear_error()

    def _try_again(self) -> None:
        self._elsewhere = False
        self.news.set()

    async def _settle(self) -> None:
        """Act until the table has nothing to do. Each round reads again, since both ends and the toolstack
        write.
        """
        for _ in range(_MAX_STEPS):
            await self._pace.admit(self._allowance)
            snapshot = await self._read()
            action = decide(snapshot.facts)
            if action not in _LAST:
                await self._follow(snapshot)
            if snapshot.script_failed and snapshot.facts.online and not self.error:
                reason = await read_backend(self._store, self.name, "hotplug-error")
                await self._report(f"the hotplug script failed: {reason or 'no reason given'}")
            if snapshot.facts.hotplug_done:
                await self._nic.published.publish_mtu(self._reader.frontend)
            await self._read_settings()
            await self._save_fault()
            if action is not Action.NOTHING:
                with suppress(StateConflict):
                    await self._actions[action](snapshot)
            if self._done:
                return
            await self._hotplug.follow(snapshot)
            if action in (Action.NOTHING, Action.REFUSE_RX):
                return
        self.news.set()  # the nodes keep changing: let the other devices run first

    async def _read(self) -> Snapshot:
        self.rounds += 1
        snapshot = await self._reader.read(
            open=self.vif is not None,
            attached=self.vif is not None and self.vif.connected,
            broken=bool(self._why_broken),
            elsewhere=self._elsewhere,
            moved=await self._has_moved(),
        )
        self.state = snapshot.facts.ours
        self._announce()
        return snapshot

    def news_now(self, *, gone: bool = False) -> StateNews:
        """Its states and its error."""
        return StateNews(self.name, self.state, self.frontend_state, self.error, gone)

    def _announce(self, *, gone: bool = False) -> None:
        """Announce states and error if they differ from the last time."""
        news = self.news_now(gone=gone)
        if news != self._announced:
            self._announced = news
            self.recorder.note("frontend {}, backend {}", news.theirs.title, news.ours.title)
            self._context.news.states.announce(news)

    async def _read_settings(self) -> None:
        """Apply limits and filters if they may have changed; after an error they are read again."""
        if not (self.settings_changed or self._nic.settings.filters.waits) or self.vif is None:
            return
        self.settings_changed = False
        try:
            await self._nic.settings.read()
        except BaseException:
            self.settings_changed = True
            raise

    async def _follow(self, snapshot: Snapshot) -> None:
        """Watch the frontend's state. A device that is being removed does without the watch if the store
        refuses it.
        """
        if self._reader.frontend == self._followed:
            return
        self._unfollow()
        self._followed, self._unfollow = "", _nothing
        try:
            self._unfollow = await self._frontends.follow(self._reader.frontend, self._rewrote)
            self._followed = self._reader.frontend
        except StoreError:
            if snapshot.facts.online:
                raise

    def _rewrote(self) -> None:
        """The frontend's state was written, perhaps with its former value."""
        self._rewritten = True
        self.news.set()

    async def _has_moved(self) -> bool:
        """Whether the frontend's keys name other rings than those of `config`. Unusable keys name none: the rings
        that are connected stay. Once true it stays true until the rings are down.
        """
        if self.config is None or not self._rewritten:
            return False
        self._rewritten = False
        moved = True
        try:
            keys, limits = await self._read_terms()
            moved = agree(keys, self.name.kind, limits).queues != self.config.queues
        except GuestError:
            moved = False
        finally:
            self._rewritten |= moved  # an error of the store, too, leaves it to the next round
        return moved

    @property
    def _why_broken(self) -> str:
        """The frontend's fault; empty if it has none."""
        return self._fault or (self.vif and self.vif.broken) or ""

    async def _save_fault(self) -> None:
        """Save what led to the frontend's fault, whatever the table does next: the guest may be gone already."""
        if reason := self._why_broken:
            await self._nic.settings.save_fault(reason)

    async def _disconnect(self) -> None:
        self._context.tracer.emit("xen_netdev_disconnect", self.name)
        self.config, self._rewritten = None, False
        if self.vif is not None:
            await self.vif.disconnect()

    # ---- actions

    async def _open(self, snapshot: Snapshot) -> None:
        running = snapshot.facts.ours in _RUNNING and snapshot.facts.theirs in _RUNNING
        if running and await self._is_of_qemu():
            if not self._of_qemu:
                log.info("%s: QEMU made this device and serves it", self.name)
            self._of_qemu = self._elsewhere = True
            self._backoff.fail()
            return
        await self._nic.open(running=running)
        self.settings_changed = True

    async def _is_of_qemu(self) -> bool:
        """Whether a QEMU made the device by its own command line, as that of dom0 makes its default NIC: it then keeps
        the MAC address to itself. What a toolstack or a hand wrote has one.
        """
        return self.name.kind == "qnic" and await read_backend(self._store, self.name, "mac") is None

    async def _offer(self, snapshot: Snapshot) -> None:
        if snapshot.facts.attached or snapshot.facts.ours in _RUNNING:
            await self._disconnect()
        await self._write_mac()
        offer = {**self._context.offer, Key.CARRIER: await self._nic.published.carrier()}
        await self._move(State.INIT_WAIT, offer)
        await self._clear_error()

    async def _write_mac(self) -> None:
        """Write the frontend's `mac` if the toolstack did not: the frontend reads it in its own directory."""
        frontend = self._reader.frontend
        mac = await read_backend(self._store, self.name, "mac")
        with suppress(StoreError):  # in a driver domain only the toolstack may write there
            if mac is not None and await read_frontend(self._store, frontend, "mac") is None:
                await self._store.write(f"{frontend}/mac", mac.lower())

    async def _connect(self, snapshot: Snapshot) -> None:
        await self._attach(snapshot, State.CONNECTED, adopt=False)

    async def _adopt(self, snapshot: Snapshot) -> None:
        await self._attach(snapshot, None, adopt=True)

    async def _reconfigure(self, snapshot: Snapshot) -> None:
        await self._continue(snapshot, State.RECONFIGURED)

    async def _resume(self, snapshot: Snapshot) -> None:
        await self._continue(snapshot, State.CONNECTED)

    async def _continue(self, snapshot: Snapshot, state: State) -> None:
        """Go on with the same rings and the keys that a connected frontend may change, then write the state. Rings that
        this process has are not touched; a predecessor's are adopted.
        """
        if not snapshot.facts.attached:
            await self._attach(snapshot, state, adopt=True)
            return
        await self._follow_live()
        if not self._fault:
            await self._move(state)

    async def _attach(self, snapshot: Snapshot, state: State | None, *, adopt: bool) -> None:
        """Connect, write the state, serve. This order makes sure that a kill in between leaves no response on
        the rings.

        An error that the frontend caused is kept as a fault, which the table answers with Closing; any other
        is raised.
        """
        await self._disconnect()
        assert self.vif is not None  # the table opens the network first
        keys, limits = await self._read_terms()
        try:
            await self._take_rings(self.vif, keys, limits, adopt)
        except PeerError:
            await self._nic.lose_network()
            raise
        except (GuestError, PlatformError) as error:
            await self._check_unchanged()
            self._elsewhere = _is_taken(error, snapshot.facts)
            if self._elsewhere:
                raise ServedElsewhere(f"another process serves this device: {error}") from error
            self._fault = str(error)
            return
        try:
            if state is not None:
                await self._move(state)
            await self.vif.serve()
        except BaseException:
            await self._disconnect()
            raise
        await self._clear_error()

    async def _read_terms(self) -> tuple[dict[str, str | None], Limits]:
        """What a connection is agreed upon: the frontend's keys, and what it was offered."""
        limits, keys = await asyncio.gather(self._read_offered(), self._read_keys(KEYS))
        return keys | await self._read_keys(queue_keys(keys, limits)), limits

    async def _read_keys(self, keys: Sequence[str]) -> dict[str, str | None]:
        """Nodes of the frontend's directory; None for a missing one."""
        frontend = self._reader.frontend
        values = await asyncio.gather(*(read_frontend(self._store, frontend, key) for key in keys))
        read = dict(zip(keys, values, strict=True))
        self.recorder.note_keys(read)
        return read

    async def _read_offered(self) -> Limits:
        """What this frontend was offered."""
        values = await asyncio.gather(*(read_backend(self._store, self.name, key) for key in OFFERED))
        return Limits.offered(dict(zip(OFFERED, values, strict=True)))

    async def _follow_live(self) -> None:
        """Apply the keys that a connected frontend may change. A wrong value closes the vif, as on connecting."""
        if self.config is None or self.vif is None:
            return
        try:
            live = read_live(await self._read_keys(LIVE))
        except GuestError as error:
            self._fault = str(error)
            self.news.set()
            return
        if live != self.config.live:
            await self.vif.change(live)
            self.config = replace(self.config, live=live)

    async def _take_rings(
        self, vif: Vif, keys: Mapping[str, str | None], limits: Limits, adopt: bool
    ) -> None:
        config = agree(keys, self.name.kind, limits)
        self._nic.published.limit_mtu(not config.sg)
        await vif.connect(config, adopt=adopt)
        self._nic.keep_queues()
        self.config = config
        for number, queue in enumerate(config.queues):
            name, ports = queue_name(str(self.name), number), ",".join(map(str, queue.channels))
            self._context.tracer.emit("xen_netdev_connect", name, queue.tx_ring_ref, queue.rx_ring_ref, ports)

    async def _refuse_rx(self, snapshot: Snapshot) -> None:
        if self.vif is not None:
            await self.vif.refuse_rx()

    async def _fail(self, snapshot: Snapshot) -> None:
        """Close because of the frontend's fault. The reason is written first: a guest reads it when it sees
        Closing.
        """
        reason = self._why_broken or "no reason given"
        self._fault = ""
        self._reader.refuse()
        await self._disconnect()
        self._nic.carrier_off()
        await self._check_unchanged()
        await self._report(reason)
        if self.state is not State.CLOSING:
            await self._move(State.CLOSING)

    async def _closing(self, snapshot: Snapshot) -> None:
        await self._disconnect()
        if snapshot.facts.ours is not State.CLOSING:
            await self._move(State.CLOSING)

    async def _closed(self, snapshot: Snapshot) -> None:
        await self._disconnect()
        await self._move(State.CLOSED)

    async def _destroy(self, snapshot: Snapshot) -> None:
        """Remove what netback made; a toolstack removes its own directories. In a driver domain it waits for `xl devd`,
        which runs scripts, to remove the backend's: without it netback does.
        """
        await self._end()
        if snapshot.made_here:
            await remove_device(self._store, self.name, self._reader.frontend)
            return
        if self._hotplug.runs and self.name.backend_domid:
            await remove_empty(self._store, self.name.backend, 2)
            return
        for node in (*self._context.offer, Key.CARRIER):
            await self._store.rm(f"{self.name.backend}/{node}", missing_ok=True)

    async def _forget(self, snapshot: Snapshot) -> None:
        await self._end()

    async def _end(self) -> None:
        self._done = True
        try:
            if self.vif is not None:
                await self._disconnect()
            await self._hotplug.end()
            await self._nic.remove()
        except (NetbackError, OSError) as error:
            self._note(str(error))
        await self._clear_error()

    # ---- errors

    async def _report(self, reason: str, *, failed: bool = False) -> None:
        """Log a reason and write the error node; a repeated reason is logged once.

        `failed`: the error comes from this process's own round and ends with the first round that succeeds.
        """
        reason = self._note(reason)
        self._failed = failed
        if not self._done:
            self._noted = True
            with suppress(StoreError):
                await self._store.write(f"{self.name.errors}/error", reason)

    def _note(self, reason: str) -> str:
        """Log a reason unless it is the present one. Returns it as logged: escaped and truncated."""
        reason = printable(reason)
        reason = reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."
        if reason != self.error:
            self._budget.warn(log, f"{self.name}: {reason}")
        self.error = reason
        self._announce()
        return reason

    async def _clear_error(self) -> None:
        """Remove the error node, and its parents if they are empty then."""
        self.error, self._failed = "", False
        self._announce()
        if self._noted:
            with suppress(StoreError):
                await remove_empty(self._store, self.name.errors, 3)
                self._noted = False

    # ---- our state

    async def _check_unchanged(self) -> None:
        """StateConflict: another process connected or disconnected the device, so a failure is not the
        frontend's fault.
        """
        if State.parse(await read_backend(self._store, self.name, "state")) is not self.state:
            raise StateConflict

    async def _move(self, state: State, keys: Mapping[str, str] | None = None) -> None:
        """Write keys, then our state, if it is still the one that was read: a removed directory must not
        reappear.
        """

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
        self._context.tracer.emit("xen_device_backend_state", self.name, state.title)
        self._announce()


def _is_taken(error: GuestError | PlatformError, facts: Facts) -> bool:
    """Whether another process has the rings: they were in use before this process started, and binding them
    fails.
    """
    return (
        isinstance(error, BindError)
        and error.errno == "EINVAL"
        and facts.ours in _RUNNING
        and not facts.attached
    )


def _nothing() -> None:
    """The `unfollow` of a device that follows no frontend."""


def _reason(error: NetbackError | OSError) -> str:
    """An error's text, with the quota that made the store refuse."""
    quota = QUOTA_ERRNOS.get(error.errno) if isinstance(error, StoreError) else None
    return f"{error} (the quota of {quota} of this domain is used up)" if quota else str(error)
