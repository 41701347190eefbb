# SPDX-License-Identifier: Apache-2.0
"""A second host as a network namespace of dom0: its frames reach a tap with blank checksums and uncut segments."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netback.lab.host import BRIDGE, Lab

FAR = "10.0.0.3"
FAR_EXEC = "ip netns exec far"
"""The prefix that runs a dom0 command on that host."""


@asynccontextmanager
async def far_host(lab: Lab) -> AsyncIterator[None]:
    """Connect the namespace to the bridge by a veth, while the context lasts."""
    await lab.dom0(
        "ip netns add far && ip link add far0 type veth peer name eth0 netns far"
        f" && ip link set far0 master {BRIDGE} up && ip -n far link set lo up && ip -n far link set eth0 up"
        f" && ip -n far addr add {FAR}/24 dev eth0"
    )
    try:
        yield
    finally:
        await lab.dom0("ip netns del far")
