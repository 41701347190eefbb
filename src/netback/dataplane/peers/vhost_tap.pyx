# SPDX-License-Identifier: Apache-2.0
"""A tap whose streams the kernel moves: vhost-net is the device of a pair of virtqueues, and its thread reads and
writes the tap in place of system calls of ours (linux/vhost.h, drivers/vhost/net.c).

    plain     each read and write moves one frame (tap.pyx): least latency, for frames that come alone
    vhost     frames go through the pair, a system call only wakes a thread that sleeps: for streams

The two directions choose for themselves, and neither is reordered by it:

    RX        reads that bring much in large frames are a stream: the tap becomes the backend of the RX virtqueue. If
              they bring little again it is taken away; the kernel then puts back what it had fetched, and the frames
              in the used ring are returned before the tap is read.
    TX        a burst of small frames goes to the pair, and so does every frame while one is there. Others that find
              the pair empty are written.

The pair is made at the first stream and given back after IDLE. At most MAX_PAIRS exist in this process. What lies in a
pair when the process is killed is lost; `settle` empties it before an orderly end. If the kernel takes no frame for
STALL although there are some, reports an error of a virtqueue (a batch that failed is never marked used), or the tap is
gone, what lies in the pair is lost and counted, and the plain path goes on.

The kernel is trusted: nothing but bounds is checked, and a frame lies in the pair's memory while it is used (pair.pyx).
On real Xen RX frames lie in pages that this domain grants to itself, as far as there are some: see arena.pyx. TX frames
do not: the kernel reads such pages more slowly.
A vnet header is 10 bytes on both paths, as long as neither VERSION_1 nor MRG_RXBUF is set, so the tap's own format
never changes.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close, read, usleep

from netback.dataplane.abi cimport PAGE_SIZE
from netback.dataplane.arena cimport arena_t
from netback.dataplane.clock cimport coarse_ns, now_near
from netback.dataplane.epoll cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd
from netback.dataplane.own_grants cimport OwnGrants, own_grants_t, own_pages
from netback.dataplane.peers.pair cimport (
    LARGE_BUFFER, LENT_BUFFER, RX_AREA, RX_AVAIL, RX_DESC, RX_USED, TX_AVAIL, TX_DESC, TX_USED, pair_has_frames,
    pair_in_flight, pair_init_lending, pair_offer, pair_receive, pair_reclaim, pair_release, pair_send, pair_t,
)
from netback.dataplane.peers.peer cimport (
    BELL_FRAMES, BELL_ROOM, BURST_FRAMES, PEER_CLOSED, PEER_FULL, PEER_TAKES, Peer, frame_t, peer_t, received_t,
)
from netback.dataplane.peers.vring cimport VRING_SLOTS
from netback.dataplane.sockets cimport iovec

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <linux/vhost.h>
    #include <linux/virtio_ring.h>
    #include <stdlib.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>

    static int vhost_pairs;                      /* in this process */
    static inline int take_pair(int most)
    {
        if (__atomic_add_fetch(&vhost_pairs, 1, __ATOMIC_RELAXED) <= most)
            return 1;
        __atomic_sub_fetch(&vhost_pairs, 1, __ATOMIC_RELAXED);
        return 0;
    }
    static inline void give_pair(void) { __atomic_sub_fetch(&vhost_pairs, 1, __ATOMIC_RELAXED); }

    static inline int vhost_backend(int device, unsigned queue, int tap)
    {
        struct vhost_vring_file file = {queue, tap};
        return ioctl(device, VHOST_NET_SET_BACKEND, &file);
    }
    static int vhost_vring(int device, unsigned queue, unsigned slots, const void *desc, const void *avail,
                           const void *used, int kick, int call, int error)
    {
        struct vhost_vring_state num = {queue, slots}, base = {queue, 0};
        struct vhost_vring_addr addr = {queue, 0, (uintptr_t)desc, (uintptr_t)used, (uintptr_t)avail, 0};
        struct vhost_vring_file kicked = {queue, kick}, called = {queue, call}, failed = {queue, error};
        return ioctl(device, VHOST_SET_VRING_NUM, &num) || ioctl(device, VHOST_SET_VRING_BASE, &base)
               || ioctl(device, VHOST_SET_VRING_ADDR, &addr) || ioctl(device, VHOST_SET_VRING_KICK, &kicked)
               || ioctl(device, VHOST_SET_VRING_CALL, &called) || ioctl(device, VHOST_SET_VRING_ERR, &failed);
    }
    /* Only this memory is shared with the device, under its own addresses. */
    static int vhost_begin(int device, uint64_t features, const void *memory, size_t size)
    {
        char storage[sizeof(struct vhost_memory) + sizeof(struct vhost_memory_region)] = {0};
        struct vhost_memory *table = (struct vhost_memory *)storage;
        uint64_t offered;
        table->nregions = 1;
        table->regions[0].guest_phys_addr = table->regions[0].userspace_addr = (uintptr_t)memory;
        table->regions[0].memory_size = size;
        if (ioctl(device, VHOST_SET_OWNER) || ioctl(device, VHOST_GET_FEATURES, &offered))
            return -1;
        features &= offered;
        return ioctl(device, VHOST_SET_FEATURES, &features) || ioctl(device, VHOST_SET_MEM_TABLE, table);
    }
    static inline int open_device(const char *path) { return open(path, O_RDWR | O_CLOEXEC); }
    """
    enum:
        VIRTIO_RING_F_EVENT_IDX
    bint take_pair(int most) noexcept nogil
    void give_pair() noexcept nogil
    int vhost_backend(int device, unsigned queue, int tap) nogil
    int vhost_vring(int device, unsigned queue, unsigned slots, const void *desc, const void *avail, const void *used,
                    int kick, int call, int error) nogil
    int vhost_begin(int device, uint64_t features, const void *memory, size_t size) nogil
    int open_device(const char *path) nogil

cdef extern from "sys/mman.h" nogil:
    enum:
        MAP_ANONYMOUS
        MAP_NORESERVE
        MAP_PRIVATE
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef enum:
    RX_QUEUE = 0                 # VHOST_NET_VQ_RX
    TX_QUEUE = 1
    LARGE_BUFFERS = 32           # RX buffers; a page that no frame has touched costs nothing ...
    OWN_PAGES = 17               # ... unless it is granted: those of a frame of 64 KiB, in each buffer
    TX_BYTES = 16 * LARGE_BUFFER
    BYTES = RX_AREA + LARGE_BUFFERS * LENT_BUFFER + TX_BYTES
    MAX_PAIRS = 64               # 365 MiB if all of them carry frames of 64 KiB

    MS = 1000 * 1000
    TICK = 50 * MS               # while there is a pair
    IDLE = 2000 * MS             # without a stream, after which it is given back
    STALL = 1000 * MS
    RETRY = 10                   # s after a failure
    SETTLE = 50                  # waits of 1 ms, at most, for frames in the pair at an orderly end

    UNIT = 4096                  # bytes of a large frame, in which it is counted
    WINDOW = 32                  # reads until the tap was empty, over which that is counted ...
    MAX_WINDOW = 4096            # ... after streams that ended soon
    STEADY = 1000 * MS           # a stream that lasts so long resets the window
    UNITS = 4 * WINDOW           # without an empty read: a stream
    BURSTS = 2 * WINDOW          # of `bursts`: a stream

cdef enum:                       # vhost_tap.rx
    RX_PLAIN
    RX_VHOST
    RX_LEAVING                   # the tap is not the backend any more; the used ring may have frames

cdef enum:                       # step: where attaching failed
    STEP_NONE, STEP_LIMIT, STEP_OPEN, STEP_MEMORY, STEP_SETUP, STEP_BACKEND, STEP_STALLED, STEP_ERROR, STEP_LINK

VHOST_NET = "/dev/vhost-net"

STEPS = {
    STEP_LIMIT: f"{MAX_PAIRS} queues of this process use vhost-net already",
    STEP_OPEN: f"{VHOST_NET} cannot be opened",
    STEP_MEMORY: "no memory for virtqueues",
    STEP_SETUP: "vhost-net refuses the virtqueues",
    STEP_BACKEND: "vhost-net refuses the tap",
    STEP_STALLED: "vhost-net took no frame for a second",
    STEP_ERROR: "vhost-net reported an error of a virtqueue",
    STEP_LINK: "the link is gone",
}


cdef struct vhost_tap:           # `peer` is first: a peer_t * of this kind is a vhost_tap *
    peer_t peer
    int (*plain_receive)(peer_t *, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
    int (*plain_read)(peer_t *, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil
    int (*plain_send)(peer_t *, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
    void (*plain_check)(peer_t *) noexcept nogil
    bint always                  # every frame goes through the pair
    const char *path             # of the device
    int device                   # -1: none
    int error                    # eventfd
    pair_t *pair                 # NULL: none
    int rx
    bint tx                      # the tap is the backend of TX
    # What the choices look at.
    uint32_t units               # read in large frames, ...
    uint32_t drains              # ... in so many reads that ended with an empty tap
    bint some                    # a frame was read since the last one
    uint32_t window
    uint64_t since               # ns: when RX went over to the pair
    uint32_t bursts              # sends that would have gone through a pair, each two more, less the others
    # Progress.
    uint64_t taken               # pair.taken at the last change ...
    uint64_t taken_at            # ... seen then (ns)
    uint64_t used_at             # ns: the last frame that went through the pair
    bint used
    uint32_t lost                # TX frames lost in a pair, not counted yet
    uint64_t retry_at            # ns: not attached before
    int step
    int code                     # errno
    const own_grants_t *grants   # NULL: none
    arena_t pages                # the pair's memory, with the grefs of its granted pages
    uint32_t *grefs
    uint64_t switches            # changes of the path, both directions


# --- the device

cdef bint fail(vhost_tap *own, int step) noexcept nogil:
    """Note why the pair is not, or no longer, used; False."""
    own.code = errno if STEP_OPEN <= step <= STEP_BACKEND else 0
    own.step = step
    own.retry_at = coarse_ns() + <uint64_t>RETRY * 1000 * MS
    return False


cdef inline void read_plainly(vhost_tap *own) noexcept nogil:
    own.peer.frames_per_read = 1
    own.peer.read = read_first if own.always else own.plain_read
    own.peer.by_bell &= ~<uint32_t>BELL_FRAMES


cdef void forget_pair(vhost_tap *own) noexcept nogil:
    """Give everything back: closing the device ends the kernel's thread."""
    if own.pair == NULL:
        return
    if own.device >= 0:
        close(own.device)
    if own.pair.rx.kick >= 0:
        close(own.pair.rx.kick)
    if own.pair.tx.kick >= 0:
        close(own.pair.tx.kick)
    if own.pair.memory != NULL:
        munmap(own.pair.memory, BYTES)
    free(own.pair)
    free(own.grefs)
    give_pair()
    own.pair = NULL
    own.grefs = NULL
    own.pages.named = 0          # a burst in which the pair went still looks there
    own.peer.pages = NULL
    own.device = -1
    own.rx = RX_PLAIN
    own.tx = False
    own.bursts = 0
    own.peer.by_bell = 0
    own.peer.due = 0
    read_plainly(own)


cdef inline void forget_unused(vhost_tap *own) noexcept nogil:
    """Give back a pair that was left, unless frames of it are in use."""
    if own.pair != NULL and not own.tx and own.rx == RX_PLAIN and own.pair.reads == 0:
        forget_pair(own)


cdef void grant_buffers(vhost_tap *own) noexcept nogil:
    """Put RX buffers, which the device has not used yet, into granted pages, as many as there are."""
    cdef uint8_t *memory = own.pair.memory
    cdef uint32_t i, page
    own.grefs = <uint32_t *>calloc(BYTES // PAGE_SIZE, sizeof(uint32_t))
    if own.grefs == NULL:
        return
    for i in range(<uint32_t>LARGE_BUFFERS):
        page = (RX_AREA + i * LENT_BUFFER) // PAGE_SIZE + 1      # the header before it is for netback alone
        if not own_pages(own.grants, memory + <size_t>page * PAGE_SIZE, OWN_PAGES, own.grefs + page):
            break
    own.pages.memory = memory
    own.pages.named = BYTES // PAGE_SIZE
    own.pages.grefs = own.grefs
    own.pages.domid = own.grants.domid
    own.peer.pages = &own.pages


cdef bint set_up(vhost_tap *own) noexcept nogil:
    """Make the pair, and tell the device."""
    cdef pair_t *pair = own.pair
    cdef void *memory = mmap(
        NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef uint8_t *at = <uint8_t *>memory
    pair.rx.kick = pair.tx.kick = -1
    if memory == MAP_FAILED:
        return fail(own, STEP_MEMORY)
    pair_init_lending(pair, at, LARGE_BUFFERS, TX_BYTES)
    pair.caps = own.peer.caps
    pair.rx.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    pair.tx.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if own.peer.bell <= 0:
        own.peer.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        own.error = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if pair.rx.kick < 0 or pair.tx.kick < 0 or own.peer.bell <= 0 or own.error < 0:
        return fail(own, STEP_MEMORY)
    own.device = open_device(own.path)
    if own.device < 0:
        return fail(own, STEP_OPEN)
    if vhost_begin(own.device, <uint64_t>1 << VIRTIO_RING_F_EVENT_IDX, memory, BYTES):
        return fail(own, STEP_SETUP)
    if vhost_vring(own.device, RX_QUEUE, VRING_SLOTS, at + RX_DESC, at + RX_AVAIL, at + RX_USED, pair.rx.kick,
                   own.peer.bell, own.error):
        return fail(own, STEP_SETUP)
    if vhost_vring(own.device, TX_QUEUE, VRING_SLOTS, at + TX_DESC, at + TX_AVAIL, at + TX_USED, pair.tx.kick,
                   own.peer.bell, own.error):
        return fail(own, STEP_SETUP)
    if vhost_backend(own.device, TX_QUEUE, own.peer.fd):
        return fail(own, STEP_BACKEND)
    own.tx = True
    return True


cdef void probe(vhost_tap *own) noexcept nogil:
    """Note whether the device can be opened, before a stream wants it: then control code tells. It loads the module."""
    cdef int device = open_device(own.path)
    if device < 0:
        fail(own, STEP_OPEN)
        own.retry_at = 0
    else:
        close(device)


cdef bint attach(vhost_tap *own) noexcept nogil:
    """Have a pair, unless it was tried in vain a moment ago."""
    cdef uint64_t now
    if own.pair != NULL and not own.tx:
        return False             # it is being left
    if own.peer.condition == PEER_CLOSED:
        return False
    now = coarse_ns()
    if now < own.retry_at:
        return False
    if own.pair != NULL:
        return True
    if not take_pair(MAX_PAIRS):
        return fail(own, STEP_LIMIT)
    own.pair = <pair_t *>calloc(1, sizeof(pair_t))
    if own.pair == NULL:
        give_pair()
        return fail(own, STEP_MEMORY)
    if not set_up(own):
        forget_pair(own)
        return False
    own.step = STEP_NONE
    own.taken = 0
    own.taken_at = own.used_at = now
    own.peer.due = now + TICK
    return True


# --- changing the path

cdef bint rx_begin(vhost_tap *own) noexcept nogil:
    """Have the kernel put frames into the pair from now on."""
    if not attach(own):
        return False
    if own.grants != NULL and own.grefs == NULL:
        grant_buffers(own)
    if vhost_backend(own.device, RX_QUEUE, own.peer.fd):
        return fail(own, STEP_BACKEND)
    own.rx = RX_VHOST
    own.switches += 1
    own.since = coarse_ns()
    own.units = own.drains = 0
    own.peer.frames_per_read = BURST_FRAMES
    own.peer.read = NULL
    own.peer.by_bell |= BELL_FRAMES
    return True


cdef void rx_leave(vhost_tap *own) noexcept nogil:
    """The kernel puts no more frames into the pair when this returns."""
    if own.rx != RX_VHOST:
        return
    vhost_backend(own.device, RX_QUEUE, -1)
    own.rx = RX_LEAVING
    own.window = WINDOW if coarse_ns() - own.since > STEADY else min(2 * own.window, <uint32_t>MAX_WINDOW)


cdef void rx_end(vhost_tap *own) noexcept nogil:
    """The used ring is empty: read the tap again."""
    own.rx = RX_PLAIN
    own.switches += 1
    own.units = own.drains = 0
    read_plainly(own)
    forget_unused(own)


cdef void leave(vhost_tap *own) noexcept nogil:
    """Use the pair no more. TX frames that are in it are lost, RX frames are still returned. The caller follows with
    `forget_unused`, unless it sends a burst, whose frames may lie in the pair.
    """
    if own.pair == NULL or not own.tx:
        return
    vhost_backend(own.device, TX_QUEUE, -1)
    pair_reclaim(own.pair)
    own.lost += pair_in_flight(own.pair)
    own.tx = False
    own.peer.by_bell &= ~<uint32_t>BELL_ROOM
    rx_leave(own)


cdef void check_progress(vhost_tap *own, uint64_t now) noexcept nogil:
    """Leave after an error, whatever moves beside: a batch that failed stays for ever. Leave if none of the frames of
    the guest that lie in the pair is taken.
    """
    cdef uint64_t drained
    cdef pair_t *pair = own.pair
    pair_reclaim(pair)
    if read(own.error, &drained, sizeof(drained)) == sizeof(drained):
        fail(own, STEP_ERROR)
        leave(own)
    elif pair.taken != own.taken or pair.oldest == pair.newest:
        own.taken = pair.taken
        own.taken_at = now
    elif now - own.taken_at >= STALL:
        fail(own, STEP_STALLED)
        leave(own)


cdef void tick(peer_t *peer) noexcept nogil:
    """At times, while there is a pair. The worker calls it, since it receives nothing while the guest has no slots."""
    cdef vhost_tap *own = <vhost_tap *>peer
    cdef uint64_t now = now_near(own.peer.due)
    if own.pair == NULL or now < own.peer.due:
        return
    own.peer.due = now + TICK
    if own.tx:
        look_after(own, now)
    forget_unused(own)


cdef inline void look_after(vhost_tap *own, uint64_t now) noexcept nogil:
    """Leave the pair if it does not work, or is not used."""
    if own.pair.broken:
        fail(own, STEP_ERROR)
        leave(own)
        return
    if own.peer.condition == PEER_CLOSED:
        fail(own, STEP_LINK)
        leave(own)
        return
    check_progress(own, now)
    if own.used:
        own.used = False
        own.used_at = now
    elif own.tx and not own.always and now - own.used_at >= IDLE and own.pair.oldest == own.pair.newest:
        leave(own)


# --- frames

cdef inline void count_read(vhost_tap *own, uint32_t length) noexcept nogil:
    own.units += length // UNIT
    own.some = True


cdef inline void end_reads(vhost_tap *own) noexcept nogil:
    """A read brought nothing, which ends a row of them."""
    own.drains += own.some
    own.some = False


cdef inline bint is_stream(vhost_tap *own) noexcept nogil:
    """Whether the tap, read plainly, had 8 KiB in large frames each time, or 512 KiB since it was empty."""
    cdef bint stream
    if own.drains < own.window:
        return own.drains == 0 and own.units >= UNITS
    stream = own.units >= 2 * own.drains
    own.units = own.drains = 0
    return stream


cdef inline bint has_ended(vhost_tap *own) noexcept nogil:
    """Whether the pair brought less than 6 KiB in large frames each time."""
    cdef bint lone
    if own.drains < own.window:
        return False
    lone = 2 * own.units < 3 * own.drains
    own.units = own.drains = 0
    return lone


cdef inline void watch_reads(vhost_tap *own, const frame_t *frames, int got, int count) noexcept nogil:
    """Count what a read of the tap brought, and begin a stream. That is not done by `read`, so that a frame passes no
    function more than it must.
    """
    cdef int i
    for i in range(got):
        count_read(own, frames[i].length)
    if got < count:
        end_reads(own)
    if is_stream(own):
        rx_begin(own)


cdef int read_first(peer_t *peer, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil:
    """A read of a tap all of whose frames are to go through the pair."""
    cdef vhost_tap *own = <vhost_tap *>peer
    cdef int got = own.plain_read(peer, vectors, per_frame, received, count)
    rx_begin(own)
    return got


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef vhost_tap *own = <vhost_tap *>peer
    cdef int i, got
    if peer.due and coarse_ns() >= peer.due and not has_lent(own):
        tick(peer)
    if own.rx != RX_PLAIN:
        got = pair_receive(own.pair, peer, arena, largest, frames, count)
        for i in range(got):
            count_read(own, frames[i].length)
        if got == 0:
            end_reads(own)
        own.used |= got > 0
        if own.rx == RX_VHOST:
            if got == 0 and not own.always and has_ended(own):
                rx_leave(own)
                got = pair_receive(own.pair, peer, arena, largest, frames, count)
            return got
        if got:
            return got
        rx_end(own)
    if peer.unread:
        peer.unread = False
        end_reads(own)
    got = own.plain_receive(peer, arena, largest, frames, count)
    if not own.always:
        watch_reads(own, frames, got, count)
    return got


cdef inline bint has_lent(vhost_tap *own) noexcept nogil:
    """Whether frames of an earlier read are in use where they lie: the pair cannot be given back."""
    return own.pair != NULL and own.pair.reads != 0


cdef void release(peer_t *peer) noexcept nogil:
    cdef vhost_tap *own = <vhost_tap *>peer
    if not has_lent(own):
        return
    pair_release(own.pair)
    forget_unused(own)


cdef uint8_t *room(peer_t *peer, uint32_t size) noexcept nogil:
    """Frames that go through the pair need no copy; those that are written may lie there as well."""
    cdef vhost_tap *own = <vhost_tap *>peer
    forget_unused(own)
    return pair_offer(own.pair, size) if own.pair != NULL and own.tx else NULL


cdef inline bint is_burst(iovec *vectors, const uint32_t *first, int count) noexcept nogil:
    """Whether these are several small frames: the call that writes a frame costs more than its copy then."""
    cdef size_t bytes = 0
    cdef uint32_t i, end = first[count]
    if count == 1:
        return False
    for i in range(first[0], end):
        bytes += vectors[i].iov_len
    return bytes <= <size_t>count * UNIT


cdef inline bint goes_through_pair(vhost_tap *own, iovec *vectors, const uint32_t *first, int count) noexcept nogil:
    """Whether these frames do: they must if earlier ones are still in it."""
    cdef bint burst
    if own.pair != NULL and own.tx and own.pair.oldest != own.pair.newest:
        pair_reclaim(own.pair)
        if own.pair.oldest != own.pair.newest:
            return True
    burst = own.always or is_burst(vectors, first, count)
    if own.pair != NULL:
        return burst and own.tx
    own.bursts = min(own.bursts + 2, <uint32_t>BURSTS) if burst else own.bursts - (own.bursts != 0)
    return (own.always or own.bursts == BURSTS) and attach(own)


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef vhost_tap *own = <vhost_tap *>peer
    cdef int done = 0
    refused[0] += own.lost
    own.lost = 0
    if goes_through_pair(own, vectors, first, count):
        done = pair_send(own.pair, vectors, first, count, refused)
        own.used = True
        peer.blocked = PEER_TAKES if done == count else PEER_FULL
        peer.by_bell |= BELL_ROOM
        if done == count:
            return done
        check_progress(own, coarse_ns())
        if own.tx:
            return done
        refused[0] += own.lost
        own.lost = 0
    peer.by_bell &= ~<uint32_t>BELL_ROOM
    return done + own.plain_send(peer, vectors, first + done, count - done, refused)


cdef void check(peer_t *peer) noexcept nogil:
    """The tap was removed."""
    cdef vhost_tap *own = <vhost_tap *>peer
    own.plain_check(peer)
    if own.tx:
        fail(own, STEP_LINK)
        leave(own)
        forget_unused(own)


cdef bint settle(peer_t *peer, bint end) noexcept nogil:
    """Empty the pair: see peer.pxd."""
    cdef vhost_tap *own = <vhost_tap *>peer
    cdef int _i
    if own.pair == NULL:
        return False
    if end:
        forget_pair(own)
        return False
    for _i in range(SETTLE):
        pair_reclaim(own.pair)
        if not own.tx or own.pair.oldest == own.pair.newest:
            break
        usleep(1000)
    leave(own)
    forget_unused(own)
    return own.pair != NULL and pair_has_frames(own.pair)


cdef class VhostTapPeer(Peer):
    """A tap, given as its TapPeer, whose streams go through vhost-net where that is possible.

    `always`: every frame does, not only streams. `device`: the path of vhost-net. `grants`: those of the domain to
    itself, if a copy from such a page costs less.
    """

    cdef vhost_tap own
    cdef bytes path
    cdef OwnGrants grants

    def __cinit__(self, Peer plain, *, bint always=False, str device=VHOST_NET, OwnGrants grants=None):
        self.peer = &self.own.peer
        self.owner = plain
        self.path = os.fsencode(device)
        self.own.path = self.path
        self.own.peer = plain.peer[0]
        self.own.plain_receive = plain.peer.receive
        self.own.plain_read = plain.peer.read
        self.own.plain_send = plain.peer.send
        self.own.plain_check = plain.peer.check
        self.own.peer.receive = receive
        self.own.peer.release = release
        self.own.peer.send = send
        self.own.peer.room = room
        self.own.peer.check = check
        self.own.peer.settle = settle
        self.own.peer.tick = tick
        self.own.always = always
        read_plainly(&self.own)
        self.own.window = WINDOW
        if grants is not None:
            self.grants = grants
            self.own.grants = &grants.own
        self.own.device = self.own.error = -1
        probe(&self.own)

    def __dealloc__(self):
        forget_pair(&self.own)
        if self.own.peer.bell > 0:
            close(self.own.peer.bell)
        if self.own.error >= 0:
            close(self.own.error)

    @property
    def rx_by_vhost(self) -> bool:
        """Whether frames for the guest go through vhost-net now."""
        return self.own.rx != RX_PLAIN

    @property
    def attached(self) -> bool:
        """Whether there is a pair of virtqueues now."""
        return self.own.pair != NULL

    @property
    def granted(self) -> int:
        """Pages of the pair that are granted to this domain."""
        cdef uint32_t page, found = 0
        if self.own.grefs != NULL:
            for page in range(self.own.pages.named):
                found += self.own.grefs[page] != 0
        return found

    @property
    def switches(self) -> int:
        """How often RX has changed its path."""
        return self.own.switches

    @property
    def fault(self) -> str | None:
        """Why vhost-net was not used when it was last wanted, or was left; None if nothing was wrong."""
        text = STEPS.get(self.own.step)
        return text and (f"{text}: {os.strerror(self.own.code)}" if self.own.code else text)

    def switch(self) -> bool:
        """Have RX take the other path, as at the begin or the end of a stream; returns whether it is vhost-net's now.
        For tests, of a peer that no worker serves.
        """
        if self.own.rx == RX_PLAIN:
            rx_begin(&self.own)
        else:
            rx_leave(&self.own)
        return self.own.rx == RX_VHOST

    def settle(self, bint end) -> bool:
        """As peer.pxd's, for a peer that no worker serves."""
        return settle(self.peer, end)

    def duplicate(self, int fd) -> Peer:
        """A plain peer: frames through two paths would overtake one another."""
        return self.owner.duplicate(fd)
