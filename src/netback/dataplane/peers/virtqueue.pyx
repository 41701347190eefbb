# SPDX-License-Identifier: Apache-2.0
"""Pairs of virtqueues whose device is another program (vhost-user): netback is the driver, as a virtio-net guest is.

    VirtqueuePair     the shared memory of one pair during one connection, filled before the device hears of it
    VirtqueuePeer     the peer of a queue: the pair of the present connection, or none; control code gives it the next

The device is as untrusted as a guest. A lie in a used ring (pair.pyx), no frame taken for `stall`, or calls without end
break the pair: it is not touched again, its connection is shut down, and frames are refused as on a cable without a
carrier until control code, which finds the shut-down, has given the peer another pair. What lies in the pair when it
ends is lost; before an orderly end `settle` gives the device a moment to take it.

One pair serves one worker. Where the device has fewer pairs than its vif has queues, duplicates of the first peer send
through its pair, and a lock is held while frames are copied; they learn by time, not by events, that there is room.
A device that makes none breaks the pair, so they wait for no longer than the first.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close, usleep

from netback.dataplane.clock cimport now_ns
from netback.dataplane.epoll cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_DEL, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
    eventfd,
)
from netback.dataplane.lock cimport lock_release, lock_take
from netback.dataplane.offload cimport CAN_CSUM4, CAN_CSUM6, CAN_TSO4, CAN_TSO6
from netback.dataplane.peers.pair cimport (
    LARGE_BUFFER, REASON_BUFFERS, REASON_CALLS, REASON_ERROR, REASON_ID, REASON_INDEX, REASON_LENGTH, REASON_NONE,
    REASON_STALLED, RX_AREA, RX_AVAIL, RX_DESC, RX_USED, SMALL_BUFFER, TX_AVAIL, TX_DESC, TX_USED, pair_in_flight,
    pair_init, pair_receive, pair_reclaim, pair_send, pair_t,
)
from netback.dataplane.peers.handover cimport exchange_pointer, load_pointer, ring_bell, watch_edges
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, PEER_DOWN, PEER_FULL, PEER_TAKES, PEER_UNANNOUNCED, PEER_UP, VNET_HDR, Peer, frame_t, peer_t,
)
from netback.dataplane.peers.vring cimport VRING_SLOTS, vring_kick, vring_t
from netback.dataplane.sockets cimport iovec

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/timerfd.h>
    #include <time.h>
    #include <unistd.h>
    static inline int start_timer(int fd, uint64_t ns)
    {
        struct itimerspec once = {{0, 0}, {(time_t)(ns / 1000000000), (long)(ns % 1000000000)}};
        return timerfd_settime(fd, 0, &once, NULL);
    }
    static inline int open_timer(void) { return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK); }
    /* A pipe for kicks, with room for 512; returns where it is written. The device's end is open for both, so that it
       sees no end of file when netback ends, and its flags are its own. */
    static inline int open_kick(int *device)
    {
        char path[32];
        int ends[2];
        if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
            return -1;
        snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
        *device = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        fcntl(ends[1], F_SETPIPE_SZ, 4096);
        close(ends[0]);
        return ends[1];
    }
    """
    int start_timer(int fd, uint64_t ns) nogil
    int open_timer() nogil
    int open_kick(int *device) nogil

cdef extern from "sys/mman.h" nogil:
    enum:
        MAP_SHARED
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef extern from "sys/socket.h" nogil:
    enum:
        SHUT_RDWR
    int shutdown(int socket, int how)

cdef enum:
    NET_HDR = VNET_HDR + 2       # virtio_net_hdr_mrg_rxbuf: with num_buffers, in every frame of a VERSION_1 device
    LARGE_BUFFERS = 32           # RX buffers without MRG_RXBUF. Untouched pages cost nothing
    TX_BYTES = VRING_SLOTS * SMALL_BUFFER
    BYTES = RX_AREA + LARGE_BUFFERS * LARGE_BUFFER + TX_BYTES
    MEMORY = 1 << 20

    WAKES = 1000                 # in a row and within a second without a used buffer: the device floods
    SECOND = 1000 * 1000 * 1000
    SETTLE = 50                  # waits of 1 ms, at most, for frames in the pair at an orderly end ...
    SETTLE_IDLE = 10             # ... and at most so many in a row in which the device takes none
    EVENTS_AT_ONCE = 8
    EVENT_BELL = 0               # what happened, with the pair's number above the two lowest bits
    EVENT_TIMER = 1
    EVENT_CALL = 2
    EVENT_ERROR = 3

REASONS = {
    REASON_INDEX: "it broke the protocol: an impossible index in a used ring",
    REASON_ID: "it broke the protocol: it used a descriptor that it does not have",
    REASON_LENGTH: "it broke the protocol: a used buffer has an impossible length",
    REASON_BUFFERS: "it broke the protocol: a frame has an impossible number of buffers",
    REASON_STALLED: "it takes no frames",
    REASON_CALLS: "it broke the protocol: it calls over and over without a used buffer",
    REASON_ERROR: "it reports an error of a virtqueue",
}

PAIR_BYTES = BYTES
"""Bytes of shared memory for each pair."""
PAIR_SLOTS = VRING_SLOTS
"""Descriptors of each virtqueue."""
MEMORY_BASE = MEMORY
"""Where the memory begins in the addresses that the device is told: they are offsets, and show nothing of this process.
"""

F_CSUM = 1 << 0
F_HOST_TSO4 = 1 << 11
F_HOST_TSO6 = 1 << 12


cdef struct shared_pair:         # `pair` is first: a pair_t * of this kind is a shared_pair *
    pair_t pair
    uint64_t number              # counts the pairs of a peer
    int call
    int error
    int socket                   # -1: none
    int epoll                    # of the peer that has the pair; -1: none


cdef struct virtqueue_peer:      # `peer` is first: a peer_t * of this kind is a virtqueue_peer *
    peer_t peer
    virtqueue_peer *base         # of a duplicate: the one with the pair
    shared_pair *pair
    void *next                   # a pair that control code gave
    uint64_t given               # how many it has given,
    uint64_t left                # and how many connections of those are known to be lost
    bint shared                  # there are duplicates:
    int lock                     # held when TX or `pair` is used
    int bell                     # by which control code wakes the worker
    int timer
    bint timed                   # it runs
    uint64_t stall               # ns
    uint64_t taken_then          # pair.taken when the timer was set
    uint64_t moved_at_wake       # frames moved at the last wake at which that had changed
    uint32_t wakes               # in a row since then
    uint64_t wakes_since
    uint32_t lost                # TX frames lost with their pair, and not counted yet
    bint buried                  # the pair is used no more
    int reason                   # of the last broken pair


# --- pairs

cdef void free_pair(shared_pair *pair) noexcept nogil:
    """Unwatch first: the device's duplicates of these descriptors stay."""
    cdef epoll_event event
    if pair == NULL:
        return
    if pair.epoll >= 0:
        epoll_ctl(pair.epoll, EPOLL_CTL_DEL, pair.call, &event)
        epoll_ctl(pair.epoll, EPOLL_CTL_DEL, pair.error, &event)
    close(pair.call)
    close(pair.error)
    close(pair.pair.rx.kick)
    close(pair.pair.tx.kick)
    if pair.socket >= 0:
        close(pair.socket)
    munmap(pair.pair.memory, BYTES)
    free(pair)


# --- the peer's pair

cdef inline void hold(virtqueue_peer *own) noexcept nogil:
    if own.shared:
        lock_take(&own.lock)


cdef inline void let_go(virtqueue_peer *own) noexcept nogil:
    if own.shared:
        lock_release(&own.lock)


cdef void bury(virtqueue_peer *own, int reason) noexcept nogil:
    """Use the pair no more. `own` is held."""
    own.pair.pair.broken = reason
    own.lost += pair_in_flight(&own.pair.pair)
    own.reason = reason
    own.buried = True
    shutdown(own.pair.socket, SHUT_RDWR)


cdef inline void break_pair(virtqueue_peer *own, int reason) noexcept nogil:
    if not own.buried:
        bury(own, reason)


cdef inline bint works(virtqueue_peer *own) noexcept nogil:
    """Whether there is a pair that is not broken. `own` is held."""
    if own.pair == NULL or own.buried:
        return False
    if own.pair.pair.broken:
        bury(own, own.pair.pair.broken)
    return not own.buried


cdef void leave_pair(virtqueue_peer *own) noexcept nogil:
    """The connection of the pair has ended: what the device has not used is lost. `own` is held."""
    if not works(own):
        return
    pair_reclaim(&own.pair.pair)
    if works(own):
        own.buried = True
        own.lost += pair_in_flight(&own.pair.pair)


cdef void take_next(virtqueue_peer *own) noexcept nogil:
    """Use the pair that control code gave last. `own` is held, by the worker of the peer itself: no other frees a pair.
    """
    cdef shared_pair *pair = <shared_pair *>exchange_pointer(&own.next, NULL)
    if pair == NULL:
        return
    leave_pair(own)
    free_pair(own.pair)
    own.pair = pair
    own.buried = False
    own.peer.caps = pair.pair.caps


cdef inline pair_t *usable(virtqueue_peer *own) noexcept nogil:
    """The pair, NULL without one that works. As `take_next`."""
    if load_pointer(&own.next) != NULL:
        take_next(own)
    if own.pair != NULL and own.left >= own.pair.number:
        leave_pair(own)
    return &own.pair.pair if works(own) else NULL


cdef inline void set_condition(peer_t *peer, pair_t *pair) noexcept nogil:
    peer.condition = PEER_DOWN if pair == NULL else PEER_UP


# --- frames

cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef virtqueue_peer *own = <virtqueue_peer *>peer
    cdef pair_t *pair
    cdef int kept
    hold(own)
    pair = usable(own)
    let_go(own)
    set_condition(peer, pair)
    if pair == NULL:
        return 0
    kept = pair_receive(pair, peer, arena, largest, frames, count)
    if pair.broken:
        hold(own)
        works(own)
        let_go(own)
        peer.condition = PEER_DOWN
    return kept


cdef int send_held(
        virtqueue_peer *own, peer_t *peer, iovec *vectors, const uint32_t *first, int count,
        int *refused) noexcept nogil:
    """`send` with the peer that has the pair; `own` is held."""
    cdef pair_t *pair = NULL
    cdef int done = 0
    peer.blocked = PEER_TAKES
    if peer == &own.peer:
        pair = usable(own)
    elif works(own):
        pair = &own.pair.pair
    if pair != NULL:
        done = pair_send(pair, vectors, first, count, refused)
        if not works(own):
            pair = NULL
    set_condition(peer, pair)
    if pair == NULL:
        refused[0] += count - done
        done = count
    elif done < count:
        peer.blocked = PEER_FULL if peer == &own.peer else PEER_UNANNOUNCED
    if pair != NULL and not own.timed and pair.oldest != pair.newest:
        watch_progress(own)
    refused[0] += own.lost
    own.lost = 0
    return done


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef virtqueue_peer *base = (<virtqueue_peer *>peer).base
    cdef int done
    hold(base)
    done = send_held(base, peer, vectors, first, count, refused)
    let_go(base)
    if peer != &base.peer:
        peer.caps = base.peer.caps
    return done


cdef inline void watch_progress(virtqueue_peer *own) noexcept nogil:
    """Look again after `stall`: the device must have used something by then."""
    own.timed = True
    own.taken_then = own.pair.pair.taken
    start_timer(own.timer, own.stall)


# --- wake: what happened beside

cdef void check_progress(virtqueue_peer *own) noexcept nogil:
    """The timer ended."""
    cdef pair_t *pair = usable(own)
    own.timed = False
    if pair == NULL:
        return
    pair_reclaim(pair)
    if not works(own) or pair.oldest == pair.newest:
        return
    if pair.taken == own.taken_then:
        break_pair(own, REASON_STALLED)
    else:
        watch_progress(own)


cdef inline void check_wakes(virtqueue_peer *own) noexcept nogil:
    """A device that calls again and again although it has used nothing would keep the worker busy."""
    cdef uint64_t moved = own.pair.pair.taken + own.pair.pair.brought if own.pair != NULL else own.moved_at_wake
    if moved != own.moved_at_wake:
        own.moved_at_wake = moved
        own.wakes = 0
    if own.wakes == 0:
        own.wakes_since = now_ns()
    own.wakes += 1
    if own.wakes < WAKES:
        return
    own.wakes = 0
    if now_ns() - own.wakes_since < SECOND and works(own):
        break_pair(own, REASON_CALLS)


cdef void wake(peer_t *peer) noexcept nogil:
    """Every event is edge-triggered: the device shares the eventfds, so reading one could block."""
    cdef virtqueue_peer *own = <virtqueue_peer *>peer
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef int i, count = epoll_wait(peer.fd, events, EVENTS_AT_ONCE, 0)
    hold(own)
    usable(own)
    check_wakes(own)
    for i in range(count):
        if events[i].data.u64 & 3 == EVENT_TIMER:
            check_progress(own)
        elif events[i].data.u64 & 3 == EVENT_ERROR and own.pair != NULL and events[i].data.u64 >> 2 == own.pair.number:
            break_pair(own, REASON_ERROR)
    set_condition(peer, usable(own))
    let_go(own)


# --- settle: an orderly end

cdef inline bint is_settled(virtqueue_peer *own, uint64_t *taken) noexcept nogil:
    """Whether no frame waits for the device; `own` is held. `taken` has what the device has used."""
    if not works(own):
        return True
    pair_reclaim(&own.pair.pair)
    taken[0] = own.pair.pair.taken
    return not works(own) or own.pair.pair.oldest == own.pair.pair.newest


cdef bint settle(peer_t *peer, bint end) noexcept nogil:
    """Let a device that goes on taking frames take those that it has: see peer.pxd. A device that does not costs the
    worker SETTLE_IDLE.
    """
    cdef virtqueue_peer *base = (<virtqueue_peer *>peer).base
    cdef uint64_t taken = 0, before = 0
    cdef bint settled
    cdef int idle = 0, _i
    if end:
        return False
    for _i in range(SETTLE):
        hold(base)
        settled = is_settled(base, &taken)
        let_go(base)
        idle = idle + 1 if taken == before else 0
        if settled or idle == SETTLE_IDLE:
            break
        before = taken
        usleep(1000)
    return False


# --- Python's side

cdef class VirtqueuePair:
    """The memory of one pair: part `number` of the memory behind `fd`, PAIR_BYTES each, which no other connection uses.

    `features` are the virtio features agreed upon, VERSION_1 among them. RX buffers are posted at once; the device
    hears of nothing until it is told. `rings` has the addresses of RX and TX as (descriptors, avail, used), `call`,
    `error` and `kicks` are the descriptors for the device: those of calls, of errors, and what RX and TX kicks are
    read from. They belong to this object. OSError: the memory cannot be mapped, or no descriptor be made.

    Kicks go through pipes: a device that shares an eventfd can fill it and make it blocking, and so stop who writes it.
    """

    cdef shared_pair *pair
    cdef readonly tuple rings
    cdef readonly tuple kicks
    cdef readonly int call
    cdef readonly int error

    def __cinit__(self, int fd, uint32_t number, uint64_t features):
        cdef uint64_t base = MEMORY + <uint64_t>number * BYTES
        cdef void *memory
        self.kicks = ()
        memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, <long>number * BYTES)
        if memory == MAP_FAILED:
            raise OSError(errno, "cannot map memory for virtqueues")
        self.pair = <shared_pair *>calloc(1, sizeof(shared_pair))
        if self.pair == NULL:
            munmap(memory, BYTES)
            raise MemoryError
        self.pair.socket = self.pair.epoll = -1
        pair_init(&self.pair.pair, <uint8_t *>memory, base, NET_HDR, features, LARGE_BUFFERS, TX_BYTES)
        self.pair.pair.caps = (CAN_CSUM4 | CAN_CSUM6) if features & F_CSUM else 0
        self.pair.pair.caps |= (CAN_TSO4 if features & F_HOST_TSO4 else 0) | (CAN_TSO6 if features & F_HOST_TSO6 else 0)
        self.pair.pair.rx.kick = self.pair.pair.tx.kick = -1
        self.pair.call = self.call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.pair.error = self.error = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.kicks = (self.make_kick(&self.pair.pair.rx), self.make_kick(&self.pair.pair.tx))
        if self.call < 0 or self.error < 0 or -1 in self.kicks:
            raise OSError(errno, "cannot make the descriptors of virtqueues")
        self.rings = (
            (base + RX_DESC, base + RX_AVAIL, base + RX_USED),
            (base + TX_DESC, base + TX_AVAIL, base + TX_USED),
        )

    cdef int make_kick(self, vring_t *ring) noexcept:
        cdef int device = -1
        ring.kick = open_kick(&device)
        return device

    def __dealloc__(self):
        free_pair(self.pair)
        for end in self.kicks or ():
            if end >= 0:
                close(end)


cdef class VirtqueuePeer(Peer):
    """A queue's frames go through the pair that `join` gave last; without one they are refused.

    `stall`: ns without a used descriptor, while frames wait, after which the device counts as stopped.
    """

    cdef virtqueue_peer own

    def __cinit__(self, *, uint64_t stall=SECOND, object owner=None):
        self.peer = &self.own.peer
        self.owner = owner
        self.own.base = &self.own
        self.own.stall = stall
        self.own.timer = self.own.bell = -1
        self.peer.fd = -1
        self.peer.header = VNET_HDR
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.send = send
        self.peer.wake = wake
        self.peer.settle = settle
        if stall == 0:
            return               # a duplicate
        self.peer.fd = epoll_create1(EPOLL_CLOEXEC)
        self.own.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.own.timer = open_timer()
        if self.peer.fd < 0 or self.own.bell < 0 or self.own.timer < 0:
            raise OSError(errno, "cannot make a peer's descriptors")
        watch_edges(self.peer.fd, self.own.bell, EVENT_BELL, EPOLLIN)
        watch_edges(self.peer.fd, self.own.timer, EVENT_TIMER, EPOLLIN)

    def __dealloc__(self):
        cdef int fd
        free_pair(<shared_pair *>exchange_pointer(&self.own.next, NULL))
        free_pair(self.own.pair)
        for fd in (self.peer.fd, self.own.bell, self.own.timer):
            if fd >= 0:
                close(fd)

    def join(self, VirtqueuePair pair, int socket) -> None:
        """Use this pair from now on, which leaves its object. The device knows everything; `socket` is shut down if it
        breaks the protocol. Callable from any thread, but from one at a time.
        """
        cdef shared_pair *native = pair.pair
        if native == NULL:
            raise ValueError("the pair is in use")
        native.socket = os.dup(socket)
        pair.pair = NULL
        self.own.given += 1
        native.number = self.own.given
        native.epoll = self.peer.fd
        watch_edges(native.epoll, native.call, native.number << 2 | EVENT_CALL, EPOLLIN)
        watch_edges(native.epoll, native.error, native.number << 2 | EVENT_ERROR, EPOLLIN)
        vring_kick(&native.pair.rx)           # a device may start a virtqueue at its first kick only
        vring_kick(&native.pair.tx)
        free_pair(<shared_pair *>exchange_pointer(&self.own.next, native))
        ring_bell(self.own.bell)

    def leave(self) -> str | None:
        """The connection of the last pair has ended; returns why, if this end shut it down. As `join`."""
        cdef int reason = self.own.reason
        self.own.reason = REASON_NONE
        self.own.left = self.own.given
        ring_bell(self.own.bell)
        return REASONS.get(reason)

    def duplicate(self, int fd) -> Peer:
        """A peer that sends through the pair of this one, and takes no frames; it needs no descriptor."""
        cdef VirtqueuePeer copy = VirtqueuePeer(stall=0, owner=self)
        self.own.shared = True
        copy.own.base = self.own.base
        copy.peer.caps = self.peer.caps
        return copy
