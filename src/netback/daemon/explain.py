# SPDX-License-Identifier: Apache-2.0
"""Takes the picture of a device that the rules judge, from the backend that serves it or from the store alone."""

import asyncio
from collections.abc import Iterable

from netback.control.schema import Details, DeviceStatus, Explanation
from netback.daemon.facts import Facts, Host, LinkFacts
from netback.daemon.machine import Machine
from netback.daemon.rules import HOST_RULES, RULES, judge
from netback.errors import ConfigError, printable
from netback.net.rtnetlink import IFF_LOWER_UP, IFF_UP, Link, get_link, get_master
from netback.net.spec import parse_spec, tap_name
from netback.net.tap import TapNetwork, find_made
from netback.xenbus.device import Device
from netback.xenbus.facts import read_backend
from netback.xenbus.names import DeviceName, decimal
from netback.xenstore.aio import Store, StoreError, StoreGone

_ON_LINKS = ("packet", "af_xdp")
"""Kinds of networks whose spec names a link of this host, beside those with a tap."""


def explain(facts: Facts, seconds: float) -> Explanation:
    """Every rule's verdict; `seconds` lie between the two readings."""
    return Explanation(
        device=facts.now.device, seconds=seconds, rules=len(HOST_RULES) + len(RULES), findings=judge(facts)
    )


async def observe(
    store: Store,
    name: DeviceName,
    details: Details,
    device: Device | None,
    machine: Machine | None,
    *,
    earlier: DeviceStatus | None = None,
    others: Iterable[Device] = (),
    served: bool = True,
) -> Facts:
    """The picture of a device as it is now; `details` are what was just read of it, `earlier` its status before.

    `device`: as the backend of this process serves it. `machine`: this one, None if its other backends are none of the
    device's. `others`: the devices among which to look for its twins. `served`: a backend answers.
    """
    host = Host(served) if machine is None else await asyncio.to_thread(machine.host, served=served)
    vif = device.vif if device is not None else None
    link = _look_at_link(name, details, device)
    return Facts(
        details=details,
        host=host,
        earlier=earlier,
        rings=tuple(vif.dump()) if vif is not None else (),
        link=link,
        twins=await _find_twins(store, details.device, link, others),
        owner=await _read_owner(store, details.frontend_path),
    )


async def _find_twins(
    store: Store, status: DeviceStatus, link: LinkFacts | None, others: Iterable[Device]
) -> tuple[str, ...]:
    """Devices that have the same address in the same bridge. In different networks that is usual, as with Qubes."""
    if link is None or not link.bridge or not status.mac:
        return ()
    found = []
    for other in tuple(others):
        if str(other.name) == status.device or await read_backend(store, other.name, "mac") != status.mac:
            continue
        bridge = other.vif.network.bridge if other.vif is not None else None
        if bridge is not None and bridge.name == link.bridge:
            found.append(printable(str(other.name)))
    return tuple(found)


async def _read_owner(store: Store, path: str) -> int | None:
    """The domain that owns a directory: the first entry of its permissions (xenstore.txt, GET_PERMS)."""
    try:
        return decimal((await store.get_perms(path))[0][1:], 1 << 16)
    except StoreGone:
        raise
    except StoreError:
        return None


def _look_at_link(name: DeviceName, details: Details, device: Device | None) -> LinkFacts | None:
    """The link of an open network, else that which the device's own nodes name."""
    if device is not None and device.vif is not None:
        network = device.vif.network
        if not network.follows:
            return None
        found, tap = get_link(network.name), isinstance(network, TapNetwork)
        return LinkFacts(network.name, tap, exists=False) if found is None else _describe(found, tap)
    try:
        spec = parse_spec(details.device.net or "")
    except ConfigError:  # the configuration names the network, or the error says what is wrong
        return None
    own = tap_name(spec, name.link)
    if not own and spec.kind not in _ON_LINKS:
        return None
    link = own or spec.link
    found = get_link(link) or (find_made(link) if own else None)
    return LinkFacts(link, bool(own), exists=False) if found is None else _describe(found, bool(own))


def _describe(link: Link, tap: bool) -> LinkFacts:
    master = get_master(link)
    bridge = master if master is not None and master.kind == "bridge" else None
    return LinkFacts(
        name=link.name,
        tap=tap,
        exists=True,
        up=bool(link.flags & IFF_UP),
        carrier=bool(link.flags & IFF_LOWER_UP),
        mtu=link.mtu,
        bridge=master.name if master else "",
        bridge_up=bool(bridge.flags & IFF_UP) if bridge else None,
        bridge_mtu=bridge.mtu if bridge else 0,
    )
