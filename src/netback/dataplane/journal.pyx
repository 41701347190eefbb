# SPDX-License-Identifier: Apache-2.0
"""The journal: how a batch of responses reaches its ring although the process may end at any instruction.

A response overwrites the slot of its request. Killed half-way, the slots past rsp_prod would be neither
requests nor published responses, and the next process would read one as the other. So the bodies go to a page
that outlives the process (a shared mapping of a file), then a mark declares them complete, then they go to the ring.
No system call comes between the mark and rsp_prod, and a killed thread has executed its instructions in
order, so compiler fences are all that the journal's own stores need.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.signal cimport kill
from posix.unistd cimport getpid

import os

from netback.errors import PlatformError
from netback.dataplane.abi cimport PAGE_SIZE, RING_HEADER, RING_SLOTS
from netback.dataplane.flight cimport flight_responses
from netback.dataplane.ring cimport back_push, compiler_fence, full_fence, load_acquire, store_release

cdef enum:
    SIGKILL = 9

cdef int kill_countdown = 0


cdef void kill_point() noexcept nogil:
    """A point at which a test may have this process killed; otherwise one branch that is not taken."""
    global kill_countdown
    if kill_countdown:
        kill_countdown -= 1
        if kill_countdown == 0:
            kill(getpid(), SIGKILL)


def arm_kill(int after):
    """Have the process killed at the `after`-th kill point from now. Only tests of crash safety use it."""
    global kill_countdown
    kill_countdown = after


cdef inline void write_slots(
        back_ring *ring, const uint8_t *bodies, uint32_t first, uint32_t count, uint32_t slot) noexcept nogil:
    """Copy bodies to their slots: at most two runs, since the ring wraps."""
    cdef uint32_t at = first & (RING_SLOTS - 1)
    cdef uint32_t run = min(count, RING_SLOTS - at)
    cdef uint8_t *slots = <uint8_t *>ring.shared + RING_HEADER
    memcpy(slots + at * slot, bodies, run * slot)
    kill_point()
    if count > run:
        memcpy(slots, bodies + run * slot, (count - run) * slot)


cdef int push_responses(back_ring *ring, journal_t *journal, const uint8_t *bodies, uint32_t count) noexcept nogil:
    """Publish `count` response slots (whole, in ring order) from ring.rsp_prod on; returns 1 if the frontend asked for
    an event.
    """
    cdef int notify
    if ring.flight != NULL:
        flight_responses(ring.flight, bodies, count, journal.slot)
    kill_point()
    memcpy(<uint8_t *>journal + JOURNAL_BODIES, bodies, count * journal.slot)
    journal.old_prod = ring.rsp_prod
    journal.new_prod = ring.rsp_prod + count
    compiler_fence()
    journal.committed = 1
    compiler_fence()
    kill_point()
    write_slots(ring, bodies, ring.rsp_prod, count, journal.slot)
    kill_point()
    notify = back_push(ring, ring.rsp_prod + count)
    kill_point()
    journal.committed = 0
    kill_point()
    return notify


cdef void complete_journal(back_ring *ring, journal_t *journal) noexcept nogil:
    """Complete what a killed predecessor committed, before the ring is used in any other way."""
    cdef uint32_t count = journal.new_prod - journal.old_prod
    compiler_fence()
    if journal.committed and journal.old_prod == load_acquire(&ring.shared.rsp_prod) and count <= RING_SLOTS:
        write_slots(ring, <uint8_t *>journal + JOURNAL_BODIES, journal.old_prod, count, journal.slot)
        store_release(&ring.shared.rsp_prod, journal.new_prod)
        full_fence()
    journal.committed = 0


cdef void *map_file(str path, size_t size) except NULL:
    """Map a file that outlives the process, made if missing; without a path, memory of zeros.

    OSError: the file cannot be opened or has no room. PlatformError: it cannot be mapped.
    """
    cdef int fd = -1
    cdef void *base
    if path is not None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)      # storing into a hole of a full file system raises SIGBUS
        except OSError:
            os.close(fd)
            raise
    cdef int sharing = MAP_SHARED | (MAP_ANONYMOUS if path is None else 0)
    base = mmap(NULL, size, PROT_READ | PROT_WRITE, sharing, fd, 0)
    if fd >= 0:
        os.close(fd)
    if base == MAP_FAILED:
        raise PlatformError(f"cannot map {path}", "ENOMEM")
    return base


cdef class Journal:
    """Two pages, one per ring of a queue, in the file at `path`; without a path they exist as long as this object."""

    def __cinit__(self, str path=None):
        self.path = path
        self.base = <uint8_t *>map_file(path, 2 * PAGE_SIZE)

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, 2 * PAGE_SIZE)

    cdef journal_t *of_ring(self, int which, uint64_t ring, uint32_t slot):
        """The journal of one ring (0 TX, 1 RX); entries of another ring are void."""
        cdef journal_t *journal = <journal_t *>(self.base + which * PAGE_SIZE)
        if journal.ring != ring or journal.slot != slot:
            memset(journal, 0, sizeof(journal_t))
            journal.ring = ring
            journal.slot = slot
        return journal

    def clear(self) -> None:
        """Clear both pages: these are new rings, even if their names are reused."""
        memset(self.base, 0, 2 * PAGE_SIZE)
