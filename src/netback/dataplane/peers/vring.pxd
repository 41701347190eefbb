# SPDX-License-Identifier: Apache-2.0
"""The driver's end of a split virtqueue (virtio 1.2, 2.7): the only place that touches its indices.

A virtqueue is a table of descriptors, a ring of descriptors that the device may use (avail, written here) and a ring of
those that it has used (used, written by the device). Both indices are free-running uint16_t. The device may write
anything to all three at any time: nothing that this end wrote is read back, and an index, id or length of the used ring
is read once, checked, and used from private memory.

Each end tells the other whether it wants an event, by an index at which to send it (EVENT_IDX) or by a flag. A producer
stores its index, then reads what the other end wants; a consumer that wants to sleep stores that, then reads the
index once more. With a full fence between the two no wake-up is lost.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.ring cimport full_fence, load_relaxed
from posix.unistd cimport write

cdef extern from *:
    """
    static inline uint16_t load16_acquire(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint16_t load16_relaxed(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void store16_release(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store16_relaxed(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    """
    uint16_t load16_acquire(const uint16_t *p) noexcept nogil
    uint16_t load16_relaxed(const uint16_t *p) noexcept nogil
    void store16_release(uint16_t *p, uint16_t value) noexcept nogil
    void store16_relaxed(uint16_t *p, uint16_t value) noexcept nogil

cdef enum:
    VRING_SLOTS = 256
    VRING_WRITE = 2              # flags of a descriptor: the device writes to the buffer
    VRING_NO_EVENT = 1           # flags of either ring: whoever reads this sends no event


cdef struct vring_desc:
    uint64_t address
    uint32_t length
    uint16_t flags
    uint16_t next


cdef struct vring_avail:
    uint16_t flags
    uint16_t idx
    uint16_t ring[VRING_SLOTS]
    uint16_t used_event


cdef struct vring_used_elem:
    uint32_t id
    uint32_t length


cdef struct vring_used:
    uint16_t flags
    uint16_t idx
    vring_used_elem ring[VRING_SLOTS]
    uint16_t avail_event


cdef struct vring_t:
    vring_desc *desc
    vring_avail *avail
    vring_used *used
    uint16_t filled              # the next entry of `avail`
    uint16_t published           # the device may use those before this one
    uint16_t taken               # the next entry of `used`
    bint event_idx
    bint armed                   # a call was asked for
    int kick                     # the device sleeps on its other end


cdef inline int vring_pending(vring_t *ring) noexcept nogil:
    """Used descriptors that were not taken yet, or -1 if the device's index is impossible."""
    cdef uint16_t pending = load16_acquire(&ring.used.idx) - ring.taken
    return pending if pending <= <uint16_t>(ring.published - ring.taken) else -1


cdef inline uint32_t vring_next_length(vring_t *ring) noexcept nogil:
    """What the device says of the next used descriptor, which the caller knows to be there."""
    return load_relaxed(&ring.used.ring[ring.taken % VRING_SLOTS].length)


cdef inline uint32_t vring_take(vring_t *ring, uint32_t *length) noexcept nogil:
    """The next used descriptor's id, unchecked, and how many bytes the device says it wrote."""
    cdef vring_used_elem *element = &ring.used.ring[ring.taken % VRING_SLOTS]
    ring.taken += 1
    length[0] = load_relaxed(&element.length)
    return load_relaxed(&element.id)


cdef inline void vring_offer(vring_t *ring, uint16_t id) noexcept nogil:
    """Add a descriptor to those that the next `vring_publish` publishes."""
    ring.avail.ring[ring.filled % VRING_SLOTS] = id
    ring.filled += 1


cdef inline bint vring_publish(vring_t *ring) noexcept nogil:
    """Publish what was offered; returns whether the device wants to be kicked."""
    cdef uint16_t before = ring.published
    if ring.filled == before:
        return False
    ring.published = ring.filled
    store16_release(&ring.avail.idx, ring.filled)
    full_fence()
    if ring.event_idx:
        return <uint16_t>(ring.filled - load16_relaxed(&ring.used.avail_event) - 1) < <uint16_t>(ring.filled - before)
    return not load16_relaxed(&ring.used.flags) & VRING_NO_EVENT


cdef inline void vring_kick(vring_t *ring) noexcept nogil:
    """A full pipe holds kicks enough."""
    cdef uint64_t one = 1
    write(ring.kick, &one, sizeof(one))


cdef inline void vring_arm(vring_t *ring, uint16_t more) noexcept nogil:
    """Ask for a call once the device has used more than `more` further descriptors; the caller looks once more."""
    ring.armed = True
    if ring.event_idx:
        store16_relaxed(&ring.avail.used_event, ring.taken + more)
    else:
        store16_relaxed(&ring.avail.flags, 0)
    full_fence()


cdef inline void vring_disarm(vring_t *ring) noexcept nogil:
    """Ask for no calls. With EVENT_IDX there is none after the one that was asked for."""
    ring.armed = False
    if not ring.event_idx:
        store16_relaxed(&ring.avail.flags, VRING_NO_EVENT)
