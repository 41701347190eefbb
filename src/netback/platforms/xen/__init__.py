# SPDX-License-Identifier: Apache-2.0
"""A real Xen, by Linux's devices under /dev/xen."""

from netback.platforms.xen.events import XenEventChannels
from netback.platforms.xen.platform import XenPlatform

__all__ = ["XenEventChannels", "XenPlatform"]
