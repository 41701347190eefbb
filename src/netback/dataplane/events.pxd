# SPDX-License-Identifier: Apache-2.0
"""The platform's wait and notify verbs: one handle of event channels, as /dev/xen/evtchn is one."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    EVENT_PORTS = 4096           # ports of a handle; 0 is never valid
    EVENT_WORDS = 64


cdef struct event_page:          # include/netback/emulated_xen.h
    uint64_t pending[EVENT_WORDS]
    uint64_t mask[EVENT_WORDS]
    uint32_t generation          # moves whenever the far side of one of our ports does


cdef struct remote_port:
    event_page *page             # NULL: unbound
    int eventfd
    uint32_t port
    uint32_t generation          # ours, when this was learnt


cdef struct events_t:
    int fd                       # readable when an unmasked port became pending
    event_page *page
    remote_port *remotes         # EVENT_PORTS of them
    void *resolve                # Python: (port) -> (page address, eventfd, remote port) or None


cdef int events_take(events_t *events, uint32_t *ports) noexcept nogil
cdef void events_unmask(events_t *events, uint32_t port) noexcept nogil
cdef void events_notify(events_t *events, uint32_t port) noexcept nogil


cdef class Events:
    cdef events_t events
    cdef object resolve
