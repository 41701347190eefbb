# SPDX-License-Identifier: Apache-2.0
"""Scripts in the styles of toolstacks, on taps in a network namespace, with the nodes that each toolstack writes.

The scripts are written for these tests: each reads, does and writes what its model does.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import write_device
from netback.xenstore.aio import Store
from tests.net.namespace import ip
from tests.vif.guest import FRAME, Guest, serving, until, until_state
from tests.xenbus.test_hotplug import Files, files
from tests.xenbus.toolstack import MAC, add, gone, take_away

__all__ = ["files"]

pytestmark = pytest.mark.usefixtures("namespace")

UUID = "11111111-2222-3333-4444-555555555555"

XAPI = r"""
# xapi's: both ids come from XENBUS_PATH, everything else from /xapi
set -e
action=$1 kind=${2#type_if=}
domid=$(echo "$XENBUS_PATH" | cut -d/ -f3) devid=$(echo "$XENBUS_PATH" | cut -d/ -f4)
dev=$kind$domid.$devid
vm=$(xenstore-read "/local/domain/$domid/vm"); uuid=$(xenstore-read "$vm/uuid")
private=/xapi/$uuid/private/vif/$devid hotplug=/xapi/$uuid/hotplug/$domid/vif/$devid
case $action in
online)
    test "$kind" = vif
    mtu=$(xenstore-read "$private/MTU") bridge=$(xenstore-read "$private/bridge")
    ip link set "$dev" mtu "$mtu"
    ip link set "$dev" down address "$(xenstore-read "$private/bridge-MAC")"
    ip addr flush "$dev"
    ip link set "$dev" master "$bridge" up
    xenstore-write "$hotplug/vif" "$dev" "$hotplug/hotplug" online
    xenstore-write "$XENBUS_PATH/hotplug-status" connected ;;
remove)
    ip link set "$dev" nomaster
    xenstore-rm "$XENBUS_PATH/hotplug-status" || true  # xenopsd may have removed it
    xenstore-rm "$hotplug/hotplug" ;;
esac
"""

QUBES = r"""
# Qubes': routed, with anti-spoofing before the link is up; it refuses other names of links
set -e
[[ $vif =~ ^vif(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$ ]] || { echo "Bad interface name $vif" >&2; exit 1; }
addr=$(xenstore-read "$XENBUS_PATH/ip") kind=$(xenstore-read "$XENBUS_PATH/type")
metric=$((32752 - BASH_REMATCH[1]))
case $1 in
online)
    echo 1 >"/proc/sys/net/ipv4/conf/$vif/proxy_arp"
    ip link set "$vif" up group 2
    ip route add "$addr" dev "$vif" metric "$metric"
    ip addr add 10.137.0.5/32 dev "$vif"
    ip neigh replace "$addr" dev "$vif" lladdr "$(xenstore-read "$XENBUS_PATH/mac")" nud permanent
    echo "$kind" is online
    xenstore-write "$XENBUS_PATH/hotplug-status" connected ;;
offline)
    ip route del "$addr" dev "$vif" metric "$metric" || true
    ip addr del 10.137.0.5/32 dev "$vif" || true ;;
esac
"""


@pytest.fixture
async def backend(xen: Path, network: PythonNetwork, files: Files) -> AsyncIterator[Backend]:
    async with serving(xen, network, hotplug=files.config()) as backend:
        yield backend


def look(words: str) -> list[dict[str, Any]]:
    """What ip(8) prints as JSON."""
    return json.loads(ip(f"-j {words}"))


async def add_as_xenopsd(store: Store, domid: int, script: str) -> DeviceName:
    """The nodes of xenopsd's Device.Vif.add, in one transaction. There is neither a hotplug-status nor a bridge."""
    name = DeviceName("vif", 0, domid, "0")
    frontend = {
        "backend": name.backend, "backend-id": "0", "state": "1", "handle": "0", "mac": MAC, "disconnect": "0",
        "mtu": "1400",
    }  # fmt: skip
    backend = {
        "frontend": name.frontend, "frontend-id": str(domid), "online": "1", "state": "1", "script": script,
        "mac": MAC, "handle": "0",
    }  # fmt: skip
    private = {
        "mac": MAC, "MTU": "1400", "bridge": "xapi1", "bridge-MAC": "fe:ff:ff:ff:ff:ff", "vif-uuid": UUID,
        "network-uuid": UUID,
    }  # fmt: skip

    async def body(tx: int) -> None:
        await store.write(f"/vm/{UUID}/uuid", UUID, tx)
        await store.write(f"/local/domain/{domid}/vm", f"/vm/{UUID}", tx)
        for key, value in private.items():
            await store.write(f"/xapi/{UUID}/private/vif/0/{key}", value, tx)
        await write_device(store, name, frontend, backend, tx)

    await store.transact(body)
    return name


async def test_xapi(backend: Backend, guest: Guest, files: Files) -> None:
    """xenopsd waits for the node `hotplug` below /xapi when it plugs a VIF, and until it goes when it unplugs one."""
    ip("link add xapi1 type bridge")
    store, plugged = backend.store, f"/xapi/{UUID}/hotplug/{guest.domid}/vif/0/hotplug"
    name = await add_as_xenopsd(store, guest.domid, files.write("vif", XAPI))
    await until(store, plugged, lambda value: value == "online")
    (link,) = look(f"link show {name.link}")
    assert (link["master"], link["mtu"], link["address"]) == ("xapi1", 1400, "fe:ff:ff:ff:ff:ff")
    await guest.connect()
    assert await guest.answer(guest.send(FRAME)) == 0
    (link,) = look(f"-s link show {name.link}")
    assert link["stats64"]["rx"]["packets"] == 1
    # Device.Vif.clean_shutdown, then release
    await take_away(store, name)
    await guest.set_state(State.CLOSED)
    await until_state(store, name.backend, State.CLOSED)
    await store.rm(name.backend)
    await until(store, plugged, lambda value: value is None)
    await gone(backend, name)
    assert files.called() == ["add", "online", "offline", "remove"]
    assert {link["ifname"] for link in look("link show")} == {"lo", "xapi1"}
    assert await store.children("/local/domain/0/backend/vif") == []


async def test_qubes(backend: Backend, guest: Guest, files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "netback.xenbus")
    script = files.write("vif-route-qubes", QUBES, shell="/bin/bash")
    chosen = {"ip": "10.137.0.17", "type": "vif", "hotplug_status": "", "net": None}
    name = await add(backend.store, guest.domid, script=script, **chosen)
    await guest.connect()
    (route,) = look(f"route show 10.137.0.17 dev {name.link}")
    assert route["metric"] == 32752 - guest.domid
    (neighbour,) = look(f"neigh show dev {name.link}")
    assert (neighbour["lladdr"], neighbour["state"]) == (MAC, ["PERMANENT"])
    assert f"{name}: {script} online: vif is online" in caplog.messages
    assert await guest.answer(guest.send(FRAME)) == 0
    await take_away(backend.store, name)
    await guest.set_state(State.CLOSED)
    await gone(backend, name)
    assert files.called() == ["add", "online", "offline", "remove"]
    other = await add(backend.store, guest.domid, script=script, number="1", **chosen | {"net": "tap:web0"})
    error = await until(backend.store, f"{other.errors}/error", bool)
    assert (error or "").endswith("online exited with 1: Bad interface name web0")


RENAMES = """
set -e
case $1 in online)
    ! ip link show web0 2>/dev/null || { echo "An interface with name web0 already exists"; exit 1; }
    ip link set "$vif" name web0
    ip link set web0 up
    xenstore-write "$XENBUS_PATH/hotplug-status" connected
esac
"""


async def test_a_script_that_was_killed_after_it_renamed_the_tap(
    xen: Path, network: PythonNetwork, guest: Guest, files: Files
) -> None:
    """Xen's own script fails if a link has the new name already."""
    async with serving(xen, network) as backend:
        script = files.write("vif-test", RENAMES)
        name = await add(backend.store, guest.domid, net=None, script=script, vifname="web0")
        await until_state(guest.store, name.backend, State.INIT_WAIT)
    ip(f"link set {name.link} name web0")
    ip("link set web0 up")
    async with serving(xen, network, hotplug=files.config()) as backend:
        await guest.connect()
        assert {link["ifname"] for link in look("link show")} == {"lo", "web0"}
        assert await guest.answer(guest.send(FRAME)) == 0
        await take_away(backend.store, name)
        await guest.set_state(State.CLOSED)
        await gone(backend, name)
    assert [line.split()[::2] for line in files.lines()] == [
        [action, vif]
        for action, vif in (
            ("add", name.link),
            ("online", name.link),
            ("offline", "web0"),
            ("remove", "web0"),
        )
    ]
