# SPDX-License-Identifier: Apache-2.0
"""Checksum and segmentation work between a netif ring and a virtio_net_hdr peer: see offload.pxd.

The rules (what may be passed on, what is completed here, what is cut):
- A guest may leave anything in the checksum field of a csum_blank frame, so the pseudo-header sum is always written.
- Toward a guest csum_blank is kept only where netfront finds the same header again: the outermost TCP or UDP of an
  untagged frame whose IP length is the frame's. All else is completed here.
- The packet ends where its IP header says; what follows in the frame is padding, never payload, never summed.
- Fragments and packets whose lengths contradict each other have no checksum to complete.

The Python functions at the end are for tests and tools: they copy, and let a sanitizer see every byte read too far.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from netback.dataplane.abi cimport (
    GSO_TYPE_NONE, GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, virtio_net_hdr,
)
from netback.dataplane.checksum cimport complete_checksum, fold, put_sum, swap16
from netback.dataplane.headers cimport PROTO_TCP, exact, headers_t, parse, plain_route, pseudo_sum
from netback.dataplane.segment cimport segments_begin, segments_next, segments_of, segments_t


cdef inline uint32_t csum_cap(const headers_t *h) noexcept nogil:
    return CAN_CSUM4 if h.version == 4 else CAN_CSUM6


cdef inline uint32_t tso_caps(const headers_t *h) noexcept nogil:
    return CAN_TSO4 | CAN_CSUM4 if h.version == 4 else CAN_TSO6 | CAN_CSUM6


cdef inline int blank_to_virtio(const headers_t *h, uint32_t length, uint32_t caps) noexcept nogil:
    """Padding is completed here, since a peer would sum it."""
    if not h.sized:
        return OFFLOAD_DROP
    return OFFLOAD_PASS if caps & csum_cap(h) and h.end == length else OFFLOAD_COMPLETE


cdef inline int gso_to_virtio(const headers_t *h, uint32_t length, uint32_t caps, uint16_t size,
                              virtio_net_hdr *hdr) noexcept nogil:
    hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if h.version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
    hdr.gso_size = size
    hdr.hdr_len = <uint16_t>h.payload
    return OFFLOAD_PASS if exact(h, length) and caps & tso_caps(h) == tso_caps(h) else OFFLOAD_SEGMENT


cdef inline uint8_t virtio_gso(uint8_t gso_type) noexcept nogil:
    """netif's GSO type as virtio has it; an unknown one as one that cuts nothing."""
    if gso_type == GSO_TYPE_TCPV4:
        return VIRTIO_NET_HDR_GSO_TCPV4
    return VIRTIO_NET_HDR_GSO_TCPV6 if gso_type == GSO_TYPE_TCPV6 else VIRTIO_NET_HDR_GSO_NONE


cdef int netif_work(uint8_t *frame, uint32_t have, uint32_t length, const netif_offload *src, uint32_t caps,
                    virtio_net_hdr *hdr, uint8_t *fixed_up) noexcept nogil:
    cdef headers_t h
    cdef uint32_t count = 1
    if parse(frame, have, length, &h):
        return OFFLOAD_DROP
    if src.gso_type != GSO_TYPE_NONE:
        count = segments_of(&h, virtio_gso(src.gso_type), src.gso_size)
        if count == 0:
            return OFFLOAD_DROP
        fixed_up[0] = not src.csum_blank
    put_sum(frame + h.l4 + h.check, fold(pseudo_sum(frame, &h) + swap16(h.end - h.l4)))
    hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    hdr.csum_start = <uint16_t>h.l4
    hdr.csum_offset = h.check
    if count > 1 or (src.gso_type != GSO_TYPE_NONE and not h.sized):
        return gso_to_virtio(&h, length, caps, src.gso_size, hdr)
    return blank_to_virtio(&h, length, caps)


cdef inline bint netfront_finds(const headers_t *h, const virtio_net_hdr *hdr) noexcept nogil:
    """The peer's header asks for the very checksum that a frontend finds by itself."""
    return (hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and h.tags == 0 and plain_route(h)
            and hdr.csum_start == h.l4 and hdr.csum_offset == h.check)


cdef int gso_to_netif(const headers_t *h, uint32_t length, const virtio_net_hdr *hdr, uint32_t caps,
                      netif_offload *out) noexcept nogil:
    """Windows is slow with RX GSO that does not carry both checksum flags."""
    if (h.protocol != PROTO_TCP or not exact(h, length) or not netfront_finds(h, hdr)
            or caps & tso_caps(h) != tso_caps(h)):
        return OFFLOAD_SEGMENT
    out.csum_blank = out.data_validated = 1
    out.gso_type = GSO_TYPE_TCPV4 if h.version == 4 else GSO_TYPE_TCPV6
    out.gso_size = hdr.gso_size
    return OFFLOAD_PASS


cdef int virtio_work(const uint8_t *frame, uint32_t have, uint32_t length, const virtio_net_hdr *hdr, uint32_t caps,
                     netif_offload *out) noexcept nogil:
    cdef headers_t h
    cdef bint parsed
    cdef bint blank = hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    cdef uint8_t gso_type = hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    cdef uint32_t count
    if blank and <uint32_t>hdr.csum_start + hdr.csum_offset + 2 > length:
        out.data_validated = 0
        return OFFLOAD_DROP
    if not blank and gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return OFFLOAD_PASS
    out.data_validated = 0
    parsed = parse(frame, have, length, &h) == 0
    if gso_type != VIRTIO_NET_HDR_GSO_NONE:
        count = segments_of(&h, gso_type, hdr.gso_size) if parsed else 0
        if count == 0:
            return OFFLOAD_DROP
        if count > 1 or not exact(&h, length) or not netfront_finds(&h, hdr):
            return gso_to_netif(&h, length, hdr, caps, out)
    if not (parsed and exact(&h, length) and netfront_finds(&h, hdr) and caps & csum_cap(&h)):
        return OFFLOAD_COMPLETE
    out.csum_blank = out.data_validated = 1
    return OFFLOAD_PASS


# --- for tests and tools

DROP = OFFLOAD_DROP
PASS = OFFLOAD_PASS
COMPLETE = OFFLOAD_COMPLETE
SEGMENT = OFFLOAD_SEGMENT


cdef virtio_net_hdr header_of(header) except *:
    cdef virtio_net_hdr hdr
    hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size, hdr.csum_start, hdr.csum_offset = header
    return hdr


cdef uint8_t *room(size_t size) except NULL:
    """On the heap and not a byte larger, for a sanitizer to watch its end."""
    cdef uint8_t *bytes_ = <uint8_t *>malloc(size)
    if bytes_ is NULL:
        raise MemoryError
    return bytes_


cdef uint8_t *copy_of(const uint8_t *data, size_t size) except NULL:
    return <uint8_t *>memcpy(room(size), data, size)


def to_virtio(bytearray frame, *, bint csum_blank=False, bint data_validated=False, uint8_t gso_type=0,
              uint16_t gso_size=0, uint32_t caps=0, have=None):
    """netif_to_virtio: (verdict, virtio header's six numbers, fixed up). May write the frame's checksum field."""
    cdef uint32_t length = len(frame)
    cdef uint32_t present = length if have is None else min(<uint32_t>have, length)
    cdef uint8_t *copy = copy_of(frame, present)
    cdef netif_offload src
    cdef virtio_net_hdr hdr
    cdef uint8_t fixed_up
    src.csum_blank, src.data_validated, src.gso_type, src.gso_size = csum_blank, data_validated, gso_type, gso_size
    with nogil:
        verdict = netif_to_virtio(copy, present, length, &src, caps, &hdr, &fixed_up)
    frame[:present] = copy[:present]
    free(copy)
    header = (hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size, hdr.csum_start, hdr.csum_offset)
    return verdict, header, bool(fixed_up)


def to_netif(bytes frame, header, *, uint32_t caps=0, have=None):
    """virtio_to_netif: (verdict, (csum_blank, data_validated, gso_type, gso_size))."""
    cdef uint32_t length = len(frame)
    cdef uint32_t present = length if have is None else min(<uint32_t>have, length)
    cdef virtio_net_hdr hdr = header_of(header)
    cdef uint8_t *copy = copy_of(frame, present)
    cdef netif_offload out
    with nogil:
        verdict = virtio_to_netif(copy, present, length, &hdr, caps, &out)
    free(copy)
    return verdict, (bool(out.csum_blank), bool(out.data_validated), out.gso_type, out.gso_size)


def complete(bytearray frame, header):
    """complete_checksum, in place."""
    cdef uint32_t length = len(frame)
    cdef virtio_net_hdr hdr = header_of(header)
    cdef uint8_t *copy = copy_of(frame, length)
    with nogil:
        complete_checksum(copy, length, &hdr)
    frame[:] = copy[:length]
    free(copy)


def segment(bytes frame, header):
    """segments_begin and segments_next: the frames that a GSO frame is cut into; none if it cannot be cut."""
    cdef uint32_t length = len(frame)
    cdef uint32_t size
    cdef virtio_net_hdr hdr = header_of(header)
    cdef segments_t it
    cdef uint8_t *copy = copy_of(frame, length)
    cdef uint8_t *out = NULL
    segments = []
    if segments_begin(&it, copy, length, &hdr) == 0:
        out = room(it.largest)
        while size := segments_next(&it, copy, out, it.largest):
            segments.append(out[:size])
    free(out)
    free(copy)
    return segments
