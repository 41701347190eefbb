# SPDX-License-Identifier: Apache-2.0
"""What the control socket's methods and topics need of a backend (`daemon.backend.Backend`)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from netback.daemon.config import DeviceRule
from netback.net.filters import FilterSpec
from netback.observe.captures import Captures
from netback.observe.trace import Tracer
from netback.platforms.base import Platform
from netback.vif.features import DeviceType
from netback.vif.rate import Rate
from netback.vif.vif import Vif
from netback.xenbus.device import Device
from netback.xenbus.names import DeviceName
from netback.xenbus.news import News
from netback.xenstore.aio import Store


class Serving(Protocol):
    """A backend that serves devices."""

    platform: Platform
    store: Store
    tracer: Tracer
    news: News
    captures: Captures
    ends: bool

    @property
    def devices(self) -> Mapping[DeviceName, Device]:
        """The devices known now, by name."""

    def named(self, name: str) -> Device:
        """A device by its name. ConfigError: this backend serves none of that name."""

    def opened(self, name: str) -> tuple[Device, Vif]:
        """A device whose network is open, and its data path. ConfigError: there is none."""

    @property
    def runs_scripts(self) -> bool:
        """Whether it runs the hotplug scripts of new devices."""

    async def attach(
        self,
        domid: int,
        net: str,
        *,
        mac: str | None = None,
        kind: DeviceType = "vif",
        index: int = -1,
        tx_rate: Rate | None = None,
        rx_rate: Rate | None = None,
        filters: Sequence[FilterSpec] | None = None,
    ) -> DeviceName:
        """Give a domain a NIC."""

    async def detach(self, name: DeviceName, *, seconds: float = 10.0) -> bool:
        """Take a device from its guest. Returns False if the guest did not answer in time."""

    @property
    def rules(self) -> Sequence[DeviceRule]:
        """The configuration's rules, in their order."""

    async def add_rule(self, rule: DeviceRule) -> tuple[DeviceRule, list[DeviceName], list[str]]:
        """Add a rule: as it is kept, the devices that were attached, and why others were not."""

    async def remove_rule(
        self, name: str, *, detach: bool = False, seconds: float = 10.0
    ) -> list[tuple[DeviceName, bool]]:
        """Remove an added rule: the devices that were detached, with whether their guests answered."""

    async def watch(self, names: Collection[str] = ()) -> None:
        """Have the workers record what the tracer and the captures want, of these devices; of all if none is named."""
