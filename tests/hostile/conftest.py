# SPDX-License-Identifier: Apache-2.0
"""An emulated Xen for every test here, and the topology that all of them use."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from netback.platforms.emulated import Emulator
from tests.hostile.topology import Topology, hostile


@pytest.fixture
def xen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a running emulated Xen; its path is short, as a socket's path must be."""
    with Emulator(tmp_path_factory.mktemp("x") / "xen") as emulator:
        yield emulator.directory


@pytest.fixture
async def topology(xen: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Topology]:
    """A hostile guest and an honest one. The checks that apply to every attack run at the end."""
    async with hostile(xen, caplog) as topology:
        yield topology
