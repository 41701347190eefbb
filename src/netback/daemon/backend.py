# SPDX-License-Identifier: Apache-2.0
"""The backend as one object, used by `netback run` and, in their own process, by tests and other programs.

However it ends, it leaves nodes, states and taps in place, and the next backend continues from there.
"""

import asyncio
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from netback.control.schema import DeviceStatus
from netback.control.server import serve_control
from netback.daemon.added_rules import check_new, free_name, place_rules, save_rules
from netback.daemon.auto_attach import AutoAttach
from netback.daemon.config import DeviceRule, check_names, check_trace, load_rules
from netback.daemon.control import calls
from netback.daemon.status import describe
from netback.daemon.systemd.fd_store import SystemdFdStore
from netback.daemon.topics import topics
from netback.directory import OWNER_ONLY, Access, Directory
from netback.errors import ConfigError, NetbackError, printable
from netback.net.base import FdStore, Network, NetworkFactory
from netback.net.filters import FilterSpec, parse_filters
from netback.net.monitor import LinkMonitor
from netback.net.objects import ObjectNetworks
from netback.net.spec import parse_spec
from netback.observe.captures import Captures
from netback.observe.choice import RecordMode
from netback.observe.recorder import Recordings
from netback.observe.trace import Tracer
from netback.platforms.base import Platform
from netback.vif.features import DeviceType, Limits, WaitTimes, offer
from netback.vif.queue import queue_owner
from netback.vif.rate import Rate
from netback.vif.vif import Vif
from netback.vif.workers import Workers
from netback.xenbus.attach import attach, detach
from netback.xenbus.context import Context
from netback.xenbus.device import Device
from netback.xenbus.devices import Devices
from netback.xenbus.names import DeviceName
from netback.xenbus.news import News
from netback.xenbus.scripts import HotplugConfig
from netback.xenstore.aio import Store

log = logging.getLogger("netback")

_JOURNALS = "journal"
"""The directory of the journals, inside the runtime directory."""
_RECORDINGS = "recordings"
"""The directory of saved faults, likewise, if no other is configured."""
_JOURNAL = re.compile(r"[a-z]+-[0-9]+-.+")
"""A journal's file name: type, domid and index of its device (xenbus/nic.py)."""

_LOCK_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between attempts to take the lock: the kernel releases a killed predecessor's lock shortly after
its death."""


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """The configuration of a backend."""

    directory: Path
    """The runtime directory: lock, journals, control socket. A successor needs the same one to continue."""
    net: str | None = None
    """The network of devices whose nodes do not name one."""
    networks: Mapping[str, Network | NetworkFactory] = field(default_factory=dict)
    """Networks that are Python objects, keyed by the spec that names them, such as "python:lan".

    A network object serves one device at a time and its owner closes it. A factory makes one network per
    device and gets the device's name.
    """
    trace: tuple[str, ...] = ()
    """Names or globs of trace points."""
    workers: int | None = None
    """Worker threads; None means one per core."""
    queues: int | None = None
    """The most queues of a vif; None means one per core, and 8 at most, as in Linux's backend."""
    times: WaitTimes = field(default_factory=WaitTimes)
    """How long frames may wait for a guest; a connection keeps those with which it began."""
    access: Access = OWNER_ONLY
    """Who may use the control socket."""
    hotplug: HotplugConfig | None = None
    """How netback runs hotplug scripts; None: a toolstack does. A device keeps what it began with."""
    record: RecordMode = "off"
    """Whether devices whose nodes do not say so are recorded (docs/record.md)."""
    recordings: Path | None = None
    """Where recordings of faults are saved; None: below `directory`."""
    filters: tuple[str, ...] = ()
    """The filters of devices for which neither their nodes nor a rule name any (docs/filters.md)."""
    rules: tuple[DeviceRule, ...] = ()
    """Rules for networks and for guests that get a device when they appear. The first rule that fits
    applies."""
    rules_file: Path | None = None
    """Where added rules are kept; None: nowhere, so none can be added."""


class Backend:
    """A backend domain's devices, served until the end of the context.

    async with Backend(EmulatedPlatform(directory), BackendConfig(directory)) as backend:
        await backend.attach(3, "tap")
    """

    def __init__(self, platform: Platform, config: BackendConfig, fd_store: FdStore | None = None) -> None:
        self.platform = platform
        self.config = config
        self.tracer = Tracer()
        self.news = News()
        self._limits = Limits(queues=config.queues or default_queues())
        self._offer = offer(self._limits)
        self._fd_store: FdStore = fd_store or SystemdFdStore()
        for pattern in config.trace:
            self.tracer.select(pattern)
        self.ends = False
        """Whether the end of the context has begun."""
        self.store: Store
        self.captures: Captures
        self._workers: Workers
        self._devices: Devices
        self._auto_attach: AutoAttach
        self._running: asyncio.Task[None]
        self._undo = AsyncExitStack()
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            directory = undo.enter_context(Directory.open(self.config.directory))
            undo.callback(os.close, await _lock(directory, self.platform.domid))
            journals = undo.enter_context(directory.subdirectory(_JOURNALS))
            self.store = await self.platform.open_store()
            undo.push_async_callback(self.store.close)
            self._workers = Workers(self.platform, self.config.workers)
            undo.callback(self._workers.close)
            self.captures = Captures(len(self._workers.workers))
            self._auto_attach = AutoAttach(
                self.store, self.platform.domid, self.config.net, self.config.rules, self.config.filters
            )
            links = undo.enter_context(closing(LinkMonitor()))
            saved = (
                directory.subdirectory(_RECORDINGS)
                if self.config.recordings is None
                else Directory.open(self.config.recordings)
            )
            self._devices = Devices(self._context(links, Recordings(undo.enter_context(saved))))
            self._running = asyncio.create_task(self._run())
            undo.push_async_callback(self._stop)
            await self._first_look()
            self._prune(journals)
            await undo.enter_async_context(
                serve_control(directory, calls(self), topics(self), self.config.access)
            )
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ends = True
        await self._undo.aclose()

    async def wait(self) -> None:
        """Wait for the end of the store and raise its NetbackError; never returns otherwise."""
        await asyncio.wait((self._running,))  # a cancelled shield would log the end of the store as unhandled
        try:
            self._running.result()
        except ExceptionGroup as group:
            raise _first(group) from group

    async def reconfigure(self, config: BackendConfig) -> None:
        """Switch to another configuration. A device keeps the network that it has until it is created again; one that
        has none, since its network cannot be opened, is retried.

        ConfigError names the mistake; nothing has changed then.
        """
        check_trace(config.trace)
        if config.net is not None and config.net not in self.config.networks:
            parse_spec(config.net)
        parse_filters(config.filters)
        names = ("directory", "workers", "queues", "access")
        fixed = [name for name in names if getattr(config, name) != getattr(self.config, name)]
        if fixed:
            log.warning(
                "%s cannot change while netback runs; restart netback: guests do not notice",
                " and ".join(fixed),
            )
        for pattern in ("-*", *config.trace):
            await self.trace(pattern)
        async with self._changing:
            self.config = replace(config, **{name: getattr(self.config, name) for name in names})
            await self._auto_attach.change(config.net, config.rules, config.filters)
            self._wake_devices()

    def _wake_devices(self) -> None:
        """Have each device look at the rules again."""
        for device in self.devices.values():
            device.settings_changed = True
            device.news.set()

    @property
    def rules(self) -> Sequence[DeviceRule]:
        """The configuration's rules, in their order."""
        return self.config.rules

    async def add_rule(self, rule: DeviceRule) -> tuple[DeviceRule, list[DeviceName], list[str]]:
        """Add a rule, keep it in the configuration's drop-in, and attach what it attaches to the guests that run.

        Returns the rule with its name and file, the devices that were attached, and why others were not. ConfigError:
        the file cannot be written, a rule of that name exists, or an earlier rule leaves this one no device.
        """
        async with self._changing:
            path, known = self._added_rules()
            rules = place_rules(self.config.rules, path, known)
            rule = msgspec.structs.replace(rule, name=rule.name or free_name(rules), file=str(path))
            rules = place_rules(rules, path, (*known, rule))
            check_names(rules)
            check_new(rule, rules[: rules.index(rule)])
            await self._keep_rules(path, (*known, rule), rules)
            attached, failed = await self._auto_attach.attach_by(rule)
            return rule, attached, failed

    async def remove_rule(
        self, name: str, *, detach: bool = False, seconds: float = 10.0
    ) -> list[tuple[DeviceName, bool]]:
        """Remove an added rule; `detach`: also the devices that it attached, each within `seconds`.

        Returns those with whether their guests answered. ConfigError: there is no such rule, it is in another file, or
        the file cannot be written.
        """
        async with self._changing:
            path, known = self._added_rules()
            rule = next((rule for rule in (*known, *self.config.rules) if rule.name == name), None)
            if rule is None:
                raise ConfigError(f"there is no rule {printable(name)}: netback rules")
            if rule not in known:
                raise ConfigError(f"rule {name} is in {rule.file}: remove it there, and reload netback")
            rest = tuple(other for other in known if other != rule)
            await self._keep_rules(path, rest, place_rules(self.config.rules, path, rest))
        devices = await self._auto_attach.attached_by(rule) if detach else []
        answered = await asyncio.gather(*(self.detach(device, seconds=seconds) for device in devices))
        return list(zip(devices, answered, strict=True))

    def _added_rules(self) -> tuple[Path, tuple[DeviceRule, ...]]:
        """The file of added rules and what it has now. ConfigError: there is none, or it has a mistake."""
        if self.config.rules_file is None:
            raise ConfigError("this netback has no configuration file beside which a rule could be kept")
        return self.config.rules_file, load_rules(self.config.rules_file)

    async def _keep_rules(
        self, path: Path, added: tuple[DeviceRule, ...], rules: tuple[DeviceRule, ...]
    ) -> None:
        await asyncio.to_thread(save_rules, path, added)
        self.config = replace(self.config, rules=rules)
        self._auto_attach.rules = rules
        self._wake_devices()

    async def respond(self) -> None:
        """Return once every worker's thread has responded. The watchdog uses this."""
        await self._workers.flush()

    @property
    def devices(self) -> Mapping[DeviceName, Device]:
        """The devices known now, by name."""
        return self._devices.devices

    @property
    def runs_scripts(self) -> bool:
        """Whether it runs the hotplug scripts of new devices."""
        return self.config.hotplug is not None

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
        """Give a domain a NIC. Another process can do the same with `xenbus.attach.attach`."""
        if net not in self.config.networks:
            parse_spec(net)
        return await attach(
            self.store,
            domid,
            net,
            kind=kind,
            mac=mac,
            index=index,
            first_index=first_index(self.platform.name),
            backend_domid=self.platform.domid,
            offered=self._offer,
            tx_rate=tx_rate,
            rx_rate=rx_rate,
            filters=filters,
        )

    async def detach(self, name: DeviceName, *, seconds: float = 10.0) -> bool:
        """Take the device from its guest. Returns False if the guest did not answer within `seconds` and the
        device was forced.
        """
        return await detach(self.store, name, seconds=seconds)

    async def trace(self, pattern: str) -> None:
        """Turn trace points on, or off with a leading `-`, for events from now on."""
        await self._workers.flush()
        self.tracer.select(pattern)
        await self.watch()

    async def watch(self, names: Collection[str] = ()) -> None:
        """Have the workers record what the tracer and the captures want, of these devices; of all if none is named."""
        for name, device in tuple(self.devices.items()):
            if device.vif is not None and (not names or str(name) in names):
                await device.vif.watch()

    @property
    def load(self) -> list[int]:
        """The number of links on each worker: queues, and what steers frames to queues."""
        return self._workers.queues

    def status(self) -> list[DeviceStatus]:
        """Every device that this backend serves, including network, counters and ring indices, which the
        store does not have.
        """
        return [describe(device) for device in self.devices.values()]

    def named(self, name: str) -> Device:
        """A device by its name. ConfigError: this backend serves none of that name."""
        device = next((device for known, device in self.devices.items() if str(known) == name), None)
        if device is None:
            raise ConfigError(f"there is no device {printable(name)}")
        return device

    def opened(self, name: str) -> tuple[Device, Vif]:
        """A device whose network is open, and its data path. ConfigError: there is none."""
        device = self.named(name)
        if device.vif is None:
            raise ConfigError(f"there is no device {printable(name)}")
        return device, device.vif

    def _context(self, links: LinkMonitor, recordings: Recordings) -> Context:
        return Context(
            store=self.store,
            platform=self.platform,
            workers=self._workers,
            tracer=self.tracer,
            captures=self.captures,
            offer=self._offer,
            queues=self._limits.queues,
            journals=self.config.directory / _JOURNALS,
            net_for=self._auto_attach.net_for,
            rates_for=self._auto_attach.rates_for,
            filters_for=self._auto_attach.filters_for,
            record=lambda: self.config.record,
            recordings=recordings,
            times=lambda: self.config.times,
            hotplug=lambda: self.config.hotplug,
            fd_store=self._fd_store,
            networks=ObjectNetworks(self.config.networks),
            links=links,
            news=self.news,
        )

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._devices.run())
            tasks.create_task(self._auto_attach.run())

    async def _first_look(self) -> None:
        """Wait until every existing device is known; raise the store's error if the store ends first."""
        scanned = asyncio.create_task(self._devices.scanned.wait())
        done, _ = await asyncio.wait((scanned, self._running), return_when=asyncio.FIRST_COMPLETED)
        scanned.cancel()
        if self._running in done:
            await self.wait()

    def _prune(self, journals: Directory) -> None:
        """Remove the journals and held taps of devices that were removed while no backend ran."""
        for name in self._fd_store.untaken - set(map(str, self.devices)):
            self._fd_store.forget(name)
        known = {device.journal.name for device in self.devices.values()}
        for name in journals.names():
            if _JOURNAL.fullmatch(name) and queue_owner(name) not in known:
                journals.unlink(name)

    async def _stop(self) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError, ExceptionGroup):
            await self._running


def default_queues() -> int:
    """One for each core that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def first_index(platform: str) -> int:
    """The first index that `attach` chooses itself: 1 on real Xen, as in QEMU."""
    return 0 if platform == "emulated" else 1


async def _lock(directory: Directory, domid: int) -> int:
    """Take a domain's backend lock and return its descriptor: two backends would compete for its ports and
    taps.
    """
    name = f"backend-{domid}.lock"
    for delay in _LOCK_DELAYS:
        if (lock := directory.try_lock(name)) is not None:
            return lock
        await asyncio.sleep(delay)
    if (lock := directory.try_lock(name)) is not None:
        return lock
    raise ConfigError(
        f"another netback serves domain {domid}: it holds {directory.path / name}; stop it first"
    )


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """Unwrap nested exception groups: every error in them comes from the same store."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, NetbackError) else group  # type: ignore[return-value]
