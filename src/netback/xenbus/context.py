# SPDX-License-Identifier: Apache-2.0
"""What all devices of one backend share."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from netback.net.base import FdStore
from netback.net.filters import FilterSpec
from netback.net.monitor import LinkMonitor
from netback.net.objects import ObjectNetworks
from netback.observe.captures import Captures
from netback.observe.choice import RecordMode
from netback.observe.recorder import Recordings
from netback.observe.trace import Tracer
from netback.platforms.base import Platform
from netback.vif.features import WaitTimes
from netback.vif.rate import Rates
from netback.vif.workers import Workers
from netback.xenbus.names import DeviceName
from netback.xenbus.news import News
from netback.xenbus.scripts import HotplugConfig, Scripts
from netback.xenstore.aio import Store


@dataclass(frozen=True, slots=True)
class Context:
    """The store, the platform and the worker threads, and where a device's files and network come from."""

    store: Store
    platform: Platform
    workers: Workers
    tracer: Tracer
    captures: Captures
    offer: Mapping[str, str]
    """The backend keys that this process serves (`features.offer`)."""
    queues: int
    """The most queues of a device."""
    journals: Path
    """The directory of the journals, one file for each device."""
    net_for: Callable[[DeviceName, str | None], Awaitable[str]]
    """The network spec of a device without a `net` node, by its name and its MAC address."""
    rates_for: Callable[[DeviceName, str | None], Awaitable[Rates]]
    """The limits of a device whose nodes name none, likewise."""
    filters_for: Callable[[DeviceName, str | None], Awaitable[tuple[FilterSpec, ...]]]
    """The filters of a device without a `filters` node, likewise."""
    record: Callable[[], RecordMode]
    """Whether devices without a `record` node are recorded, by the present configuration."""
    recordings: Recordings
    """Where recordings of faults are saved."""
    times: Callable[[], WaitTimes]
    """How long frames may wait for a guest, by the present configuration."""
    hotplug: Callable[[], HotplugConfig | None]
    """How netback runs hotplug scripts, by the present configuration; None: a toolstack does."""
    fd_store: FdStore
    """Holds the descriptors of taps while no backend runs."""
    networks: ObjectNetworks
    """Networks that are Python objects, by the spec that names them."""
    links: LinkMonitor
    """Reports changes of links."""
    news: News = field(default_factory=News)
    """What the devices announce."""
    scripts: Scripts = field(default_factory=Scripts)
    """Runs hotplug scripts."""
    taps: dict[int | str, str] = field(default_factory=dict)
    """The device that uses each tap, keyed by the tap's index and by the name in the spec."""
    waiting: set[Callable[[], object]] = field(default_factory=set)
    """Called, and removed, when a device gives up its network: another may have waited for it."""
