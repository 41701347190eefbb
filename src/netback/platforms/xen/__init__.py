# SPDX-License-Identifier: Apache-2.0
"""Real Xen, through Linux's devices in /dev/xen."""

from netback.platforms.xen.domain import XenDomain
from netback.platforms.xen.events import XenEventChannels
from netback.platforms.xen.platform import XenPlatform
from netback.platforms.xen.store import find_store, open_store

__all__ = ["XenDomain", "XenEventChannels", "XenPlatform", "find_store", "open_store"]
