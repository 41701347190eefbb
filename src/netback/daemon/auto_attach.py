# SPDX-License-Identifier: Apache-2.0
"""Applies the configuration's rules: the network of each device, and the guests that get a device when they
appear.

Reads the rules and guests' names; devices are served elsewhere (xenbus).
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.daemon.config import DeviceRule
from netback.errors import NetbackError, printable
from netback.net.filters import FilterSpec, parse_filters
from netback.observe.trace import LogBudget
from netback.vif.features import make_mac, parse_mac
from netback.vif.rate import Rates
from netback.xenbus.attach import attach
from netback.xenbus.devices import AGAIN_SECONDS, patient_watch
from netback.xenbus.domains import identity
from netback.xenbus.names import DeviceName, decimal
from netback.xenstore.aio import Store, StoreError, StoreGone, Watch

log = logging.getLogger("netback.daemon.auto_attach")

NET = "tap"
"""The network of a device for which neither its nodes nor the configuration name one."""
_INTRODUCED = "@introduceDomain"


class AutoAttach:
    """The rules in force. Each guest is examined once, so a device that an operator detaches stays detached."""

    def __init__(
        self,
        store: Store,
        domid: int,
        net: str | None,
        rules: Sequence[DeviceRule],
        filters: Sequence[str] = (),
    ) -> None:
        self._store, self._domid = store, domid
        self.rules = rules
        """The rules, in order."""
        self._net, self._filters = net, filters
        self._examined: set[int] = set()
        self._busy = asyncio.Lock()
        self._budget = LogBudget()
        self._introduced: Watch | None = None

    async def change(self, net: str | None, rules: Sequence[DeviceRule], filters: Sequence[str] = ()) -> None:
        """Replace the rules and examine every running guest again."""
        self._net, self.rules, self._filters = net, rules, filters
        self._examined.clear()
        await self._attach()

    async def attach_by(self, rule: DeviceRule) -> tuple[list[DeviceName], list[str]]:
        """Give each guest that runs what one rule attaches: the devices that were made, and why others were not. What
        the store refused is tried again later.
        """
        attached, failed = [], []
        async with self._busy:
            try:
                guests = await self._guests_of(rule)
                if rule.attach and not any(other.attach for other in self.rules if other != rule):
                    # until now no rule attached anything, so no guest was examined
                    self._examined |= await self._domains()
            except StoreError as error:
                self._try_again(error)
                return [], [str(error)]
            for domid in guests:
                try:
                    if (name := await self._give(domid, rule)) is not None:
                        attached.append(name)
                except StoreError as error:
                    self._examined.discard(domid)
                    self._try_again(error)
                    failed.append(str(error))
                except NetbackError as error:
                    failed.append(str(error))
        return attached, failed

    async def attached_by(self, rule: DeviceRule) -> list[DeviceName]:
        """The devices that a rule attached and that exist: their address shows it."""
        found = []
        for domid in await self._guests_of(rule):
            name = self._name(domid, rule)
            if await self._store.read_or(f"{name.backend}/mac") == _address(rule):
                found.append(name)
        return found

    async def _guests_of(self, rule: DeviceRule) -> list[int]:
        """The guests that run and that an attaching rule names."""
        here = sorted(await self._domains()) if rule.attach else []
        return [domid for domid in here if rule.guest in await self._guest(domid)]

    async def net_for(self, name: DeviceName, mac: str | None) -> str:
        """The network of a device whose nodes do not name one."""
        rule = await self._rule_for(name, mac)
        return rule.net if rule else self._net or NET

    async def rates_for(self, name: DeviceName, mac: str | None) -> Rates:
        """The limits of a device whose nodes name none."""
        rule = await self._rule_for(name, mac)
        return rule.rates if rule else Rates()

    async def filters_for(self, name: DeviceName, mac: str | None) -> tuple[FilterSpec, ...]:
        """The filters of a device without a `filters` node: the rule's, if it has any of its own, else those of all."""
        rule = await self._rule_for(name, mac)
        texts = self._filters if rule is None or rule.filters is None else rule.filters
        return parse_filters(texts)

    async def _rule_for(self, name: DeviceName, mac: str | None) -> DeviceRule | None:
        """The first rule that fits."""
        guest = await self._guest(name.domid) if any(rule.guest for rule in self.rules) else set()
        for rule in self.rules:
            if rule.fits(guest=guest, domid=name.domid, type=name.kind, index=name.index, mac=mac):
                return rule
        return None

    async def run(self) -> None:
        """Examine each guest that appears; only the end of the store (StoreGone) ends this."""
        async with await patient_watch(self._store, _INTRODUCED, self._budget) as self._introduced:
            async for _ in self._introduced:
                await self._attach()

    async def _attach(self) -> None:
        """Examine the guests that are new, and later again those for which the store refused something."""
        async with self._busy:
            if not any(rule.attach for rule in self.rules):
                return
            try:
                here = await self._domains()
            except StoreError as error:
                self._try_again(error)
                return
            self._examined &= here
            for domid in here - self._examined:
                try:
                    await self._look(domid)
                    self._examined.add(domid)
                except StoreError as error:
                    self._try_again(error)

    def _try_again(self, error: StoreError) -> None:
        """Log what the store refused, and examine the guests again later. Raises StoreGone."""
        if isinstance(error, StoreGone):
            raise error
        self._budget.warn(log, f"cannot attach what the configuration names: {printable(str(error))}")
        if self._introduced is not None:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._introduced.fired, _INTRODUCED)

    async def _domains(self) -> set[int]:
        """The guests that were introduced; a toolstack is still building the others."""
        found = [decimal(text, DOMID_FIRST_RESERVED) for text in await self._store.directory("/local/domain")]
        guests = [domid for domid in found if domid is not None and domid != self._domid]
        return {domid for domid in guests if await self._store.introduced(domid)}

    async def _look(self, domid: int) -> None:
        guest = await self._guest(domid)
        for rule in self.rules:
            if rule.attach and rule.guest in guest:
                try:
                    await self._give(domid, rule)
                except StoreError:
                    raise
                except NetbackError as error:
                    self._budget.warn(log, printable(str(error)))

    async def _guest(self, domid: int) -> set[str]:
        """A guest's name and UUID, as far as they may be read."""
        return {text for text in await identity(self._store, domid) if text}

    def _name(self, domid: int, rule: DeviceRule) -> DeviceName:
        return DeviceName(rule.type or "vif", self._domid, domid, str(rule.index))

    async def _give(self, domid: int, rule: DeviceRule) -> DeviceName | None:
        """Attach the rule's device; None: it exists. NetbackError names device and guest."""
        assert rule.index is not None
        name = self._name(domid, rule)
        if await self._store.read_or(f"{name.backend}/state") is not None:
            return None
        try:
            await attach(
                self._store,
                domid,
                rule.net,
                kind=name.kind,
                mac=_address(rule),
                index=rule.index,
                backend_domid=self._domid,
            )
        except StoreError:
            raise
        except NetbackError as error:
            raise NetbackError(f"{name}: cannot attach it to guest {rule.guest}: {error}") from error
        log.info("%s: attached to guest %s", name, rule.guest)
        return name


def _address(rule: DeviceRule) -> str:
    """The MAC address of the device that a rule attaches: its own, or one derived from guest, type and index."""
    if rule.mac is not None:
        return parse_mac(rule.mac)
    return make_mac(hashlib.sha256(f"{rule.guest}/{rule.type or 'vif'}/{rule.index}".encode()).digest())
