# SPDX-License-Identifier: Apache-2.0
"""The Python interface of a handle of event channels."""
from libc.stdint cimport uint32_t


cdef class Events:
    """A handle of event channels, with the semantics of /dev/xen/evtchn. Create an EmulatedEvents or a XenEvents."""

    @property
    def fd(self) -> int:
        """Readable when an unmasked port is pending."""
        return self.events.fd

    def take(self) -> list[int]:
        """The pending ports, at most 4096; each is masked now."""
        cdef uint32_t ports[TAKE_PORTS]
        cdef int count = events_take(self.events, ports)
        return [ports[i] for i in range(count)]

    def unmask(self, uint32_t port) -> None:
        """Let a port fire again; it fires at once if it became pending while masked."""
        events_unmask(self.events, &port, 1)

    def notify(self, uint32_t port) -> None:
        """Send an event to the far side of a port; no effect if the port is unbound."""
        events_notify(self.events, port)
