# SPDX-License-Identifier: Apache-2.0
"""The network behind a queue as the data plane sees it: a file descriptor with a frame format."""
from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t
from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.sockets cimport iovec, mmsghdr

cdef enum:
    PEER_NULL = 0                # takes everything, gives its template over and over (or nothing)
    PEER_TAP = 1                 # one frame per read and write
    PEER_SOCKET = 2              # one frame per message: AF_PACKET, and sockets of kind SEQPACKET and DGRAM

    BURST_FRAMES = 64            # frames of one burst at most
    FRAME_HEADROOM = 64          # before each frame: its virtio_net_hdr, and room to put a VLAN tag back
    FRAME_BYTES = 65536 + 512    # the largest frame with its tags
    FRAME_STRIDE = 17 * 4096     # from one frame to the next in an arena: whole pages, and off powers of two
    VNET_HDR = 10
    VLAN_TAG = 4


cdef struct frame_t:             # a frame in private memory; its virtio_net_hdr lies in the VNET_HDR bytes before data
    uint8_t *data
    uint32_t length


cdef struct peer_t:
    int fd
    int kind
    int header                   # VNET_HDR or 0
    bint auxdata                 # AF_PACKET: the VLAN tag comes aside
    uint32_t caps                # CAN_* of offload.pxd: what it takes
    bint blocked                 # it takes no more: wait for POLLOUT
    bint congested               # ... or try again in a moment: what is full lies behind it, and POLLOUT says nothing
    bint closed                  # its far end is gone
    const uint8_t *template      # PEER_NULL: a virtio_net_hdr and a frame
    uint32_t template_length
    uint8_t *handed_out          # the template's frame, where every reader gets it


cdef inline virtio_net_hdr *vnet_header(frame_t *frame) noexcept nogil:
    return <virtio_net_hdr *>(frame.data - VNET_HDR)


cdef inline bint peer_is_full(peer_t *peer) noexcept nogil:
    """Whether errno says that the peer takes no more at present."""
    if errno != EAGAIN and errno != ENOBUFS and errno != ENOMEM:
        return False
    peer.blocked = True
    peer.congested = errno != EAGAIN
    return True


cdef int peer_recv(peer_t *peer, uint8_t *arena, frame_t *frames, int count) noexcept nogil
cdef int recv_into(peer_t *peer, mmsghdr *messages, uint8_t *aux, int count) noexcept nogil
cdef void restore_tag(frame_t *frame, uint32_t tag, bint header) noexcept nogil
cdef int send_vectors(
    peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
cdef int peer_send(peer_t *peer, frame_t *frames, int count, int *refused) noexcept nogil


cdef class Peer:
    cdef peer_t peer
    cdef object owner
    cdef bytes template
    cdef uint8_t *memory
