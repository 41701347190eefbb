# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the daemon's tests."""

from tests.vif.fixtures import xen

__all__ = ["xen"]
