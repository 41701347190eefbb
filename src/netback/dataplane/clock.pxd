# SPDX-License-Identifier: Apache-2.0
"""The worker's clock."""
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, clockid_t, timespec

cdef extern from "time.h" nogil:
    clockid_t CLOCK_MONOTONIC_COARSE

cdef enum:
    TICK = 20 * 1000 * 1000      # ns: more than the coarse clock is ever late by

cdef uint64_t fixed_ns           # ns; 0: the system's monotonic clock


cdef inline uint64_t read_clock(clockid_t clock) noexcept nogil:
    cdef timespec now
    if fixed_ns:
        return fixed_ns
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline uint64_t now_ns() noexcept nogil:
    return read_clock(CLOCK_MONOTONIC)


cdef inline uint64_t coarse_ns() noexcept nogil:
    """The same clock as of the last tick, a few ms ago at most: never a system call, for ages of seconds."""
    return read_clock(CLOCK_MONOTONIC_COARSE)


cdef inline uint64_t now_near(uint64_t deadline) noexcept nogil:
    """The clock, exact if the deadline may be near: without a usable vDSO, as in some PV domains, that is a call."""
    cdef uint64_t now = coarse_ns()
    return now if deadline > now + TICK else now_ns()
