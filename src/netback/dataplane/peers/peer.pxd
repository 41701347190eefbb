# SPDX-License-Identifier: Apache-2.0
"""The network behind a queue as the data plane sees it: a table of functions and the descriptor to wait for.

A peer is a struct whose first member is a `peer_t` and a Python class that fills it (tap.pyx, socket.pyx, stream.pyx
and virtqueue.pyx show a whole one each). A skeleton:

    cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
        Return up to `count` pending frames, in order: their number, 0 if there are none, -1 if the read failed. Each
        has its virtio_net_hdr in the VNET_HDR bytes before `data` (zeros if the peer sends none), and FRAME_HEADROOM
        bytes of room in all. The frames are in `arena`, FRAME_STRIDE apart, or in the peer's own memory; they stay
        unchanged until `release`. No frame is longer than `largest` (FRAME_BYTES, or LARGE_BYTES), and one longer
        than FRAME_BYTES comes alone. What cannot be returned is counted in `short_frames` or `truncated`. The caller
        may change the headers in place.

    cdef void release(peer_t *peer) noexcept nogil
        Take back every returned frame; the caller uses none afterwards. NULL if all were in the arena.

    cdef int read(peer_t *peer, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil
        The same into the caller's memory, `per_frame` vectors for each: the frontend's granted pages. A length of 0 is
        no frame. NULL if the peer returns its own memory.

    cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
        Send up to BURST_FRAMES frames in order, the i-th in vectors first[i] to first[i + 1] - 1, `header` bytes of
        virtio_net_hdr first; return how many the peer is done with. It counts those that it will never accept (the
        link is down, too long) in `refused`. If fewer than `count` are done, `blocked` names what to wait for.

    cdef uint8_t *room(peer_t *peer, uint32_t size) noexcept nogil
        Memory of `size` bytes in which the caller may place the frames of its next `send`s, each with FRAME_HEADROOM
        before it, one behind the other; FRAME_HEADROOM after its beginning a page begins. A frame that lies there may
        cost the peer no copy, and must not be changed once it was sent. NULL: use other memory. No function if the
        peer has no use for it.

    cdef void check(peer_t *peer) noexcept nogil
        The descriptor reports an error: fetch it, so that it is no longer reported, and set `condition`. NULL if it
        never reports one.

    cdef void wake(peer_t *peer) noexcept nogil
        The descriptor is readable, which announces frames, room or another condition: make it unreadable until there
        is more. NULL if readable means frames alone, and writable means room. A peer with `wake` may keep bytes of a
        frame that it took in part: while `unsent` is set, its descriptor is watched whatever the link waits for.

    cdef void tick(peer_t *peer) noexcept nogil
        The time `due` has come. NULL if `receive` looks at the clock itself.

    cdef bint settle(peer_t *peer, bint end) noexcept nogil
        The link will not be served any more, or is joined to another peer. Wait until the network has taken what lies
        in the peer, 50 ms at most, and return whether frames for the guest lie in it: they are then received, and
        this is called again, a few times. The last call has `end`: give back what was attached. NULL if frames never
        lie in the peer.

Only the thread that serves the link calls these functions. None but `settle` waits, none raises. A filter on a frame's
path is a peer around another one (filter.pxd): it fills the table with its own functions and calls the inner one's; a
link without a filter has no cost.
"""
from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.arena cimport arena_t
from netback.dataplane.sockets cimport iovec

cdef enum:
    BURST_FRAMES = 64            # most frames of one burst
    FRAME_HEADROOM = 64          # bytes before each frame: its virtio_net_hdr, and room to insert a VLAN tag
    FRAME_BYTES = 65536 + 512    # the largest frame with its tags
    FRAME_STRIDE = 17 * 4096     # distance between frames in an arena: whole pages, and not a power of two
    LARGE_BYTES = 8 * 65536 + 512        # of a BIG TCP frame (Linux: GSO_MAX_SIZE, GRO_MAX_SIZE)
    LARGE_STRIDES = 8            # distance for such a frame
    VNET_HDR = 10
    VLAN_TAG = 4


cdef enum:                      # peer_t.blocked: why the last send did not accept everything
    PEER_TAKES                   # it accepted everything
    PEER_FULL                    # EAGAIN: the descriptor becomes writable when there is room
    PEER_BUSY                    # ENOBUFS, ENOMEM: a queue behind the peer is full; try again in a moment
    PEER_UNANNOUNCED             # full, but no event tells when it has room: try again in a moment, and lose nothing


cdef enum:                      # peer_t.by_bell
    BELL_FRAMES = 1
    BELL_ROOM = 2


cdef enum:                      # peer_t.condition
    PEER_UP
    PEER_DOWN                    # frames are refused now; the same descriptor may work again
    PEER_CLOSED                  # hang-up, or a removed tap: the descriptor stays ready and returns nothing


cdef struct frame_t:             # a frame in private memory; its virtio_net_hdr is in the VNET_HDR bytes before data
    uint8_t *data
    uint32_t length


cdef struct received_t:          # what `read` returns about a frame
    uint32_t length              # without the virtio_net_hdr
    uint32_t tag                 # the VLAN tag that the kernel removed (TPID << 16 | TCI), or 0


cdef struct peer_t:
    int fd                       # to wait for; -1: never waited for
    int bell                     # 0: none; once made it stays
    uint32_t by_bell             # BELL_*: what it announces at present
    uint64_t due                 # ns; 0: never
    int header                   # VNET_HDR, or 0: frames are plain
    uint32_t caps                # CAN_* of offload.pxd: offloads that it accepts
    bint unread                  # set by the caller: it read no further, and does when the descriptor is readable
    uint32_t frames_per_read     # 1: each read returns one frame, however many are requested
    int blocked
    bint unsent                  # bytes that it took wait for room
    bint more                    # the last `receive` returned fewer frames than it could: a filter dropped some
    int condition
    uint32_t short_frames        # messages without a frame, and
    uint32_t truncated           # frames longer than any buffer: the caller moves both to its counters
    const arena_t *pages         # its own memory, if pages of that are granted to this domain; else NULL
    int (*receive)(peer_t *, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
    void (*release)(peer_t *) noexcept nogil
    int (*read)(peer_t *, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil
    int (*send)(peer_t *, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
    uint8_t *(*room)(peer_t *, uint32_t size) noexcept nogil
    void (*check)(peer_t *) noexcept nogil
    void (*wake)(peer_t *) noexcept nogil
    bint (*settle)(peer_t *, bint end) noexcept nogil
    void (*tick)(peer_t *) noexcept nogil


cdef inline virtio_net_hdr *vnet_header(frame_t *frame) noexcept nogil:
    return <virtio_net_hdr *>(frame.data - VNET_HDR)


cdef inline bint takes_no_more(peer_t *peer) noexcept nogil:
    """Whether errno means that the peer is full now; sets `blocked` accordingly."""
    if errno != EAGAIN and errno != ENOBUFS and errno != ENOMEM:
        return False
    peer.blocked = PEER_FULL if errno == EAGAIN else PEER_BUSY
    return True


cdef inline uint64_t earliest(uint64_t due, uint64_t other) noexcept nogil:
    """The earlier of two times as in `due`: 0 is never."""
    return other if other and (not due or other < due) else due


cdef inline void peer_works(peer_t *peer) noexcept nogil:
    """A frame passed: clear the down condition."""
    if peer.condition == PEER_DOWN:
        peer.condition = PEER_UP


cdef int receive_in_arena(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
cdef void restore_tag(frame_t *frame, uint32_t tag, bint header) noexcept nogil
cdef uint32_t frame_vectors(
    peer_t *peer, frame_t *frames, int count, iovec *vectors, uint32_t *first) noexcept nogil


cdef class Peer:
    cdef peer_t *peer
    cdef object owner
