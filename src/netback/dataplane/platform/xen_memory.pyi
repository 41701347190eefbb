# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.platform.memory import GuestMemory

class XenMemory(GuestMemory):
    """A domain's memory through an open /dev/xen/gntdev."""

    def __init__(self, gntdev: int, domid: int) -> None: ...
