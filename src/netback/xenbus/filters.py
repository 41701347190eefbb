# SPDX-License-Identifier: Apache-2.0
"""The filters of one device: what its nodes or the configuration name, and the other networks that these name."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from netback.errors import ConfigError, PeerError
from netback.net.base import Network
from netback.net.filters import Addresses, Filters, parse_node
from netback.net.spec import open_network, parse_spec
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.facts import read_backend, read_mac
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import FILTERS, IP
from netback.xenbus.opening import FAULTS, opened_in_thread

log = logging.getLogger("netback.xenbus")


class DeviceFilters:
    """None until `read`. `changed` is called when a link of another network did, so that `check` is due."""

    def __init__(
        self, name: DeviceName, context: Context, vif: Callable[[], Vif | None], changed: Callable[[], None]
    ) -> None:
        self._name, self._context, self._vif, self._changed = name, context, vif, changed
        self.fault: ConfigError | PeerError | None = None
        """Why the filters that were read last cannot be applied; while there is a reason, no frame passes."""
        self._networks: dict[str, Network] = {}
        """The networks that filters name, by their specs."""
        self._links_changed = False

    async def read(self) -> None:
        """Read the filters and apply them to the vif, if there is one. Errors are kept in `fault`."""
        if self._vif() is None:
            return
        try:
            filters = await self._wanted()
            for name in filters.names - self._networks.keys():
                self._networks[name] = await self._open(name)
            networks = {name: self._networks[name] for name in filters.names}
            if (vif := self._vif()) is not None:
                await vif.filter(replace(filters, networks=networks))
        except ConfigError as error:
            self.fault = error
        except (PeerError, OSError) as error:
            self.fault = PeerError(str(error))
        else:
            self.fault = None
            self._end(self._networks.keys() - networks.keys(), gone=True)
        self._follow()

    async def _wanted(self) -> Filters:
        name, store = self._name, self._context.store
        mac = await read_mac(store, name)
        text, ip = await asyncio.gather(*(read_backend(store, name, node) for node in (FILTERS, IP)))
        if text is None:
            specs = await self._context.filters_for(name, mac)
        else:
            specs = parse_node(text)
        return Filters(specs, Addresses.read(mac, ip)) if specs else Filters()

    async def _open(self, spec: str) -> Network:
        """Open a network that a filter names."""
        parsed = parse_spec(spec)
        network = await opened_in_thread(partial(open_network, parsed, name=parsed.link))
        network.carrier(True)
        return network

    def raise_fault(self) -> None:
        """ConfigError: the filters that were read last are wrong. PeerError: a network that they name cannot be opened
        now.
        """
        if self.fault is not None:
            raise type(self.fault)(f"no frame passes: {self.fault}")

    @property
    def waits(self) -> bool:
        """Whether they must be read again, since a network that they name could not be opened."""
        return isinstance(self.fault, PeerError)

    # ---- the links of other networks

    def _follow(self) -> None:
        follows = (network.follows for network in self._networks.values())
        self._context.links.follow(self._on_link, set().union(*follows))

    def _on_link(self) -> None:
        self._links_changed = True
        self._changed()

    async def check(self) -> None:
        """Join those networks whose links are back. While one is missing its frames are lost, and nothing else."""
        if not self._links_changed:
            return
        self._links_changed = False
        joined = False
        for network in self._networks.values():
            with suppress(*FAULTS):
                joined |= network.check()
        self._follow()
        if joined and (vif := self._vif()) is not None:
            await vif.refresh()

    def end(self, *, gone: bool) -> None:
        """The vif is released: close the other networks, or remove them if the device is `gone`."""
        self.fault = None
        self._context.links.follow(self._on_link, ())
        self._end(self._networks.keys(), gone=gone)

    def _end(self, names: Iterable[str], *, gone: bool) -> None:
        for name in tuple(names):
            network = self._networks.pop(name)
            try:
                network.remove() if gone else network.close()
            except FAULTS as error:
                log.warning("%s: network %s: %s", self._name, network.name, error)
