# SPDX-License-Identifier: Apache-2.0
"""The status of one device as a frozen DeviceStatus, whether it comes from the store or from a running
backend.

`read_devices` uses the store alone and shows whatever can be read: stray nodes, odd names, devices with
unreadable nodes. `merge` adds what only the serving backend knows. Every text is printable
(errors.printable).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

import msgspec

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.abi.xenbus import XenbusState as State
from netback.control.schema import Details, DeviceStatistics, DeviceStatus, Feature, PcapStatus
from netback.daemon.facts import USING
from netback.errors import printable
from netback.vif.features import KEYS, OPTIONAL, DeviceType, Limits, queue_keys
from netback.vif.rate import Rates
from netback.vif.terms import explain
from netback.xenbus.device import Device
from netback.xenbus.names import DEVICE_TYPES, DeviceName, backends, decimal
from netback.xenstore.aio import Store, StoreError

_HIDDEN = "-"
"""Placeholder for the devices below a directory that may not be listed."""
_SERVED = (
    "network", "path", "bridge", "mtu", "counters", "queue_counters", "queues", "link", "stalled", "drops", "queued",
    "tx_rate", "rx_rate", "filters", "rings", "pcap", "record", "recording",
)  # fmt: skip
"""The fields that only the serving backend knows."""
_READERS = 8
"""Number of devices read at the same time: a device that connects waits behind their requests."""
MAX_NODES = 256
MAX_VALUE = 256
_INDEX = 0xFFFFFFFF
"""Indices of rings are 32 bits wide."""


def describe(device: Device) -> DeviceStatus:
    """A device's status from the backend that serves it."""
    name, vif = device.name, device.vif
    rates = vif.rates if vif else Rates()
    bridge = vif.network.bridge if vif else None
    return DeviceStatus(
        device=printable(str(name)),
        type=name.kind,
        domid=name.domid,
        index=printable(name.number),
        backend=device.state.title,
        frontend=device.frontend_state.title,
        error=printable(device.error) or None,
        network=printable(vif.network.name) if vif else None,
        path=printable(vif.network.path) if vif and vif.network.path else None,
        bridge=printable(bridge.name) if bridge else None,
        mtu=vif.network.mtu if vif else None,
        counters=vif.counters if vif else {},
        queue_counters=vif.queue_counters if vif else [],
        queues=len(vif.rings) // 2 if vif else 0,
        link=not device.link_down,
        stalled=round(vif.stalled, 1) if vif and vif.stalled is not None else None,
        drops=_told(vif.network.drops) if vif else {},
        queued=_told(vif.network.queued) if vif else {},
        tx_rate=str(rates.tx) if rates.tx else None,
        rx_rate=str(rates.rx) if rates.rx else None,
        filters=[str(each) for each in vif.filters.specs] if vif else [],
        rings=dict(vif.rings) if vif else {},
        pcap=describe_pcap(device),
        record=device.recorder.mode,
        recording=printable(path) if (path := device.recording) else None,
    )


def describe_pcap(device: Device) -> PcapStatus | None:
    """The file in which a device's frames are kept."""
    if (state := device.pcap) is None:
        return None
    file, error = printable(state.file), printable(state.error) or None
    return PcapStatus(file=file, frames=state.frames, lost=state.lost, error=error)


Told = tuple[dict[str, int], dict[str, int]]
"""What a network tells of itself: its drops and what is queued there."""


def ask_network(device: Device) -> Told:
    """What the device's network tells. Of a tap this costs tens of microseconds (RTM_GETSTATS)."""
    network = device.vif.network if device.vif is not None else None
    return ({}, {}) if network is None else (_told(network.drops), _told(network.queued))


def count(device: Device, time: float, told: Told, *, queues: bool) -> DeviceStatistics:
    """What was counted for a device until `time`, by the loop's clock; `queues`: of each queue, too."""
    vif = device.vif
    if vif is None:
        return DeviceStatistics(device=printable(str(device.name)), time=time)
    rings = vif.rings
    return DeviceStatistics(
        device=printable(str(device.name)),
        time=time,
        queues=len(rings) // 2,
        counters=_counted(vif.counters),
        queue_counters=[_counted(queue) for queue in vif.queue_counters] if queues else [],
        pending={
            ring: (indices["req_prod"] - indices["rsp_prod"]) & _INDEX for ring, indices in rings.items()
        },
        drops=told[0],
        queued=told[1],
        stalled=round(vif.stalled, 1) if vif.stalled is not None else None,
    )


def _counted(counters: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in counters.items() if value}


def _told(ask: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What a network says of itself, nothing if its link was removed."""
    try:
        return ask()
    except OSError:
        return {}


def merge(stored: Iterable[DeviceStatus], served: Iterable[DeviceStatus]) -> list[DeviceStatus]:
    """The store's devices in their order, each completed by the backend that serves it."""
    known = {status.device: status for status in served}
    return [_add(status, known[status.device]) if status.device in known else status for status in stored]


def _add(stored: DeviceStatus, served: DeviceStatus) -> DeviceStatus:
    known = {field: getattr(served, field) for field in _SERVED}
    return msgspec.structs.replace(stored, error=served.error or stored.error, **known)


async def read_devices(
    store: Store, backend_domid: int, wanted: DeviceName | None = None
) -> list[DeviceStatus]:
    """Every device directory of a backend's domain, or the one `wanted`. StoreError: the store is gone (EIO)."""
    if wanted is not None:
        return [await _read_device(store, backend_domid, wanted.kind, str(wanted.domid), wanted.number)]
    places = [
        (kind, domid, number)
        for kind in DEVICE_TYPES
        for domid in await _children(store, backends(backend_domid, kind))
        for number in await _children(store, f"{backends(backend_domid, kind)}/{domid}")
    ]
    slots = asyncio.Semaphore(_READERS)

    async def read(kind: DeviceType, domid: str, number: str) -> DeviceStatus:
        async with slots:
            return await _read_device(store, backend_domid, kind, domid, number)

    return await asyncio.gather(*(read(*place) for place in places))


async def _read_device(
    store: Store, backend_domid: int, kind: DeviceType, domid: str, number: str
) -> DeviceStatus:
    fe = decimal(domid, DOMID_FIRST_RESERVED)
    path = f"{backends(backend_domid, kind)}/{domid}/{number}"
    ours = await read_nodes(store, path, ("state", "frontend", "net", "mac", "online", "hotplug-status"))
    status = DeviceStatus(
        device=printable(f"{kind}/{domid}/{number}"),
        type=kind,
        domid=fe,
        index=printable(number),
        backend=_title(ours["state"]),
        net=ours["net"],
        mac=ours["mac"],
        online=ours["online"],
        hotplug_status=ours["hotplug-status"],
    )
    if fe is None:
        return msgspec.structs.replace(
            status, error=f"{printable(domid)!r} is not a domain: no backend serves this"
        )
    name = DeviceName(kind, backend_domid, fe, number)
    theirs = await read_nodes(store, ours["frontend"] or name.frontend, ("state", *OPTIONAL))
    return msgspec.structs.replace(
        status,
        device=printable(str(name)),
        guest=await _read(store, f"/local/domain/{fe}/name"),
        frontend=_title(theirs.pop("state")),
        features={key: value for key, value in theirs.items() if value is not None},
        error=await _read(store, f"{name.errors}/error"),
    )


async def read_details(store: Store, name: DeviceName, status: DeviceStatus) -> Details:
    """Everything of a device, whose `status` it is: its features and the nodes of both ends as they are now."""
    path = (await read_nodes(store, name.backend, ["frontend"]))["frontend"] or name.frontend
    offered = await read_directory(store, name.backend)
    keys = await read_nodes(store, path, KEYS)
    keys |= await read_nodes(store, path, queue_keys(keys, Limits.offered(offered)))
    terms, fault = explain(offered, keys, name.kind, connected=status.frontend in USING)
    return Details(
        device=status,
        features=[Feature(**asdict(term)) for term in terms],
        fault=None if fault is None else printable(fault),
        backend_path=printable(name.backend),
        backend_nodes=offered,
        frontend_path=printable(path),
        frontend_nodes=await read_directory(store, path),
    )


async def read_nodes(store: Store, path: str, nodes: Iterable[str]) -> dict[str, str | None]:
    """Nodes of a directory, printable; None for one that does not exist or may not be read."""
    nodes = tuple(nodes)
    values = await asyncio.gather(*(_read(store, f"{path}/{node}") for node in nodes))
    return {str(node): value for node, value in zip(nodes, values, strict=True)}


async def _read(store: Store, path: str) -> str | None:
    """A node's value; None if the node does not exist, may not be read, or has an invalid path."""
    try:
        value = await store.read_or(path)
    except StoreError as error:
        if error.errno == "EIO":
            raise
        return None
    return None if value is None else printable(value)


async def read_directory(store: Store, path: str) -> dict[str, str]:
    """The nodes of a directory with their values, those of queues as `queue-0/tx-ring-ref`, ordered by name.

    At most MAX_NODES, and MAX_VALUE characters of each: a guest may write as many as its quota permits.
    """
    names = sorted(await _children(store, path))[:MAX_NODES]
    queues = [name for name in names if name.startswith("queue-")]
    for queue in queues:
        names += [f"{queue}/{name}" for name in sorted(await _children(store, f"{path}/{queue}"))]
    values = await read_nodes(store, path, names[:MAX_NODES])
    return {printable(name): value[:MAX_VALUE] for name, value in values.items() if value}


async def _children(store: Store, path: str) -> list[str]:
    try:
        return await store.directory(path)
    except StoreError as error:
        if error.errno == "EIO":
            raise
        return [] if error.errno == "ENOENT" else [_HIDDEN]


def _title(state: str | None) -> str | None:
    if state is None:
        return None
    known = State.parse(state)
    return known.title if known is not State.UNKNOWN else f"({state})"
