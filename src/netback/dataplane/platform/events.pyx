# SPDX-License-Identifier: Apache-2.0
"""One handle of event channels, whichever platform's. Knows verbs, not how they are done."""
from libc.stdint cimport uint32_t


cdef class Events:
    """What every handle can: the behaviour of /dev/xen/evtchn. EmulatedEvents and XenEvents are the ones to make."""

    @property
    def fd(self) -> int:
        """Readable when a port is pending."""
        return self.events.fd

    def take(self) -> list[int]:
        """The pending ports, now masked."""
        cdef uint32_t ports[TAKE_PORTS]
        cdef int count = events_take(self.events, ports)
        return [ports[i] for i in range(count)]

    def unmask(self, uint32_t port) -> None:
        events_unmask(self.events, &port, 1)

    def notify(self, uint32_t port) -> None:
        events_notify(self.events, port)
