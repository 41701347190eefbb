# SPDX-License-Identifier: Apache-2.0
"""A worker's deadlines, the earliest first. Time is an argument; no clock is read here."""
from libc.stdint cimport uint32_t, uint64_t


cdef struct timer_t:             # part of its owner's structure; zeros: not set
    uint64_t deadline            # ns
    uint32_t place               # position in the queue, from 1; 0: not set
    uint32_t kind                # the owner's purpose for it
    void *owner


cdef struct timers_t:
    timer_t **heap               # heap[1] is due first
    uint32_t count
    uint32_t capacity


cdef int timers_init(timers_t *timers, uint32_t capacity) except -1
cdef void timers_free(timers_t *timers) noexcept
cdef void timers_set(timers_t *timers, timer_t *timer, uint64_t deadline) noexcept nogil
cdef void timers_cancel(timers_t *timers, timer_t *timer) noexcept nogil
cdef timer_t *timers_pop(timers_t *timers, uint64_t now) noexcept nogil


cdef inline uint64_t timers_next(timers_t *timers) noexcept nogil:
    """The earliest deadline; 0 if no timer is set."""
    return timers.heap[1].deadline if timers.count else 0
