# SPDX-License-Identifier: Apache-2.0
"""The platform contract, held by a real Xen: both ends are the domain that this runs in. The lab's scenario runs it.

pytest tests/platforms/real_contract.py         # in dom0, as root
"""

from collections.abc import Iterator

import pytest

from netback.platforms.xen import XenDomain, XenPlatform

from .contract import Pair, PlatformContract


class TestRealXen(PlatformContract):
    """Grants and event channels loop back to the domain itself."""

    knows_domains = False  # Linux's devices take any domid: the hypervisor refuses it at the first copy

    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        with XenPlatform() as platform, XenDomain() as guest:
            yield Pair(platform, guest)
