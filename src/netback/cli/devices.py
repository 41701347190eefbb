# SPDX-License-Identifier: Apache-2.0
"""`attach`, `detach` and `list`: through the store alone, so that they work beside a backend and without one."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

from netback.abi.xenbus import XenbusState
from netback.cli.place import Place
from netback.control import control_path, read_snapshot
from netback.daemon.backend import first_index
from netback.errors import ConfigError
from netback.net.spec import parse_spec
from netback.vif.features import OPTIONAL, DeviceType
from netback.xenbus import attach as nodes
from netback.xenbus.names import DOMID_FIRST_RESERVED, DeviceName, decimal
from netback.xenstore.aio import Store

_JOIN_SECONDS = 3.0

_BACKEND_KEYS = ("net", "mac", "online", "hotplug-status")


async def attach_device(
    place: Place, domain: str, net: str, kind: DeviceType, mac: str | None, index: int
) -> DeviceName:
    """Give a domain a device; its network is opened by the backend, but its spec must be a good one."""
    parse_spec(net)
    async with await place.open_store() as store:
        domid = await await_domain(store, domain)
        return await nodes.attach(
            store,
            domid,
            net,
            kind=kind,
            mac=mac,
            index=index,
            first_index=first_index(place.platform),
            backend_domid=await own_domid(store),
        )


async def detach_device(
    place: Place, domain: str, kind: DeviceType | None, index: int | None, seconds: float
) -> tuple[DeviceName, bool]:
    """Take it back: which one, and whether the guest answered."""
    async with await place.open_store() as store:
        name = await nodes.find_device(
            store,
            await find_domain(store, domain),
            kind=kind,
            index=index,
            backend_domid=await own_domid(store),
        )
        return name, await nodes.detach(store, name, seconds=seconds)


async def own_domid(store: Store) -> int:
    """The domain whose privilege the connection has; who made domain 0 need not have written its number."""
    return int(await store.read_or("domid") or "0")


async def await_domain(store: Store, domain: str) -> int:
    """Its domid once it is there: a guest that was started a moment ago may not have joined yet."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_JOIN_SECONDS), await store.watch("@introduceDomain") as introduced:
            async for _ in introduced:
                with suppress(ConfigError):
                    domid = await find_domain(store, domain)
                    if await store.introduced(domid):
                        return domid
    return await find_domain(store, domain)


async def find_domain(store: Store, domain: str) -> int:
    """A domid, or the domid of the one domain of that name."""
    domid = decimal(domain, DOMID_FIRST_RESERVED)
    if domid is not None:
        return domid
    known = [text for text in await store.directory("/local/domain") if text.isdecimal()]
    names = await asyncio.gather(*(store.read_or(f"/local/domain/{text}/name") for text in known))
    found = [text for text, name in zip(known, names, strict=True) if name == domain]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} domains are named {domain!r}" if found else f"no domain is named {domain!r}"
        )
    return int(found[0])


async def read_devices(place: Place) -> list[dict[str, Any]]:
    """Every device of this domain, as the store tells of it; with counters and rings where a backend runs."""
    async with await place.open_store() as store:
        backend = await own_domid(store)
        devices = [await _read_device(store, name) for name in await nodes.list_devices(store, backend)]
    served = {
        device["device"]: device
        for device in await read_snapshot(control_path(place.directory, backend)) or []
    }
    return [device | _served(served.get(device["device"], {})) for device in devices]


def _served(device: dict[str, Any]) -> dict[str, Any]:
    """What only the backend knows, if one runs."""
    return {key: device.get(key) for key in ("network", "counters", "rings")}


async def _read_device(store: Store, name: DeviceName) -> dict[str, Any]:
    frontend = await store.read_or(f"{name.backend}/frontend") or name.frontend
    theirs = await _read(store, frontend, ("state", *OPTIONAL))
    ours = await _read(store, name.backend, ("state", *_BACKEND_KEYS))
    return {
        "device": str(name),
        "type": name.kind,
        "domid": name.domid,
        "index": name.number,
        "guest": await store.read_or(f"/local/domain/{name.domid}/name"),
        "backend": _title(ours.pop("state")),
        "frontend": _title(theirs.pop("state")),
        **ours,
        "features": {key: value for key, value in theirs.items() if value is not None},
        "error": await store.read_or(f"{name.errors}/error"),
    }


async def _read(store: Store, path: str, keys: tuple[str, ...]) -> dict[str, str | None]:
    values = await asyncio.gather(*(store.read_or(f"{path}/{key}") for key in keys))
    return dict(zip(keys, values, strict=True))


def _title(state: str | None) -> str:
    known = {str(int(state)): state.title for state in XenbusState}
    return known.get(state or "0", f"({state!r})")


_WIDE = 1000
"""Columns of output that nobody looks at directly: a row stays a line."""

_COLUMNS = (
    "device",
    "guest",
    "backend",
    "frontend",
    "net",
    "mac",
    "tx frames",
    "rx frames",
    "features",
    "error",
)


def show_devices(devices: list[dict[str, Any]], *, as_json: bool) -> None:
    """As a table, or as JSON."""
    if as_json:
        print(json.dumps(devices, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for device in devices:
        features = [key.removeprefix("feature-") for key, value in device["features"].items() if value != "0"]
        counters = device["counters"] or {}
        frames = {f"{way} frames": counters.get(f"{way}_frames") for way in ("tx", "rx")}
        row = device | frames | {"features": " ".join(features)}
        table.add_row(
            *(escape("-" if row[column] in (None, "") else str(row[column])) for column in _COLUMNS)
        )
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
