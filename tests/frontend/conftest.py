# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of frontends."""

from tests.vif.fixtures import xen

__all__ = ["xen"]
