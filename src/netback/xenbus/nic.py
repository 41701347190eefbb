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
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from netback.abi.netif_keys import Key
from netback.dataplane.notices import Notice
from netback.errors import ConfigError, GoneError, NetbackError, PeerError, printable
from netback.net.base import ETH_DATA_LEN, Network, Owner
from netback.net.filters import Addresses, Filters, parse_node
from netback.net.rtnetlink import get_link, rename
from netback.net.spec import PeerSpec, open_network, parse_spec, remove_earlier, tap_name
from netback.net.tap import find_made
from netback.observe.recorder import Recorder, parse_mode
from netback.observe.trace import LogBudget
from netback.vif.queue import remove_journals
from netback.vif.rate import Rate, Rates
from netback.vif.rate import parse_node as parse_rate_node
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.domains import identity
from netback.xenbus.facts import read_backend, read_mac
from netback.xenbus.names import DeviceName
from netback.xenbus.news import ConditionNews
from netback.xenbus.nodes import CARRIER_OFF, FILTERS, IP, LINK_DOWN, PCAP, RATES, RECORD
from netback.xenbus.pcap import PcapFilter
from netback.xenstore.aio import StoreError

log = logging.getLogger("netback.xenbus")

_ACTION_SECONDS = 1.0
"""Minimum seconds between two attempts to join a link after it changed: a link that is removed repeatedly, or
that the attempt itself changes, must not keep the loop busy."""
_BLIND_SECONDS = 5.0
"""Seconds between checks for a missing link if no rtnetlink socket reports its return."""
_CUT = Rates(Rate(0, 1), Rate(0, 1))
"""The limits of a link that an operator took down, or whose filters are unknown: nothing passes."""
_FAULTS = (NetbackError, OSError)


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
        self.link_down = False
        """Whether an operator took the link down, when the limits were read last."""
        self._name, self._context, self._budget, self._wake = name, context, budget, wake
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._acted_at = 0.0
        """The loop's time when this process last made or joined the link, or tried to."""
        self._unchecked = True
        self._seen: _Seen | None = None
        """The link at the last check; None if that failed."""
        self._carrier: str | None = None  # the value of `carrier`, once this process has read or written it
        self._kept = 0
        """Descriptors of the tap that are in the descriptor store."""
        self._mtus: tuple[object, ...] = ()
        """The MTUs that were last compared."""
        self._tap = ""
        """The tap's name; empty for other networks."""
        self.pcap = PcapFilter(str(name), context.captures)
        self.recorder = Recorder(str(name))
        self._odd_record = ""
        """The value of the node `record` that was reported, since it is no mode."""
        self._reading_settings = asyncio.Lock()
        self.filter_fault: ConfigError | PeerError | None = None
        """Why the filters that were read last cannot be applied; while there is a reason, no frame passes."""
        self._filter_networks: dict[str, Network] = {}
        """The networks that filters name, by their specs."""
        self._filter_links_changed = False
        self._odd_rates: dict[str, str] = {}
        """The values of rate nodes that were reported: no rate, or a rate of 0."""

    @property
    def journal(self) -> Path:
        """The file of its queue's journal. It outlives this process."""
        return self._context.journals / f"{self._name.kind}-{self._name.domid}-{self._name.number}"

    @property
    def link(self) -> str:
        """The present name of the device's link; the one that it would have, if it has none."""
        network = self.vif.network if self.vif is not None else None
        return network.name if network is not None and network.follows else self._name.link

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
        except _FAULTS as error:
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
            recorder=self.recorder,
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
        """Open the network in a thread, since a tap may be busy for a moment. If cancelled, close it again."""
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
        opening = asyncio.ensure_future(
            asyncio.to_thread(
                open_network, peer, name=link, held=held, several=self._context.queues > 1, owner=owner
            )
        )
        try:
            await asyncio.wait((opening,))  # a cancelled shield would log an error of the call as unhandled
        except asyncio.CancelledError:
            with suppress(*_FAULTS):
                (await opening).close()
            raise
        network = opening.result()
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
        if self._filter_links_changed:
            await self._check_others()
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
        except _FAULTS as error:
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

    def limit_mtu(self, limited: bool) -> None:
        """Keep a tap's MTU at 1500 or less for a guest without feature-sg; warn if it cannot be changed."""
        if self.vif is None:
            return
        network = self.vif.network
        network.limit_mtu(limited)
        mtu = network.mtu or 0
        if limited and mtu > ETH_DATA_LEN:
            text = f"{self._name}: {network.name}: its MTU is {mtu}, but this guest accepts no frame larger than a page"
            self._budget.warn(
                log, f"{text} (no feature-sg): set it to {ETH_DATA_LEN}, or longer frames are dropped"
            )

    async def publish_mtu(self, frontend: str) -> None:
        """Write the link's MTU to the frontend's `mtu` when it changed. Report a bridge or frontend that has another.

        The link's MTU is the one that counts: longer frames are lost there. The stock script writes `mtu` only for
        links that it made; with `vifname` it writes to a path that does not exist.
        """
        network = self.vif.network if self.vif is not None else None
        if network is None or (mtu := network.mtu) is None:
            return
        bridge = _bridge(network)
        if (found := (frontend, mtu, bridge)) == self._mtus:
            return
        self._mtus = found
        told = await self._tell_mtu(frontend, mtu)
        if told is not None and told != mtu:
            self._warn_mtu(mtu, f"the frontend was told {told}")
        if bridge is not None and bridge[1] not in (None, mtu):
            self._warn_mtu(mtu, f"its bridge {printable(bridge[0])} has {bridge[1]}")

    async def _tell_mtu(self, frontend: str, mtu: int) -> int | None:
        """Write the frontend's `mtu`; returns what the node says then, None if it says no number.

        netif.h: without the node it is 1500. In a driver domain only the toolstack may write there.
        """
        store, path = self._context.store, f"{frontend}/{Key.MTU}"

        async def body(tx: int) -> None:
            if await store.read_or(f"{frontend}/state", tx=tx) is not None:
                await store.write(path, str(mtu), tx)

        with suppress(StoreError):
            if await store.read_or(path, str(ETH_DATA_LEN)) != str(mtu):
                await store.transact(body)
        with suppress(StoreError):
            text = await store.read_or(path) or str(ETH_DATA_LEN)
            return int(text) if len(text) < 10 and text.isdecimal() else None
        return None

    def _warn_mtu(self, mtu: int, other: str) -> None:
        assert self.vif is not None
        text = f"{self._name}: {self.vif.network.name}: its MTU is {mtu}, but {other}"
        self._budget.warn(log, f"{text}: frames longer than the smaller one are lost")

    async def carrier(self) -> str:
        """The value of the backend's `carrier` (netif.h): "1" while the network is up and no operator turned it off or
        took the link down.
        """
        nodes = (CARRIER_OFF, LINK_DOWN)
        off = "1" in await asyncio.gather(
            *(read_backend(self._context.store, self._name, node) for node in nodes)
        )
        return "1" if self.vif is not None and self.vif.network.up and not off else "0"

    async def publish_carrier(self) -> None:
        """Write the backend's `carrier` when it changed. A device that was never opened has no node."""
        if self.vif is None and self._carrier is None:
            return
        store, value, path = self._context.store, await self.carrier(), f"{self._name.backend}/{Key.CARRIER}"
        if self._carrier is None:
            self._carrier = await store.read_or(path)

        async def body(tx: int) -> None:
            if (
                await store.read_or(f"{self._name.backend}/state", tx=tx) is not None
            ):  # else the directory is gone
                await store.write(path, value, tx)

        if value != self._carrier:
            await store.transact(body)
            self._carrier = value

    async def read_settings(self) -> None:
        """Limit, filter and record the vif as its nodes say, or as the configuration does for a missing one. Any task
        may call this; no call applies older values than one that ended before.

        While the filters are wrong, or the address that they go by, no frame passes.
        """
        async with self._reading_settings:
            await self._read_filters()
            rates = await self._wanted_rates()
            if self.vif is not None:
                await self.vif.limit(rates)
            await self._read_pcap()
            await self._read_record()

    async def _read_filters(self) -> None:
        if self.vif is None:
            return
        try:
            filters = await self._wanted_filters()
            for name in filters.names - self._filter_networks.keys():
                self._filter_networks[name] = await self._open_other(name)
            networks = {name: self._filter_networks[name] for name in filters.names}
            if self.vif is not None:
                await self.vif.filter(replace(filters, networks=networks))
        except ConfigError as error:
            self.filter_fault = error
        except (PeerError, OSError) as error:
            self.filter_fault = PeerError(str(error))
        else:
            self.filter_fault = None
            self._end_others(self._filter_networks.keys() - networks.keys(), gone=True)
        self._follow_others()

    async def _open_other(self, spec: str) -> Network:
        """Open a network that a filter names, in a thread. If cancelled, close it again."""
        parsed = parse_spec(spec)
        opening = asyncio.ensure_future(asyncio.to_thread(open_network, parsed, name=parsed.link))
        try:
            await asyncio.wait((opening,))
        except asyncio.CancelledError:
            with suppress(*_FAULTS):
                (await opening).close()
            raise
        network = opening.result()
        network.carrier(True)
        return network

    def _follow_others(self) -> None:
        """Follow the links of the networks that filters name."""
        follows = (network.follows for network in self._filter_networks.values())
        self._context.links.follow(self._on_other_link, set().union(*follows))

    def _on_other_link(self) -> None:
        self._filter_links_changed = True
        self._look()

    async def _check_others(self) -> None:
        """Join those whose links are back. While one is missing its frames are lost, and nothing else."""
        self._filter_links_changed = False
        joined = False
        for network in self._filter_networks.values():
            with suppress(*_FAULTS):
                joined |= network.check()
        self._follow_others()
        if joined and self.vif is not None:
            await self.vif.refresh()

    def _end_others(self, names: Iterable[str], *, gone: bool) -> None:
        for name in tuple(names):
            network = self._filter_networks.pop(name)
            try:
                network.remove() if gone else network.close()
            except _FAULTS as error:
                log.warning("%s: network %s: %s", self._name, network.name, error)

    async def _wanted_filters(self) -> Filters:
        name, store = self._name, self._context.store
        mac = await read_mac(store, name)
        text, ip = await asyncio.gather(*(read_backend(store, name, node) for node in (FILTERS, IP)))
        if text is None:
            specs = await self._context.filters_for(name, mac)
        else:
            specs = parse_node(text)
        return Filters(specs, Addresses.read(mac, ip)) if specs else Filters()

    def check_filters(self) -> None:
        """ConfigError: the filters that were read last are wrong. PeerError: a network that they name cannot be opened
        now.
        """
        if self.filter_fault is not None:
            raise type(self.filter_fault)(f"no frame passes: {self.filter_fault}")

    @property
    def filters_wait(self) -> bool:
        """Whether the filters must be read again, since a network that they name could not be opened."""
        return isinstance(self.filter_fault, PeerError)

    async def _read_pcap(self) -> None:
        """Keep the vif's frames in the file that its node names, if it names one."""
        text = await read_backend(self._context.store, self._name, PCAP) or ""
        if self.vif is None:
            return
        before = self.pcap.error
        await self.pcap.apply(text, self.vif)
        if self.pcap.error and self.pcap.error != before:
            self._budget.warn(log, f"{self._name}: {self.pcap.error}")

    async def _read_record(self) -> None:
        """Record the vif as its node or the configuration says. A node that is no mode is reported once, and is off."""
        text = await read_backend(self._context.store, self._name, RECORD)
        mode = self._context.record()
        if text is not None:
            try:
                mode = parse_mode(text)
            except ConfigError as error:
                mode = "off"
                if text != self._odd_record:
                    self._odd_record = text
                    self._budget.warn(log, f"{self._name}: {error}")
        if self.vif is not None and mode != self.recorder.mode:
            self.recorder.change(mode)
            await self.vif.watch()

    async def save_fault(self, reason: str) -> None:
        """Save what the recorder has, since the guest broke the protocol: once for a connection, and to few files."""
        if self.vif is None or not self.recorder.claim_fault():
            return
        data = await self.vif.recording(reason)
        try:
            path = await asyncio.to_thread(self._context.recordings.save, str(self._name), data)
        except _FAULTS as error:
            self._budget.warn(log, f"{self._name}: the recording of its fault cannot be saved: {error}")
            return
        if path is not None:
            self._budget.warn(log, f"{self._name}: what led to its fault is saved: netback replay {path}")

    async def _wanted_rates(self) -> Rates:
        name, store = self._name, self._context.store
        self.link_down = await read_backend(store, name, LINK_DOWN) == "1"
        if self.link_down or self.filter_fault is not None:
            return _CUT
        texts = await asyncio.gather(*(read_backend(store, name, node) for node in RATES))
        rates = Rates()
        if None in texts:
            rates = await self._context.rates_for(name, await read_mac(store, name))
        defaults = (rates.tx, rates.rx)
        tx, rx = (self._rate(*each) for each in zip(RATES, texts, defaults, strict=True))
        return Rates(tx, rx)

    def _rate(self, node: str, text: str | None, default: Rate | None) -> Rate | None:
        """A node's rate. What is no rate limits nothing, as in Linux's backend; that, and a rate of 0, is reported
        once.
        """
        if text is None:
            return default
        rate, reason = None, ""
        try:
            rate = parse_rate_node(text)
        except ValueError as error:
            reason = f"is no rate, so it limits nothing: {error}"
        if rate is not None and not rate.size:
            reason = "lets nothing pass; xl writes it for less than a byte in an interval"
        if reason and self._odd_rates.get(node) != text:
            self._odd_rates[node] = text
            self._budget.warn(log, f"{self._name}: {node} {printable(text[:40])!r} {reason}")
        return rate

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
                await self.pcap.close()
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
            await self.pcap.close()
        finally:
            await self._end_network(vif.network, gone=True)
        self._context.tracer.emit("xen_netdev_unrealize", self._name)
        self._context.tracer.emit("xen_netdev_destroy", self._name)

    async def _remove_earlier(self) -> None:
        """Remove what an earlier process made for a device whose network is not open."""
        with suppress(*_FAULTS):
            mac = await read_mac(self._context.store, self._name)
            spec = parse_spec(
                await read_backend(self._context.store, self._name, "net")
                or await self._context.net_for(self._name, mac)
            )
            await asyncio.to_thread(remove_earlier, spec, await self._link())

    async def _end_network(self, network: Network, *, gone: bool) -> None:
        """Close or remove it; a tap in a thread, since its switch may be slow."""
        self.filter_fault = None
        self._context.links.follow(self._on_other_link, ())
        self._end_others(self._filter_networks, gone=gone)
        try:
            if self._context.networks.give_back(network):
                pass
            elif gone and self._tap:
                await asyncio.to_thread(network.remove)
            else:
                network.remove() if gone else network.close()
        except _FAULTS as error:
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
