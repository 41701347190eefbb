# SPDX-License-Identifier: Apache-2.0
"""A device's NIC: opens the network behind it, follows its link, and owns the vif.

A network is in one of three conditions. *Missing*: it could not be opened, so the device offers nothing yet.
*Joined*: frames pass. *Gone*: its link was removed while the device was offered or connected. Rings and
states then stay unchanged, the guest's frames are counted as refused, and the same descriptor joins the link
again once it is back.

A change of the followed link (rtnetlink) or a worker's notice makes the device check the network at once.
This module knows specs, links and the descriptor store; it decides no state.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from netback.dataplane.notices import Notice
from netback.errors import ConfigError, GoneError, NetbackError, PeerError
from netback.net.base import Network, Owner
from netback.net.rtnetlink import get_link, rename
from netback.net.spec import PeerSpec, open_network, parse_spec, remove_earlier, tap_name
from netback.net.tap import find_made
from netback.observe.trace import LogBudget
from netback.vif.queue import remove_journals
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.domains import identity
from netback.xenbus.facts import read_backend, read_mac
from netback.xenbus.names import DeviceName
from netback.xenbus.news import ConditionNews
from netback.xenbus.opening import FAULTS, opened_in_thread
from netback.xenbus.published import Published
from netback.xenbus.settings import Settings

log = logging.getLogger("netback.xenbus")

_ACTION_SECONDS = 1.0
"""Minimum seconds between two attempts to join a link after it changed: a link that is removed repeatedly, or
that the attempt itself changes, must not keep the loop busy."""
_BLIND_SECONDS = 5.0
"""Seconds between checks for a missing link if no rtnetlink socket reports its return."""


class Nic:
    """The network and the vif of one device.

    `wake` makes the device read its facts again, because the vif broke or a link changed. It is called in the
    event loop's thread. The device retries after any error of `open` and `check` except ConfigError and
    GoneError: `wake` is called when those may have ended.
    """

    def __init__(
        self, name: DeviceName, context: Context, budget: LogBudget, wake: Callable[[], object]
    ) -> None:
        self.vif: Vif | None = None
        self._name, self._context, self._budget, self._wake = name, context, budget, wake
        self.settings = Settings(name, context, budget, lambda: self.vif, self._look)
        self.published = Published(name, context, budget, lambda: self._network)
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._acted_at = 0.0
        """The loop's time when this process last made or joined the link, or tried to."""
        self._unchecked = True
        self._seen: _Seen | None = None
        """The link at the last check; None if that failed."""
        self._kept = 0
        """Descriptors of the tap that are in the descriptor store."""
        self._tap = ""
        """The tap's name; empty for other networks."""

    @property
    def journal(self) -> Path:
        """The file of its queue's journal. It outlives this process."""
        return self._context.journals / f"{self._name.kind}-{self._name.domid}-{self._name.number}"

    @property
    def link(self) -> str:
        """The present name of the device's link; the one that it would have, if it has none."""
        network = self._network
        return network.name if network is not None and network.follows else self._name.link

    @property
    def _network(self) -> Network | None:
        return None if self.vif is None else self.vif.network

    def name_back(self) -> None:
        """Give the tap the name with which it was made: a script that was killed may have renamed it, and stock ones
        fail if the new name exists. OSError: it cannot be renamed.
        """
        if self.vif is not None and self._tap and self.vif.network.name != self._tap:
            for index in self.vif.network.follows:
                if isinstance(index, int):
                    rename(index, self._tap)

    # ---- open

    async def open(self, *, running: bool) -> None:
        """Open the network and create the vif. Both must exist before the frontend learns of the device.

        `running`: both ends are connected, so a held tap's carrier stays unchanged. NetbackError: the network
        cannot be opened; ConfigError and GoneError if a retry will not help.
        """
        name, store = self._name, self._context.store
        mac = await read_mac(store, name)
        spec = await read_backend(store, name, "net") or await self._context.net_for(name, mac)
        try:
            network = await self._open(spec, await self._link(), mac)
        except FAULTS as error:
            self._acted_at = self._loop.time()
            self._look_blindly(error)
            self._context.waiting.add(self._wake)
            kind = next((kind for kind in (ConfigError, GoneError) if isinstance(error, kind)), NetbackError)
            raise kind(f"realization of net device {name.index} failed: {error}") from error
        if not running:
            network.carrier(False)
        self._context.tracer.emit("xen_netdev_create", name)
        self.vif = Vif(
            str(name),
            name.domid,
            network,
            platform=self._context.platform,
            workers=self._context.workers,
            journal=self.journal,
            tracer=self._context.tracer,
            captures=self._context.captures,
            recorder=self.settings.recorder,
            on_notice=self._on_notice,
            times=self._context.times,
        )
        info = f"{name.kind} {name.index} of domain {name.domid}, mac {mac or 'not given'}, network {spec}"
        if network.path:
            info = f"{info} by {network.path}"
        log.info("%s: %s", name, info)
        self._context.tracer.emit("xen_netdev_realize", name, info, network.name)

    async def _link(self) -> str:
        """The name of a tap whose spec has none. A hotplug script renames the tap to `vifname`, and fails if
        that name exists.
        """
        vifname, script = await asyncio.gather(
            *(read_backend(self._context.store, self._name, node) for node in ("vifname", "script"))
        )
        return vifname if vifname and script is None else self._name.link

    async def _open(self, spec: str, link: str, mac: str | None) -> Network:
        """Open the network, and keep its tap for this device."""
        if spec in self._context.networks:
            return self._context.networks.open(spec, str(self._name))
        peer, device = parse_spec(spec), str(self._name)
        self._tap = tap_name(peer, link)
        self._context.links.follow(self._on_link, {self._tap or link, peer.link or link})
        if self._tap:
            self._claim_tap(self._tap)
        else:
            self._context.fd_store.forget(device)
        owner = await self._owner(peer, mac)
        held = self._context.fd_store.take(device)
        several = self._context.queues > 1
        network = await opened_in_thread(
            partial(open_network, peer, name=link, held=held, several=several, owner=owner)
        )
        if self._tap:
            self._keep(network)
        return network

    async def _owner(self, spec: PeerSpec, mac: str | None) -> Owner:
        """What a network of this spec may know of the device; the guest's names are read for a kind that wants them."""
        name = uuid = None
        if spec.owned:
            name, uuid = await identity(self._context.store, self._name.domid)
        facts = {
            "domid": str(self._name.domid),
            "devid": str(self._name.index),
            "mac": mac,
            "name": name,
            "uuid": uuid,
        }
        known = {key: value for key, value in facts.items() if value}
        return Owner(known, self._changed, self._context.platform.own_grants)

    def _changed(self) -> None:
        """The network has news. Any thread may call this."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._look)

    def _claim_tap(self, link: str) -> None:
        """Reserve a tap for this device: a second queue on it would receive part of the first one's frames."""
        found = find_made(link) or get_link(link)
        keys: set[int | str] = {link} if found is None else {link, found.index}
        for key in keys:
            user = self._context.taps.get(key, str(self._name))
            if user != str(self._name):
                raise PeerError(f"tap:{link}: {user} uses it (EBUSY); choose another name")
        self._context.taps.update(dict.fromkeys(keys, str(self._name)))

    def _keep(self, network: Network) -> None:
        """Store the tap's descriptors with systemd and reserve its index. Repeat this for a tap that was
        created again: systemd drops a descriptor whose tap was removed, since it reports EPOLLERR (FDPOLL= in
        sd_notify(3)).
        """
        self._kept = len(network.peers)
        self._context.fd_store.keep(str(self._name), [peer.fd for peer in network.peers])
        self._context.taps.update(dict.fromkeys(network.follows, str(self._name)))

    def keep_queues(self) -> None:
        """Store the descriptors of the tap's queues if the connection has another number of them."""
        if self.vif is not None and self._tap and len(self.vif.network.peers) != self._kept:
            self._keep(self.vif.network)

    def _release_link(self) -> None:
        """Stop following the link and let other devices use the tap."""
        self._stop_looking()
        self._context.links.follow(self._on_link, ())
        taps = self._context.taps
        for key in [key for key, user in taps.items() if user == str(self._name)]:
            del taps[key]

    # ---- while it is open

    def _on_link(self) -> None:
        """A followed link changed: wake the device if it differs from the last check."""
        if self.vif is None:
            self._look_in(self._pause())
        elif self._seen is None or self._seen != _seen(self.vif.network):
            self._look()

    def _on_notice(self, notice: Notice) -> None:
        """A worker found the network gone or back, or the guest's rings broken."""
        reason = self.vif.broken if self.vif is not None else None
        self._context.news.conditions.announce(ConditionNews(self._name, notice, reason))
        if notice is not Notice.STALLED:
            self._look()

    def _look(self) -> None:
        self._unchecked = True
        self._wake()

    def _pause(self) -> float:
        """Seconds until the link may be tried again; 0 or less if it may be tried now."""
        return self._acted_at + _ACTION_SECONDS - self._loop.time()

    def _look_in(self, seconds: float) -> None:
        self._stop_looking()
        self._later = self._loop.call_later(seconds, self._look)

    def _look_blindly(self, error: Exception) -> None:
        if isinstance(error, GoneError) and not self._context.links.works:
            self._look_in(_BLIND_SECONDS)

    def _stop_looking(self) -> None:
        if self._later is not None:
            self._later.cancel()

    async def check(self) -> None:
        """Check the network after a change, and join it again if its link is back.

        GoneError: the link is missing. Any other NetbackError or OSError: the link exists and cannot be used
        now.
        """
        await self.settings.filters.check()
        if self.vif is None or not self._unchecked:
            return
        network, self._seen = self.vif.network, None
        if (pause := self._pause()) > 0 and network.mtu is None:
            self._look_in(pause)
            return
        try:
            if self._tap and network.mtu is None:
                self._claim_tap(self._tap)
            joined = network.check()
        except FAULTS as error:
            self._look_blindly(error)
            raise
        finally:
            self._context.links.follow(self._on_link, _follows(network))
        self._unchecked = False
        self._seen = _seen(network)
        if joined:
            self._acted_at = self._loop.time()
            if self._tap:
                self._keep(network)
            await self.vif.refresh()
            text = (
                f"{self._name}: link {network.name} was removed and is joined again, the rings as they were"
            )
            self._budget.warn(log, f"{text}; bridge, addresses and `up` of a new link are the host's to set")

    def carrier_off(self) -> None:
        """Turn the link's carrier off: no guest is connected."""
        if self.vif is not None:
            self.vif.network.carrier(False)

    # ---- ends

    async def lose_network(self) -> None:
        """The link is gone, through no fault of the guest: close the rest of it, to be opened again."""
        await self.close()
        self._context.fd_store.forget(str(self._name))

    async def close(self) -> None:
        """Close everything in this process; change nothing outside it."""
        self._release_link()
        if (vif := self.vif) is not None:
            self.vif = None
            try:
                await vif.release()
                await self.settings.pcap.close()
            finally:
                await self._end_network(vif.network, gone=False)

    async def remove(self) -> None:
        """The device was removed: remove its journal, its stored descriptors and the link that netback made."""
        self._release_link()
        self._context.fd_store.forget(str(self._name))
        remove_journals(self.journal)
        if (vif := self.vif) is None:
            await self._remove_earlier()
            return
        self.vif = None
        try:
            await vif.disconnect()
            await self.settings.pcap.close()
        finally:
            await self._end_network(vif.network, gone=True)
        self._context.tracer.emit("xen_netdev_unrealize", self._name)
        self._context.tracer.emit("xen_netdev_destroy", self._name)

    async def _remove_earlier(self) -> None:
        """Remove what an earlier process made for a device whose network is not open."""
        with suppress(*FAULTS):
            mac = await read_mac(self._context.store, self._name)
            spec = parse_spec(
                await read_backend(self._context.store, self._name, "net")
                or await self._context.net_for(self._name, mac)
            )
            await asyncio.to_thread(remove_earlier, spec, await self._link())

    async def _end_network(self, network: Network, *, gone: bool) -> None:
        """Close or remove it; a tap in a thread, since its switch may be slow."""
        self.settings.filters.end(gone=gone)
        try:
            if self._context.networks.give_back(network):
                pass
            elif gone and self._tap:
                await asyncio.to_thread(network.remove)
            else:
                network.remove() if gone else network.close()
        except FAULTS as error:
            log.warning("%s: network %s: %s", self._name, network.name, error)
        waiting = tuple(self._context.waiting)
        self._context.waiting.clear()
        for wake in waiting:
            wake()


_Seen = tuple[str, int | None, bool, tuple[str, int | None] | None]
"""The properties of a link that a device publishes: name, MTU, state, and its bridge's name and MTU."""


def _seen(network: Network) -> _Seen:
    return network.name, network.mtu, network.up, _bridge(network)


def _bridge(network: Network) -> tuple[str, int | None] | None:
    return (bridge.name, bridge.mtu) if (bridge := network.bridge) else None


def _follows(network: Network) -> frozenset[int | str]:
    """The links whose changes concern a device."""
    bridge = network.bridge
    return network.follows | ({bridge.index} if bridge else set())
