# SPDX-License-Identifier: Apache-2.0
"""One thread that serves many queues."""
from libc.stdint cimport uint32_t, uint64_t
from netback.dataplane.arena cimport Arena
from netback.dataplane.platform.events cimport PORTS_END, Events, events_t
from netback.dataplane.link cimport Link, link_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:
    MAX_LINKS = 4096


cdef struct worker_t:
    events_t *events
    int epoll
    int wakeup                   # eventfd: Python wants the thread back
    link_t *links[MAX_LINKS]
    uint32_t by_port[PORTS_END]      # link index + 1 of each port
    uint32_t runnable[MAX_LINKS]         # indices of active links: a queue served in turns
    uint32_t runnable_count
    uint32_t top                 # one past the highest index in use
    uint32_t delayed             # links whose unmask waits (back-off)
    bint waiting                 # links wait for what no descriptor and no event tells
    uint64_t wakes
    bint stop


cdef class Worker:
    cdef worker_t *worker
    cdef workspace_t *ws
    cdef readonly Events events
    cdef Arena arena
    cdef dict members            # index -> Link: keeps them alive while they are served
    cdef bint changed(self, Link link) noexcept
    cdef void forget(self, link_t *link) noexcept
