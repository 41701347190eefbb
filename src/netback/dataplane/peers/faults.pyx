# SPDX-License-Identifier: Apache-2.0
"""A filter that behaves like a bad network: it loses, delays, reorders, repeats and damages frames, and pauses.

What happens to a frame is a function of the seed, the direction and the frame's number alone: not of time, bursts or
what the network takes. So the same frames with the same seed have the same fate.

Each direction has a line of frames that are held, each copied into memory of its own: FIFO, in the order in which they
leave, each with the time at which it may. A reordered frame stands behind the next one, or leaves after REORDER_WAIT
if none comes. A line has at most LINE_FRAMES frames and LINE_BYTES bytes; what comes then is lost, and counted.

A stall holds back every frame of its direction, and takes none: the guest's stay in its ring, the network's in the
network, whose descriptor is not watched meanwhile. `due` is the next time at which a frame may leave.

A damaged frame has one bit inverted; a checksum that its header leaves to the receiver is completed before, so that the
receiver notices. A GSO frame has no checksum that would tell, so it is lost instead.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio_net_hdr
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.clock cimport now_ns
from netback.dataplane.peers.filter cimport FilterPeer, filter_enter, filter_leave, filter_t
from netback.dataplane.peers.peer cimport (
    BELL_FRAMES, BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, LARGE_BYTES, PEER_TAKES, PEER_UNANNOUNCED, VNET_HDR, Peer,
    earliest, frame_t, frame_vectors, peer_t, vnet_header,
)
from netback.dataplane.sockets cimport iovec

cdef enum:                       # the counters of dataplane/counters.py: of TX, then of RX in the same order
    LOST, DUPLICATED, CORRUPTED, REORDERED, STALLED, FULL, COUNTERS

cdef enum:
    LINE_FRAMES = 1024           # a power of two
    LINE_BYTES = 16 << 20
    MS = 1000 * 1000
    REORDER_WAIT = 20 * MS
    RETRY = MS                   # until a network that took nothing is tried again
    ONE = 1000000000             # the probability 1

cdef enum:                       # what a number is drawn for
    DRAW_LOSS, DRAW_DUPLICATE, DRAW_CORRUPT, DRAW_REORDER, DRAW_STALL, DRAW_PLACE, DRAWS


cdef struct terms_t:             # what happens in a direction
    bint on
    uint32_t loss                # probabilities, in parts of ONE
    uint32_t duplicate
    uint32_t corrupt
    uint32_t reorder
    uint32_t stall
    uint64_t delay               # ns
    uint64_t pause               # ns that a stall lasts


cdef struct held_t:
    uint8_t *memory              # FRAME_HEADROOM bytes, then the frame
    uint32_t length
    uint64_t due


cdef struct line_t:
    uint64_t seed
    uint64_t number              # of the next frame
    held_t frames[LINE_FRAMES]
    uint32_t first
    uint32_t count
    uint64_t bytes
    held_t parked                # a reordered frame, until the next one has joined the line; memory NULL: none
    uint64_t until               # ns: the end of a stall; 0: none
    uint64_t *counts


cdef struct faults:              # `filter` is first: a peer_t * of this kind is a faults *
    filter_t filter
    terms_t tx_terms
    terms_t rx_terms
    line_t tx
    line_t rx
    uint8_t *returned[BURST_FRAMES]      # RX frames that the caller has
    int returns
    uint32_t refused             # TX frames that the network refused at a tick, not reported yet
    bint ends                    # nothing is held any more: the filter is taken away


# --- fate

cdef inline uint64_t draw(const line_t *line, uint32_t purpose) noexcept nogil:
    """A number that depends on the seed, the frame and the purpose alone (splitmix64, Steele et al. 2014)."""
    cdef uint64_t z = line.seed + (line.number * DRAWS + purpose + 1) * <uint64_t>0x9E3779B97F4A7C15u
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9u
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EBu
    return z ^ (z >> 31)


cdef inline bint happens(const line_t *line, uint32_t purpose, uint32_t probability) noexcept nogil:
    return probability != 0 and draw(line, purpose) % ONE < probability


# --- a line

cdef inline held_t *head(line_t *line) noexcept nogil:
    return &line.frames[line.first % LINE_FRAMES]


cdef inline void pop(line_t *line) noexcept nogil:
    line.bytes -= head(line).length
    line.first += 1
    line.count -= 1


cdef inline void append(line_t *line, held_t *frame) noexcept nogil:
    line.frames[(line.first + line.count) % LINE_FRAMES] = frame[0]
    line.count += 1
    line.bytes += frame.length


cdef inline void unpark(line_t *line) noexcept nogil:
    if line.parked.memory != NULL:
        append(line, &line.parked)
        line.parked.memory = NULL


cdef inline bint has_room(const line_t *line, uint32_t length) noexcept nogil:
    """For a frame, its duplicate, and one that is parked."""
    return line.count + 3 <= LINE_FRAMES and line.bytes + 2 * length + LARGE_BYTES <= LINE_BYTES


cdef bint put(line_t *line, const uint8_t *frame, uint32_t length, uint64_t due, held_t *held) noexcept nogil:
    """Copy a frame that begins with its virtio_net_hdr, of `length` bytes without it."""
    held.memory = <uint8_t *>malloc(FRAME_HEADROOM + length)
    if held.memory == NULL:
        return False
    memcpy(held.memory + FRAME_HEADROOM - VNET_HDR, frame, VNET_HDR + length)
    held.length = length
    held.due = due
    return True


cdef bint damage(const line_t *line, held_t *held) noexcept nogil:
    """Invert a bit; False: the frame is lost instead."""
    cdef uint8_t *data = held.memory + FRAME_HEADROOM
    cdef virtio_net_hdr *hdr = <virtio_net_hdr *>(data - VNET_HDR)
    cdef uint64_t bit = draw(line, DRAW_PLACE) % (8 * <uint64_t>held.length)
    if hdr.gso_type:
        return False
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        complete_checksum(data, held.length, hdr)
    memset(hdr, 0, VNET_HDR)
    data[bit >> 3] ^= <uint8_t>(1 << (bit & 7))
    return True


cdef void accept(
        line_t *line, const terms_t *terms, const uint8_t *frame, uint32_t length, uint64_t now) noexcept nogil:
    """Decide what becomes of the next frame, which begins with its virtio_net_hdr, and hold what is left of it."""
    cdef held_t held, twin
    cdef uint64_t due = now + terms.delay
    if happens(line, DRAW_STALL, terms.stall):
        line.until = now + terms.pause
        line.counts[STALLED] += 1
    if happens(line, DRAW_LOSS, terms.loss):
        line.counts[LOST] += 1
    elif not has_room(line, length) or not put(line, frame, length, due, &held):
        line.counts[FULL] += 1
    else:
        if happens(line, DRAW_CORRUPT, terms.corrupt):
            line.counts[CORRUPTED] += 1
            if not damage(line, &held):
                free(held.memory)
                line.number += 1
                return
        if happens(line, DRAW_REORDER, terms.reorder) and line.parked.memory == NULL:
            line.counts[REORDERED] += 1
            held.due += REORDER_WAIT
            line.parked = held
        else:
            append(line, &held)
            if happens(line, DRAW_DUPLICATE, terms.duplicate) and put(
                    line, held.memory + FRAME_HEADROOM - VNET_HDR, length, due, &twin):
                line.counts[DUPLICATED] += 1
                append(line, &twin)
            if line.parked.memory != NULL:
                line.parked.due = due
                unpark(line)
    line.number += 1


cdef inline bint stalls(line_t *line, uint64_t now) noexcept nogil:
    if line.until and now >= line.until:
        line.until = 0
    return line.until != 0


cdef inline bint leaves(faults *own, line_t *line, uint64_t now) noexcept nogil:
    """Whether the line's first frame may leave now."""
    if line.parked.memory != NULL and (own.ends or now >= line.parked.due):
        unpark(line)
    if own.ends:
        return line.count != 0
    return line.count != 0 and head(line).due <= now and not stalls(line, now)


cdef uint64_t next_time(const line_t *line) noexcept nogil:
    """When something of a line may leave; 0: nothing is held."""
    cdef uint64_t due = 0
    if line.count:
        due = line.frames[line.first % LINE_FRAMES].due
    if line.parked.memory != NULL and (not due or line.parked.due < due):
        due = line.parked.due
    return max(due, line.until) if due or line.until else 0


cdef void leave(faults *own, uint64_t now) noexcept nogil:
    """filter_leave, and what this filter waits for: the earliest time of the inner peer and of both lines. A TX line
    that waits for room tries again in a moment; RX frames that wait for the guest's slots need no time.
    """
    cdef peer_t *peer = &own.filter.peer
    cdef uint64_t due
    filter_leave(peer)
    if stalls(&own.rx, now):
        peer.by_bell |= BELL_FRAMES
    due = next_time(&own.tx)
    if due and due <= now:
        due = now + RETRY
    peer.due = earliest(peer.due, due)
    due = next_time(&own.rx)
    if due > now:
        peer.due = earliest(peer.due, due)


# --- to the network

cdef bint flush(faults *own, peer_t *inner, uint64_t now) noexcept nogil:
    """Send what may leave; False: the network does not take all of it now."""
    cdef frame_t frames[BURST_FRAMES]
    cdef iovec vectors[BURST_FRAMES]
    cdef uint32_t first[BURST_FRAMES + 1]
    cdef held_t *held
    cdef int done, refused = 0
    while leaves(own, &own.tx, now):
        held = head(&own.tx)
        frames[0].data = held.memory + FRAME_HEADROOM
        frames[0].length = held.length
        frame_vectors(inner, frames, 1, vectors, first)
        done = inner.send(inner, vectors, first, 1, &refused)
        own.refused += refused
        refused = 0
        if done == 0:
            return False
        free(held.memory)
        pop(&own.tx)
    return True


cdef void linearize(const iovec *vectors, uint32_t count, uint32_t header, uint8_t *frame) noexcept nogil:
    """A frame in one piece, with a virtio_net_hdr whether the peer has one or not."""
    cdef uint32_t i
    if not header:
        memset(frame, 0, VNET_HDR)
        frame += VNET_HDR
    for i in range(count):
        memcpy(frame, vectors[i].iov_base, vectors[i].iov_len)
        frame += vectors[i].iov_len


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef faults *own = <faults *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef uint32_t i
    cdef int done = 0
    cdef size_t length
    cdef uint8_t *frame
    cdef uint64_t now = now_ns()
    cdef bint open
    inner.blocked = PEER_TAKES
    if not own.tx_terms.on:
        done = inner.send(inner, vectors, first, count, refused)
        leave(own, now)
        return done
    open = flush(own, inner, now)
    while done < count and open and not stalls(&own.tx, now):
        length = 0
        for i in range(first[done], first[done + 1]):
            length += vectors[i].iov_len
        frame = <uint8_t *>malloc(VNET_HDR + length)
        if frame == NULL or length - inner.header > FRAME_BYTES:
            refused[0] += 1
        else:
            linearize(&vectors[first[done]], first[done + 1] - first[done], inner.header, frame)
            accept(&own.tx, &own.tx_terms, frame, <uint32_t>(length - inner.header), now)
        free(frame)
        done += 1
        if own.tx_terms.delay == 0:
            open = flush(own, inner, now)
    refused[0] += own.refused
    own.refused = 0
    if open and done < count:
        inner.blocked = PEER_UNANNOUNCED         # a stall
    leave(own, now)
    return done


# --- to the guest

cdef int give(faults *own, frame_t *frames, int count, uint64_t now) noexcept nogil:
    """Return what may leave, up to `count`; a frame longer than FRAME_BYTES alone."""
    cdef held_t *held
    cdef int given = 0
    while given < count and leaves(own, &own.rx, now):
        held = head(&own.rx)
        if held.length > FRAME_BYTES and given:
            break
        frames[given].data = held.memory + FRAME_HEADROOM
        frames[given].length = held.length
        if own.returns == BURST_FRAMES:
            break
        own.returned[own.returns] = held.memory
        own.returns += 1
        given += 1
        pop(&own.rx)
        if frames[given - 1].length > FRAME_BYTES:
            break
    return given


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef faults *own = <faults *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef uint64_t now = now_ns()
    cdef int i, given, got = 0
    cdef bint read_all = False, reads = own.ends or not stalls(&own.rx, now)
    if not own.rx_terms.on:
        got = inner.receive(inner, arena, largest, frames, count)
        peer.more = inner.more
        leave(own, now)
        return got
    given = give(own, frames, count, now)        # before a read, which may begin a stall
    if reads and given == 0:
        got = inner.receive(inner, arena, largest, frames, count)
        for i in range(got):
            accept(&own.rx, &own.rx_terms, <uint8_t *>vnet_header(&frames[i]), frames[i].length, now)
        if inner.release != NULL:
            inner.release(inner)
        given = give(own, frames, count, now)
        read_all = got < count
    peer.more = not stalls(&own.rx, now) and (not read_all or inner.more or leaves(own, &own.rx, now))
    leave(own, now)
    return given if got >= 0 or given else got


cdef void release(peer_t *peer) noexcept nogil:
    """The inner peer's frames were copied."""
    cdef faults *own = <faults *>peer
    cdef peer_t *inner
    while own.returns:
        own.returns -= 1
        free(own.returned[own.returns])
    if not own.rx_terms.on and own.filter.inner.release != NULL:
        inner = filter_enter(peer)
        inner.release(inner)
        leave(own, now_ns())


# --- at times

cdef void tick(peer_t *peer) noexcept nogil:
    cdef faults *own = <faults *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef uint64_t now = now_ns()
    if inner.tick != NULL:
        inner.tick(inner)
    flush(own, inner, now)
    leave(own, now)


cdef bint settle(peer_t *peer, bint end) noexcept nogil:
    """Nothing waits for its time any more: the filter, or its link, is taken away. What the network does not take now,
    and what the guest has no slots for, is lost then, as on a wire that is cut.
    """
    cdef faults *own = <faults *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef bint left = False
    own.ends = not end
    flush(own, inner, now_ns())
    if inner.settle != NULL:
        left = inner.settle(inner, end)
    leave(own, now_ns())
    return left or (not end and (own.rx.count != 0 or own.rx.parked.memory != NULL))


cdef void free_line(line_t *line) noexcept nogil:
    while line.count:
        free(head(line).memory)
        pop(line)
    free(line.parked.memory)


cdef terms_t read_terms(dict options, bint on):
    cdef terms_t terms
    memset(&terms, 0, sizeof(terms))
    terms.on = on
    terms.loss = options["loss"]
    terms.duplicate = options["duplicate"]
    terms.corrupt = options["corrupt"]
    terms.reorder = options["reorder"]
    terms.stall = options["stall"]
    terms.delay = options["delay"]
    terms.pause = options["pause"]
    return terms


PROBABLE = ONE
"""The number that stands for the probability 1."""


cdef class FaultsPeer(FilterPeer):
    """Probabilities are parts of PROBABLE, times in ns; `tx` and `rx`: whether that direction is a bad one.

    `pause`: how long a stall lasts. Each instance counts its frames from 0.
    """

    cdef faults *own

    def __cinit__(
            self, Peer inner, *, uint64_t seed=0, uint32_t loss=0, uint32_t duplicate=0, uint32_t corrupt=0,
            uint32_t reorder=0, uint32_t stall=0, uint64_t delay=0, uint64_t pause=0, bint tx=True, bint rx=True):
        options = {
            "seed": seed, "loss": loss, "duplicate": duplicate, "corrupt": corrupt, "reorder": reorder,
            "stall": stall, "delay": delay, "pause": pause, "tx": tx, "rx": rx,
        }
        self.own = <faults *>malloc(sizeof(faults))
        if self.own == NULL:
            raise MemoryError
        memset(self.own, 0, sizeof(faults))
        self.own.tx_terms = read_terms(options, tx)
        self.own.rx_terms = read_terms(options, rx)
        self.own.tx.seed = 2 * seed
        self.own.rx.seed = 2 * seed + 1
        self.own.tx.counts = &self.own.filter.counts[0]
        self.own.rx.counts = &self.own.filter.counts[COUNTERS]
        self.wrap(&self.own.filter, inner, "faults", options)
        self.peer.receive = receive
        self.peer.release = release
        self.peer.send = send
        self.peer.tick = tick
        self.peer.settle = settle

    def __dealloc__(self):
        if self.own != NULL:
            free_line(&self.own.tx)
            free_line(&self.own.rx)
            while self.own.returns:
                self.own.returns -= 1
                free(self.own.returned[self.own.returns])
            free(self.own)
