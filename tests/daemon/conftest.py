# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the daemon's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netback.daemon import Backend
from netback.net.python import PythonNetwork
from tests.vif.fixtures import network, xen
from tests.vif.guest import Guest, join, serving

__all__ = ["network", "xen"]


@pytest.fixture
async def guest(xen: Path) -> AsyncIterator[Guest]:
    async with join(xen) as guest:
        yield guest


@pytest.fixture
async def backend(xen: Path, network: PythonNetwork) -> AsyncIterator[Backend]:
    async with serving(xen, network) as backend:
        yield backend
