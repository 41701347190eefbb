# SPDX-License-Identifier: Apache-2.0
"""Attaches a NIC to a domain and detaches it, using the store alone, with domain 0's rights.

Works with and without a running backend. netback removes the nodes that `attach` wrote; a toolstack removes
its own.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.abi.xenbus import XenbusState as State
from netback.errors import ConfigError, PlatformError
from netback.net.filters import FilterSpec
from netback.net.filters import as_node as as_filters_node
from netback.vif.features import DeviceType, Limits, make_mac, offer, parse_mac
from netback.vif.rate import Rate, as_node
from netback.xenbus.names import (
    DEVICE_TYPES,
    DeviceName,
    backends,
    decimal,
    home,
    remove_device,
)
from netback.xenbus.nodes import FILTERS, MADE_BY, MAKER, RX_RATE, TX_RATE, write_device
from netback.xenstore.aio import Store, StoreError

_INDEX_END = 100
_FORCED_SECONDS = 2.0
_DOWN = (State.CLOSED, State.UNKNOWN)
"""Backend states in which the rings are disconnected."""
_USING = (State.CONNECTED, State.CLOSING, State.RECONFIGURING, State.RECONFIGURED)
"""Frontend states in which the frontend may still use the rings."""


async def attach(
    store: Store,
    domid: int,
    net: str,
    *,
    kind: DeviceType = "vif",
    mac: str | None = None,
    index: int = -1,
    first_index: int = 0,
    backend_domid: int = 0,
    offered: Mapping[str, str] | None = None,
    tx_rate: Rate | None = None,
    rx_rate: Rate | None = None,
    filters: Sequence[FilterSpec] | None = None,
) -> DeviceName:
    """Write both directories in one transaction that ends with our state at InitWait (docs/decisions.md, Attach).

    `net` is a spec and is not checked. `mac`: one of Xen's own range where None. An `index` of -1 is the first whose
    frontend path does not exist, from `first_index` on (0 on emulated Xen, 1 on real Xen). `offered` is what the
    running backend offers; None is what any backend serves. `tx_rate` and `rx_rate` limit what the guest sends and
    receives, `filters` filter it; for None the configuration decides. ConfigError: there is no such domain, the address
    is malformed, the number is in use.
    """
    try:
        address = parse_mac(mac) if mac is not None else make_mac(os.urandom(3))
    except ValueError as error:
        raise ConfigError(f"{error}: {mac!r}") from error
    if not await store.introduced(domid):
        raise ConfigError(f"there is no domain {domid}")

    settings = {node: as_node(rate) for node, rate in ((TX_RATE, tx_rate), (RX_RATE, rx_rate)) if rate}
    if filters is not None:
        settings[FILTERS] = as_filters_node(filters)
    offered = offer(Limits()) if offered is None else offered

    async def body(tx: int) -> DeviceName:
        chosen = index if index >= 0 else await free_index(store, domid, first_index, tx)
        name = DeviceName(kind, backend_domid, domid, str(chosen))
        _ = name.index
        await _check_unused(store, name, tx)
        await _write(store, name, net, address, settings | dict(offered), tx)
        return name

    return await store.transact(body)


async def free_index(store: Store, domid: int, first: int, tx: int | None = None) -> int:
    """The first index whose frontend path does not exist."""
    for index in range(first, _INDEX_END):
        path = f"{home(domid)}/device/vif/{index}"
        try:
            await store.read(path, tx)
        except StoreError as error:
            if error.errno == "ENOENT":
                return index
            raise PlatformError(f"cannot read {path}: {error.errno}", error.errno) from error
    raise PlatformError("cannot find device index for netdev device")


async def _check_unused(store: Store, name: DeviceName, tx: int) -> None:
    """ConfigError: a device with that number exists, of either type. A frontend directory without a backend
    is taken over.
    """
    known = await store.read_or(f"{name.frontend}/backend", tx=tx)
    for path in {name.backend, known or name.backend}:
        if await store.read_or(f"{path}/state", tx=tx) is not None:
            raise ConfigError(f"domain {name.domid} has a device {name.number} already: {path}")


async def _write(
    store: Store, name: DeviceName, net: str, mac: str, keys: Mapping[str, str], tx: int
) -> None:
    frontend = {
        "backend": name.backend,
        "backend-id": str(name.backend_domid),
        "mac": mac,
        "state": str(int(State.INITIALISING)),
    }
    backend = {
        "frontend": name.frontend,
        "frontend-id": str(name.domid),
        "online": "1",
        "hotplug-status": "connected",
        "mac": mac,
        "net": net,
        MADE_BY: MAKER,
        **keys,
        "state": str(int(State.INIT_WAIT)),
    }
    await write_device(store, name, frontend, backend, tx)


async def find_device(
    store: Store,
    domid: int,
    *,
    kind: DeviceType | None = None,
    index: int | None = None,
    backend_domid: int = 0,
) -> DeviceName:
    """The only device of a domain that matches. ConfigError: none matches, or several do."""
    found = [
        name
        for name in await list_devices(store, backend_domid)
        if name.domid == domid
        and kind in (None, name.kind)
        and index in (None, decimal(name.number, 1 << 31))
    ]
    if not found:
        raise ConfigError(f"domain {domid} has no such device")
    if len(found) > 1:
        raise ConfigError(
            f"domain {domid} has {', '.join(map(str, found))}: choose one with --index and --type"
        )
    return found[0]


async def list_devices(store: Store, backend_domid: int = 0) -> list[DeviceName]:
    """Every device of a backend's domain. A directory whose name is not a domid holds no devices."""
    found = []
    for kind in DEVICE_TYPES:
        root = backends(backend_domid, kind)
        for domid in await store.children(root):
            if (fe := decimal(domid, DOMID_FIRST_RESERVED)) is not None:
                numbers = await store.children(f"{root}/{domid}")
                found += [DeviceName(kind, backend_domid, fe, number) for number in numbers]
    return found


async def detach(store: Store, name: DeviceName, *, seconds: float = 10.0) -> bool:
    """Ask the guest to release the device, wait, then remove it. Returns False if the guest did not answer in
    time.

    As libxl does: the backend's state goes to Closing; if the guest does not answer, its directory is
    removed. ConfigError: no such device.
    """
    made_here = await store.read_or(f"{name.backend}/{MADE_BY}") == MAKER
    frontend = await _frontend_of(store, name)
    await _ask(store, name)

    async def let_go() -> bool:
        ours = State.parse(await store.read_or(f"{name.backend}/state"))
        theirs = State.parse(await store.read_or(f"{frontend}/state"))
        return ours in _DOWN or theirs not in _USING

    answered = await _wait(store, (f"{name.backend}/state", f"{frontend}/state"), let_go, seconds)
    if not answered:
        await store.rm(frontend, missing_ok=True)
    await _wait_for_backend(store, name)
    if made_here:
        await remove_device(store, name, frontend)
    return answered


async def _frontend_of(store: Store, name: DeviceName) -> str:
    """The frontend's directory; the default one if our `frontend` node is missing or is not a path."""
    frontend = await store.read_or(f"{name.backend}/frontend") or name.frontend
    try:
        await store.read_or(f"{frontend}/state")
    except StoreError as error:
        if error.errno != "EINVAL":
            raise
        return name.frontend
    return frontend


async def _ask(store: Store, name: DeviceName) -> None:
    async def body(tx: int) -> None:
        state = await store.read_or(f"{name.backend}/state", tx=tx)
        if state is None:
            raise ConfigError(f"there is no device {name}")
        await store.write(f"{name.backend}/online", "0", tx)
        if State.parse(state) is not State.CLOSED:
            await store.write(f"{name.backend}/state", str(int(State.CLOSING)), tx)

    await store.transact(body)


async def _wait_for_backend(store: Store, name: DeviceName) -> None:
    """Give a running backend time to disconnect the rings; without a backend the wait ends at its timeout."""

    async def down() -> bool:
        return State.parse(await store.read_or(f"{name.backend}/state")) in _DOWN

    await _wait(store, (f"{name.backend}/state",), down, _FORCED_SECONDS)


async def _wait(
    store: Store, paths: tuple[str, ...], true: Callable[[], Awaitable[bool]], seconds: float
) -> bool:
    """Whether `true` held before the timeout; it is evaluated whenever one of the nodes changes."""
    changed = asyncio.Event()
    async with AsyncExitStack() as undo:
        for path in paths:
            watch = await store.watch(path, lambda _: changed.set())
            undo.push_async_callback(watch.close)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await true():
                    await changed.wait()
                    changed.clear()
                return True
    return False
