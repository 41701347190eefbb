# SPDX-License-Identifier: Apache-2.0
"""The examples in the store's docstrings run."""

import doctest
from types import ModuleType

import pytest

from netback.xenstore import client, server, tree, wire


@pytest.mark.parametrize("module", [client, server, tree, wire], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
