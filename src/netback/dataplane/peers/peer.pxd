# SPDX-License-Identifier: Apache-2.0
"""The network behind a queue as the data plane sees it: a table of functions and the descriptor to wait for.

A peer is a struct whose first member is a `peer_t` and a Python class that fills it (tap.pyx and socket.pyx show a
whole one each). A skeleton:

    cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
        Hand out up to `count` frames that wait, in order: how many, 0 where none does, -1 where the read failed.
        Each has its virtio_net_hdr in the VNET_HDR bytes before `data`, zeros where the peer sends none, and room for
        FRAME_HEADROOM in all. The frames lie in `arena`, at FRAME_STRIDE from one to the next, or in memory of the
        peer's own; they stay as they are until `release`. No frame is longer than `largest` (FRAME_BYTES, or
        LARGE_BYTES), and one longer than FRAME_BYTES comes alone. What cannot be handed out is counted, in
        `short_frames` or `truncated`. The caller may change the headers in place.

    cdef void release(peer_t *peer) noexcept nogil
        Take back every frame handed out; NULL where they all lay in the arena. No frame is used after it.

    cdef int read(peer_t *peer, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil
        The same into the caller's memory, `per_frame` vectors for each: the frontend's granted pages. A length of 0 is
        no frame. NULL where the peer hands out memory of its own.

    cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
        Take up to BURST_FRAMES frames in order, the i-th in vectors first[i] to first[i + 1] - 1, `header` bytes of
        virtio_net_hdr first: how many the peer is done with. It adds those that it will never take (the link is down,
        too long) to `refused`, as on a dead wire. Fewer than `count`: `blocked` says what to wait for.

    cdef void check(peer_t *peer) noexcept nogil
        The descriptor reports an error: fetch it, so that it is reported no more, and set `condition`. NULL without
        a descriptor.

Every function is called by the thread that serves the link and by no other. None waits, none raises. A filter on the
way of a frame is such a peer around another one: it fills the table with its own functions and calls the inner
one's; a link without a filter pays nothing for it.
"""
from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t
from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.sockets cimport iovec

cdef enum:
    BURST_FRAMES = 64            # frames of one burst at most
    FRAME_HEADROOM = 64          # before each frame: its virtio_net_hdr, and room to put a VLAN tag back
    FRAME_BYTES = 65536 + 512    # the largest frame with its tags
    FRAME_STRIDE = 17 * 4096     # from one frame to the next in an arena: whole pages, and off powers of two
    LARGE_BYTES = 8 * 65536 + 512        # of a BIG TCP frame (Linux: GSO_MAX_SIZE, GRO_MAX_SIZE)
    LARGE_STRIDES = 8            # that such a frame takes
    VNET_HDR = 10
    VLAN_TAG = 4


cdef enum:                      # peer_t.blocked: why the last send did not take everything
    PEER_TAKES                   # it did
    PEER_FULL                    # EAGAIN: the descriptor becomes writable when there is room
    PEER_BUSY                    # ENOBUFS, ENOMEM: what is full lies behind it; try again in a moment


cdef enum:                      # peer_t.condition
    PEER_UP
    PEER_DOWN                    # frames are refused at present; the same descriptor may work again
    PEER_CLOSED                  # hang-up, or a removed tap: the descriptor stays ready and gives nothing


cdef struct frame_t:             # a frame in private memory; its virtio_net_hdr lies in the VNET_HDR bytes before data
    uint8_t *data
    uint32_t length


cdef struct received_t:          # what `read` says of a frame
    uint32_t length              # without the virtio_net_hdr
    uint32_t tag                 # the VLAN tag that came aside (TPID << 16 | TCI), or 0


cdef struct peer_t:
    int fd                       # to wait for; -1: never waited for
    int header                   # VNET_HDR, or 0: frames are plain
    uint32_t caps                # CAN_* of offload.pxd: what it takes
    uint32_t frames_per_read     # 1: a read gives one frame, whatever it is asked for
    int blocked
    int condition
    uint32_t short_frames        # messages without a frame, and
    uint32_t truncated           # frames longer than any buffer: the caller moves both to its counters
    int (*receive)(peer_t *, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
    void (*release)(peer_t *) noexcept nogil
    int (*read)(peer_t *, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil
    int (*send)(peer_t *, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
    void (*check)(peer_t *) noexcept nogil


cdef inline virtio_net_hdr *vnet_header(frame_t *frame) noexcept nogil:
    return <virtio_net_hdr *>(frame.data - VNET_HDR)


cdef inline bint takes_no_more(peer_t *peer) noexcept nogil:
    """Whether errno says that the peer takes no more at present; `blocked` is set so."""
    if errno != EAGAIN and errno != ENOBUFS and errno != ENOMEM:
        return False
    peer.blocked = PEER_FULL if errno == EAGAIN else PEER_BUSY
    return True


cdef inline void peer_works(peer_t *peer) noexcept nogil:
    """A frame passed: what was down is up."""
    if peer.condition == PEER_DOWN:
        peer.condition = PEER_UP


cdef int receive_in_arena(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
cdef void restore_tag(frame_t *frame, uint32_t tag, bint header) noexcept nogil
cdef uint32_t frame_vectors(
    peer_t *peer, frame_t *frames, int count, iovec *vectors, uint32_t *first) noexcept nogil


cdef class Peer:
    cdef peer_t *peer
    cdef object owner
