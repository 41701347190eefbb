# SPDX-License-Identifier: Apache-2.0
"""vif-openvswitch with a VLAN in the bridge's name, and vif-route: ping passes both ways on each vif.

One guest has both vifs. After its end Open vSwitch has no port and dom0 no route of it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netback.lab.host import BRIDGE, DOM0, Lab

SWITCHED, ROUTED = ("10.8.0.1", "10.8.0.2"), (DOM0, "10.7.0.2")
"""Addresses of dom0 and of the guest."""
TAG = 5


async def run(lab: Lab) -> None:
    async with openvswitch(lab):
        vifs = (
            f"script=vif-openvswitch,bridge=ovsbr0.{TAG}",
            f"script=vif-route,ip={ROUTED[1]},gatewaydev={BRIDGE}",
        )
        guest = await lab.create("g1", vif=vifs, up=False)
        await guest.up("eth0", SWITCHED[1])
        await guest(
            f"ip link set eth1 up && ip addr add {ROUTED[1]}/32 dev eth1 && ip route add {DOM0} dev eth1"
        )
        assert (await lab.dom0(f"ovs-vsctl get port {guest.vif} tag")).strip() == str(TAG)
        for near, far in (SWITCHED, ROUTED):
            await guest.reachable(far)
            await lab.dom0(f"ping -c 3 -s 4000 {far}")
            await guest(f"ping -c 3 -s 4000 {near}")
        await guest.destroy()
        left = f"(ovs-vsctl list-ports ovsbr0; ip route show {ROUTED[1]}; ls /sys/class/net) | grep vif"
        await lab.until(lambda: lab.succeeds(f"! {left}"), "no port, route or link is left of the guest")


@asynccontextmanager
async def openvswitch(lab: Lab) -> AsyncIterator[None]:
    """Start Open vSwitch with a bridge ovsbr0, on which dom0 has a tagged port."""
    await lab.dom0(
        "modprobe openvswitch && mkdir -p /run/openvswitch"
        " && ovsdb-tool create /run/ovs.db /usr/share/openvswitch/vswitch.ovsschema"
        " && ovsdb-server /run/ovs.db --remote=punix:/run/openvswitch/db.sock --pidfile --detach --no-chdir"
        " && ovs-vswitchd --pidfile --detach --no-chdir"
    )
    try:
        await lab.dom0(
            "ovs-vsctl --timeout=30 add-br ovsbr0"
            f" -- add-port ovsbr0 lan0 tag={TAG} -- set interface lan0 type=internal"
            f" && ip link set lan0 up && ip addr add {SWITCHED[0]}/24 dev lan0"
        )
        yield
    finally:
        await lab.dom0(
            "ovs-vsctl --timeout=30 del-br ovsbr0; ovs-appctl -t ovs-vswitchd exit --cleanup;"
            " ovs-appctl -t ovsdb-server exit; rm -f /run/ovs.db",
            check=False,
        )
