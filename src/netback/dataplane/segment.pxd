# SPDX-License-Identifier: Apache-2.0
"""Segments a GSO frame as its virtio_net_hdr describes: TCP, UDP datagrams, IP fragments.

The packet may be in a tunnel (VXLAN, Geneve, GRE, IP in IP): then the outer headers also get the lengths,
identifications and checksums of each segment.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from netback.dataplane.abi cimport (
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
    virtio_net_hdr,
)
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.headers cimport PROTO_TCP, PROTO_UDP, headers_t

cdef enum:                      # limits on what a sender may request to have segmented
    MIN_GSO_SIZE = 8            # Linux' TCP_MIN_GSO_SIZE: its smallest MSS (48) less the TCP options (40)
    MAX_SEGMENTS = 2048         # bounds the cost of one frame: 64 KiB at that MSS with timestamps is 1820 segments

    MAX_NETIF_FRAME = 0xFFFF    # bytes of a GSO frame on a netif ring: a TX request's size field

    KIND_TCP = 0
    KIND_UDP = 1
    KIND_FRAGMENTS = 2


cdef struct segments_t:         # a segmentation in progress: plain values, may be copied and kept between bursts
    uint64_t pseudo             # sum of the pseudo header without its length
    uint64_t outer_pseudo       # the same of the tunnel's UDP header
    uint32_t at                 # next payload byte of the frame
    uint32_t end                # first byte of the frame after the packet
    uint32_t largest            # bytes of the largest segment: the capacity that segments_next needs
    uint32_t count              # segments in all
    uint32_t index              # segments already returned
    uint32_t seq                # of the next segment, host order; for IPv6 fragments their identification
    uint16_t size               # payload bytes of each segment but the last
    uint16_t gso_size           # if not 0: each segment longer than this is a GSO frame itself, its checksum blank
    uint16_t head               # bytes of header of each segment
    uint16_t l3                 # positions in each segment
    uint16_t l4
    uint16_t outer_l3           # in a tunnel: the headers outside it
    uint16_t outer_l4
    uint16_t id                 # IPv4 identification of the first segment ...
    uint16_t id_step            # ... and the step from one segment's to the next one's
    uint16_t outer_id
    uint16_t datagram_sum       # IP fragments: the completed checksum of the whole datagram
    uint16_t next_header        # IPv6 fragments: the byte that must announce the fragment header
    uint16_t inserted           # IPv6 fragments: size of that header, inserted at l4
    uint16_t left_out           # IPv6 jumbograms: size of the header after the IPv6 header that segments do not have
    uint8_t version             # 4 or 6
    uint8_t outer_version       # 0: no tunnel
    uint8_t outer_udp
    uint8_t outer_summed        # the tunnel's UDP header has a checksum
    uint8_t kind


# Begin to segment; returns 0, or -1 if the frame cannot be segmented (drop it). `frame` is the whole frame, the same in
# each call. `whole`: GSO frames as long as a netif frame may be, for verdict OFFLOAD_SPLIT; else segments of gso_size.
cdef int segments_begin(segments_t *it, const uint8_t *frame, uint32_t length, const virtio_net_hdr *hdr,
                        bint whole) noexcept nogil
# Go on with segment `index` of one that has just begun; False: it has none such.
cdef bint segments_go_on(segments_t *it, uint32_t index) noexcept nogil
# Length of the next segment, written to `out`; 0: done, or capacity < it.largest. *meta: its description for a netif
# ring.
cdef uint32_t segments_next(segments_t *it, const uint8_t *frame, uint8_t *out, uint32_t capacity,
                            frame_meta *meta) noexcept nogil


cdef inline int kind_of(const headers_t *h, uint8_t gso_type) noexcept nogil:
    """How to segment a frame of a virtio GSO type; -1 if the type does not match the frame."""
    if gso_type == VIRTIO_NET_HDR_GSO_TCPV4:
        return KIND_TCP if h.protocol == PROTO_TCP and h.version == 4 else -1
    if gso_type == VIRTIO_NET_HDR_GSO_TCPV6:
        return KIND_TCP if h.protocol == PROTO_TCP and h.version == 6 else -1
    if h.protocol != PROTO_UDP:
        return -1
    if gso_type == VIRTIO_NET_HDR_GSO_UDP_L4:
        return KIND_UDP
    return KIND_FRAGMENTS if gso_type == VIRTIO_NET_HDR_GSO_UDP else -1


cdef inline uint32_t segments_of(const headers_t *outer, const headers_t *h, uint8_t gso_type,
                                 uint16_t size) noexcept nogil:
    """The number of segments, 0 if it cannot be segmented. Fragments begin after the IP header, in multiples of
    eight, and not in a tunnel."""
    cdef int kind = kind_of(h, gso_type)
    cdef uint32_t step = size & ~7u if kind == KIND_FRAGMENTS else size
    cdef uint32_t begin = h.l4 if kind == KIND_FRAGMENTS else h.payload
    cdef uint32_t count
    if kind < 0 or step < MIN_GSO_SIZE or (kind == KIND_FRAGMENTS and h.l3 != outer.l3):
        return 0
    if begin - outer.l3 + min(step, h.end - begin) > 0xFFFF:    # no IP header can have such a length
        return 0
    count = (h.end - begin + step - 1) // step
    if count == 0:
        return 1                        # only headers
    return count if count <= MAX_SEGMENTS else 0
