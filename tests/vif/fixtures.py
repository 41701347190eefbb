# SPDX-License-Identifier: Apache-2.0
"""An emulated Xen and a network, for every test of devices."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.net.python import PythonNetwork
from netback.platforms.emulated import Emulator


@pytest.fixture
def xen(tmp_path: Path) -> Iterator[Path]:
    """The directory of an emulated Xen that runs."""
    with Emulator(tmp_path):
        yield tmp_path


@pytest.fixture
def network() -> Iterator[PythonNetwork]:
    """The far end of the vifs."""
    made = PythonNetwork()
    yield made
    made.remove()
