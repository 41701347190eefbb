# SPDX-License-Identifier: Apache-2.0
"""Parses the headers of a frame: see headers.pxd."""
from libc.stdint cimport uint8_t, uint32_t

from netback.dataplane.abi cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio_net_hdr

cdef enum:
    TYPE_ETHERNET = 0x6558      # transparent Ethernet bridging

    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131
    OPTION_SSRR = 137
    OPTION_JUMBO = 0xC2
    MAX_JUMBO = 1 << 24         # far above Linux' largest GSO frame (512 KiB); keeps sums of positions in 32 bits

    PROTO_IPV4 = 4
    PROTO_IPV6 = 41
    PROTO_GRE = 47

    VXLAN_HEAD = 8
    VXLAN_VNI = 0x08            # flag: the VNI is valid
    VXLAN_REMOTE_CHECKSUM = 0x20
    GENEVE_HEAD = 8
    GRE_HEAD = 4
    GRE_KEY = 0x20


cdef void source_route(const uint8_t *frame, headers_t *h) noexcept nogil:
    """While a source route is not used up, its last address is the packet's destination (RFC 791 3.1)."""
    cdef uint32_t at = h.l3 + 20
    cdef uint32_t size
    while at + 3 <= h.l4 and frame[at] != OPTION_END:
        size = 1 if frame[at] == OPTION_NOP else frame[at + 1]
        if size == 0 or at + size > h.l4:
            return
        if (frame[at] == OPTION_LSRR or frame[at] == OPTION_SSRR) and size >= 7 and frame[at + 2] <= size:
            h.final = at + size - 4
        at += size


cdef int final_destination(const uint8_t *routing, uint32_t at, headers_t *h) noexcept nogil:
    """While segments are left, the pseudo header uses the route's last address (RFC 8200 8.1). It is the last one of
    the list in types 0 and 2, the first one of a segment routing header (4); other types store it differently."""
    cdef uint32_t words = routing[1]
    if routing[3] == 0:
        return 0
    if words < 2 or words & 1 or not (routing[2] == 0 or routing[2] == 2 or routing[2] == 4):
        return -1
    h.final = at + 8 if routing[2] == 4 else at + 8 * words - 8
    return 0


cdef int skip_extensions(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """Skip hop-by-hop, routing and destination options. Each is at least 8 bytes, so MAX_IP_HEAD bounds the loop."""
    while (h.protocol == PROTO_HOP_BY_HOP or h.protocol == PROTO_ROUTING or h.protocol == PROTO_DESTINATION):
        if have < h.l4 + 8:
            return -1
        if h.protocol == PROTO_ROUTING and final_destination(frame + h.l4, h.l4, h):
            return -1
        h.protocol = frame[h.l4]
        h.next_header = h.l4
        h.l4 += 8 + 8 * <uint32_t>frame[h.l4 + 1]
        if h.l4 > h.l3 + MAX_IP_HEAD or h.l4 > have:
            return -1
    return -1 if h.protocol == PROTO_FRAGMENT else 0


cdef uint32_t jumbo_size(const uint8_t *frame, uint32_t have, const headers_t *h) noexcept nogil:
    """Payload bytes of a jumbogram as Linux builds it for BIG TCP: hop-by-hop options with that option only; else 0. A
    length that the IPv6 header could hold is an error (RFC 2675 3)."""
    cdef const uint8_t *option = frame + h.l4
    cdef uint32_t size
    if (have < h.l4 + JUMBO_HEAD or h.protocol != PROTO_HOP_BY_HOP or option[1] != 0
            or option[2] != OPTION_JUMBO or option[3] != 4):
        return 0
    size = get32(option + 4)
    return size if 0xFFFF < size <= MAX_JUMBO else 0


# --- tunnels. Each function returns the EtherType of the tunnel's contents and moves *at past its header.

cdef inline int vxlan(const uint8_t *frame, uint32_t have, uint32_t *at) noexcept nogil:
    """RFC 7348. Remote checksum offload uses its own positions: not segmented."""
    cdef const uint8_t *header = frame + at[0]
    if have < at[0] + VXLAN_HEAD or not header[0] & VXLAN_VNI or header[1] & VXLAN_REMOTE_CHECKSUM:
        return -1
    at[0] += VXLAN_HEAD
    return TYPE_ETHERNET


cdef inline int geneve(const uint8_t *frame, uint32_t have, uint32_t *at) noexcept nogil:
    """RFC 8926: version 0, then options."""
    cdef const uint8_t *header = frame + at[0]
    if have < at[0] + GENEVE_HEAD or header[0] >> 6:
        return -1
    at[0] += GENEVE_HEAD + 4 * (header[0] & 0x3F)
    return get16(header + 2)


cdef inline int gre(const uint8_t *frame, uint32_t have, uint32_t *at) noexcept nogil:
    """RFC 2784 and RFC 2890: at most a key. A checksum or a sequence number would differ in each segment."""
    cdef const uint8_t *header = frame + at[0]
    if have < at[0] + GRE_HEAD or header[0] & ~GRE_KEY or header[1]:
        return -1
    at[0] += GRE_HEAD + (4 if header[0] & GRE_KEY else 0)
    return get16(header + 2)


cdef int carried(int kind, const uint8_t *frame, uint32_t have, uint32_t at, const headers_t *outer, uint32_t l4,
                 headers_t *h) noexcept nogil:
    """Returns 0 if the packet that begins at `at` has its transport header at `l4` and ends with the outer one, else
    -1.
    """
    h.l3 = at
    h.tags = 0
    if kind == TYPE_ETHERNET:
        kind = parse_link(frame, have, at, h)
    if parse_ip(kind, frame, have, outer.end, h) or h.l4 != l4 or h.end != outer.end:
        return -1
    return parse_transport(frame, have, h)


cdef int parse_tunnel(const uint8_t *frame, uint32_t have, const headers_t *outer, uint32_t l4,
                      headers_t *h) noexcept nogil:
    """Find the packet in a tunnel whose transport header is at `l4`; returns 0, or -1. A UDP port is weak evidence of
    its contents, so a format is accepted if its packet has the transport header there."""
    cdef uint32_t at = outer.l4
    cdef uint32_t size
    cdef int kind
    if outer.protocol == PROTO_IPV4:
        return carried(TYPE_IPV4, frame, have, at, outer, l4, h)
    if outer.protocol == PROTO_IPV6:
        return carried(TYPE_IPV6, frame, have, at, outer, l4, h)
    if outer.protocol == PROTO_GRE:
        kind = gre(frame, have, &at)
        return carried(kind, frame, have, at, outer, l4, h)
    if outer.protocol != PROTO_UDP or have < at + UDP_HEAD:
        return -1
    size = get16(frame + at + 4)
    if size != outer.end - at and (size or outer.sized):
        return -1
    at += UDP_HEAD
    kind = vxlan(frame, have, &at)
    if carried(kind, frame, have, at, outer, l4, h) == 0:
        return 0
    at = outer.l4 + UDP_HEAD
    kind = geneve(frame, have, &at)
    return carried(kind, frame, have, at, outer, l4, h)


cdef int parse_gso(const uint8_t *frame, uint32_t have, uint32_t length, const virtio_net_hdr *hdr,
                   headers_t *outer, headers_t *gso_packet) noexcept nogil:
    have = min(have, length)
    if parse_network(frame, have, length, outer):
        return -1
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and hdr.csum_start != outer.l4:
        return PACKET_IN_TUNNEL if parse_tunnel(frame, have, outer, hdr.csum_start, gso_packet) == 0 else -1
    if parse_transport(frame, have, outer):
        return -1
    gso_packet[0] = outer[0]
    return PACKET_OUTERMOST
