# SPDX-License-Identifier: Apache-2.0
"""One thread that serves many links."""
from libc.stdint cimport uint32_t, uint64_t
from netback.dataplane.arena cimport Arena
from netback.dataplane.link cimport Link, direction_t, link_t, row_t
from netback.dataplane.platform.events cimport PORTS_END, Events, events_t
from netback.dataplane.timers cimport timers_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:
    MAX_LINKS = 4096


cdef struct worker_t:
    events_t *events
    row_t *rows                  # states.TABLE
    int epoll
    int wakeup                   # eventfd by which Python requests the thread
    link_t *links[MAX_LINKS]
    uint32_t by_port[PORTS_END]      # of each port: 2 * (link index + 1), and 1 more if only peer_to_ring has it
    uint32_t runnable[MAX_LINKS]     # indices of links to be polled in the next round
    uint32_t runnable_count
    timers_t timers
    uint32_t notices[MAX_LINKS]      # indices of links whose condition changed
    uint32_t notice_count
    uint64_t wakes
    bint stop


cdef class Worker:
    cdef worker_t *worker
    cdef workspace_t *ws
    cdef readonly Events events
    cdef Arena arena
    cdef dict members            # index -> Link: keeps them alive while they are served
    cdef bint serves(self, Link link) noexcept
    cdef void idle(self, link_t *link) noexcept
    cdef void end_timer(self, link_t *link, direction_t *direction) noexcept
    cdef void forget(self, link_t *link) noexcept
