# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of devices."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from netback.daemon import Backend
from netback.net.python import PythonNetwork
from tests.net.namespace import new_network
from tests.vif.fixtures import network, xen
from tests.vif.guest import Guest, join, serving

__all__ = ["network", "xen"]


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace of its own; pytest sets up the fixtures of usefixtures before those of the arguments."""
    with new_network():
        yield


@pytest.fixture
async def guest(xen: Path) -> AsyncIterator[Guest]:
    async with join(xen) as guest:
        yield guest


@pytest.fixture
async def backend(xen: Path, network: PythonNetwork) -> AsyncIterator[Backend]:
    async with serving(xen, network) as backend:
        yield backend
