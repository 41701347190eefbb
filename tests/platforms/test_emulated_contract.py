# SPDX-License-Identifier: Apache-2.0
"""The platform contract, held by emulated Xen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.errors import PlatformError
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform

from .contract import Pair, PlatformContract


class TestEmulatedXen(PlatformContract):
    """A guest and a backend in domain 0."""

    @pytest.fixture
    def pair(self, xen: Path) -> Iterator[Pair]:
        with EmulatedPlatform(xen) as platform, EmulatedDomain.join(xen, name="guest") as guest:
            yield Pair(platform, guest)

    def test_a_mapped_page_cannot_be_revoked_until_it_is_given_back(self, pair: Pair) -> None:
        """A guest in userspace on real Xen cannot ask: Linux gives the page back by itself when it is unmapped."""
        guest = pair.guest
        assert isinstance(guest, EmulatedDomain)
        gref = guest.grant(guest.alloc_page(), pair.platform.domid)
        assert not guest.still_in_use(gref)
        first, second = (pair.platform.map_grant(guest.domid, gref) for _ in range(2))
        first.unmap()
        assert guest.still_in_use(gref)
        with pytest.raises(PlatformError):
            guest.revoke(gref)
        second.unmap()
        assert not guest.still_in_use(gref)
        guest.revoke(gref)


class TestEmulatedDriverDomain(PlatformContract):
    """A guest, and a backend in a driver domain."""

    @pytest.fixture
    def pair(self, xen: Path) -> Iterator[Pair]:
        with (
            EmulatedDomain.join(xen, name="driver") as driver,
            EmulatedPlatform(xen, driver.domid) as platform,
            EmulatedDomain.join(xen, name="guest") as guest,
        ):
            yield Pair(platform, guest)
