# SPDX-License-Identifier: Apache-2.0
"""An emulated Xen for every test here, and the scene that all of them play in."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from netback.platforms.emulated import Emulator
from tests.hostile.scene import Scene, hostile


@pytest.fixture
def xen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of an emulated Xen that runs; short, as a socket's path must be."""
    with Emulator(tmp_path_factory.mktemp("x") / "xen") as emulator:
        yield emulator.directory


@pytest.fixture
async def scene(xen: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Scene]:
    """A hostile guest and an honest one beside it. What must hold of every attack is checked at the end."""
    async with hostile(xen, caplog) as scene:
        yield scene
