# SPDX-License-Identifier: Apache-2.0
"""Xen's shared ring, both ends: the only place that touches its indices.

A ring is one page: four indices, then RING_SLOTS slots. The frontend writes requests and moves req_prod, the backend
writes each response over its request and moves rsp_prod. All indices are free-running uint32_t, so every difference
below wraps as io/ring.h requires, and slot i is at i modulo RING_SLOTS.

The far side may write anything to the page at any time (XSA-155). So an index is read once, checked, and used from
private memory: `back_pending` and `front_pending` are these checks, and an impossible difference breaks the link
(XSA-39, XSA-155). A backend answers in ring order and takes a request only when it answers it, so rsp_prod is the one
private index that it has, and a process that takes the ring over finds it in the page.

Order of stores and loads: slots are written before the producer index (release) and read after it (acquire). Two more
fences are full ones. A producer stores its index, then reads the other side's event index; a consumer that wants to
sleep stores its event index, then reads the producer index once more. With both fences one of them sees the other's
store, so no wake-up is lost: the producer notifies, or the consumer finds the work (io/ring.h's RING_PUSH_*_AND_CHECK_
NOTIFY and RING_FINAL_CHECK_FOR_*).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.abi cimport RING_HEADER, RING_SLOTS, TX_SLOT, RX_SLOT
from netback.dataplane.clock cimport coarse_ns
from netback.dataplane.flight cimport flight_index, flight_t

cdef extern from *:
    """
    #include <stdint.h>
    /* C11 memory order by the compiler's builtins: plain pointers, no _Atomic casts. */
    static inline uint32_t load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint32_t load_relaxed(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void store_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_relaxed(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void compiler_fence(void) { __asm__ __volatile__("" ::: "memory"); }
    """
    uint32_t load_acquire(const uint32_t *p) noexcept nogil
    uint32_t load_relaxed(const uint32_t *p) noexcept nogil
    void store_release(uint32_t *p, uint32_t value) noexcept nogil
    void store_relaxed(uint32_t *p, uint32_t value) noexcept nogil
    void full_fence() noexcept nogil
    void compiler_fence() noexcept nogil


cdef struct sring:               # struct xen_netif_*_sring's head
    uint32_t req_prod
    uint32_t req_event
    uint32_t rsp_prod
    uint32_t rsp_event


cdef struct back_ring:
    sring *shared
    uint32_t rsp_prod            # published so far; requests from here on are not taken until they are answered
    uint64_t pushed_at           # ns: when responses were last published, or the ring was attached
    flight_t *flight             # of its queue's recorder; NULL: none


cdef struct front_ring:
    sring *shared
    uint32_t req_prod            # filled by this end, published up to shared.req_prod
    uint32_t rsp_cons            # next response to take


cdef inline uint8_t *tx_slot(sring *shared, uint32_t index) noexcept nogil:
    return <uint8_t *>shared + RING_HEADER + (index & (RING_SLOTS - 1)) * TX_SLOT


cdef inline uint8_t *rx_slot(sring *shared, uint32_t index) noexcept nogil:
    return <uint8_t *>shared + RING_HEADER + (index & (RING_SLOTS - 1)) * RX_SLOT


cdef inline void back_attach(back_ring *ring, void *page) noexcept nogil:
    """Start where the last backend stopped answering: a new ring has 0 there, a live one its rsp_prod."""
    ring.shared = <sring *>page
    ring.rsp_prod = load_acquire(&ring.shared.rsp_prod)
    ring.pushed_at = coarse_ns()


cdef inline int requests_pending(back_ring *ring, uint32_t slots) noexcept nogil:
    """Pending requests of a ring of `slots`, from one read of req_prod; -1 if the guest's index is impossible
    (XSA-39).
    """
    cdef uint32_t pending, req_prod = load_acquire(&ring.shared.req_prod)
    if ring.flight != NULL:
        req_prod = flight_index(ring.flight, req_prod)
    pending = req_prod - ring.rsp_prod
    return <int>pending if pending <= slots else -1


cdef inline int back_pending(back_ring *ring) noexcept nogil:
    """Pending requests of a TX or RX ring, or -1."""
    return requests_pending(ring, RING_SLOTS)


cdef inline int back_push(back_ring *ring, uint32_t rsp_prod) noexcept nogil:
    """Publish responses up to rsp_prod; returns 1 if the frontend asked for an event."""
    cdef uint32_t rsp_event, old = ring.rsp_prod
    store_release(&ring.shared.rsp_prod, rsp_prod)
    ring.rsp_prod = rsp_prod
    ring.pushed_at = coarse_ns()
    full_fence()
    rsp_event = load_relaxed(&ring.shared.rsp_event)
    if ring.flight != NULL:
        rsp_event = flight_index(ring.flight, rsp_event)
    return <uint32_t>(rsp_prod - rsp_event) < <uint32_t>(rsp_prod - old)


cdef inline int back_arm(back_ring *ring, uint32_t wanted) noexcept nogil:
    """Ask for an event once `wanted` requests are pending, then check again (io/ring.h's final check); returns the
    pending ones, or -1.
    """
    store_relaxed(&ring.shared.req_event, ring.rsp_prod + wanted)
    full_fence()
    return back_pending(ring)


cdef inline void front_init(front_ring *ring, void *page) noexcept nogil:
    ring.shared = <sring *>page
    ring.req_prod = 0
    ring.rsp_cons = 0
    store_relaxed(&ring.shared.req_prod, 0)
    store_relaxed(&ring.shared.req_event, 1)
    store_relaxed(&ring.shared.rsp_prod, 0)
    store_release(&ring.shared.rsp_event, 1)


cdef inline int front_room(front_ring *ring) noexcept nogil:
    """Slots free for requests."""
    return <int>(RING_SLOTS - <uint32_t>(ring.req_prod - ring.rsp_cons))


cdef inline int front_push(front_ring *ring) noexcept nogil:
    """Publish the filled requests; returns 1 if the backend asked for an event."""
    cdef uint32_t old = load_relaxed(&ring.shared.req_prod)
    store_release(&ring.shared.req_prod, ring.req_prod)
    full_fence()
    return <uint32_t>(ring.req_prod - load_relaxed(&ring.shared.req_event)) < <uint32_t>(ring.req_prod - old)


cdef inline int front_pending(front_ring *ring) noexcept nogil:
    """Responses not yet taken; -1 if the backend's index is impossible."""
    cdef uint32_t prod = load_acquire(&ring.shared.rsp_prod)
    if <uint32_t>(prod - ring.rsp_cons) > <uint32_t>(ring.req_prod - ring.rsp_cons):
        return -1
    return <int><uint32_t>(prod - ring.rsp_cons)


cdef inline int front_arm(front_ring *ring, uint32_t wanted) noexcept nogil:
    """Ask for an event once `wanted` responses are pending, then check again."""
    store_relaxed(&ring.shared.rsp_event, ring.rsp_cons + wanted)
    full_fence()
    return front_pending(ring)
