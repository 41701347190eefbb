# SPDX-License-Identifier: Apache-2.0
"""What a backend does for the clients of its control socket: a coroutine for each method (`control.schema.METHODS`)."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import netback
from netback.control.schema import (
    VERSION,
    Added,
    AddRequest,
    AttachRequest,
    Detached,
    DetachRequest,
    Details,
    DeviceName,
    DeviceRequest,
    Devices,
    ExplainRequest,
    Explanation,
    FindRequest,
    Info,
    ListRequest,
    NoParameters,
    Recorded,
    RecordRequest,
    Removed,
    RemoveRequest,
    Rings,
    Rule,
    Rules,
    SetRequest,
    Settings,
)
from netback.control.server import Calls
from netback.daemon.config import DeviceRule, make_rule
from netback.daemon.explain import explain, observe
from netback.daemon.facts import Facts
from netback.daemon.machine import Machine
from netback.daemon.serving import Serving
from netback.daemon.status import describe, describe_pcap, merge, read_details, read_devices
from netback.errors import ConfigError, PeerError, printable
from netback.net.base import ETH_DATA_LEN, Network
from netback.net.filters import as_node as as_filters_node
from netback.net.filters import parse_filters
from netback.observe.pcap import check_file, parse_pcap
from netback.observe.recorder import write_new
from netback.vif.rate import UNLIMITED, Rate, as_node, parse_rate
from netback.vif.vif import Vif
from netback.xenbus import names
from netback.xenbus.attach import find_device, list_devices
from netback.xenbus.device import Device
from netback.xenbus.domains import await_domain, find_domain
from netback.xenbus.nodes import CARRIER_OFF, FILTERS, LINK_DOWN, PCAP, RATES, RECORD, write_nodes
from netback.xenstore.aio import Store


def calls(backend: Serving) -> Calls:
    """The methods, for `serve_control`."""
    # the machine's own backends do not serve an emulated Xen
    methods = Methods(backend, Machine() if backend.platform.name == "xen" else None)
    return {
        "info": methods.info,
        "list": methods.list,
        "show": methods.show,
        "find": methods.find,
        "rings": methods.rings,
        "explain": methods.explain,
        "set": methods.set,
        "record": methods.record,
        "attach": methods.attach,
        "detach": methods.detach,
        "rules": methods.rules,
        "add": methods.add,
        "remove": methods.remove,
    }


class Methods:
    """Errors are NetbackErrors; a ConfigError says that the request itself is wrong."""

    def __init__(self, backend: Serving, machine: Machine | None = None) -> None:
        """`machine`: the one whose other backends may take the devices; None: there are none."""
        self._backend = backend
        self._machine = machine
        self._domid = backend.platform.domid
        self._reading = asyncio.Lock()
        """Held while devices are read from the store: any number of clients costs it no more than one."""

    async def info(self, _: NoParameters) -> Info:
        return Info(
            protocol=VERSION,
            netback=netback.__version__,
            domid=self._domid,
            platform=self._backend.platform.name,
            pid=os.getpid(),
            devices=len(self._backend.devices),
            hotplug="netback" if self._backend.runs_scripts else "toolstack",
        )

    async def list(self, request: ListRequest) -> Devices:
        """Stray nodes, which no backend serves, are in the store alone."""
        wanted = None if request.device is None else await self._named(request.device)
        async with self._reading:
            stored = await read_devices(self._backend.store, self._domid, wanted)
        served = self._backend.devices
        chosen = [*served.values()] if wanted is None else [served[wanted]] if wanted in served else []
        known = []
        for device in chosen:
            known.append(describe(device))
            await asyncio.sleep(0)
        return Devices(devices=merge(stored, known))

    async def show(self, request: DeviceRequest) -> Details:
        """From the store as it is now, which is what the frontend sees."""
        name, store = await self._named(request.device), self._backend.store
        (status,) = (await self.list(ListRequest(device=request.device))).devices
        async with self._reading:
            return await read_details(store, name, status)

    async def explain(self, request: ExplainRequest) -> Explanation:
        wait = partial(asyncio.sleep, request.seconds) if request.seconds else None
        return explain(await self.picture(request.device, wait), request.seconds)

    async def picture(self, device: str, wait: Callable[[], Awaitable[object]] | None) -> Facts:
        """What the rules judge: two readings of a device with `wait` between them, None: only the second one."""
        name, devices = await self._named(device), self._backend.devices
        earlier = None
        if wait is not None:
            earlier = describe(devices[name]) if name in devices else None
            await wait()
        details = await self.show(DeviceRequest(device=device))
        others = () if wait is None else devices.values()
        return await observe(
            self._backend.store,
            name,
            details,
            devices.get(name),
            self._machine,
            earlier=earlier,
            others=others,
        )

    async def find(self, request: FindRequest) -> DeviceName:
        store = self._backend.store
        name = await find_device(
            store,
            await find_domain(store, request.guest),
            kind=request.type,
            index=request.index,
            backend_domid=self._domid,
        )
        _ = name.index  # a directory that is no device, and perhaps no text
        return DeviceName(device=str(name))

    async def rings(self, request: DeviceRequest) -> Rings:
        return Rings(device=request.device, rings=self._backend.opened(request.device)[1].dump())

    async def set(self, request: SetRequest) -> Settings:
        device, vif = self._backend.opened(request.device)
        nodes = {}
        for node, text in zip(RATES, (request.tx_rate, request.rx_rate), strict=True):
            if text is not None:
                nodes[node] = as_node(_rate(text))
        if request.carrier is not None:
            nodes[CARRIER_OFF] = str(int(not request.carrier))
        if request.link is not None:
            nodes[LINK_DOWN] = str(int(not request.link))
        if request.mtu is not None:
            _set_mtu(device, vif.network, request.mtu)
        if request.filters is not None:
            nodes[FILTERS] = as_filters_node(parse_filters(request.filters))
        if request.pcap is not None:
            nodes[PCAP] = await _pcap(request.pcap)
        if request.record is not None:
            nodes[RECORD] = request.record
        vif = await self._apply(device, nodes)
        rates = vif.rates
        return Settings(
            device=request.device,
            tx_rate=str(rates.tx or UNLIMITED),
            rx_rate=str(rates.rx or UNLIMITED),
            carrier=await device.carrier(),
            link=not device.link_down,
            mtu=vif.network.mtu,
            filters=[str(each) for each in vif.filters.specs],
            pcap=describe_pcap(device),
            record=device.recorder.mode,
        )

    async def _apply(self, device: Device, nodes: Mapping[str, str]) -> Vif:
        """Write nodes and apply them. Filters that cannot be applied leave those of before."""
        store, path = self._backend.store, device.name.backend
        before = await store.read_or(f"{path}/{FILTERS}")
        private = {node: [f"n{self._domid}"] for node in (PCAP, RECORD) if node in nodes}
        await write_nodes(store, path, nodes, private)
        try:
            return await device.apply_settings()
        except (ConfigError, PeerError):
            if FILTERS not in nodes:
                raise
            if before is None:
                await store.rm(f"{path}/{FILTERS}", missing_ok=True)
            else:
                await write_nodes(store, path, {FILTERS: before})
            with suppress(ConfigError, PeerError):
                await device.apply_settings()
            raise

    async def record(self, request: RecordRequest) -> Recorded:
        device, vif = self._backend.opened(request.device)
        if device.recorder.mode == "off":
            raise ConfigError(f"{request.device} is not recorded: netback set {request.device} --record on")
        data = await vif.recording()
        path = Path(request.file)
        if not path.is_absolute() or "\0" in request.file:
            raise ConfigError(f"record {printable(request.file)!r}: give a file by its absolute path")
        try:
            await asyncio.to_thread(write_new, path, data)
        except OSError as error:
            raise ConfigError(f"record {printable(request.file)}: {error.strerror or error}") from error
        return Recorded(device=request.device, file=request.file, bytes=len(data))

    async def attach(self, request: AttachRequest) -> DeviceName:
        name = await attach_guest(self._backend.store, self._domid, request, self._backend.attach)
        return DeviceName(device=str(name))

    async def detach(self, request: DetachRequest) -> Detached:
        name = await self._named(request.device)
        answered = await self._backend.detach(name, seconds=request.seconds)
        return Detached(device=request.device, answered=answered)

    async def rules(self, _: NoParameters) -> Rules:
        return Rules(rules=[_rule(rule) for rule in self._backend.rules])

    async def add(self, request: AddRequest) -> Added:
        rule, attached, failed = await self._backend.add_rule(make_rule(msgspec.structs.asdict(request)))
        return Added(
            rule=_rule(rule),
            attached=[str(name) for name in attached],
            failed=[printable(reason) for reason in failed],
        )

    async def remove(self, request: RemoveRequest) -> Removed:
        detached = await self._backend.remove_rule(
            request.name, detach=request.detach, seconds=request.seconds
        )
        return Removed(
            name=request.name,
            detached=[Detached(device=str(name), answered=answered) for name, answered in detached],
        )

    async def _named(self, wanted: str) -> names.DeviceName:
        """A device of the store by its name, whether it is served or not. ConfigError: there is none."""
        served = next((name for name in self._backend.devices if str(name) == wanted), None)
        if served is not None:
            return served
        for name in await list_devices(self._backend.store, self._domid):
            await asyncio.sleep(0)
            if str(name) == wanted:
                return name
        raise ConfigError(f"there is no device {printable(wanted)}")


async def attach_guest(
    store: Store, backend: int, request: AttachRequest, attach: Callable[..., Awaitable[names.DeviceName]]
) -> names.DeviceName:
    """Give the guest that a request names its device by `attach` (`Backend.attach`). ConfigError: the guest is unknown
    or the backend's own domain, or a value is none.
    """
    limits = {"tx_rate": request.tx_rate, "rx_rate": request.rx_rate}
    rates = {way: None if text is None else _rate(text) for way, text in limits.items()}
    filters = None if request.filters is None else parse_filters(request.filters)
    domid = await await_domain(store, request.guest)
    if domid == backend and not request.force:
        raise ConfigError(
            f"domain {domid} is the backend's own: its kernel would take the device; --force attaches it anyway"
        )
    return await attach(
        domid,
        request.net,
        mac=request.mac,
        kind=request.type,
        index=request.index,
        filters=filters,
        **rates,
    )


def _rule(rule: DeviceRule) -> Rule:
    """A rule of the configuration as a client gets it."""
    keys = msgspec.structs.asdict(rule) | {"file": rule.file or None}
    shown: dict[str, Any] = {
        key: printable(value) if isinstance(value, str) else value for key, value in keys.items()
    }
    filters = None if rule.filters is None else [printable(text) for text in rule.filters]
    return Rule(**shown | {"filters": filters})


def _set_mtu(device: Device, network: Network, mtu: int) -> None:
    """Set the MTU of a tap that netback made. ConfigError: there is another link, or the guest takes no such frames."""
    if device.config is not None and not device.config.sg and mtu > ETH_DATA_LEN:
        raise ConfigError(f"{device.name}: its guest takes no frame larger than a page (no feature-sg)")
    network.set_mtu(mtu)
    if network.mtu != mtu:
        stays = "it has no MTU" if network.mtu is None else f"its MTU stays {network.mtu}"
        raise ConfigError(f"{network.name}: {stays}: only a tap that netback made can be changed")


async def _pcap(text: str) -> str:
    """The value of the node. ConfigError: it names no file, or one that cannot be written."""
    if text == "none":
        return ""
    spec = parse_pcap(text)
    try:
        await asyncio.to_thread(check_file, spec.path)
    except OSError as error:
        raise ConfigError(f"pcap {printable(str(spec.path))}: {error.strerror or error}") from error
    return str(spec)


def _rate(text: str) -> Rate | None:
    try:
        return parse_rate(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error
