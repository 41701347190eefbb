# SPDX-License-Identifier: Apache-2.0
"""What commands do through the store alone while no backend runs, by the functions that a backend uses, too."""

from functools import partial

from netback.cli.query import is_device
from netback.cli.target import PlatformName, Target
from netback.control.schema import AttachRequest, DeviceStatus, DeviceType, Explanation
from netback.errors import ConfigError, printable


async def read_devices(target: Target) -> list[DeviceStatus]:
    """Every device in the store."""
    from netback.daemon import status
    from netback.xenbus.domains import own_domid

    async with await target.open_store() as store:
        return await status.read_devices(store, await own_domid(store))


async def explain(target: Target, vif: str, kind: DeviceType | None, index: int | None) -> Explanation:
    """What the store and the links show of a device. ConfigError: there is none."""
    from netback.daemon import explain, machine, status
    from netback.xenbus.attach import find_device, list_devices
    from netback.xenbus.domains import find_domain, own_domid

    async with await target.open_store() as store:
        backend = await own_domid(store)
        devices = {str(name): name for name in await list_devices(store, backend)}
        name = devices.get(vif)
        if name is None and is_device(vif):
            raise ConfigError(f"there is no device {printable(vif)}")
        if name is None:
            domid = await find_domain(store, vif)
            name = await find_device(store, domid, kind=kind, index=index, backend_domid=backend)
        (found,) = await status.read_devices(store, backend, name)
        details = await status.read_details(store, name, found)
        here = machine.Machine(target.directory) if target.platform is PlatformName.XEN else None
        facts = await explain.observe(store, name, details, None, here, served=False)
    return explain.explain(facts, 0)


async def attach(target: Target, request: AttachRequest) -> str:
    """Write a device's nodes, offering what every netback serves, and return its name."""
    from netback.daemon.backend import first_index
    from netback.daemon.control import attach_guest
    from netback.net.spec import parse_spec
    from netback.xenbus.attach import attach as attach_device
    from netback.xenbus.domains import own_domid

    parse_spec(request.net)
    async with await target.open_store() as store:
        backend = await own_domid(store)
        write = partial(attach_device, store, first_index=first_index(target.platform), backend_domid=backend)
        return str(await attach_guest(store, backend, request, write))


async def detach(
    target: Target, guest: str, kind: DeviceType | None, index: int | None, seconds: float
) -> tuple[str, bool]:
    """Remove a guest's device. Returns its name, and whether the guest answered within `seconds`."""
    from netback.xenbus.attach import detach as detach_device
    from netback.xenbus.attach import find_device
    from netback.xenbus.domains import find_domain, own_domid

    async with await target.open_store() as store:
        domid, backend = await find_domain(store, guest), await own_domid(store)
        name = await find_device(store, domid, kind=kind, index=index, backend_domid=backend)
        return str(name), await detach_device(store, name, seconds=seconds)
