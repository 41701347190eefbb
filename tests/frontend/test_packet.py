# SPDX-License-Identifier: Apache-2.0
"""A guest behind a packet socket: the kernel returns VLAN tags separately, and netback restores them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.frontend import Frontend
from netback.net.packet import PacketNetwork
from netback.net.python import PythonNetwork
from netback.vif.features import Limits, offer
from tests.frontend import frames
from tests.frontend.backend import HandBackend
from tests.net.namespace import ip, new_network, veth

QUIET = (*frames.ONE_SLOT[1:4], *frames.BLANK4, *frames.BLANK6, *frames.GSO4, *frames.GSO6)


@pytest.fixture
def link() -> Iterator[tuple[PacketNetwork, PacketNetwork]]:
    """The guest's packet socket, and one at the other end of its cable whose frames the tests read."""
    with new_network():
        veth("near", "far")
        for end in ("near", "far"):
            ip(f"link set {end} mtu 9000")
        with closing(PacketNetwork("near")) as near, closing(PacketNetwork("far", ring=0)) as far:
            yield near, far


async def far_sends(far: PacketNetwork, message: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(far._socket, message)


@pytest.mark.parametrize("offer", [offer(Limits()), {"feature-rx-copy": "1"}], ids=["everything", "nothing"])
async def test_frames_and_their_tags_pass(
    xen: Path, link: tuple[PacketNetwork, PacketNetwork], offer: dict[str, str]
) -> None:
    near, far = link
    messages = (*QUIET, *frames.TAGGED, frames.ONE_SLOT[2])
    async with Frontend(xen, near) as vif, HandBackend(xen, vif.guest.domid, offer=offer) as back:
        await vif.connected()
        assert isinstance(back.network, PythonNetwork)
        for message in messages:
            await far_sends(far, message)
            wanted = frames.on_the_wire(message)
            got: list[bytes] = []
            while len(got) < len(wanted):
                got += frames.on_the_wire(await asyncio.wait_for(back.network.recv(), 10))
            assert got == wanted
        await vif.close()


async def test_what_the_guest_receives_goes_on_to_the_link(
    xen: Path, link: tuple[PacketNetwork, PacketNetwork]
) -> None:
    near, far = link
    async with Frontend(xen, near) as vif, HandBackend(xen, vif.guest.domid) as back:
        await vif.connected()
        assert isinstance(back.network, PythonNetwork)
        loop = asyncio.get_running_loop()
        sock: socket.socket = far._socket
        for message in QUIET:
            await back.network.send(message)
            assert frames.on_the_wire(await asyncio.wait_for(loop.sock_recv(sock, 1 << 17), 10)) == (
                frames.on_the_wire(message)
            )
        await vif.close()
