# SPDX-License-Identifier: Apache-2.0
"""A pair of virtqueues whose device moves the frames: netback is the driver, as a virtio-net guest is.

    VirtqueuePair     the shared memory of one pair during one connection, filled before the device hears of it
    VirtqueuePeer     the peer of a queue: the pair of the present connection, or none; control code gives it the next

The device is another program and as untrusted as a guest (vring.pxd). It has access to every byte of a pair, so a frame
for the guest is copied to the worker's memory before anything looks at it, and its buffers are posted again at once; a
frame of the guest is copied to the pair. An impossible index, id or length of a used ring, no frame taken for `stall`,
or calls without end break the pair: it is not touched again, its connection is shut down, and frames are refused as on
a cable without a carrier until control code, which finds the shut-down, has given the peer another pair.

RX: with MRG_RXBUF the device spreads a frame over small buffers, else each buffer holds the largest frame. TX: frames
lie in a ring of bytes in the order of their descriptors, which the device may use in any order; they are reclaimed when
further frames are sent. What lies in the pair when it ends is lost.

One pair serves one worker. Where the device has fewer pairs than its vif has queues, duplicates of the first peer send
through its pair, and a lock is held while frames are copied; they learn by time, not by events, that there is room.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport close, write

from netback.dataplane.abi cimport (
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    virtio_net_hdr,
)
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.clock cimport now_ns
from netback.dataplane.epoll cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLET, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, epoll_create1, epoll_ctl,
    epoll_event, epoll_wait, eventfd,
)
from netback.dataplane.extras cimport clear_meta, frame_meta
from netback.dataplane.lock cimport lock_release, lock_take
from netback.dataplane.offload cimport (
    CAN_CSUM4, CAN_CSUM6, CAN_TSO4, CAN_TSO6, OFFLOAD_COMPLETE, OFFLOAD_PASS, netif_to_virtio,
)
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, PEER_BUSY, PEER_DOWN, PEER_FULL, PEER_TAKES, PEER_UP,
    VNET_HDR, Peer, frame_t, peer_t, vnet_header,
)
from netback.dataplane.peers.vring cimport (
    VRING_SLOTS, VRING_WRITE, load16_relaxed, vring_arm, vring_avail, vring_desc, vring_disarm, vring_kick, vring_offer,
    vring_pending, vring_publish, vring_t, vring_take, vring_used,
)
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
    static inline void *exchange_pointer(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
    static inline void *load_pointer(void **p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
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
    void *exchange_pointer(void **p, void *value) noexcept nogil
    void *load_pointer(void **p) noexcept nogil
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
    SMALL_BUFFER = 2048          # of RX with MRG_RXBUF ...
    LARGE_BUFFER = FRAME_STRIDE  # ... and without; of these there are
    LARGE_BUFFERS = 32           # so many. Untouched pages cost nothing
    TX_BYTES = VRING_SLOTS * SMALL_BUFFER
    KICK_BELOW = 64              # RX buffers that hold a frame of 64 KiB: a device that has as many waits for none
    # Where things lie in a pair's part of the memory. What this end writes is on other pages than what it reads.
    RX_DESC = 0
    TX_DESC = 4096
    RX_AVAIL = 8192
    TX_AVAIL = 8192 + 2048
    RX_USED = 12288
    TX_USED = 16384
    RX_AREA = 20480
    TX_AREA = RX_AREA + LARGE_BUFFERS * LARGE_BUFFER
    BYTES = TX_AREA + TX_BYTES
    MEMORY = 1 << 20

    ALIGNED = 64
    NO_ROOM = 0xffffffff
    FREE = 0                     # of a TX descriptor
    IN_FLIGHT = 1
    USED = 2

    WAKES = 1000                 # in a row and within a second without a used buffer: the device floods
    SECOND = 1000 * 1000 * 1000
    EVENTS_AT_ONCE = 8
    EVENT_BELL = 0               # what happened, with the pair's number above the two lowest bits
    EVENT_TIMER = 1
    EVENT_CALL = 2
    EVENT_ERROR = 3

cdef enum:                       # reason: why a pair is broken
    REASON_NONE, REASON_LEFT, REASON_INDEX, REASON_ID, REASON_LENGTH, REASON_BUFFERS, REASON_STALLED, REASON_CALLS,
    REASON_ERROR

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
F_MRG_RXBUF = 1 << 15
F_EVENT_IDX = 1 << 29


cdef struct pair_t:
    uint8_t *memory
    vring_t rx
    vring_t tx
    uint32_t caps                # CAN_*
    bint mergeable
    uint32_t buffer_bytes
    bint posted[VRING_SLOTS]     # RX buffers that the device has
    uint16_t read[VRING_SLOTS]   # and those to be posted again
    uint32_t reads
    uint32_t start[VRING_SLOTS]  # TX: where the frame of each descriptor begins,
    uint8_t state[VRING_SLOTS]   # FREE, IN_FLIGHT or USED
    uint16_t oldest              # descriptors from here ...
    uint16_t newest              # ... to here are not free
    uint32_t at                  # end of the newest frame
    int broken                   # reason
    uint64_t number              # counts the pairs of a peer
    int call
    int error
    int socket                   # -1: none
    uint64_t offset              # of this pair's memory in the whole
    int epoll                    # of the peer that has the pair; -1: none


cdef struct virtqueue_peer:      # `peer` is first: a peer_t * of this kind is a virtqueue_peer *
    peer_t peer
    virtqueue_peer *base         # of a duplicate: the one with the pair
    pair_t *pair
    void *next                   # a pair that control code gave
    uint64_t given               # how many it has given,
    uint64_t left                # and how many connections of those are known to be lost
    bint shared                  # there are duplicates:
    int lock                     # held when TX or `pair` is used
    int bell                     # by which control code wakes the worker
    int timer
    bint timed                   # it runs
    uint64_t stall               # ns
    uint64_t taken               # frames and buffers that the device has used, ever
    uint64_t taken_then          # when the timer was set
    uint64_t taken_at_wake
    uint32_t wakes               # in a row since then
    uint64_t wakes_since
    uint32_t lost                # TX frames lost with their pair, and not counted yet
    int reason                   # of the last broken pair


# --- pairs

cdef void free_pair(pair_t *pair) noexcept nogil:
    """Unwatch first: the device's duplicates of these descriptors stay."""
    cdef epoll_event event
    if pair == NULL:
        return
    if pair.epoll >= 0:
        epoll_ctl(pair.epoll, EPOLL_CTL_DEL, pair.call, &event)
        epoll_ctl(pair.epoll, EPOLL_CTL_DEL, pair.error, &event)
    close(pair.call)
    close(pair.error)
    close(pair.rx.kick)
    close(pair.tx.kick)
    if pair.socket >= 0:
        close(pair.socket)
    munmap(pair.memory, BYTES)
    free(pair)


cdef void init_ring(vring_t *ring, uint8_t *memory, uint32_t desc, uint32_t avail, uint32_t used) noexcept nogil:
    ring.desc = <vring_desc *>(memory + desc)
    ring.avail = <vring_avail *>(memory + avail)
    ring.used = <vring_used *>(memory + used)
    vring_disarm(ring)


cdef void post_buffers(pair_t *pair, uint64_t area) noexcept nogil:
    """Give the device every RX buffer. `area`: where they begin, as the device is told."""
    cdef uint32_t i
    for i in range(<uint32_t>VRING_SLOTS if pair.mergeable else LARGE_BUFFERS):
        pair.rx.desc[i].address = area + i * pair.buffer_bytes
        pair.rx.desc[i].length = pair.buffer_bytes
        pair.rx.desc[i].flags = VRING_WRITE
        pair.posted[i] = True
        vring_offer(&pair.rx, i)
    vring_publish(&pair.rx)


cdef uint32_t in_flight(pair_t *pair) noexcept nogil:
    cdef int i
    cdef uint32_t count = 0
    for i in range(VRING_SLOTS):
        count += pair.state[i] == IN_FLIGHT
    return count


# --- the peer's pair

cdef inline void hold(virtqueue_peer *own) noexcept nogil:
    if own.shared:
        lock_take(&own.lock)


cdef inline void let_go(virtqueue_peer *own) noexcept nogil:
    if own.shared:
        lock_release(&own.lock)


cdef void break_pair(virtqueue_peer *own, int reason) noexcept nogil:
    """Use the pair no more. `own` is held."""
    cdef pair_t *pair = own.pair
    if pair.broken:
        return
    pair.broken = reason
    own.lost += in_flight(pair)
    own.reason = reason
    shutdown(pair.socket, SHUT_RDWR)


cdef void leave_pair(virtqueue_peer *own) noexcept nogil:
    """The connection of the pair has ended: what the device has not used is lost. `own` is held."""
    cdef pair_t *pair = own.pair
    if pair.broken:
        return
    reclaim(own, pair)
    if not pair.broken:
        pair.broken = REASON_LEFT
        own.lost += in_flight(pair)


cdef void take_next(virtqueue_peer *own) noexcept nogil:
    """Use the pair that control code gave last. `own` is held, by the worker of the peer itself: no other frees a pair.
    """
    cdef pair_t *pair = <pair_t *>exchange_pointer(&own.next, NULL)
    if pair == NULL:
        return
    if own.pair != NULL:
        leave_pair(own)
        free_pair(own.pair)
    own.pair = pair
    own.peer.caps = pair.caps


cdef inline pair_t *usable(virtqueue_peer *own) noexcept nogil:
    """The pair, NULL without one that works. As `take_next`."""
    if load_pointer(&own.next) != NULL:
        take_next(own)
    if own.pair != NULL and own.left >= own.pair.number:
        leave_pair(own)
    return own.pair if own.pair != NULL and not own.pair.broken else NULL


cdef inline void set_condition(peer_t *peer, pair_t *pair) noexcept nogil:
    peer.condition = PEER_DOWN if pair == NULL else PEER_UP


# --- receive: the device's frames

cdef inline int take_buffer(pair_t *pair, uint8_t **data, uint32_t *length) noexcept nogil:
    """Take the next used RX buffer; returns a reason if the device lies. The caller knows that there is one."""
    cdef uint32_t id = vring_take(&pair.rx, length)
    if id >= VRING_SLOTS or not pair.posted[id]:
        return REASON_ID
    if length[0] > pair.buffer_bytes:
        return REASON_LENGTH
    pair.posted[id] = False
    pair.read[pair.reads] = <uint16_t>id
    pair.reads += 1
    data[0] = pair.memory + RX_AREA + id * pair.buffer_bytes
    return REASON_NONE


cdef inline int take_frame(virtqueue_peer *own, pair_t *pair, int pending, frame_t *frame) noexcept nogil:
    """Copy the next of the device's frames to frame.data, its header before that; returns a reason if the device lies.
    A length of 0 is no frame.
    """
    cdef uint8_t header[NET_HDR]
    cdef uint8_t *data = NULL
    cdef uint32_t length = 0, at, _i, buffers = 1
    cdef int reason = take_buffer(pair, &data, &length)
    if reason == REASON_NONE and length < NET_HDR:
        reason = REASON_LENGTH
    if reason != REASON_NONE:
        return reason
    memcpy(header, data, NET_HDR)
    if pair.mergeable:
        buffers = header[VNET_HDR] | <uint32_t>header[VNET_HDR + 1] << 8
    if buffers == 0 or <int>buffers > pending:
        return REASON_BUFFERS
    memcpy(frame.data - VNET_HDR, header, VNET_HDR)
    at = length - NET_HDR
    if at <= FRAME_BYTES:
        memcpy(frame.data, data + NET_HDR, at)
    for _i in range(1, buffers):
        reason = take_buffer(pair, &data, &length)
        if reason != REASON_NONE:
            return reason
        if at + length <= FRAME_BYTES:
            memcpy(frame.data + at, data, length)
        at += length
    own.peer.short_frames += at == 0
    own.peer.truncated += at > FRAME_BYTES
    frame.length = at if at <= FRAME_BYTES else 0
    if frame.length and is_vouched(vnet_header(frame)):
        vouch(frame)
    own.taken += 1
    return REASON_NONE


cdef void vouch(frame_t *frame) noexcept nogil:
    """The device vouches for the checksum (DATA_VALID), which says that nobody needs to check it, not that it is there:
    passt leaves it out. So it is requested, or completed where padding follows the packet.
    """
    cdef frame_meta meta
    cdef uint8_t fixed_up
    cdef virtio_net_hdr *header = vnet_header(frame)
    cdef int verdict
    clear_meta(&meta)
    meta.csum_blank = 1
    verdict = netif_to_virtio(
        frame.data, frame.length, &frame.length, &meta, CAN_CSUM4 | CAN_CSUM6, header, &fixed_up)
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, header)
    if verdict != OFFLOAD_PASS:
        memset(header, 0, VNET_HDR)


cdef inline bint is_vouched(const virtio_net_hdr *header) noexcept nogil:
    return (header.flags & (VIRTIO_NET_HDR_F_DATA_VALID | VIRTIO_NET_HDR_F_NEEDS_CSUM) == VIRTIO_NET_HDR_F_DATA_VALID
            and header.gso_type == VIRTIO_NET_HDR_GSO_NONE)


cdef inline void post_again(pair_t *pair) noexcept nogil:
    """Post the buffers that were read. A device that has had enough of them all the time waits for none, so it is
    kicked only if it had fewer.
    """
    cdef uint16_t before = pair.rx.published
    cdef uint32_t i
    for i in range(pair.reads):
        pair.posted[pair.read[i]] = True
        vring_offer(&pair.rx, pair.read[i])
    pair.reads = 0
    if vring_publish(&pair.rx) and <uint16_t>(before - load16_relaxed(&pair.rx.used.idx)) < KICK_BELOW:
        vring_kick(&pair.rx)


cdef inline bint has_frames(pair_t *pair, int *pending) noexcept nogil:
    """Whether used buffers, or an impossible index, are there; if not, the device is asked for a call."""
    pending[0] = vring_pending(&pair.rx)
    if pending[0] == 0 and not pair.rx.armed:
        vring_arm(&pair.rx, 0)
        pending[0] = vring_pending(&pair.rx)
    return pending[0] != 0


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    """Copy frames to the arena. Buffers are posted again at the end, so the device cannot prolong this."""
    cdef virtqueue_peer *own = <virtqueue_peer *>peer
    cdef pair_t *pair
    cdef int reason = REASON_NONE, pending = 0, kept = 0
    hold(own)
    pair = usable(own)
    let_go(own)
    set_condition(peer, pair)
    if pair == NULL:
        return 0
    if pair.rx.armed and vring_pending(&pair.rx):
        vring_disarm(&pair.rx)
    while kept < count and reason == REASON_NONE and has_frames(pair, &pending):
        frames[kept].data = arena + <size_t>kept * FRAME_STRIDE + FRAME_HEADROOM
        reason = take_frame(own, pair, pending, &frames[kept]) if pending > 0 else REASON_INDEX
        kept += reason == REASON_NONE and frames[kept].length != 0
    post_again(pair)
    if reason != REASON_NONE:
        hold(own)
        break_pair(own, reason)
        let_go(own)
        peer.condition = PEER_DOWN
    return kept


# --- send: the guest's frames

cdef bint reclaim(virtqueue_peer *own, pair_t *pair) noexcept nogil:
    """Take the used TX descriptors; False if there are none, or the device lies, which breaks the pair."""
    cdef uint32_t id, length = 0
    cdef int _i, pending = vring_pending(&pair.tx)
    if pending < 0:
        break_pair(own, REASON_INDEX)
    for _i in range(pending):
        id = vring_take(&pair.tx, &length)       # the length means nothing: the device writes nothing
        if id >= VRING_SLOTS or pair.state[id] != IN_FLIGHT:
            break_pair(own, REASON_ID)
            return False
        pair.state[id] = USED
    while pair.oldest != pair.newest and pair.state[pair.oldest % VRING_SLOTS] == USED:
        pair.state[pair.oldest % VRING_SLOTS] = FREE
        pair.oldest += 1
    own.taken += max(pending, 0)
    return pending > 0


cdef inline uint32_t find_room(pair_t *pair, uint32_t size) noexcept nogil:
    """Where `size` bytes of the TX area are free, in one piece, behind the newest frame; else NO_ROOM."""
    cdef uint32_t oldest
    if pair.oldest == pair.newest:
        return 0
    if <uint16_t>(pair.newest - pair.oldest) == VRING_SLOTS:
        return NO_ROOM
    oldest = pair.start[pair.oldest % VRING_SLOTS]
    if pair.at <= oldest:
        return pair.at if pair.at + size < oldest else NO_ROOM
    if pair.at + size <= TX_BYTES:
        return pair.at
    return 0 if size < oldest else NO_ROOM


cdef inline bint is_accepted(pair_t *pair, const virtio_net_hdr *header) noexcept nogil:
    """Whether the device accepts the offloads that a frame requests: the pair may have changed since they were chosen.
    """
    cdef uint32_t needs = CAN_CSUM4 if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else 0
    if header.gso_type:
        needs |= CAN_TSO4 if header.gso_type == VIRTIO_NET_HDR_GSO_TCPV4 else CAN_TSO6
    return not needs & ~pair.caps


cdef inline size_t frame_size(const iovec *vectors, uint32_t count) noexcept nogil:
    """Bytes of a frame in the TX area: with num_buffers."""
    cdef size_t size = NET_HDR - VNET_HDR
    cdef uint32_t i
    for i in range(count):
        size += vectors[i].iov_len
    return size


cdef inline bint fill(pair_t *pair, const iovec *vectors, uint32_t count, uint32_t size) noexcept nogil:
    """Copy a frame of `size` into the TX area and offer it to the device; False without room."""
    cdef const iovec *vector
    cdef uint8_t *to
    cdef uint32_t i, id, at = find_room(pair, size)
    if at == NO_ROOM:
        return False
    to = pair.memory + TX_AREA + at
    memcpy(to, vectors[0].iov_base, VNET_HDR)
    to[0] = (<uint8_t *>vectors[0].iov_base)[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM    # the others are for frames to a driver
    memset(to + VNET_HDR, 0, NET_HDR - VNET_HDR)     # num_buffers, for them too
    memcpy(to + NET_HDR, <uint8_t *>vectors[0].iov_base + VNET_HDR, vectors[0].iov_len - VNET_HDR)
    to += NET_HDR - VNET_HDR + vectors[0].iov_len
    for i in range(1, count):
        vector = &vectors[i]
        memcpy(to, vector.iov_base, vector.iov_len)
        to += vector.iov_len
    id = pair.newest % VRING_SLOTS
    pair.newest += 1
    pair.start[id] = at
    pair.state[id] = IN_FLIGHT
    pair.at = (at + size + ALIGNED - 1) & ~<uint32_t>(ALIGNED - 1)
    pair.tx.desc[id].address = MEMORY + TX_AREA + pair.offset + at
    pair.tx.desc[id].length = size
    pair.tx.desc[id].flags = 0
    vring_offer(&pair.tx, <uint16_t>id)
    return True


cdef inline bint wait_for_room(virtqueue_peer *own, pair_t *pair) noexcept nogil:
    """Whether there is more room after all. If not, the device is asked for a call when half of it is used."""
    if reclaim(own, pair):
        return True
    vring_arm(&pair.tx, <uint16_t>(pair.tx.published - pair.tx.taken) // 2)
    return reclaim(own, pair)


cdef int send_held(
        virtqueue_peer *own, peer_t *peer, iovec *vectors, const uint32_t *first, int count,
        int *refused) noexcept nogil:
    """`send` with the peer that has the pair; `own` is held."""
    cdef pair_t *pair = usable(own) if peer == &own.peer else own.pair
    cdef size_t size
    cdef int done = 0
    peer.blocked = PEER_TAKES
    if pair != NULL:
        if pair.tx.armed:
            vring_disarm(&pair.tx)
        reclaim(own, pair)
    while pair != NULL and not pair.broken and done < count:
        size = frame_size(&vectors[first[done]], first[done + 1] - first[done])
        if size > NET_HDR + FRAME_BYTES or not is_accepted(pair, <virtio_net_hdr *>vectors[first[done]].iov_base):
            refused[0] += 1
            done += 1
        elif fill(pair, &vectors[first[done]], first[done + 1] - first[done], <uint32_t>size):
            done += 1
        else:
            if vring_publish(&pair.tx):
                vring_kick(&pair.tx)
            if not wait_for_room(own, pair) and not pair.broken:
                peer.blocked = PEER_FULL if peer == &own.peer else PEER_BUSY
                break
    if pair != NULL and pair.broken:
        pair = NULL
    set_condition(peer, pair)
    if pair == NULL:
        refused[0] += count - done
        done = count
    elif vring_publish(&pair.tx):
        vring_kick(&pair.tx)
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
    own.taken_then = own.taken
    start_timer(own.timer, own.stall)


# --- wake: what happened beside

cdef void check_progress(virtqueue_peer *own) noexcept nogil:
    """The timer ended."""
    cdef pair_t *pair = usable(own)
    own.timed = False
    if pair == NULL:
        return
    reclaim(own, pair)
    if pair.broken or pair.oldest == pair.newest:
        return
    if own.taken == own.taken_then:
        break_pair(own, REASON_STALLED)
    else:
        watch_progress(own)


cdef inline void check_wakes(virtqueue_peer *own) noexcept nogil:
    """A device that calls again and again although it has used nothing would keep the worker busy."""
    if own.taken != own.taken_at_wake:
        own.taken_at_wake = own.taken
        own.wakes = 0
    if own.wakes == 0:
        own.wakes_since = now_ns()
    own.wakes += 1
    if own.wakes < WAKES:
        return
    own.wakes = 0
    if now_ns() - own.wakes_since < SECOND and own.pair != NULL:
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


# --- Python's side

cdef void ring_bell(int fd) noexcept:
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))


cdef void watch(int epoll, int fd, uint64_t event) noexcept:
    cdef epoll_event wanted
    wanted.events = EPOLLIN | EPOLLET
    wanted.data.u64 = event
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted)


cdef class VirtqueuePair:
    """The memory of one pair: part `number` of the memory behind `fd`, PAIR_BYTES each, which no other connection uses.

    `features` are the virtio features agreed upon, VERSION_1 among them. RX buffers are posted at once; the device
    hears of nothing until it is told. `rings` has the addresses of RX and TX as (descriptors, avail, used), `call`,
    `error` and `kicks` are the descriptors for the device: those of calls, of errors, and what RX and TX kicks are
    read from. They belong to this object. OSError: the memory cannot be mapped, or no descriptor be made.

    Kicks go through pipes: a device that shares an eventfd can fill it and make it blocking, and so stop who writes it.
    """

    cdef pair_t *pair
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
        self.pair = <pair_t *>calloc(1, sizeof(pair_t))
        if self.pair == NULL:
            munmap(memory, BYTES)
            raise MemoryError
        self.pair.memory = <uint8_t *>memory
        self.pair.offset = number * BYTES
        self.pair.socket = self.pair.epoll = self.pair.rx.kick = self.pair.tx.kick = -1
        self.pair.call = self.call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.pair.error = self.error = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.kicks = (self.make_kick(&self.pair.rx), self.make_kick(&self.pair.tx))
        if self.call < 0 or self.error < 0 or -1 in self.kicks:
            raise OSError(errno, "cannot make the descriptors of virtqueues")
        self.pair.mergeable = (features & F_MRG_RXBUF) != 0
        self.pair.rx.event_idx = self.pair.tx.event_idx = (features & F_EVENT_IDX) != 0
        self.pair.caps = (CAN_CSUM4 | CAN_CSUM6) if features & F_CSUM else 0
        self.pair.caps |= (CAN_TSO4 if features & F_HOST_TSO4 else 0) | (CAN_TSO6 if features & F_HOST_TSO6 else 0)
        self.pair.buffer_bytes = SMALL_BUFFER if self.pair.mergeable else LARGE_BUFFER
        init_ring(&self.pair.rx, self.pair.memory, RX_DESC, RX_AVAIL, RX_USED)
        init_ring(&self.pair.tx, self.pair.memory, TX_DESC, TX_AVAIL, TX_USED)
        self.rings = (
            (base + RX_DESC, base + RX_AVAIL, base + RX_USED),
            (base + TX_DESC, base + TX_AVAIL, base + TX_USED),
        )
        post_buffers(self.pair, base + RX_AREA)

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
        if stall == 0:
            return               # a duplicate
        self.peer.fd = epoll_create1(EPOLL_CLOEXEC)
        self.own.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.own.timer = open_timer()
        if self.peer.fd < 0 or self.own.bell < 0 or self.own.timer < 0:
            raise OSError(errno, "cannot make a peer's descriptors")
        watch(self.peer.fd, self.own.bell, EVENT_BELL)
        watch(self.peer.fd, self.own.timer, EVENT_TIMER)

    def __dealloc__(self):
        cdef int fd
        free_pair(<pair_t *>exchange_pointer(&self.own.next, NULL))
        free_pair(self.own.pair)
        for fd in (self.peer.fd, self.own.bell, self.own.timer):
            if fd >= 0:
                close(fd)

    def join(self, VirtqueuePair pair, int socket) -> None:
        """Use this pair from now on, which leaves its object. The device knows everything; `socket` is shut down if it
        breaks the protocol. Callable from any thread, but from one at a time.
        """
        cdef pair_t *native = pair.pair
        if native == NULL:
            raise ValueError("the pair is in use")
        native.socket = os.dup(socket)
        pair.pair = NULL
        self.own.given += 1
        native.number = self.own.given
        native.epoll = self.peer.fd
        watch(native.epoll, native.call, native.number << 2 | EVENT_CALL)
        watch(native.epoll, native.error, native.number << 2 | EVENT_ERROR)
        vring_kick(&native.rx)           # a device may start a virtqueue at its first kick only
        vring_kick(&native.tx)
        free_pair(<pair_t *>exchange_pointer(&self.own.next, native))
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
