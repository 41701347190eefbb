# SPDX-License-Identifier: Apache-2.0
"""What the tests of devices stand on."""

from tests.vif.fixtures import network, xen

__all__ = ["network", "xen"]
