# SPDX-License-Identifier: Apache-2.0
"""A device's NIC: the network behind it, opened and tried again, and the vif on it.

Knows specs, links and the descriptor store; it decides no state.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from netback.dataplane.notices import Notice
from netback.errors import ConfigError, NetbackError, printable
from netback.net.base import Network
from netback.net.mtu import ETH_DATA_LEN
from netback.net.spec import open_network, parse_spec
from netback.net.tap import remove_made
from netback.observe.trace import LogBudget
from netback.vif.queue import remove_journals
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.facts import read_backend, read_mac
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import StoreError

log = logging.getLogger("netback.xenbus")

_FAULTS = (NetbackError, OSError)


class Nic:
    """The network and the vif of one device.

    `wake` has the device read its facts again: the vif broke. It is called in the event loop's thread. What `open`
    raises is tried again by the device.
    """

    def __init__(
        self, name: DeviceName, context: Context, budget: LogBudget, wake: Callable[[], object]
    ) -> None:
        self.vif: Vif | None = None
        self._name, self._context, self._budget, self._wake = name, context, budget, wake
        self._loop = asyncio.get_running_loop()
        self._mtu: int | None = ETH_DATA_LEN  # the frontend's default where nothing was written

    @property
    def journal(self) -> Path:
        """The file of its queue's journal, which outlives this process."""
        return self._context.journals / f"{self._name.kind}-{self._name.domid}-{self._name.number}"

    # ---- open

    async def open(self, *, running: bool) -> None:
        """Open the network and make the vif: all that must stand before the frontend may know of the device.

        `running`: both ends are connected, so a held tap's carrier stays as it is. NetbackError: the network cannot be
        opened; ConfigError where trying again will not help.
        """
        name, store = self._name, self._context.store
        mac = await read_mac(store, name)
        spec = await read_backend(store, name, "net") or await self._context.net_for(name, mac)
        try:
            network = await self._open(spec, await self._link())
        except _FAULTS as error:
            kind = ConfigError if isinstance(error, ConfigError) else NetbackError
            raise kind(f"realization of net device {name.index} failed: {error}") from error
        if not running:
            network.carrier(False)
        self._context.tracer.hit("xen_netdev_create", name)
        self.vif = Vif(
            str(name),
            name.domid,
            network,
            platform=self._context.platform,
            workers=self._context.workers,
            journal=self.journal,
            tracer=self._context.tracer,
            on_notice=self._on_notice,
        )
        info = f"{name.kind} {name.index} of domain {name.domid}, mac {mac or 'not told'}, network {spec}"
        log.info("%s: %s", name, info)
        if rate := await read_backend(store, name, "rate"):
            link = network.name or "its network"
            self._budget.warn(
                log, f"{name}: rate={printable(rate)} is not enforced here: limit {link} with tc"
            )
        self._context.tracer.hit("xen_netdev_realize", name, info, network.name)

    def _on_notice(self, notice: Notice) -> None:
        if notice is Notice.BROKEN:
            self._wake()

    async def _link(self) -> str:
        """The name of a tap whose spec names none. A script renames it to `vifname`, and fails if that exists."""
        vifname, script = await asyncio.gather(
            *(read_backend(self._context.store, self._name, node) for node in ("vifname", "script"))
        )
        return vifname if vifname and script is None else self._name.link

    async def _open(self, spec: str, link: str) -> Network:
        """Open the network in a thread, since a tap may be busy for a moment; a cancellation leaves none open."""
        if spec in self._context.networks:
            return self._context.networks.open(spec, str(self._name))
        peer, device = parse_spec(spec), str(self._name)
        if peer.kind != "tap":
            self._context.fd_store.forget(device)
        held = self._context.fd_store.take(device)
        opening = asyncio.ensure_future(asyncio.to_thread(open_network, peer, name=link, held=held))
        try:
            network = await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(*_FAULTS):
                (await opening).close()
            raise
        if peer.kind == "tap":
            self._context.fd_store.keep(device, [peer.fd for peer in network.peers])
        return network

    # ---- while it is open

    async def publish_mtu(self, frontend: str) -> None:
        """Write the link's MTU to the frontend's `mtu` when it changed.

        The stock script writes it only for links that it made, and where `vifname` is given to a path that does not
        exist.
        """
        mtu = self.vif.network.mtu if self.vif is not None else None
        if mtu in (None, self._mtu):
            return
        self._mtu = mtu
        store = self._context.store

        async def body(tx: int) -> None:
            written = await store.read_or(f"{frontend}/mtu", tx=tx)
            if written != str(mtu) and await store.read_or(f"{frontend}/state", tx=tx) is not None:
                await store.write(f"{frontend}/mtu", str(mtu), tx)

        with suppress(StoreError):  # in a driver domain only the toolstack may
            await store.transact(body)

    def carrier_off(self) -> None:
        """Show the link's users that no guest is connected."""
        if self.vif is not None:
            self.vif.network.carrier(False)

    # ---- ends

    async def lose_network(self) -> None:
        """The link is gone, by no fault of the guest: close what is left of it, to be opened again."""
        await self.close()
        self._context.fd_store.forget(str(self._name))

    async def close(self) -> None:
        """Close everything in this process and change nothing outside."""
        if (vif := self.vif) is not None:
            self.vif = None
            try:
                await vif.release()
            finally:
                self._end_network(vif.network, gone=False)

    async def remove(self) -> None:
        """The device is gone: so are its journal, its held descriptor and a link that netback made."""
        self._context.fd_store.forget(str(self._name))
        remove_journals(self.journal)
        if (vif := self.vif) is None:
            return
        self.vif = None
        try:
            await vif.disconnect()
        finally:
            self._end_network(vif.network, gone=True)
        self._context.tracer.hit("xen_netdev_unrealize", self._name)
        self._context.tracer.hit("xen_netdev_destroy", self._name)

    async def remove_unopened_tap(self) -> None:
        """Remove the tap that an earlier process made for a device that this process never opened."""
        with suppress(*_FAULTS):
            mac = await read_mac(self._context.store, self._name)
            spec = parse_spec(
                await read_backend(self._context.store, self._name, "net")
                or await self._context.net_for(self._name, mac)
            )
            if spec.kind == "tap":
                await asyncio.to_thread(remove_made, spec.link or await self._link())

    def _end_network(self, network: Network, *, gone: bool) -> None:
        if self._context.networks.give_back(network):
            return
        try:
            network.remove() if gone else network.close()
        except _FAULTS as error:
            log.warning("%s: network %s: %s", self._name, network.name, error)
