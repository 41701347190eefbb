# SPDX-License-Identifier: Apache-2.0
"""A rate in bytes, shared by the queues of a vif. Time is an argument; no clock is read here."""
from libc.stdint cimport uint32_t, uint64_t


cdef struct credit_t:
    int lock
    double rate                  # bytes per ns
    double burst                 # most that `credit` grows to, in bytes
    double credit                # bytes; below 0 after a frame larger than the burst
    uint64_t since               # ns: the time that `credit` is for
    uint64_t claimed             # bytes of the frames that any queue moves now
    uint64_t waiting             # bytes of the first frame of each queue that waits


cdef struct allowance_t:         # one direction's part; zeros: it has no limit
    credit_t *credit
    uint64_t claimed             # of credit.claimed
    uint64_t waiting             # of credit.waiting: this direction's place in the line
    uint64_t due                 # ns: when it may move its first frame, while `waiting`


cdef uint32_t credit_claim(
    allowance_t *own, uint64_t now, const uint32_t *costs, uint32_t count) noexcept nogil
cdef void credit_settle(allowance_t *own, uint64_t moved) noexcept nogil
cdef void credit_leave(allowance_t *own) noexcept nogil


cdef class Credit:
    cdef credit_t credit
