# SPDX-License-Identifier: Apache-2.0
"""Event channels on emulated Xen: pending and mask bits in shared pages, an eventfd to sleep on.

The semantics are those of /dev/xen/evtchn: a take masks the ports that it returns, and only an unmask after the work
lets a port fire again (XSA-332). A notify involves no third process.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport read, write
from netback.dataplane.platform.events cimport TAKE_PORTS, Events, events_t
from netback.dataplane.ring cimport full_fence, load_acquire

cdef extern from *:
    """
    static inline uint64_t bits_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline uint64_t bits_set(uint64_t *p, uint64_t bits) { return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST); }
    static inline uint64_t bits_clear(uint64_t *p, uint64_t bits)
    {
        return __atomic_fetch_and(p, ~bits, __ATOMIC_SEQ_CST);
    }
    static inline int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }
    """
    uint64_t bits_load(const uint64_t *p) noexcept nogil
    uint64_t bits_set(uint64_t *p, uint64_t bits) noexcept nogil
    uint64_t bits_clear(uint64_t *p, uint64_t bits) noexcept nogil
    int lowest_bit(uint64_t bits) noexcept nogil


cdef enum:
    EVENT_PORTS = TAKE_PORTS     # ports of one handle; 0 is never valid
    EVENT_WORDS = EVENT_PORTS // 64


cdef struct event_page:          # netback/emulated_xen.h
    uint64_t pending[EVENT_WORDS]
    uint64_t mask[EVENT_WORDS]
    uint32_t generation          # changes whenever the far side of one of this handle's ports does


cdef struct remote_port:
    event_page *page             # NULL: unbound
    int eventfd
    uint32_t port
    uint32_t generation          # generation of this handle's page when the far side was looked up


cdef struct emulated_events:     # `seam` is first: an events_t * of this platform is an emulated_events *
    events_t seam
    event_page *page
    remote_port *remotes         # EVENT_PORTS of them
    void *resolve                # Python: (port) -> (page address, eventfd, remote port) or None


cdef inline void ring_bell(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))     # fails only if the counter is full, and then the descriptor is readable


cdef int take(events_t *seam, uint32_t *ports) noexcept nogil:
    cdef emulated_events *events = <emulated_events *>seam
    cdef uint64_t count, bits
    cdef int word, found = 0
    read(seam.fd, &count, sizeof(count))
    for word in range(EVENT_WORDS):
        bits = bits_load(&events.page.pending[word]) & ~bits_load(&events.page.mask[word])
        if bits == 0:
            continue
        bits_set(&events.page.mask[word], bits)
        bits_clear(&events.page.pending[word], bits)
        while bits:
            ports[found] = word * 64 + lowest_bit(bits)
            found += 1
            bits &= bits - 1
    return found


cdef void unmask(events_t *seam, const uint32_t *ports, int count) noexcept nogil:
    cdef emulated_events *events = <emulated_events *>seam
    cdef uint32_t word
    cdef uint64_t bit
    cdef int i
    for i in range(count):
        word = (ports[i] % EVENT_PORTS) >> 6
        bit = <uint64_t>1 << (ports[i] & 63)
        bits_clear(&events.page.mask[word], bit)
        if bits_load(&events.page.pending[word]) & bit:
            ring_bell(seam.fd)


cdef void learn_remote(emulated_events *events, uint32_t port) noexcept with gil:
    """Ask the platform for the far side of a port; an unbound port is a normal state."""
    cdef remote_port *remote = &events.remotes[port % EVENT_PORTS]
    cdef uint32_t generation = load_acquire(&events.page.generation)
    try:
        found = (<object>events.resolve)(port)
    except Exception:                # the emulator is gone, and with it every far side
        found = None
    remote.page = NULL
    if found is not None:
        remote.page = <event_page *><size_t>found[0]
        remote.eventfd = found[1]
        remote.port = found[2]
    remote.generation = generation


cdef void notify(events_t *seam, uint32_t port) noexcept nogil:
    """Make the far side's port pending; unless it was pending or is masked, wake its owner."""
    cdef emulated_events *events = <emulated_events *>seam
    cdef remote_port *remote = &events.remotes[port % EVENT_PORTS]
    cdef uint32_t word
    cdef uint64_t bit
    # The ring's index was stored before this read of the generation: a bind in between marks the port pending itself.
    full_fence()
    if remote.generation != load_acquire(&events.page.generation):
        learn_remote(events, port)
    if remote.page == NULL:
        return
    word = (remote.port % EVENT_PORTS) >> 6
    bit = <uint64_t>1 << (remote.port & 63)
    if bits_set(&remote.page.pending[word], bit) & bit == 0 and bits_load(&remote.page.mask[word]) & bit == 0:
        ring_bell(remote.eventfd)


cdef class EmulatedEvents(Events):
    """One handle of event channels.

    `eventfd` and the page at `page_address` belong to the caller and outlive this object. `resolve(port)` returns the
    far side's (page address, eventfd, remote port), or None if the port is unbound; the worker's thread calls it,
    once after each change of a far side.
    """

    cdef emulated_events own
    cdef object resolve

    def __cinit__(self, int eventfd, size_t page_address, object resolve):
        self.events = &self.own.seam
        self.own.remotes = <remote_port *>calloc(EVENT_PORTS, sizeof(remote_port))
        if self.own.remotes == NULL:
            raise MemoryError
        cdef uint32_t port
        self.own.seam.fd = eventfd
        self.own.seam.take = take
        self.own.seam.unmask = unmask
        self.own.seam.notify = notify
        self.own.page = <event_page *>page_address
        self.resolve = resolve
        self.own.resolve = <void *>resolve
        for port in range(<uint32_t>EVENT_PORTS):      # each port is looked up at its first notify
            self.forget(port)

    def __dealloc__(self):
        free(self.own.remotes)

    cpdef void forget(self, uint32_t port) noexcept:
        """Look up the far side again at the next notify: this process has bound or closed the port."""
        self.own.remotes[port % EVENT_PORTS].generation = load_acquire(&self.own.page.generation) - 1
