# SPDX-License-Identifier: Apache-2.0
"""The platform contract, held by emulated Xen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform

from .contract import Pair, PlatformContract


class TestEmulatedXen(PlatformContract):
    """A guest and a backend in domain 0."""

    @pytest.fixture
    def pair(self, xen: Path) -> Iterator[Pair]:
        with EmulatedPlatform(xen) as platform, EmulatedDomain.join(xen, name="guest") as guest:
            yield Pair(platform, guest)


class TestEmulatedDriverDomain(PlatformContract):
    """A guest and a backend in a domain of its own."""

    @pytest.fixture
    def pair(self, xen: Path) -> Iterator[Pair]:
        with (
            EmulatedDomain.join(xen, name="driver") as driver,
            EmulatedPlatform(xen, driver.domid) as platform,
            EmulatedDomain.join(xen, name="guest") as guest,
        ):
            yield Pair(platform, guest)
