# SPDX-License-Identifier: Apache-2.0
"""A switch between vifs of this process: each port is the network of one vif, each queue of the vif a lane of it.

    send      on the sender's worker: look up where each frame goes, and copy it to that port's lane, or to every one's
    receive   on the receiver's worker: hand out the frames of the lane where they lie

A lane is memory with a bound, a queue of frames in it, and an eventfd that is readable while there are frames. Many
threads send to a lane: each reserves places for its frames under the lane's lock, copies them without it, and makes
each visible by its length. One thread receives from it. A frame that finds no place is lost and counted, so a guest
that takes nothing stops none that sends. Frames that a switch gives to every port get half of a lane, so a guest that
sends many of them leaves room for those to one address. While the lane is empty the next frame goes to the same memory
as the last one, which is still in the cache.

The eventfd is written only when the receiver has armed it. The receiver arms it when it finds the lane empty, looks
once more, and rings it itself if a frame came in between.

Frames keep their virtio_net_hdr: large segments and blank checksums pass whole, and the receiving vif completes or
segments what its guest does not take.

Ports and lanes are freed with the switch alone. So a sender may still use one that was closed: it finds the lane closed
under its lock.
"""
import os

cimport cython
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close, read, write

from netback.dataplane.abi cimport MIN_FRAME, PAGE_SIZE
from netback.dataplane.addresses cimport (
    MAX_PORTS, NOWHERE, SETS, WAYS, addresses_find, addresses_forget, addresses_open, addresses_see, addresses_t,
    has_aged, is_multicast, load_address,
)
from netback.dataplane.clock cimport coarse_ns
from netback.dataplane.epoll cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd
from netback.dataplane.flow cimport flow_number
from netback.dataplane.lock cimport lock_release, lock_take
from netback.dataplane.offload cimport CAN_CSUM4, CAN_CSUM6, CAN_TSO4, CAN_TSO6
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, PEER_CLOSED, PEER_TAKES, PEER_UP, VNET_HDR, Peer,
    frame_t, frame_vectors, peer_t,
)
from netback.dataplane.ring cimport full_fence, load_acquire, load_relaxed, store_release
from netback.dataplane.sockets cimport iovec

cdef extern from *:
    """
    static inline int exchange(int *p, int v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    """
    int exchange(int *p, int value) noexcept nogil

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from "poll.h" nogil:
    enum:
        POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "sys/mman.h" nogil:
    enum:
        MADV_DONTNEED
        MAP_ANONYMOUS
        MAP_NORESERVE
        MAP_PRIVATE
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int madvise(void *address, size_t length, int advice)
    int munmap(void *address, size_t length)

cdef enum:
    LANE_FRAMES = 1024           # as many as a tap's queue holds
    LANE_BYTES = 4 << 20
    FLOODED_SHARE = 2            # frames of a switch that go to every port get half of each lane
    MAX_LANES = 256              # vif/features.py: MAX_QUEUES
    CARRIED_FRAMES = 32          # of one read of a link that is a port
    CARRIED_READS = 4            # before the other way has its turn
    HEAD = VNET_HDR + 14         # what a sender's first vectors are read for
    SECOND = 1000 * 1000 * 1000
    EVERYWHERE = -2              # target of a frame: all other ports,
    DROPPED = -3                 # or none


cdef uint64_t NO_ADDRESS = <uint64_t>-1      # beyond 48 bits


cdef struct place_t:             # of a frame in its lane
    uint32_t offset              # of its FRAME_HEADROOM bytes
    uint32_t length              # 0: it is not there yet


cdef struct lane_t:
    # of those that send, under the lock
    int lock
    bint open
    uint32_t reserved            # places that were ever given to frames
    uint32_t at                  # where the next frame goes
    uint64_t lost
    uint8_t apart[64]            # the receiver writes to other cache lines
    # of the one that receives
    uint32_t received            # places whose frames it has
    uint32_t released            # those that are free again; senders read it
    uint32_t touched             # bytes of the memory that were used since ...
    uint32_t touched_before      # ... and before ...
    uint32_t trimmed             # s: ... what was not used since is given back
    int armed                    # it waits for the eventfd
    int event
    uint8_t *memory
    uint8_t apart_too[64]
    place_t places[LANE_FRAMES]


cdef struct port_t:
    uint32_t number
    bint used                    # by a Port
    bint open
    uint32_t lanes_open          # the lanes over which frames are spread
    lane_t *lanes[MAX_LANES]     # made when they are first needed


cdef struct switch_t:
    bint learns                  # a hub does not
    uint32_t ports_end           # all ports have lower numbers
    port_t *ports[MAX_PORTS]     # made when they are first needed
    addresses_t addresses


cdef struct lane_peer:           # `peer` is first: a peer_t * of a lane is a lane_peer *
    peer_t peer
    switch_t *switch
    port_t *port
    lane_t *lane


cdef inline uint32_t seconds() noexcept nogil:
    return <uint32_t>(coarse_ns() / SECOND)


# --- a lane

cdef lane_t *lane_new() except NULL:
    cdef lane_t *lane = <lane_t *>calloc(1, sizeof(lane_t))
    cdef void *memory
    if lane == NULL:
        raise MemoryError
    lane.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if lane.event < 0:
        free(lane)
        raise OSError(errno, os.strerror(errno))
    memory = mmap(NULL, LANE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == MAP_FAILED:
        failed = errno
        close(lane.event)
        free(lane)
        raise OSError(failed, os.strerror(failed))
    lane.memory = <uint8_t *>memory
    lane.armed = 1
    return lane


cdef void lane_free(lane_t *lane) noexcept:
    if lane != NULL:
        munmap(lane.memory, LANE_BYTES)
        close(lane.event)
        free(lane)


cdef inline void ring(lane_t *lane) noexcept nogil:
    """Wake the receiver if it has armed the eventfd. The fence orders the frame's store before this load, as the
    exchange in `arm` orders its store before its last look: one of the two sees the other's.
    """
    cdef uint64_t one = 1
    full_fence()
    if lane.armed and exchange(&lane.armed, 0):
        write(lane.event, &one, sizeof(one))


cdef inline place_t *reserve(lane_t *lane, uint32_t length, uint32_t share) noexcept nogil:
    """The next place, for a frame of `length` bytes, in 1 / `share` of the lane; NULL if there is none. A frame of
    several pages begins at a page, as in a worker's arena.
    """
    cdef uint32_t released = load_acquire(&lane.released)
    cdef bint empty = lane.reserved == released
    cdef uint32_t oldest = lane.places[released % LANE_FRAMES].offset
    cdef uint32_t at = 0 if empty else lane.at
    cdef place_t *place = &lane.places[lane.reserved % LANE_FRAMES]
    cdef uint32_t end
    if lane.reserved - released >= LANE_FRAMES // share:
        return NULL
    if share > 1 and not empty and (at - oldest if at > oldest else LANE_BYTES - oldest + at) >= LANE_BYTES // share:
        return NULL
    while True:
        place.offset = begin_at(at, length)
        end = (place.offset + FRAME_HEADROOM + length + 63) & ~<uint32_t>63
        if end <= <uint32_t>LANE_BYTES and (empty or at > oldest or end < oldest):
            lane.at = end
            lane.reserved += 1
            return place
        if empty or at <= oldest:
            return NULL
        at = 0                   # the end of the memory is too short: go on at the start


cdef inline uint32_t begin_at(uint32_t at, uint32_t length) noexcept nogil:
    if length <= PAGE_SIZE:
        return at
    return ((at + FRAME_HEADROOM + PAGE_SIZE - 1) & ~<uint32_t>(PAGE_SIZE - 1)) - FRAME_HEADROOM


cdef inline void gather(uint8_t *to, const iovec *vectors, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        memcpy(to, vectors[i].iov_base, vectors[i].iov_len)
        to += vectors[i].iov_len


cdef void deliver(
        lane_t *lane, const iovec *vectors, const uint32_t *first, const uint32_t *lengths, int count, uint32_t share
) noexcept nogil:
    """Copy frames to a lane, of which they get 1 / `share`; those without a place are lost."""
    cdef place_t *places[BURST_FRAMES]
    cdef int i, kept = 0
    lock_take(&lane.lock)
    while lane.open and kept < count:
        places[kept] = reserve(lane, lengths[kept], share)
        if places[kept] == NULL:
            lane.lost += count - kept
            break
        kept += 1
    lock_release(&lane.lock)
    for i in range(kept):
        gather(lane.memory + places[i].offset + FRAME_HEADROOM - VNET_HDR, &vectors[first[i]], first[i + 1] - first[i])
        store_release(&places[i].length, lengths[i])
    if kept:
        ring(lane)


cdef inline uint32_t arm(lane_t *lane, place_t *place) noexcept nogil:
    """Make the eventfd readable by the next frame only; returns the length of one that came just now, or 0."""
    cdef uint64_t count
    cdef uint32_t length
    read(lane.event, &count, sizeof(count))
    exchange(&lane.armed, 1)
    length = load_acquire(&place.length)
    if length:
        ring(lane)
    return length


cdef void trim(lane_t *lane) noexcept nogil:
    """Give memory back that the last second did not use. The lane is empty for its receiver; senders may write to it,
    so its lock is held.
    """
    cdef uint32_t now = seconds()
    cdef uint32_t begin
    if now == lane.trimmed:
        return
    lane.trimmed = now
    begin = (lane.touched + PAGE_SIZE - 1) & ~<uint32_t>(PAGE_SIZE - 1)
    if begin < lane.touched_before:
        lock_take(&lane.lock)
        if lane.reserved == lane.received:
            madvise(lane.memory + begin, lane.touched_before - begin, MADV_DONTNEED)
            lane.touched_before = begin
        lock_release(&lane.lock)
    lane.touched_before = max(lane.touched_before, lane.touched)
    lane.touched = 0


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef lane_t *lane = (<lane_peer *>peer).lane
    cdef place_t *place
    cdef uint32_t length
    cdef int got = 0
    while got < count:
        place = &lane.places[lane.received % LANE_FRAMES]
        length = load_acquire(&place.length)
        if length == 0:
            length = arm(lane, place)
        if length == 0:
            break
        frames[got].data = lane.memory + place.offset + FRAME_HEADROOM
        frames[got].length = length
        lane.touched = max(lane.touched, place.offset + FRAME_HEADROOM + length)
        lane.received += 1
        got += 1
    return got


cdef void release(peer_t *peer) noexcept nogil:
    cdef lane_t *lane = (<lane_peer *>peer).lane
    cdef uint32_t i = lane.released
    if i == lane.received:
        return
    while i != lane.received:
        lane.places[i % LANE_FRAMES].length = 0
        i += 1
    store_release(&lane.released, lane.received)
    if lane.armed:
        trim(lane)


cdef uint32_t empty(lane_t *lane) noexcept nogil:
    """Discard what waits, in the receiver's place; returns the number of frames. Those that are being copied now are
    there in a moment.
    """
    cdef uint32_t count, i
    cdef place_t *place
    lock_take(&lane.lock)
    count = lane.reserved - lane.received
    lock_release(&lane.lock)
    for i in range(lane.received, lane.received + count):
        place = &lane.places[i % LANE_FRAMES]
        while load_acquire(&place.length) == 0:
            sched_yield()
        place.length = 0
    lane.received += count
    store_release(&lane.released, lane.received)
    arm(lane, &lane.places[lane.received % LANE_FRAMES])
    return count


# --- where frames go

cdef inline void deliver_to_port(
        port_t *port, const iovec *vectors, const uint32_t *first, const uint32_t *lengths, int count, uint32_t share
) noexcept nogil:
    """Spread frames over the lanes of a port by flow."""
    cdef uint32_t lanes = port.lanes_open
    cdef uint32_t lane
    cdef int i, end
    if not port.open:
        return
    if lanes == 1:
        deliver(port.lanes[0], vectors, first, lengths, count, share)
        return
    i = 0
    while i < count:
        lane = flow_of(vectors, first + i) % lanes
        end = i + 1
        while end < count and flow_of(vectors, first + end) % lanes == lane:
            end += 1
        deliver(port.lanes[lane], vectors, first + i, lengths + i, end - i, share)
        i = end


cdef inline uint32_t flow_of(const iovec *vectors, const uint32_t *first) noexcept nogil:
    """The number of a frame's flow, from its first piece."""
    cdef const iovec *piece = &vectors[first[0]]
    if piece.iov_len > VNET_HDR:
        return flow_number(<uint8_t *>piece.iov_base + VNET_HDR, <uint32_t>piece.iov_len - VNET_HDR)
    if first[1] - first[0] > 1:
        return flow_number(<uint8_t *>piece[1].iov_base, <uint32_t>piece[1].iov_len)
    return 0


cdef inline const uint8_t *head_of(
        const iovec *vectors, uint32_t first, uint32_t end, uint8_t *copy, uint32_t *length) noexcept nogil:
    """The first HEAD bytes of a message, in `copy` if its first vector has fewer, and its length."""
    cdef uint32_t i, part, had = 0
    length[0] = 0
    for i in range(first, end):
        length[0] += <uint32_t>vectors[i].iov_len
    if vectors[first].iov_len >= HEAD:
        return <uint8_t *>vectors[first].iov_base
    for i in range(first, end):
        part = min(<uint32_t>vectors[i].iov_len, <uint32_t>HEAD - had)
        memcpy(copy + had, vectors[i].iov_base, part)
        had += part
    return copy


cdef int target_of(lane_peer *own, uint64_t to, uint32_t now) noexcept nogil:
    """The port that frames to this address go to, or EVERYWHERE, or DROPPED: it is the port that they came from."""
    cdef int port
    if not own.switch.learns or is_multicast(to):
        return EVERYWHERE
    port = addresses_find(&own.switch.addresses, to, now)
    if port == NOWHERE:
        return EVERYWHERE
    return DROPPED if port == <int>own.port.number else port


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef lane_peer *own = <lane_peer *>peer
    cdef int targets[BURST_FRAMES]
    cdef uint32_t lengths[BURST_FRAMES]
    cdef uint8_t copy[HEAD]
    cdef const uint8_t *head
    cdef uint64_t to, sender, last_to = NO_ADDRESS, last_sender = NO_ADDRESS
    cdef uint32_t now = seconds()
    cdef uint32_t number
    cdef uint32_t share = FLOODED_SHARE if own.switch.learns else 1
    cdef int i, end, target = DROPPED
    peer.blocked = PEER_TAKES
    for i in range(count):
        head = head_of(vectors, first[i], first[i + 1], copy, &lengths[i])
        if lengths[i] < VNET_HDR + MIN_FRAME or lengths[i] > VNET_HDR + FRAME_BYTES or not own.port.used:
            targets[i] = DROPPED
            refused[0] += 1
            continue
        lengths[i] -= VNET_HDR
        to, sender = load_address(head + VNET_HDR), load_address(head + VNET_HDR + 6)
        if sender != last_sender and own.switch.learns and not is_multicast(sender):
            addresses_see(&own.switch.addresses, sender, own.port.number, now)
            last_to = NO_ADDRESS             # it may be the one that was just learned
        last_sender = sender
        if to != last_to:
            target = target_of(own, to, now)
        last_to = to
        targets[i] = target
    i = 0
    while i < count:
        target = targets[i]
        end = i + 1
        while end < count and targets[end] == target:
            end += 1
        if target >= 0:
            deliver_to_port(own.switch.ports[target], vectors, first + i, lengths + i, end - i, 1)
        elif target == EVERYWHERE:
            for number in range(load_acquire(&own.switch.ports_end)):
                if number != own.port.number:
                    deliver_to_port(own.switch.ports[number], vectors, first + i, lengths + i, end - i, share)
        i = end
    return count


# --- for control code

cdef class Switch:
    """A switch, or a hub, which gives every frame to every other port (`learns`).

    `ageing`: seconds for which an address is known after its last frame. `secret`: decides which addresses share a set
    of the table; a random one if None, an odd one for tests.
    """

    cdef switch_t *switch
    cdef readonly int ports
    """How many are in use."""

    def __cinit__(self, *, bint learns=True, uint32_t ageing=300, secret: int | None = None):
        self.switch = <switch_t *>calloc(1, sizeof(switch_t))
        if self.switch == NULL:
            raise MemoryError
        self.switch.learns = learns
        self.switch.addresses.ageing = ageing
        self.switch.addresses.secret = int.from_bytes(os.urandom(8), "little") if secret is None else secret

    def __dealloc__(self):
        cdef uint32_t number
        cdef int lane
        if self.switch == NULL:
            return
        for number in range(self.switch.ports_end):
            for lane in range(MAX_LANES):
                lane_free(self.switch.ports[number].lanes[lane])
            free(self.switch.ports[number])
        free(self.switch)

    cdef port_t *take_port(self) except NULL:
        """A port that no Port uses. ValueError: there are too many."""
        cdef uint32_t number
        cdef port_t *port
        for number in range(self.switch.ports_end):
            if not self.switch.ports[number].used:
                self.switch.ports[number].used = True
                self.ports += 1
                return self.switch.ports[number]
        number = self.switch.ports_end
        if number == MAX_PORTS:
            raise ValueError(f"a switch has {MAX_PORTS} ports at most")
        port = <port_t *>calloc(1, sizeof(port_t))
        if port == NULL:
            raise MemoryError
        port.number = number
        port.used = True
        self.ports += 1
        self.switch.ports[number] = port
        store_release(&self.switch.ports_end, number + 1)
        return port

    def set_ageing(self, uint32_t seconds) -> None:
        """Have an address known for so long after its last frame, from now on."""
        self.switch.addresses.ageing = seconds

    def addresses(self, port: int | None = None) -> dict[bytes, int]:
        """The port of each address that is known now; of one port alone if it is given."""
        cdef addresses_t *table = &self.switch.addresses
        cdef uint32_t now = seconds()
        cdef int i, way, found, wanted = NOWHERE if port is None else port
        cdef uint64_t entry
        known = {}
        if wanted != NOWHERE and table.counts[wanted] == 0:
            return known
        for i in range(SETS):
            for way in range(WAYS):
                entry = table.sets[i].entries[way]
                found = <int>(entry & 0xFFFF) - 1
                if entry == 0 or (wanted != NOWHERE and found != wanted):
                    continue
                if not has_aged(table, &table.sets[i], way, now):
                    known[int(entry >> 16).to_bytes(6, "big")] = found
        return known


@cython.no_gc_clear              # its end needs the switch
cdef class Port:
    """One port of a switch, closed at first: its frames are sent, and it gets none. Control code alone uses it, one
    thread at a time. `limit`: most addresses that are learned there. OSError: too many descriptors. ValueError: too
    many ports.
    """

    cdef Switch switch
    cdef port_t *port
    cdef uint32_t limit
    cdef bint closed
    cdef readonly tuple peers
    """The peer of each lane."""

    def __cinit__(self, Switch switch, *, uint32_t limit=1024):
        cdef int lane
        self.switch = switch
        self.limit = limit
        self.port = switch.take_port()
        for lane in range(MAX_LANES):
            if self.port.lanes[lane] != NULL:
                self.port.lanes[lane].lost = 0
        self.set_lanes(1)

    def set_lanes(self, int count) -> None:
        """Spread the frames over so many lanes, while none is served. OSError: there are too many descriptors."""
        cdef int lane
        count = min(count, MAX_LANES)
        for lane in range(count):
            if self.port.lanes[lane] == NULL:
                self.port.lanes[lane] = lane_new()
        store_release(&self.port.lanes_open, count)
        for lane in range(MAX_LANES):
            self.set_open(lane, self.port.open and lane < count)
        self.peers = tuple([lane_peer_of(self.switch, self.port, self.port.lanes[lane]) for lane in range(count)])

    cdef void set_open(self, int lane, bint open) noexcept:
        if self.port.lanes[lane] != NULL:
            lock_take(&self.port.lanes[lane].lock)
            self.port.lanes[lane].open = open
            lock_release(&self.port.lanes[lane].lock)

    def open(self, bint open) -> None:
        """Let frames to this port, or let none: its addresses are then forgotten."""
        cdef uint32_t lane
        if self.closed or self.port.open == open:
            return
        if open:
            addresses_open(&self.switch.switch.addresses, self.port.number, self.limit)
        self.port.open = open
        for lane in range(self.port.lanes_open):
            self.set_open(lane, open)
        if not open:
            addresses_forget(&self.switch.switch.addresses, self.port.number)

    def drain(self) -> int:
        """Discard the frames that wait, which no worker reads now; returns their number."""
        cdef int lane, count = 0
        for lane in range(MAX_LANES):
            if self.port.lanes[lane] != NULL:
                count += empty(self.port.lanes[lane])
        return count

    def close(self) -> None:
        """Leave the switch. No worker uses the peers any more. May be called again."""
        cdef int lane
        if self.closed:
            return
        self.open(False)
        self.drain()
        for lane in range(MAX_LANES):
            if self.port.lanes[lane] != NULL:
                madvise(self.port.lanes[lane].memory, LANE_BYTES, MADV_DONTNEED)
                self.port.lanes[lane].touched = self.port.lanes[lane].touched_before = 0
        self.closed = True
        self.port.used = False
        self.switch.ports -= 1

    def __dealloc__(self):
        if self.port != NULL:
            self.close()

    @property
    def number(self) -> int:
        return self.port.number

    @property
    def lost(self) -> int:
        """Frames that found no place."""
        cdef int lane
        return sum([self.port.lanes[lane].lost for lane in range(MAX_LANES) if self.port.lanes[lane] != NULL])

    @property
    def queued(self) -> tuple[int, int]:
        """The bytes of the frames that wait, and their bound."""
        cdef uint32_t lane
        cdef int i
        cdef uint64_t count = 0
        cdef lane_t *each
        for lane in range(self.port.lanes_open):
            each = self.port.lanes[lane]
            for i in range(LANE_FRAMES):
                count += load_relaxed(&each.places[i].length)
        return count, <uint64_t>self.port.lanes_open * LANE_BYTES


cdef LanePeer lane_peer_of(Switch switch, port_t *port, lane_t *lane):
    cdef LanePeer made = LanePeer.__new__(LanePeer, lane.event)
    made.owner = switch
    made.own.switch = switch.switch
    made.own.port = port
    made.own.lane = lane
    return made


cdef class LanePeer(Peer):
    """A lane of a port, for one queue, which a Port makes. Frames that are sent go to the switch; those that come are
    the lane's.
    """

    cdef lane_peer own

    def __cinit__(self, int fd):
        self.peer = &self.own.peer
        self.peer.fd = fd
        self.peer.header = VNET_HDR
        self.peer.caps = CAN_CSUM4 | CAN_CSUM6 | CAN_TSO4 | CAN_TSO6
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.release = release
        self.peer.send = send

    def duplicate(self, int fd) -> Peer:
        """A peer of the same lane on a duplicate of its descriptor, which the caller closes."""
        cdef LanePeer made = lane_peer_of(self.owner, self.own.port, self.own.lane)
        made.peer.fd = fd
        return made


# --- a link as a port

cdef void move(peer_t *source, peer_t *sink, uint8_t *arena, uint64_t *lost) noexcept nogil:
    """Give the frames of one end to the other; what that does not take is lost."""
    cdef frame_t frames[CARRIED_FRAMES]
    cdef iovec vectors[CARRIED_FRAMES]
    cdef uint32_t first[CARRIED_FRAMES + 1]
    cdef int got, done, refused
    cdef int reads = 0
    while reads < CARRIED_READS:
        reads += 1
        got = source.receive(source, arena, FRAME_BYTES, frames, CARRIED_FRAMES)
        if got > 0:
            refused = 0
            frame_vectors(sink, frames, got, vectors, first)
            done = sink.send(sink, vectors, first, got, &refused)
            lost[0] += got - done + refused
        if source.release != NULL:
            source.release(source)
        if got < CARRIED_FRAMES:
            return


cdef void carry(peer_t *link, peer_t *port, int stop, uint8_t *arena, uint64_t *lost) noexcept nogil:
    """Carry frames both ways until `stop` is readable. A link that is gone is left alone until then."""
    cdef pollfd ends[3]
    cdef uint64_t lost_of_switch = 0         # a port counts what it loses
    link.condition = PEER_UP
    ends[0].fd, ends[1].fd, ends[2].fd = stop, port.fd, link.fd
    ends[0].events = ends[1].events = ends[2].events = POLLIN
    while True:
        if poll(ends, 3, -1) < 0:
            continue
        if ends[0].revents:
            return
        if ends[1].revents:
            move(port, link, arena, lost)
        if ends[2].revents & POLLIN:
            move(link, port, arena, &lost_of_switch)
        if ends[2].revents & ~POLLIN and link.check != NULL:
            link.check(link)
        if link.condition == PEER_CLOSED:
            ends[2].fd = -1


cdef class Carrier:
    """Carries frames between a link and a port of the switch, in the thread that calls `run`."""

    cdef Peer link
    cdef Peer port
    cdef uint8_t *arena
    cdef uint64_t frames_lost

    def __cinit__(self, Peer link, Peer port):
        self.link = link
        self.port = port
        self.arena = <uint8_t *>malloc(<size_t>CARRIED_FRAMES * FRAME_STRIDE)
        if self.arena == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.arena)

    @property
    def lost(self) -> int:
        """Frames that the link did not take."""
        return self.frames_lost

    def run(self, int stop) -> None:
        """Carry until the descriptor `stop` is readable."""
        with nogil:
            carry(self.link.peer, self.port.peer, stop, self.arena, &self.frames_lost)
