# SPDX-License-Identifier: Apache-2.0
"""AF_XDP: a link's RX queues by rings of frames in shared memory (Linux, Documentation/networking/af_xdp.rst).

Each queue has a socket, whose memory (UMEM) is cut into chunks of one frame. Four rings pass them: fill and RX to the
kernel and back with received frames, TX and completion with frames to send. The kernel writes none but its own indices
and slots, and is trusted with them.

Received frames stay in their chunks, before which the kernel leaves XDP_PACKET_HEADROOM; `release` gives them back.
With copies, which any driver can do, the kernel takes frames from the TX ring only while this end calls sendto. A call
takes a few (xsk.c, TX_BATCH_SIZE), and before Linux 6.17 the ring's consumer index stays behind what was taken until
the ring is empty. So what a call seems to have left is the kernel's, is pushed again after PAUSE, and nothing is added
until the ring is empty. A driver that copies nothing takes frames at any time, and is called only if it wants to be
(XDP_USE_NEED_WAKEUP).
"""
import os

from libc.errno cimport EAGAIN, EBUSY, ENOBUFS, ENODEV, ENOMEM, ENXIO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, usleep

from netback.dataplane.clock cimport now_ns
from netback.dataplane.epoll cimport (
    EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, epoll_create1, epoll_ctl, epoll_event,
)
from netback.dataplane.lock cimport lock_release, lock_take
from netback.dataplane.peers.handover cimport exchange_pointer, load_pointer
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, PEER_BUSY, PEER_DOWN, PEER_TAKES, VNET_HDR, Peer, frame_t, peer_t, peer_works,
    vnet_header,
)
from netback.dataplane.ring cimport load_acquire, load_relaxed, store_release
from netback.dataplane.sockets cimport iovec

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/bpf.h>
    #include <linux/if_link.h>
    #include <linux/if_xdp.h>
    #include <stddef.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SOL_XDP
    #define SOL_XDP 283
    #endif

    typedef struct {
        uint32_t *producer, *consumer, *flags;
        void *slots;
        uint32_t mask;
        void *map;
        size_t bytes;
    } xdp_ring;

    static int xdp_call(int command, union bpf_attr *attr) { return syscall(SYS_bpf, command, attr, sizeof *attr); }

    static int xdp_make_map(uint32_t queues)
    {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.map_type = BPF_MAP_TYPE_XSKMAP;
        attr.key_size = attr.value_size = 4;
        attr.max_entries = queues;
        return xdp_call(BPF_MAP_CREATE, &attr);
    }

    /* Redirects a frame to the socket of its RX queue; the host gets it if there is none. */
    static int xdp_load(int map)
    {
        struct bpf_insn lines[] = {
            {.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1,
             .off = offsetof(struct xdp_md, rx_queue_index)},
            {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map},
            {.code = 0},
            {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
            {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
            {.code = BPF_JMP | BPF_EXIT},
        };
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.prog_type = BPF_PROG_TYPE_XDP;
        attr.insns = (uintptr_t)lines;
        attr.insn_cnt = sizeof lines / sizeof *lines;
        attr.license = (uintptr_t)"Apache-2.0";
        memcpy(attr.prog_name, "netback", 8);
        return xdp_call(BPF_PROG_LOAD, &attr);
    }

    /* The program stays attached as long as the descriptor that is returned is open. */
    static int xdp_attach(int program, int link, int skb)
    {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.link_create.prog_fd = program;
        attr.link_create.target_ifindex = link;
        attr.link_create.attach_type = BPF_XDP;
        attr.link_create.flags = skb ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE;
        return xdp_call(BPF_LINK_CREATE, &attr);
    }

    static int xdp_put(int map, uint32_t queue, int fd)
    {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.map_fd = map;
        attr.key = (uintptr_t)&queue;
        attr.value = (uintptr_t)&fd;
        return xdp_call(BPF_MAP_UPDATE_ELEM, &attr);
    }

    static int xdp_umem(int fd, void *area, uint64_t bytes, uint32_t chunk)
    {
        struct xdp_umem_reg reg;
        memset(&reg, 0, sizeof reg);
        reg.addr = (uintptr_t)area;
        reg.len = bytes;
        reg.chunk_size = chunk;
        return setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof reg);
    }

    static int xdp_map(
        int fd, uint32_t entries, size_t slot, const struct xdp_ring_offset *at, off_t page, xdp_ring *ring)
    {
        ring->bytes = at->desc + entries * slot;
        ring->map = mmap(NULL, ring->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, page);
        if (ring->map == MAP_FAILED) {
            ring->map = NULL;
            return -1;
        }
        ring->producer = (uint32_t *)((char *)ring->map + at->producer);
        ring->consumer = (uint32_t *)((char *)ring->map + at->consumer);
        ring->flags = (uint32_t *)((char *)ring->map + at->flags);
        ring->slots = (char *)ring->map + at->desc;
        ring->mask = entries - 1;
        return 0;
    }

    static int xdp_rings(int fd, uint32_t in, uint32_t out, xdp_ring *fill, xdp_ring *rx, xdp_ring *tx, xdp_ring *done)
    {
        struct xdp_mmap_offsets at;
        socklen_t size = sizeof at;
        if (setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &in, 4) || setsockopt(fd, SOL_XDP, XDP_RX_RING, &in, 4)
            || setsockopt(fd, SOL_XDP, XDP_TX_RING, &out, 4)
            || setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &out, 4)
            || getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &size))
            return -1;
        return xdp_map(fd, in, 8, &at.fr, XDP_UMEM_PGOFF_FILL_RING, fill)
               || xdp_map(fd, in, sizeof(struct xdp_desc), &at.rx, XDP_PGOFF_RX_RING, rx)
               || xdp_map(fd, out, sizeof(struct xdp_desc), &at.tx, XDP_PGOFF_TX_RING, tx)
               || xdp_map(fd, out, 8, &at.cr, XDP_UMEM_PGOFF_COMPLETION_RING, done) ? -1 : 0;
    }

    static int xdp_bind(int fd, int link, uint32_t queue, int copy)
    {
        struct sockaddr_xdp to;
        memset(&to, 0, sizeof to);
        to.sxdp_family = AF_XDP;
        to.sxdp_ifindex = link;
        to.sxdp_queue_id = queue;
        to.sxdp_flags = copy ? XDP_COPY : XDP_ZEROCOPY | XDP_USE_NEED_WAKEUP;
        return bind(fd, (struct sockaddr *)&to, sizeof to);
    }

    /* Frames that the socket's link received and that were lost, since it was made: no chunk, no slot, too long. */
    static uint64_t xdp_lost(int fd)
    {
        struct xdp_statistics got;
        socklen_t size = sizeof got;
        memset(&got, 0, sizeof got);
        getsockopt(fd, SOL_XDP, XDP_STATISTICS, &got, &size);
        return got.rx_dropped + got.rx_ring_full;
    }

    /* The chunks bound what is in flight, not the buffer's size: a frame counts there by several times its length. */
    static int xdp_open(void)
    {
        int room = 4 << 20, fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
        if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
        return fd;
    }
    static int xdp_kick_tx(int fd) { return sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0); }
    static void xdp_kick_rx(int fd) { recvfrom(fd, NULL, 0, MSG_DONTWAIT, NULL, NULL); }
    """
    enum:
        XDP_RING_NEED_WAKEUP
    cdef struct xdp_desc:
        uint64_t addr
        uint32_t len
        uint32_t options
    ctypedef struct xdp_ring:
        uint32_t *producer
        uint32_t *consumer
        uint32_t *flags
        void *slots
        uint32_t mask
        void *map
        size_t bytes
    int xdp_make_map(uint32_t queues)
    int xdp_load(int map)
    int xdp_attach(int program, int link, int skb)
    int xdp_put(int map, uint32_t queue, int fd)
    int xdp_umem(int fd, void *area, uint64_t bytes, uint32_t chunk)
    int xdp_rings(int fd, uint32_t given, uint32_t sent, xdp_ring *fill, xdp_ring *rx, xdp_ring *tx, xdp_ring *done)
    int xdp_bind(int fd, int link, uint32_t queue, int copy)
    uint64_t xdp_lost(int fd)
    int xdp_open()
    int xdp_kick_tx(int fd) nogil
    void xdp_kick_rx(int fd) nogil

cdef enum:
    RX_CHUNKS = 1024             # frames that wait for the guest, in each queue; powers of two, as the rings need
    TX_CHUNKS = 512
    CHUNK = 4096                 # of the largest frame, and XDP_PACKET_HEADROOM (256) before a received one
    MAX_QUEUES = 64
    MAX_HELD = 2 * BURST_FRAMES  # frames of several reads, before their `release`
    TX_BATCH = 16                # the least that a call takes, if it can (xsk.c, TX_BATCH_SIZE)
    PAUSE = 1000 * 1000          # ns until what the kernel did not take is pushed again
    SETTLE = 50                  # pauses, at most, at an orderly end

MOST_QUEUES = MAX_QUEUES


cdef struct xsk_t:               # a socket; RX and TX may be used by different threads, each by one at a time
    int fd
    bint copies
    uint8_t *area
    xdp_ring fill
    xdp_ring rx
    xdp_ring tx
    xdp_ring done
    uint64_t held[MAX_HELD]      # chunks of the frames that `receive` returned
    uint32_t held_count
    uint64_t free[TX_CHUNKS]
    uint32_t free_count
    bint out[TX_CHUNKS]          # the kernel has this chunk


cdef struct xsk_set:
    int count
    int turn                     # the socket that is read first
    xsk_t *sockets[MAX_QUEUES]


cdef struct xdp_peer:            # `peer` is first: a peer_t * of this kind is an xdp_peer *
    peer_t peer
    xdp_peer *base               # whose sockets send; of a duplicate another one
    int lock                     # held while something is sent, and while `next` becomes `set`
    xsk_set *set                 # NULL: none. Changed by the thread that receives
    void *next                   # xsk_set *: what takes its place


cdef void free_ring(xdp_ring *ring) noexcept nogil:
    if ring.map != NULL:
        munmap(ring.map, ring.bytes)


cdef void free_socket(xsk_t *own) noexcept nogil:
    if own == NULL:
        return
    free_ring(&own.fill)
    free_ring(&own.rx)
    free_ring(&own.tx)
    free_ring(&own.done)
    if own.fd >= 0:
        close(own.fd)
    if own.area != NULL:
        munmap(own.area, (RX_CHUNKS + TX_CHUNKS) * CHUNK)
    free(own)


cdef void free_set(xsk_set *own) noexcept nogil:
    cdef int i
    if own == NULL:
        return
    for i in range(own.count):
        free_socket(own.sockets[i])
    free(own)


# --- RX

cdef inline xsk_set *latest(xdp_peer *own) noexcept nogil:
    """The sockets that were given last, for a caller that holds the lock."""
    cdef void *next = load_pointer(&own.next)
    return <xsk_set *>next if next != NULL else own.set


cdef inline bint holds(xsk_set *own) noexcept nogil:
    """Whether frames of these sockets are in use."""
    cdef int i
    for i in range(own.count if own != NULL else 0):
        if own.sockets[i].held_count:
            return True
    return False


cdef inline void take_next(xdp_peer *own) noexcept nogil:
    """Use the sockets that control code gave, if it did, once every frame of the earlier ones was released."""
    cdef xsk_set *old = own.set
    if load_pointer(&own.next) == NULL or holds(old):
        return
    lock_take(&own.lock)
    own.set = <xsk_set *>exchange_pointer(&own.next, NULL)
    lock_release(&own.lock)
    free_set(old)


cdef int take_frames(xsk_t *own, frame_t *frames, int count) noexcept nogil:
    cdef uint32_t consumer = load_relaxed(own.rx.consumer)
    cdef uint32_t pending = load_acquire(own.rx.producer) - consumer
    cdef xdp_desc *slot
    cdef uint32_t i, got = min(pending, min(<uint32_t>count, MAX_HELD - own.held_count))
    for i in range(got):
        slot = &(<xdp_desc *>own.rx.slots)[(consumer + i) & own.rx.mask]
        frames[i].data = own.area + slot.addr
        frames[i].length = slot.len
        memset(vnet_header(&frames[i]), 0, VNET_HDR)
        own.held[own.held_count] = slot.addr
        own.held_count += 1
    if got:
        store_release(own.rx.consumer, consumer + got)
    return <int>got


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef xdp_peer *own = <xdp_peer *>peer
    cdef xsk_set *taken
    cdef int i, got = 0
    take_next(own)
    taken = own.set
    if taken == NULL:
        return 0
    for i in range(taken.count):
        got += take_frames(taken.sockets[(taken.turn + i) % taken.count], frames + got, count - got)
    taken.turn = (taken.turn + 1) % taken.count
    return got


cdef void give_back(xsk_t *own) noexcept nogil:
    cdef uint32_t i, producer = load_relaxed(own.fill.producer)
    if own.held_count == 0:
        return
    for i in range(own.held_count):
        (<uint64_t *>own.fill.slots)[(producer + i) & own.fill.mask] = own.held[i] & ~<uint64_t>(CHUNK - 1)
    store_release(own.fill.producer, producer + own.held_count)
    own.held_count = 0
    if not own.copies and load_relaxed(own.fill.flags) & XDP_RING_NEED_WAKEUP:
        xdp_kick_rx(own.fd)


cdef void release(peer_t *peer) noexcept nogil:
    cdef xsk_set *taken = (<xdp_peer *>peer).set
    cdef int i
    if taken != NULL:
        for i in range(taken.count):
            give_back(taken.sockets[i])


# --- TX

cdef inline void free_chunk(xsk_t *own, uint64_t address) noexcept nogil:
    """A chunk may be used again. One that was not out is none of ours, whatever the kernel says."""
    cdef uint64_t chunk = address // CHUNK - RX_CHUNKS
    if chunk < TX_CHUNKS and own.out[chunk]:
        own.out[chunk] = False
        own.free[own.free_count] = (RX_CHUNKS + chunk) * CHUNK
        own.free_count += 1


cdef inline void reclaim(xsk_t *own) noexcept nogil:
    """Take the chunks of frames that have left."""
    cdef uint32_t consumer = load_relaxed(own.done.consumer)
    cdef uint32_t i, count = load_acquire(own.done.producer) - consumer
    for i in range(min(count, own.done.mask + 1)):
        free_chunk(own, (<uint64_t *>own.done.slots)[(consumer + i) & own.done.mask])
    if count:
        store_release(own.done.consumer, consumer + count)


cdef inline uint32_t waiting(xsk_t *own) noexcept nogil:
    """Frames in the TX ring that the kernel may not have taken."""
    return load_relaxed(own.tx.producer) - load_acquire(own.tx.consumer)


cdef int push(xsk_t *own) noexcept nogil:
    """Have the kernel send what is in the TX ring, as far as the link takes it; returns 0, or the errno of the last
    call. One that is not `is_busy` says that the kernel looked at the link alone, and took nothing.
    """
    cdef uint32_t calls, left = waiting(own)
    cdef int fault = 0
    cdef bint looked = False
    if not own.copies:
        if load_relaxed(own.tx.flags) & XDP_RING_NEED_WAKEUP:
            xdp_kick_tx(own.fd)
        return 0
    calls = 2 + left // TX_BATCH
    while waiting(own) and calls:
        fault = errno if xdp_kick_tx(own.fd) < 0 else 0
        if fault and not is_busy(fault):
            return EAGAIN if looked else fault
        looked = True
        calls -= 1
    return fault


cdef inline bint is_busy(int fault) noexcept nogil:
    return fault == EAGAIN or fault == EBUSY or fault == ENOBUFS or fault == ENOMEM


cdef void take_back(xsk_t *own, uint32_t count) noexcept nogil:
    """Take the last frames out of the TX ring, which the kernel has not looked at since they were added."""
    cdef uint32_t i, producer = load_relaxed(own.tx.producer) - count
    for i in range(count):
        free_chunk(own, (<xdp_desc *>own.tx.slots)[(producer + i) & own.tx.mask].addr)
    store_release(own.tx.producer, producer)


cdef inline bint place(xsk_t *own, const iovec *vectors, uint32_t first, uint32_t end, uint32_t ahead) noexcept nogil:
    """Copy a frame into a free chunk, and that into the slot so many ahead of the producer; False if it does not fit.
    """
    cdef uint64_t chunk = own.free[own.free_count - 1]
    cdef xdp_desc *slot = &(<xdp_desc *>own.tx.slots)[(load_relaxed(own.tx.producer) + ahead) & own.tx.mask]
    cdef size_t length = 0
    cdef uint32_t i
    for i in range(first, end):
        if length + vectors[i].iov_len > CHUNK:
            return False
        memcpy(own.area + chunk + length, vectors[i].iov_base, vectors[i].iov_len)
        length += vectors[i].iov_len
    own.free_count -= 1
    own.out[chunk // CHUNK - RX_CHUNKS] = True
    slot.addr = chunk
    slot.len = <uint32_t>length
    slot.options = 0
    return True


cdef bint push_all(xsk_t *own, peer_t *peer) noexcept nogil:
    """Push, and draw the conclusions; whether the TX ring takes more frames."""
    cdef int fault = push(own)
    peer.due = 0
    if not own.copies or waiting(own) == 0:
        peer_works(peer)
        return True
    if fault and not is_busy(fault):
        peer.condition = PEER_DOWN
        return False
    peer_works(peer)
    peer.due = now_ns() + PAUSE
    return False


cdef bint send_some(xsk_t *own, peer_t *peer, int placed, int *refused) noexcept nogil:
    """Publish that many frames, which are in the TX ring; likewise."""
    cdef bint takes
    store_release(own.tx.producer, load_relaxed(own.tx.producer) + placed)
    takes = push_all(own, peer)
    if not takes and peer.condition == PEER_DOWN and <int>waiting(own) == placed:
        take_back(own, placed)
        refused[0] += placed
    return takes


cdef int send_by(
        xsk_t *own, peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef int placed, done = 0
    cdef bint takes = not own.copies or waiting(own) == 0 or push_all(own, peer)
    reclaim(own)
    while done < count and takes:
        placed = 0
        while done + placed < count and own.free_count:
            if not place(own, vectors, first[done + placed], first[done + placed + 1], placed):
                break
            placed += 1
        if placed:
            takes = send_some(own, peer, placed, refused)
            done += placed
        elif own.free_count:
            refused[0] += 1          # longer than a chunk
            done += 1
        else:
            break
    if done < count and not takes and peer.condition == PEER_DOWN:
        refused[0] += count - done
        return count
    if done < count:
        peer.blocked = PEER_BUSY
    return done


cdef void tick(peer_t *peer) noexcept nogil:
    """Push what the kernel did not take at once."""
    cdef xdp_peer *base = (<xdp_peer *>peer).base
    cdef xsk_set *sockets
    lock_take(&base.lock)
    sockets = latest(base)
    peer.due = 0
    if sockets != NULL and sockets.sockets[0].copies and waiting(sockets.sockets[0]):
        push_all(sockets.sockets[0], peer)
    lock_release(&base.lock)


cdef bint settle(peer_t *peer, bint end) noexcept nogil:
    """Wait until the kernel has taken what it was given."""
    cdef int _i
    for _i in range(0 if end else SETTLE):
        tick(peer)
        if peer.due == 0:
            break
        usleep(PAUSE // 1000)
    peer.due = 0
    return False


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    """New sockets send at once, even if none of them is read yet since the guest has no slots."""
    cdef xdp_peer *base = (<xdp_peer *>peer).base
    cdef xsk_set *sockets
    cdef int done = count
    peer.blocked = PEER_TAKES
    lock_take(&base.lock)
    sockets = latest(base)
    if sockets == NULL:
        refused[0] += count
        peer.condition = PEER_DOWN
    else:
        done = send_by(sockets.sockets[0], peer, vectors, first, count, refused)
    lock_release(&base.lock)
    return done


# --- Python's side

cdef object failed(str what):
    return OSError(errno, f"{what}: {os.strerror(errno)}")


cdef class XdpProgram:
    """The program that gives a link's frames to the sockets of their RX queues, attached until `close` or the end of
    this process. `skb`: in the kernel's generic way, which every link has. OSError: it cannot be attached; EBUSY: the
    link has another one.
    """

    cdef int link
    cdef int map
    cdef readonly int index

    def __cinit__(self, int index, *, bint skb):
        cdef int program
        self.link = -1
        self.index = index
        self.map = xdp_make_map(MAX_QUEUES)
        if self.map < 0:
            raise failed("cannot make the map")
        program = xdp_load(self.map)
        if program < 0:
            raise failed("cannot load the program")
        self.link = xdp_attach(program, index, skb)
        error = None if self.link >= 0 else failed("cannot attach the program")
        close(program)
        if error is not None:
            raise error

    def close(self) -> None:
        """Detach the program. May be called again."""
        for fd in (self.link, self.map):
            if fd >= 0:
                close(fd)
        self.link = self.map = -1

    def __dealloc__(self):
        self.close()


cdef class XdpSocket:
    """The socket of one RX queue of a program's link, whose frames it gets at once.

    `zero_copy`: try whether the driver works in the socket's memory. OSError: EINVAL if there is no such queue, EBUSY
    if another socket has it, or had it a moment ago.
    """

    cdef xsk_t *own
    cdef readonly bint zero_copy

    def __cinit__(self, XdpProgram program, uint32_t queue, *, bint zero_copy=True):
        cdef xsk_t *own = <xsk_t *>calloc(1, sizeof(xsk_t))
        cdef void *area
        cdef int i
        if own == NULL:
            raise MemoryError
        self.own = own
        own.fd = xdp_open()
        if own.fd < 0:
            raise failed("cannot open an AF_XDP socket")
        area = mmap(
            NULL, (RX_CHUNKS + TX_CHUNKS) * CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if area == MAP_FAILED:
            raise MemoryError
        own.area = <uint8_t *>area
        if xdp_umem(own.fd, area, (RX_CHUNKS + TX_CHUNKS) * CHUNK, CHUNK) < 0:
            raise failed("cannot register memory")
        if xdp_rings(own.fd, RX_CHUNKS, TX_CHUNKS, &own.fill, &own.rx, &own.tx, &own.done) < 0:
            raise failed("cannot make the rings")
        for i in range(TX_CHUNKS):
            own.free[i] = <uint64_t>(RX_CHUNKS + i) * CHUNK
        own.free_count = TX_CHUNKS
        for i in range(RX_CHUNKS):
            (<uint64_t *>own.fill.slots)[i] = <uint64_t>i * CHUNK
        store_release(own.fill.producer, RX_CHUNKS)
        own.copies = not zero_copy or xdp_bind(own.fd, program.index, queue, False) < 0
        if own.copies and xdp_bind(own.fd, program.index, queue, True) < 0:
            raise failed("cannot bind to the queue")
        self.zero_copy = not own.copies
        if xdp_put(program.map, queue, own.fd) < 0:
            raise failed("cannot give the queue to the socket")

    @property
    def fd(self) -> int:
        """The socket, -1 once a peer has it."""
        return self.own.fd if self.own != NULL else -1

    def __dealloc__(self):
        free_socket(self.own)


cdef class XdpPeer(Peer):
    """Takes the frames of the sockets that `join` gave last, and sends through the first of them; without any, frames
    are refused.
    """

    cdef xdp_peer own

    def __cinit__(self, *, object owner=None, bint duplicated=False):
        self.peer = &self.own.peer
        self.owner = owner
        self.own.base = &self.own
        self.peer.fd = -1
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.release = release
        self.peer.send = send
        self.peer.tick = tick
        self.peer.settle = settle
        if not duplicated:
            self.peer.fd = epoll_create1(EPOLL_CLOEXEC)
            if self.peer.fd < 0:
                raise OSError(errno, "cannot make a peer's descriptor")

    def __dealloc__(self):
        self.leave()
        if self.peer.fd >= 0:
            close(self.peer.fd)

    def join(self, list sockets) -> None:
        """Use these XdpSockets from the next read on, at least one; they leave their objects. Callable from any thread,
        but from one at a time. ValueError: there are none, or too many.
        """
        cdef xsk_set *made
        cdef XdpSocket each
        cdef epoll_event event
        if not 0 < len(sockets) <= MAX_QUEUES or any((<XdpSocket?>each).own == NULL for each in sockets):
            raise ValueError("from 1 to 64 sockets, which no other peer has")
        made = <xsk_set *>calloc(1, sizeof(xsk_set))
        if made == NULL:
            raise MemoryError
        for each in sockets:
            event.events = EPOLLIN
            event.data.u64 = 0
            epoll_ctl(self.peer.fd, EPOLL_CTL_ADD, each.own.fd, &event)
            made.sockets[made.count] = each.own
            made.count += 1
            each.own = NULL
        free_set(<xsk_set *>exchange_pointer(&self.own.next, made))
        if self.own.set == NULL:
            take_next(&self.own)             # no frame of an earlier set can be in use

    def leave(self) -> None:
        """Close the sockets, which no worker serves now. May be called again."""
        free_set(<xsk_set *>exchange_pointer(&self.own.next, NULL))
        free_set(self.own.set)
        self.own.set = NULL

    @property
    def bound(self) -> bool:
        """Whether the sockets' link is still there: a socket whose link was removed never gets another (ENXIO)."""
        cdef bint found = False
        cdef xsk_set *sockets
        lock_take(&self.own.lock)
        sockets = latest(&self.own)
        if sockets != NULL:
            found = xdp_kick_tx(sockets.sockets[0].fd) >= 0 or errno not in (ENXIO, ENODEV)
        lock_release(&self.own.lock)
        return found

    @property
    def lost(self) -> int:
        """Received frames that the kernel dropped: the rings were full, or the frame longer than 3840 bytes."""
        cdef uint64_t total = 0
        cdef xsk_set *sockets
        cdef int i
        lock_take(&self.own.lock)
        sockets = latest(&self.own)
        if sockets != NULL:
            for i in range(sockets.count):
                total += xdp_lost(sockets.sockets[i].fd)
        lock_release(&self.own.lock)
        return total

    def duplicate(self, int fd) -> Peer:
        """A peer that sends through the sockets of this one, and takes no frames; it needs no descriptor."""
        cdef XdpPeer copy = XdpPeer(owner=self, duplicated=True)
        copy.own.base = self.own.base
        return copy
