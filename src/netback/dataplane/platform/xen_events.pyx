# SPDX-License-Identifier: Apache-2.0
"""Event channels on real Xen: /dev/xen/evtchn, which masks a port when it is read and unmasks it when it is written
back.
"""
from libc.stdint cimport uint32_t
from posix.unistd cimport read, write

from netback.dataplane.platform.events cimport TAKE_PORTS, Events, events_t

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, void *argument)

cdef enum:
    IOCTL_EVTCHN_NOTIFY = 0x00044504     # xen/evtchn.h: _IOC(_IOC_NONE, 'E', 4, 4)


cdef int take(events_t *events, uint32_t *ports) noexcept nogil:
    """Linux's buffer grows with the number of bound ports (4.7 and later), so it cannot overflow."""
    cdef ssize_t got = read(events.fd, ports, TAKE_PORTS * sizeof(uint32_t))
    return <int>(<size_t>got // sizeof(uint32_t)) if got > 0 else 0


cdef void unmask(events_t *events, const uint32_t *ports, int count) noexcept nogil:
    """One write for all ports; Linux skips those that this handle has not bound."""
    write(events.fd, ports, count * sizeof(uint32_t))


cdef void notify(events_t *events, uint32_t port) noexcept nogil:
    ioctl(events.fd, IOCTL_EVTCHN_NOTIFY, &port)     # fails only if this handle no longer has the port


cdef class XenEvents(Events):
    """One handle of event channels. `fd` is an open, non-blocking /dev/xen/evtchn that the caller keeps open."""

    cdef events_t own

    def __cinit__(self, int fd):
        self.events = &self.own
        self.own.fd = fd
        self.own.take = take
        self.own.unmask = unmask
        self.own.notify = notify
