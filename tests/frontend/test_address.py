# SPDX-License-Identifier: Apache-2.0
"""The address and the MTU of a guest's own link: its vif's, where netback made the link."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.daemon import Backend, BackendConfig
from netback.frontend import FrontConfig, Frontend
from netback.frontend.config import parse_mtu
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedPlatform
from tests.net.namespace import ip, new_network
from tests.vif.fixtures import xen
from tests.vif.guest import SECONDS

__all__ = ["xen"]

MAC = "00:16:3e:12:34:56"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with new_network():
        yield


@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
async def test_a_tap_has_the_address_of_its_vif(xen: Path, made: bool) -> None:
    if not made:
        ip("tuntap add eth0 mode tap")
        ip("link set eth0 address 02:00:00:00:00:01")
    with EmulatedPlatform(xen) as platform, closing(TapNetwork("eth0")) as network:
        async with Backend(platform, BackendConfig(xen, workers=1)) as backend, Frontend(xen, network) as vif:
            await backend.attach(vif.guest.domid, "null", mac=MAC)
            await vif.connected()
            assert (MAC if made else "02:00:00:00:00:01") in ip("link show eth0")
            await vif.reload()
            await vif.connected()
            assert (MAC if made else "02:00:00:00:00:01") in ip("link show eth0")


@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
async def test_a_tap_has_the_mtu_of_its_vif(xen: Path, made: bool) -> None:
    """Which is the host's link's: it follows each change, without a new connection."""
    if not made:
        ip("tuntap add eth0 mode tap")
    with EmulatedPlatform(xen) as platform, closing(TapNetwork("eth0")) as network:
        async with Backend(platform, BackendConfig(xen, workers=1)) as backend, Frontend(xen, network) as vif:
            await backend.attach(vif.guest.domid, "tap:host0")
            async with asyncio.timeout(SECONDS):
                await vif.connected()
                for mtu in (9000, 1400, 1500):
                    ip(f"link set host0 mtu {mtu}")
                    await vif.until(lambda mtu=mtu: vif.mtu == mtu)  # type: ignore[misc]
                    assert f"mtu {mtu if made else 1500}" in ip("link show eth0")


async def test_a_guest_of_one_slot_keeps_its_mtu(xen: Path) -> None:
    """The fault that this avoids: no frame of more than a page reaches it."""
    with EmulatedPlatform(xen) as platform, closing(TapNetwork("eth0")) as network:
        async with (
            Backend(platform, BackendConfig(xen, workers=1)) as backend,
            Frontend(xen, network, config=FrontConfig(sg=False)) as vif,
        ):
            name = await backend.attach(vif.guest.domid, "null")
            async with asyncio.timeout(SECONDS):
                await vif.connected()
                await backend.store.write(f"{name.frontend}/mtu", "1400")
                await vif.until(lambda: vif.mtu == 1400)
                await backend.store.write(f"{name.frontend}/mtu", "9000")
                await vif.until(lambda: vif.mtu == 1500)
            assert "mtu 1500" in ip("link show eth0")


@pytest.mark.parametrize(
    ("text", "mtu"),
    [
        ("", 1500),
        ("68", 68),
        ("67", 1500),
        ("65521", 65521),
        ("65522", 1500),
        ("-5", 1500),
        ("9" * 3000, 1500),
        ("\u0669\u0660\u0660\u0660", 1500),
        ("9000 ", 1500),
    ],
)
def test_what_the_key_says(text: str, mtu: int) -> None:
    assert parse_mtu(text, sg=True) == mtu
    assert parse_mtu(text, sg=False) == min(mtu, 1500)
