# SPDX-License-Identifier: Apache-2.0
"""What a backend does for the clients of its control socket: a coroutine for each method (`control.schema.METHODS`)."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import netback
from netback.abi.xenbus import XenbusState as State
from netback.control.schema import (
    VERSION,
    AttachRequest,
    Detached,
    DetachRequest,
    Details,
    DeviceName,
    DeviceRequest,
    Devices,
    DeviceStatus,
    Feature,
    FindRequest,
    Info,
    ListRequest,
    NoParameters,
    Rings,
    SetRequest,
    Settings,
)
from netback.control.server import Calls
from netback.daemon.serving import Serving
from netback.daemon.status import describe, describe_pcap, merge, read_devices, read_directory, read_nodes
from netback.errors import ConfigError, printable
from netback.net.base import ETH_DATA_LEN, Network
from netback.observe.pcap import check_file, parse_pcap
from netback.vif.features import KEYS, Limits, queue_keys
from netback.vif.rate import UNLIMITED, Rate, as_node, parse_rate
from netback.vif.terms import explain
from netback.xenbus import names
from netback.xenbus.attach import find_device, list_devices
from netback.xenbus.device import Device
from netback.xenbus.domains import await_domain, find_domain
from netback.xenbus.nodes import CARRIER_OFF, LINK_DOWN, PCAP, RATES, write_nodes
from netback.xenstore.aio import Store

_CONNECTED = {state.title for state in (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)}
"""The frontend's states in which its keys are complete."""


def calls(backend: Serving) -> Calls:
    """The methods, for `serve_control`."""
    methods = Methods(backend)
    return {
        "info": methods.info,
        "list": methods.list,
        "show": methods.show,
        "find": methods.find,
        "rings": methods.rings,
        "set": methods.set,
        "attach": methods.attach,
        "detach": methods.detach,
    }


class Methods:
    """Errors are NetbackErrors; a ConfigError says that the request itself is wrong."""

    def __init__(self, backend: Serving) -> None:
        self._backend = backend
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
            return await self._details(store, name, status)

    async def _details(self, store: Store, name: names.DeviceName, status: DeviceStatus) -> Details:
        path = (await read_nodes(store, name.backend, ["frontend"]))["frontend"] or name.frontend
        offered = await read_directory(store, name.backend)
        keys = await read_nodes(store, path, KEYS)
        keys |= await read_nodes(store, path, queue_keys(keys, Limits.offered(offered)))
        connected = status.frontend in _CONNECTED
        terms, fault = explain(offered, keys, name.kind, connected=connected)
        return Details(
            device=status,
            features=[Feature(**asdict(term)) for term in terms],
            fault=None if fault is None else printable(fault),
            backend_path=printable(name.backend),
            backend_nodes=offered,
            frontend_path=printable(path),
            frontend_nodes=await read_directory(store, path),
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
        private = {}
        if request.pcap is not None:
            nodes[PCAP] = await _pcap(request.pcap)
            private[PCAP] = [f"n{self._domid}"]
        await write_nodes(self._backend.store, device.name.backend, nodes, private)
        await device.apply_pcap()
        rates = await device.apply_rates()
        return Settings(
            device=request.device,
            tx_rate=str(rates.tx or UNLIMITED),
            rx_rate=str(rates.rx or UNLIMITED),
            carrier=await device.carrier(),
            link=not device.link_down,
            mtu=vif.network.mtu,
            pcap=describe_pcap(device),
        )

    async def attach(self, request: AttachRequest) -> DeviceName:
        name = await attach_guest(self._backend.store, self._domid, request, self._backend.attach)
        return DeviceName(device=str(name))

    async def detach(self, request: DetachRequest) -> Detached:
        name = await self._named(request.device)
        answered = await self._backend.detach(name, seconds=request.seconds)
        return Detached(device=request.device, answered=answered)

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
    domid = await await_domain(store, request.guest)
    if domid == backend and not request.force:
        raise ConfigError(
            f"domain {domid} is the backend's own: its kernel would take the device; --force attaches it anyway"
        )
    return await attach(domid, request.net, mac=request.mac, kind=request.type, index=request.index, **rates)


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
