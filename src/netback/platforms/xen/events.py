# SPDX-License-Identifier: Apache-2.0
"""Event channels of real Xen: the control calls of one open /dev/xen/evtchn. The operations of a burst are in its
`native`.
"""

import os
import struct

from netback.dataplane.platform.xen_events import XenEvents
from netback.platforms.xen.devices import call, open_device

_BIND_INTERDOMAIN = 0x00084501
_BIND_UNBOUND = 0x00044502
_UNBIND = 0x00044503


class XenEventChannels:
    """Implements platforms.base.EventChannels. The kernel closes every port when this process ends."""

    def __init__(self) -> None:
        self._fd = open_device("evtchn", nonblocking=True)
        self.native = XenEvents(self._fd)

    def bind_interdomain(self, domid: int, port: int) -> int:
        argument = bytearray(struct.pack("=II", domid, port))
        return call(self._fd, _BIND_INTERDOMAIN, argument, f"cannot bind to port {port} of domain {domid}")

    def alloc_unbound(self, domid: int) -> int:
        argument = bytearray(struct.pack("=I", domid))
        return call(self._fd, _BIND_UNBOUND, argument, f"cannot allocate a port for domain {domid}")

    def unbind(self, port: int) -> None:
        call(self._fd, _UNBIND, bytearray(struct.pack("=I", port)), f"cannot close port {port}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
