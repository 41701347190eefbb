# SPDX-License-Identifier: Apache-2.0
"""The platform's wait and notify operations: one handle of event channels, with the semantics of /dev/xen/evtchn."""
from libc.stdint cimport uint32_t

cdef enum:
    PORTS_END = 131072           # xen/event_channel.h: EVTCHN_FIFO_NR_CHANNELS, the most of any ABI; 0 is never valid
    TAKE_PORTS = 4096            # the most ports that one take returns


cdef struct events_t:            # the first member of each platform's structure
    int fd                       # readable when an unmasked port is pending
    int (*take)(events_t *, uint32_t *ports) noexcept nogil
    void (*unmask)(events_t *, const uint32_t *ports, int count) noexcept nogil
    void (*notify)(events_t *, uint32_t port) noexcept nogil


cdef inline int events_take(events_t *events, uint32_t *ports) noexcept nogil:
    """Store the ports that are pending and not masked in `ports` (room for TAKE_PORTS); return how many. Each stays
    masked until events_unmask."""
    return events.take(events, ports)


cdef inline void events_unmask(events_t *events, const uint32_t *ports, int count) noexcept nogil:
    """Let ports fire again; a port that became pending while masked fires at once."""
    events.unmask(events, ports, count)


cdef inline void events_notify(events_t *events, uint32_t port) noexcept nogil:
    """Send an event to the far side, which then sees all that was written to the ring before the call."""
    events.notify(events, port)


cdef class Events:
    cdef events_t *events
