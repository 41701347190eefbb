# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of devices."""

from tests.vif.fixtures import network, xen

__all__ = ["network", "xen"]
