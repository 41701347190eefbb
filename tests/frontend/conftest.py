# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of frontends."""

from tests.vif.fixtures import network, xen

__all__ = ["network", "xen"]
