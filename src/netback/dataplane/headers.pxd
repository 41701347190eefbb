# SPDX-License-Identifier: Apache-2.0
"""The headers of a frame: Ethernet, 802.1Q tags, IPv4 and IPv6 with options and extensions, TCP and UDP, tunnels.

Parsing is pure: no allocation, no system call, no exception. Hostile bytes yield -1 and nothing else.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.checksum cimport sum_bytes, swap16

cdef enum:
    ETH_HEAD = 14
    ETH_TYPE = 12
    TYPE_IPV4 = 0x0800
    TYPE_IPV6 = 0x86DD
    TYPE_8021Q = 0x8100
    TYPE_8021AD = 0x88A8
    IPV6_HEAD = 40
    JUMBO_HEAD = 8              # the hop-by-hop header with only a jumbo payload option (RFC 2675)
    MAX_TAGS = 2
    MAX_IP_HEAD = 256           # Linux stops searching for the IPv6 transport header there
    HEADERS_MAX = 338           # Ethernet, two tags, 256 bytes of IP, 60 of TCP: the maximum of the outermost headers

    PROTO_HOP_BY_HOP = 0
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_ROUTING = 43
    PROTO_FRAGMENT = 44
    PROTO_DESTINATION = 60
    PROTO_SCTP = 132

    TCP_HEAD = 20
    TCP_CHECK = 16
    UDP_HEAD = 8
    UDP_CHECK = 6
    SCTP_CHECK = 8

    PACKET_OUTERMOST = 0        # parse_gso: the frame's own packet ...
    PACKET_IN_TUNNEL = 1        # ... or a packet inside it


cdef struct headers_t:          # a packet of a frame, each position checked against its bounds
    uint32_t l3
    uint32_t l4
    uint32_t payload            # first byte after the transport header
    uint32_t end                # first byte after the packet
    uint32_t final              # position of the destination address that the pseudo header uses
    uint32_t next_header        # IPv6: position of the byte that announces the transport header
    uint16_t check              # checksum field, from l4
    uint8_t version
    uint8_t protocol
    uint8_t tags
    uint8_t sized               # the IP header has a length (Windows' LSO and Linux' BIG TCP may leave 0)
    uint8_t jumbo               # JUMBO_HEAD if that header follows the IPv6 header and has the length, else 0


cdef inline uint16_t get16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    return <uint32_t>get16(at) << 16 | get16(at + 2)


cdef inline void put16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    put16(at, value >> 16)
    put16(at + 2, value)


# In all of these, `have` bytes of the frame's beginning are at `frame`, `length` is the whole frame's. The slow halves:
cdef void source_route(const uint8_t *frame, headers_t *h) noexcept nogil
cdef int skip_extensions(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil
cdef uint32_t jumbo_size(const uint8_t *frame, uint32_t have, const headers_t *h) noexcept nogil
# The packet that a GSO header refers to: PACKET_OUTERMOST (*gso_packet is *outer), PACKET_IN_TUNNEL, or -1 for none.
cdef int parse_gso(const uint8_t *frame, uint32_t have, uint32_t length, const virtio_net_hdr *hdr,
                   headers_t *outer, headers_t *gso_packet) noexcept nogil


cdef inline int parse_link(const uint8_t *frame, uint32_t have, uint32_t at, headers_t *h) noexcept nogil:
    """The EtherType after the Ethernet header at `at` and its tags, or -1."""
    cdef uint16_t kind
    h.l3 = at + ETH_HEAD
    h.tags = 0
    if have < h.l3:
        return -1
    kind = get16(frame + at + ETH_TYPE)
    while kind == TYPE_8021Q or kind == TYPE_8021AD:
        h.tags += 1
        h.l3 += 4
        if h.tags > MAX_TAGS or have < h.l3:
            return -1
        kind = get16(frame + h.l3 - 2)
    return kind


cdef inline int set_end(headers_t *h, uint32_t base, uint32_t size, uint32_t length) noexcept nogil:
    """The packet ends `size` bytes after `base`, or with the frame if its header has no length."""
    h.sized = size != 0
    h.end = base + size if size else length
    return -1 if h.end > length else 0


cdef inline int parse_ipv4(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    if have < h.l3 + 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:
        return -1
    h.version = 4
    h.protocol = ip[9]
    h.final = h.l3 + 16
    h.next_header = h.l3 + 9
    h.l4 = h.l3 + 4 * (ip[0] & 15)
    h.jumbo = 0
    if have < h.l4 or get16(ip + 6) & 0x3FFF:       # a fragment: more follow, or not the first
        return -1
    if h.l4 > h.l3 + 20:
        source_route(frame, h)
    return set_end(h, h.l3, get16(ip + 2), length)


cdef inline int parse_ipv6(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    cdef uint32_t size
    if have < h.l3 + IPV6_HEAD or ip[0] >> 4 != 6:
        return -1
    h.version = 6
    h.protocol = ip[6]
    h.next_header = h.l3 + 6
    h.final = h.l3 + 24
    h.l4 = h.l3 + IPV6_HEAD
    h.jumbo = 0
    size = get16(ip + 4)
    if size == 0:
        size = jumbo_size(frame, have, h)
        h.jumbo = JUMBO_HEAD if size else 0
    if set_end(h, h.l4, size, length):
        return -1
    if h.protocol == PROTO_TCP or h.protocol == PROTO_UDP:
        return 0
    return skip_extensions(frame, have, h)


cdef inline int parse_ip(int kind, const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """The packet of EtherType `kind` at h.l3."""
    if kind == TYPE_IPV4:
        return parse_ipv4(frame, have, length, h)
    if kind == TYPE_IPV6:
        return parse_ipv6(frame, have, length, h)
    return -1


cdef inline int parse_network(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """Returns 0 if the outermost packet is whole and its transport header can be named, else -1. Sets all but payload
    and check."""
    return parse_ip(parse_link(frame, have, 0, h), frame, have, length, h)


cdef inline int parse_tcp(const uint8_t *frame, uint32_t limit, headers_t *h) noexcept nogil:
    if limit < h.l4 + TCP_HEAD or frame[h.l4 + 12] >> 4 < 5:
        return -1
    h.check = TCP_CHECK
    h.payload = h.l4 + 4 * (frame[h.l4 + 12] >> 4)
    return -1 if h.payload > limit else 0


cdef inline int parse_udp(const uint8_t *frame, uint32_t limit, headers_t *h) noexcept nogil:
    """Refuse a datagram that is shorter than its packet: it would be summed with a length that its receiver does not
    use.
    """
    if limit < h.l4 + UDP_HEAD or get16(frame + h.l4 + 4) != h.end - h.l4:
        return -1
    h.check = UDP_CHECK
    h.payload = h.l4 + UDP_HEAD
    return 0


cdef inline int parse_transport(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    cdef uint32_t limit = min(have, h.end)
    if h.protocol == PROTO_TCP:
        return parse_tcp(frame, limit, h)
    if h.protocol == PROTO_UDP:
        return parse_udp(frame, limit, h)
    return -1


cdef inline int parse(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """Returns 0 if the outermost packet is a whole TCP segment or UDP datagram, else -1. Sets all fields."""
    have = min(have, length)
    return -1 if parse_network(frame, have, length, h) else parse_transport(frame, have, h)


cdef inline uint64_t pseudo_sum(const uint8_t *frame, const headers_t *h) noexcept nogil:
    """The pseudo header without its length."""
    cdef uint64_t total = swap16(h.protocol)
    if h.version == 4:
        return total + sum_bytes(frame + h.l3 + 12, 4) + sum_bytes(frame + h.final, 4)
    return total + sum_bytes(frame + h.l3 + 8, 16) + sum_bytes(frame + h.final, 16)


cdef inline bint plain_route(const headers_t *h) noexcept nogil:
    """Whether the pseudo header's destination is the IP header's, which a guest that computes it would use."""
    return h.final == h.l3 + (16 if h.version == 4 else 24)


cdef inline bint exact(const headers_t *h, uint32_t length) noexcept nogil:
    """Whether the packet has a length and the frame no padding: other code may use the frame's length as the
    packet's.
    """
    return h.sized and h.end == length
