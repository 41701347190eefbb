# SPDX-License-Identifier: Apache-2.0
"""What control code gives a peer while a worker serves it: a pointer is exchanged, and a bell wakes the worker.

The bell, like everything that such a peer waits for, is in an epoll instance, which is the peer's descriptor. Each is
watched by its edges: the peer's `wake` takes the events and reads nothing.
"""
from libc.stdint cimport uint32_t, uint64_t
from netback.dataplane.epoll cimport EPOLLET, EPOLL_CTL_ADD, EPOLL_CTL_MOD, epoll_ctl, epoll_event
from posix.unistd cimport write

cdef extern from *:
    """
    static inline void *exchange_pointer(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
    static inline void *load_pointer(void **p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    """
    void *exchange_pointer(void **p, void *value) noexcept nogil
    void *load_pointer(void **p) noexcept nogil


cdef inline void ring_bell(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))


cdef inline int watch_edges(int epoll, int fd, uint64_t event, uint32_t edges) noexcept nogil:
    """Watch a descriptor, whose events have this number, from now on for these edges; what is there already counts as
    one.
    """
    cdef epoll_event wanted
    wanted.events = edges | EPOLLET
    wanted.data.u64 = event
    if epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &wanted) == 0:
        return 0
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted)
