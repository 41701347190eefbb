# SPDX-License-Identifier: Apache-2.0
"""Parses the headers of a frame: see headers.pxd."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    ETH_TYPE = 12

    TYPE_IPV4 = 0x0800
    TYPE_IPV6 = 0x86DD
    TYPE_8021Q = 0x8100
    TYPE_8021AD = 0x88A8

    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131
    OPTION_SSRR = 137

    PROTO_HOP_BY_HOP = 0
    PROTO_ROUTING = 43
    PROTO_DESTINATION = 60


cdef inline int parse_link(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """The type behind Ethernet and its tags, or -1."""
    cdef uint16_t kind
    h.l3 = ETH_HEAD
    h.tags = 0
    if have < ETH_HEAD:
        return -1
    kind = get16(frame + ETH_TYPE)
    while kind == TYPE_8021Q or kind == TYPE_8021AD:
        h.tags += 1
        h.l3 += 4
        if h.tags > MAX_TAGS or have < h.l3:
            return -1
        kind = get16(frame + h.l3 - 2)
    return kind


cdef inline int set_end(headers_t *h, uint32_t base, uint32_t said, uint32_t length) noexcept nogil:
    """The packet ends `said` bytes behind `base`, or with the frame where nothing is said."""
    h.sized = said != 0
    h.end = base + said if said else length
    return -1 if h.end > length else 0


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


cdef inline int parse_ipv4(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    if have < h.l3 + 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:
        return -1
    h.version = 4
    h.protocol = ip[9]
    h.final = h.l3 + 16
    h.next_header = h.l3 + 9
    h.l4 = h.l3 + 4 * (ip[0] & 15)
    if have < h.l4 or get16(ip + 6) & 0x3FFF:       # a fragment: more to come, or not the first
        return -1
    if h.l4 > h.l3 + 20:
        source_route(frame, h)
    return set_end(h, h.l3, get16(ip + 2), length)


cdef int final_destination(const uint8_t *routing, uint32_t at, headers_t *h) noexcept nogil:
    """While segments are left, the pseudo header means the route's last address (RFC 8200 8.1). It is the last one of
    the list in types 0 and 2, the first one of a segment routing header (4); others keep it in ways of their own."""
    cdef uint32_t words = routing[1]
    if routing[3] == 0:
        return 0
    if words < 2 or words & 1 or not (routing[2] == 0 or routing[2] == 2 or routing[2] == 4):
        return -1
    h.final = at + 8 if routing[2] == 4 else at + 8 * words - 8
    return 0


cdef int skip_extensions(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """Past hop-by-hop, routing and destination options. Each is at least 8 bytes, so MAX_IP_HEAD bounds the loop."""
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


cdef inline int parse_ipv6(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    if have < h.l3 + 40 or ip[0] >> 4 != 6:
        return -1
    h.version = 6
    h.protocol = ip[6]
    h.next_header = h.l3 + 6
    h.final = h.l3 + 24
    h.l4 = h.l3 + 40
    if set_end(h, h.l4, get16(ip + 4), length):
        return -1
    return skip_extensions(frame, have, h)


cdef int parse_network(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """0, or -1 where there is no whole IP packet with a transport header that we can name."""
    cdef int kind = parse_link(frame, have, h)
    if kind == TYPE_IPV4:
        return parse_ipv4(frame, have, length, h)
    if kind == TYPE_IPV6:
        return parse_ipv6(frame, have, length, h)
    return -1


cdef inline int parse_tcp(const uint8_t *frame, uint32_t limit, headers_t *h) noexcept nogil:
    if limit < h.l4 + TCP_HEAD or frame[h.l4 + 12] >> 4 < 5:
        return -1
    h.check = TCP_CHECK
    h.payload = h.l4 + 4 * (frame[h.l4 + 12] >> 4)
    return -1 if h.payload > limit else 0


cdef inline int parse_udp(const uint8_t *frame, uint32_t limit, headers_t *h) noexcept nogil:
    """A datagram shorter than its packet would be summed with a length that its receiver does not use."""
    if limit < h.l4 + UDP_HEAD or get16(frame + h.l4 + 4) != h.end - h.l4:
        return -1
    h.check = UDP_CHECK
    h.payload = h.l4 + UDP_HEAD
    return 0


cdef int parse(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """0 where the outermost headers are those of a whole TCP segment or UDP datagram, else -1."""
    cdef uint32_t limit
    have = min(have, length)
    if parse_network(frame, have, length, h):
        return -1
    limit = min(have, h.end)
    if h.protocol == PROTO_TCP:
        return parse_tcp(frame, limit, h)
    if h.protocol == PROTO_UDP:
        return parse_udp(frame, limit, h)
    return -1
