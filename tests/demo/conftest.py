# SPDX-License-Identifier: Apache-2.0
"""A place for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Place, new_place


@pytest.fixture
def place() -> Iterator[Place]:
    with new_place() as place:
        yield place
