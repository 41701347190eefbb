# SPDX-License-Identifier: Apache-2.0
"""Verdicts between a netif ring and a virtio_net_hdr peer: see offload.pxd.

- A guest may leave anything in the checksum field of a csum_blank frame, so the pseudo-header sum is always written.
- Toward a guest csum_blank is kept only where netfront finds the same header: the outermost TCP or UDP header of an
  untagged frame. netback completes every other checksum.
- The packet ends where its IP header says; what follows in the frame is padding, never payload, never summed.
- Fragments and packets whose lengths contradict each other have no checksum to complete.
- A GSO frame whose checksum field is not the outermost transport header's belongs to a tunnel: the inner packet is
  segmented, or the frame is dropped. It is never segmented at the outermost header.
- A GSO frame without an IP length, or of more than 64 KiB (Linux' BIG TCP), goes to a guest as GSO frames that netif
  can express.

The Python functions at the end are for tests and tools: they copy, so a sanitizer notices bytes read past the end.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from netback.dataplane.abi cimport (
    GSO_TYPE_NONE, GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, virtio_net_hdr,
)
from netback.dataplane.checksum cimport complete_checksum, fold, put_sum, swap16
from netback.dataplane.extras cimport clear_meta, frame_meta, set_gso
from netback.dataplane.headers cimport (
    PACKET_IN_TUNNEL, PROTO_TCP, exact, headers_t, parse, parse_gso, plain_route, pseudo_sum,
)
from netback.dataplane.segment cimport segments_begin, segments_next, segments_of, segments_t


cdef inline uint32_t csum_cap(const headers_t *h) noexcept nogil:
    return CAN_CSUM4 if h.version == 4 else CAN_CSUM6


cdef inline uint32_t tso_caps(const headers_t *h) noexcept nogil:
    return CAN_TSO4 | CAN_CSUM4 if h.version == 4 else CAN_TSO6 | CAN_CSUM6


# --- from a netif ring

cdef inline int blank_to_virtio(const headers_t *h, uint32_t length, uint32_t caps) noexcept nogil:
    """Complete frames with padding here, since a peer would include the padding in the sum."""
    if not h.sized:
        return OFFLOAD_DROP
    return OFFLOAD_PASS if caps & csum_cap(h) and h.end == length else OFFLOAD_COMPLETE


cdef inline int gso_to_virtio(const headers_t *h, uint32_t caps, uint16_t size, virtio_net_hdr *hdr) noexcept nogil:
    hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if h.version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
    hdr.gso_size = size
    hdr.hdr_len = <uint16_t>h.payload
    return OFFLOAD_PASS if h.sized and caps & tso_caps(h) == tso_caps(h) else OFFLOAD_SEGMENT


cdef inline uint8_t virtio_gso(uint8_t gso_type) noexcept nogil:
    """netif's GSO type in virtio's numbers; an unknown type maps to one that never segments."""
    if gso_type == GSO_TYPE_TCPV4:
        return VIRTIO_NET_HDR_GSO_TCPV4
    return VIRTIO_NET_HDR_GSO_TCPV6 if gso_type == GSO_TYPE_TCPV6 else VIRTIO_NET_HDR_GSO_NONE


cdef int netif_work(uint8_t *frame, uint32_t have, uint32_t *length, const frame_meta *src, uint32_t caps,
                    virtio_net_hdr *hdr, uint8_t *fixed_up) noexcept nogil:
    cdef headers_t h
    cdef uint32_t count = 1
    if parse(frame, have, length[0], &h):
        return OFFLOAD_DROP
    if src.gso_type != GSO_TYPE_NONE:
        count = segments_of(&h, &h, virtio_gso(src.gso_type), src.gso_size)
        if count == 0:
            return OFFLOAD_DROP
        fixed_up[0] = not src.csum_blank
        length[0] = h.end
    put_sum(frame + h.l4 + h.check, fold(pseudo_sum(frame, &h) + swap16(h.end - h.l4)))
    hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    hdr.csum_start = <uint16_t>h.l4
    hdr.csum_offset = h.check
    if count > 1 or (src.gso_type != GSO_TYPE_NONE and not h.sized):
        return gso_to_virtio(&h, caps, src.gso_size, hdr)
    return blank_to_virtio(&h, length[0], caps)


# --- toward a netif ring

cdef inline bint netfront_finds(const headers_t *h, const virtio_net_hdr *hdr) noexcept nogil:
    """Whether the peer's header requests the same checksum that a frontend finds by itself."""
    return (hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and h.tags == 0 and plain_route(h)
            and hdr.csum_start == h.l4 and hdr.csum_offset == h.check)


cdef inline int blank_to_netif(const headers_t *h, uint32_t caps, frame_meta *out) noexcept nogil:
    if not caps & csum_cap(h):
        return OFFLOAD_COMPLETE
    out.csum_blank = out.data_validated = 1
    return OFFLOAD_PASS


cdef int gso_to_netif(const uint8_t *frame, uint32_t have, uint32_t *length, const virtio_net_hdr *hdr, uint32_t caps,
                      frame_meta *out) noexcept nogil:
    cdef headers_t outer, h
    cdef int place = parse_gso(frame, have, length[0], hdr, &outer, &h)
    cdef uint32_t count = 0
    if place >= 0:
        count = segments_of(&outer, &h, hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN, hdr.gso_size)
    if count == 0:
        return OFFLOAD_DROP
    if place == PACKET_IN_TUNNEL or not netfront_finds(&h, hdr) or (count == 1 and not h.sized):
        return OFFLOAD_SEGMENT
    if count > 1 and (h.protocol != PROTO_TCP or caps & tso_caps(&h) != tso_caps(&h)):
        return OFFLOAD_SEGMENT
    if not h.sized or h.jumbo:
        return OFFLOAD_SPLIT
    length[0] = h.end
    if count == 1:
        return blank_to_netif(&h, caps, out)
    set_gso(out, GSO_TYPE_TCPV4 if h.version == 4 else GSO_TYPE_TCPV6, hdr.gso_size)
    return OFFLOAD_PASS


cdef int virtio_work(const uint8_t *frame, uint32_t have, uint32_t *length, const virtio_net_hdr *hdr, uint32_t caps,
                     frame_meta *out) noexcept nogil:
    cdef headers_t h
    cdef bint blank = hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    if blank and <uint32_t>hdr.csum_start + hdr.csum_offset + 2 > length[0]:
        out.data_validated = 0
        return OFFLOAD_DROP
    if hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN != VIRTIO_NET_HDR_GSO_NONE:
        out.data_validated = 0
        return gso_to_netif(frame, have, length, hdr, caps, out)
    if length[0] > MAX_FRAME:
        out.data_validated = 0
        return OFFLOAD_DROP
    if not blank:
        return OFFLOAD_PASS
    out.data_validated = 0
    if parse(frame, have, length[0], &h) or not exact(&h, length[0]) or not netfront_finds(&h, hdr):
        return OFFLOAD_COMPLETE
    return blank_to_netif(&h, caps, out)


# --- for tests and tools

DROP = OFFLOAD_DROP
PASS = OFFLOAD_PASS
COMPLETE = OFFLOAD_COMPLETE
SEGMENT = OFFLOAD_SEGMENT
SPLIT = OFFLOAD_SPLIT


cdef virtio_net_hdr header_of(header) except *:
    cdef virtio_net_hdr hdr
    hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size, hdr.csum_start, hdr.csum_offset = header
    return hdr


cdef uint8_t *room(size_t size) except NULL:
    """A copy on the heap, exactly as long, so that a sanitizer notices overruns."""
    cdef uint8_t *bytes_ = <uint8_t *>malloc(size)
    if bytes_ is NULL:
        raise MemoryError
    return bytes_


cdef uint8_t *copy_of(const uint8_t *data, size_t size) except NULL:
    return <uint8_t *>memcpy(room(size), data, size)


def to_virtio(bytearray frame, *, bint csum_blank=False, bint data_validated=False, uint8_t gso_type=0,
              uint16_t gso_size=0, uint32_t caps=0, have=None):
    """netif_to_virtio: (verdict, virtio header's six numbers, fixed up). May write the frame's checksum field, and
    shorten the frame."""
    cdef uint32_t length = len(frame)
    cdef uint32_t present = length if have is None else min(<uint32_t>have, length)
    cdef uint8_t *copy = copy_of(frame, present)
    cdef frame_meta src
    cdef virtio_net_hdr hdr
    cdef uint8_t fixed_up
    clear_meta(&src)
    src.csum_blank, src.data_validated, src.gso_type, src.gso_size = csum_blank, data_validated, gso_type, gso_size
    with nogil:
        verdict = netif_to_virtio(copy, present, &length, &src, caps, &hdr, &fixed_up)
    frame[:present] = copy[:present]
    del frame[length:]
    free(copy)
    header = (hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size, hdr.csum_start, hdr.csum_offset)
    return verdict, header, bool(fixed_up)


def to_netif(bytes frame, header, *, uint32_t caps=0, have=None):
    """virtio_to_netif: (verdict, (csum_blank, data_validated, gso_type, gso_size), bytes of the frame that pass)."""
    cdef uint32_t length = len(frame)
    cdef uint32_t present = length if have is None else min(<uint32_t>have, length)
    cdef virtio_net_hdr hdr = header_of(header)
    cdef uint8_t *copy = copy_of(frame, present)
    cdef frame_meta out
    with nogil:
        verdict = virtio_to_netif(copy, present, &length, &hdr, caps, &out)
    free(copy)
    return verdict, (bool(out.csum_blank), bool(out.data_validated), out.gso_type, out.gso_size), length


def complete(bytearray frame, header):
    """complete_checksum, in place."""
    cdef uint32_t length = len(frame)
    cdef virtio_net_hdr hdr = header_of(header)
    cdef uint8_t *copy = copy_of(frame, length)
    with nogil:
        complete_checksum(copy, length, &hdr)
    frame[:] = copy[:length]
    free(copy)


def split(bytes frame, header, *, bint whole=True):
    """segments_begin and segments_next: the segments of a GSO frame, each with its flags as to_netif returns them; none
    if it cannot be segmented."""
    cdef uint32_t length = len(frame)
    cdef uint32_t size
    cdef virtio_net_hdr hdr = header_of(header)
    cdef segments_t it
    cdef frame_meta meta
    cdef uint8_t *copy = copy_of(frame, length)
    cdef uint8_t *out = NULL
    segments = []
    if segments_begin(&it, copy, length, &hdr, whole) == 0:
        out = room(it.largest)
        while size := segments_next(&it, copy, out, it.largest, &meta):
            flags = bool(meta.csum_blank), bool(meta.data_validated), meta.gso_type, meta.gso_size
            segments.append((out[:size], flags))
    free(out)
    free(copy)
    return segments


def segment(bytes frame, header):
    """The segments of a GSO frame for receivers without GSO."""
    return [piece for piece, _ in split(frame, header, whole=False)]
