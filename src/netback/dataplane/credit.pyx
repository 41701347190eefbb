# SPDX-License-Identifier: Apache-2.0
"""A token bucket that several threads draw from, with a line in which each queue waits at most once.

    claim     before frames are moved: how many of them may pass now; their bytes are set aside
    settle    after it: the bytes that were moved are drawn from the credit, the rest of the claim is free again

The credit grows by `rate` up to `burst`, and a frame passes if its bytes are there. So in any period of T the bytes are
at most rate * T + burst. A claim counts as drawn until it is settled, so two threads cannot pass the same bytes.

A queue whose first frame lacks credit gets a place in the line: its bytes count as drawn for every queue that asks
later, and it is due when the credit covers the line up to its place. Otherwise a queue of small frames would take each
byte as it comes, and another queue's GSO frame would wait for ever. Behind others a place is for all frames that
the queue has, up to the largest frame's size, so that each queue gets about the same bytes. Once due, its frames pass
by the credit alone, whatever the line is then, so queues that wait never block each other.

A frame larger than the burst passes when the credit is full, and leaves it below zero.

The lock is a credit's own. It is held for some additions, never over a system call or another lock; a queue without a
limit takes none.
"""
from libc.stdint cimport uint32_t, uint64_t

from netback.dataplane.lock cimport lock_release, lock_take

cdef double MAX_WAIT = 1e18      # ns: a bound on numbers, not on the wait

cdef enum:
    PLACE_BYTES = 65536          # most of a place in the line, beyond its first frame


cdef inline void refill(credit_t *credit, uint64_t now) noexcept nogil:
    """Threads may bring their times out of order: a time that has passed adds nothing."""
    if now > credit.since:
        credit.credit = min(credit.burst, credit.credit + <double>(now - credit.since) * credit.rate)
        credit.since = now


cdef inline uint64_t time_for(credit_t *credit, double lack) noexcept nogil:
    """ns until the credit has grown by `lack` bytes, rounded up."""
    return <uint64_t>min(lack / credit.rate, MAX_WAIT) + 1


cdef inline void leave_line(allowance_t *own) noexcept nogil:
    own.credit.waiting -= own.waiting
    own.waiting = 0


cdef inline void join_line(
        allowance_t *own, uint64_t now, double free, double ahead, const uint32_t *costs, uint32_t count
) noexcept nogil:
    """Get a place for the first frame; if others wait as well, for as many as PLACE_BYTES hold."""
    cdef uint32_t i
    own.waiting = max(costs[0], <uint32_t>1)
    for i in range(1, count if own.credit.waiting else 1):
        if own.waiting + costs[i] > PLACE_BYTES:
            break
        own.waiting += costs[i]
    own.due = now + time_for(own.credit, min(<double>own.waiting, own.credit.burst) + ahead - free)
    own.credit.waiting += own.waiting


cdef uint32_t credit_claim(
        allowance_t *own, uint64_t now, const uint32_t *costs, uint32_t count) noexcept nogil:
    """How many of `count` frames, in order, may pass at `now`; each costs that many bytes. If fewer than all, the
    first of the others gets a place in the line, and `own.due` is its time.
    """
    cdef credit_t *credit = own.credit
    cdef double free, ahead
    cdef uint64_t place = own.waiting, bytes = 0
    cdef uint32_t passed = 0
    if own.waiting and now < own.due:
        return 0
    lock_take(&credit.lock)
    refill(credit, now)
    free = credit.credit - credit.claimed
    leave_line(own)
    while passed < count:
        bytes += costs[passed]
        ahead = 0 if bytes <= place or (place and passed == 0) else credit.waiting
        if min(<double>costs[passed], credit.burst) + ahead > free:
            join_line(own, now, free, ahead, costs + passed, count - passed)
            break
        free -= costs[passed]
        own.claimed += costs[passed]
        credit.claimed += costs[passed]
        passed += 1
    lock_release(&credit.lock)
    return passed


cdef void credit_settle(allowance_t *own, uint64_t moved) noexcept nogil:
    """End the claim: `moved` bytes of it, or more, were used."""
    lock_take(&own.credit.lock)
    own.credit.credit -= <double>moved
    own.credit.claimed -= own.claimed
    own.claimed = 0
    lock_release(&own.credit.lock)


cdef void credit_leave(allowance_t *own) noexcept nogil:
    """Give up a place in the line; without one, or without a limit, nothing happens."""
    if own.credit == NULL or not own.waiting:
        return
    lock_take(&own.credit.lock)
    leave_line(own)
    lock_release(&own.credit.lock)


cdef class Credit:
    """`size` bytes in each `period` ns, for all queues of a vif in one direction.

    The burst is as in Linux's backend (tx_add_credit): `size`, or 128 KiB if that is more, so that every frame passes.
    `now` is the time in ns at which it begins, with the credit of one period.
    """

    def __cinit__(self, double size, double period, *, uint64_t now):
        self.credit.rate = size / period
        self.credit.burst = max(size, 131072.0)
        self.credit.credit = size
        self.credit.since = now

    @property
    def idle(self) -> bool:
        """Whether no queue has a claim or a place in the line."""
        return not self.credit.claimed and not self.credit.waiting


cdef class Allowance:
    """One direction's part of a credit, for tests."""

    cdef allowance_t own
    cdef Credit credit

    def __cinit__(self, Credit credit):
        self.credit = credit
        self.own.credit = &credit.credit

    def claim(self, uint64_t now, list costs) -> int:
        """How many of up to 64 frames may pass."""
        cdef uint32_t native[64]
        cdef uint32_t i, count = min(len(costs), 64)
        for i in range(count):
            native[i] = costs[i]
        return credit_claim(&self.own, now, native, count)

    def settle(self, uint64_t moved) -> None:
        credit_settle(&self.own, moved)

    def leave(self) -> None:
        credit_leave(&self.own)

    @property
    def due(self) -> int | None:
        """When its first frame may pass, in ns; None if none waits."""
        return self.own.due if self.own.waiting else None
