# SPDX-License-Identifier: Apache-2.0
"""What the tests of the daemon stand on."""

from tests.vif.fixtures import xen

__all__ = ["xen"]
