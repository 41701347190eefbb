# SPDX-License-Identifier: Apache-2.0
"""The address of a guest's own link: its vif's, where netback made the link."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.daemon import Backend, BackendConfig
from netback.frontend import Frontend
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedPlatform
from tests.net.namespace import ip, new_network
from tests.vif.fixtures import xen

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
