# SPDX-License-Identifier: Apache-2.0
"""The settings of one device: its rates, filters, file of frames and recorder, as its nodes say, or the configuration
for a missing one.
"""

import asyncio
import logging
from collections.abc import Callable

from netback.errors import ConfigError, printable
from netback.observe.recorder import Recorder, parse_mode
from netback.observe.trace import LogBudget
from netback.vif.rate import Rate, Rates
from netback.vif.rate import parse_node as parse_rate_node
from netback.vif.vif import Vif
from netback.xenbus.context import Context
from netback.xenbus.facts import read_backend, read_mac
from netback.xenbus.filters import DeviceFilters
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import LINK_DOWN, PCAP, RATES, RECORD
from netback.xenbus.opening import FAULTS
from netback.xenbus.pcap import PcapFilter

log = logging.getLogger("netback.xenbus")

_CUT = Rates(Rate(0, 1), Rate(0, 1))
"""The limits of a link that an operator took down, or whose filters are unknown: nothing passes."""


class Settings:
    """Applied to the vif that `vif` returns, if it returns one. `changed` makes the device check its networks."""

    def __init__(
        self,
        name: DeviceName,
        context: Context,
        budget: LogBudget,
        vif: Callable[[], Vif | None],
        changed: Callable[[], None],
    ) -> None:
        self._name, self._context, self._budget, self._vif = name, context, budget, vif
        self.link_down = False
        """Whether an operator took the link down, when the limits were read last."""
        self.filters = DeviceFilters(name, context, vif, changed)
        self.pcap = PcapFilter(str(name), context.captures)
        self.recorder = Recorder(str(name))
        self._odd_record = ""
        """The value of the node `record` that was reported, since it is no mode."""
        self._odd_rates: dict[str, str] = {}
        """The values of rate nodes that were reported: no rate, or a rate of 0."""
        self._reading = asyncio.Lock()

    async def read(self) -> None:
        """Read and apply them. Any task may call this; no call applies older values than one that ended before.

        While the filters are wrong, or the address that they go by, no frame passes.
        """
        async with self._reading:
            await self.filters.read()
            rates = await self._wanted_rates()
            if (vif := self._vif()) is not None:
                await vif.limit(rates)
            await self._read_pcap()
            await self._read_record()

    async def _wanted_rates(self) -> Rates:
        name, store = self._name, self._context.store
        self.link_down = await read_backend(store, name, LINK_DOWN) == "1"
        if self.link_down or self.filters.fault is not None:
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

    async def _read_pcap(self) -> None:
        """Keep the vif's frames in the file that its node names, if it names one."""
        text = await read_backend(self._context.store, self._name, PCAP) or ""
        if (vif := self._vif()) is None:
            return
        before = self.pcap.error
        await self.pcap.apply(text, vif)
        if self.pcap.error and self.pcap.error != before:
            self._budget.warn(log, f"{self._name}: {self.pcap.error}")

    async def _read_record(self) -> None:
        """A node that is no mode is reported once, and is off."""
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
        if (vif := self._vif()) is not None and mode != self.recorder.mode:
            self.recorder.change(mode)
            await vif.watch()

    async def save_fault(self, reason: str) -> None:
        """Save what the recorder has, since the guest broke the protocol: once for a connection, and to few files."""
        if (vif := self._vif()) is None or not self.recorder.claim_fault():
            return
        data = await vif.recording(reason)
        try:
            path = await asyncio.to_thread(self._context.recordings.save, str(self._name), data)
        except FAULTS as error:
            self._budget.warn(log, f"{self._name}: the recording of its fault cannot be saved: {error}")
            return
        if path is not None:
            self._budget.warn(log, f"{self._name}: what led to its fault is saved: netback replay {path}")
