# SPDX-License-Identifier: Apache-2.0
"""The network that accepts every frame."""

import pytest

from netback.net.null import NullNetwork

from .contract import AnyNetwork, Site, frame


class TestNull(AnyNetwork):
    """It has no far side: sent frames are gone."""

    @pytest.fixture
    def site(self) -> Site:
        return Site(NullNetwork(), None)

    def test_is_never_full(self, site: Site) -> None:
        assert all(site.network.peers[0].send([frame(0, 60000)] * 64) == (64, 0) for _ in range(100))
