# SPDX-License-Identifier: Apache-2.0
"""An emulated Xen for each test, in a directory that backends may be restarted on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.platforms.emulated import Emulator


@pytest.fixture
def xen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of an emulated Xen that runs; short, as a socket's path must be."""
    with Emulator(tmp_path_factory.mktemp("x") / "xen") as emulator:
        yield emulator.directory
