# SPDX-License-Identifier: Apache-2.0
"""An emulated Xen for every test here, on a thread of its own and in a directory of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.platforms.emulated import Emulator


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path, as a socket needs, where no emulator is yet."""
    return tmp_path_factory.mktemp("x") / "xen"


@pytest.fixture
def xen(directory: Path) -> Iterator[Path]:
    """The directory of an emulated Xen that runs."""
    with Emulator(directory):
        yield directory
