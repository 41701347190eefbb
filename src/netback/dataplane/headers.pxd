# SPDX-License-Identifier: Apache-2.0
"""The headers of a frame: Ethernet, 802.1Q tags, IPv4 and IPv6 with options and extensions, TCP and UDP, tunnels.

Parsing is pure: no allocation, no system call, no exception. Hostile bytes yield -1 and nothing else.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.checksum cimport sum_bytes, swap16

cdef enum:
    ETH_HEAD = 14
    IPV6_HEAD = 40
    JUMBO_HEAD = 8              # the hop-by-hop header that holds a jumbo payload option alone (RFC 2675)
    MAX_TAGS = 2
    MAX_IP_HEAD = 256           # Linux stops looking for the transport header of IPv6 there
    HEADERS_MAX = 338           # Ethernet, two tags, 256 bytes of IP, 60 of TCP: the outermost headers are no longer

    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_FRAGMENT = 44
    PROTO_SCTP = 132

    TCP_HEAD = 20
    TCP_CHECK = 16
    UDP_HEAD = 8
    UDP_CHECK = 6
    SCTP_CHECK = 8

    PACKET_OUTERMOST = 0        # parse_gso: the frame's own packet ...
    PACKET_IN_TUNNEL = 1        # ... or one that it carries


cdef struct headers_t:          # a packet of a frame, each position checked against its bounds
    uint32_t l3
    uint32_t l4
    uint32_t payload            # first byte behind the transport header
    uint32_t end                # first byte behind the packet
    uint32_t final              # position of the destination address that the pseudo header means
    uint32_t next_header        # IPv6: position of the byte that announces the transport header
    uint16_t check              # checksum field, from l4
    uint8_t version
    uint8_t protocol
    uint8_t tags
    uint8_t sized               # the IP header carries a length (Windows' LSO and Linux' BIG TCP may leave 0)
    uint8_t jumbo               # JUMBO_HEAD where that header follows the IPv6 header and has the length, else 0


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


# `have` bytes of the frame's beginning are at `frame`, `length` is the whole frame's.
# 0 where the outermost packet is whole and its transport header can be named, else -1. Sets all but payload and check.
cdef int parse_network(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil
# 0 where the outermost packet is a whole TCP segment or UDP datagram, else -1. Sets all fields.
cdef int parse(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil
# The packet that a GSO header means: PACKET_OUTERMOST (*cut is *outer), PACKET_IN_TUNNEL, or -1 where none is found.
cdef int parse_gso(const uint8_t *frame, uint32_t have, uint32_t length, const virtio_net_hdr *hdr,
                   headers_t *outer, headers_t *cut) noexcept nogil


cdef inline uint64_t pseudo_sum(const uint8_t *frame, const headers_t *h) noexcept nogil:
    """The pseudo header without its length."""
    cdef uint64_t total = swap16(h.protocol)
    if h.version == 4:
        return total + sum_bytes(frame + h.l3 + 12, 4) + sum_bytes(frame + h.final, 4)
    return total + sum_bytes(frame + h.l3 + 8, 16) + sum_bytes(frame + h.final, 16)


cdef inline bint plain_route(const headers_t *h) noexcept nogil:
    """The pseudo header's destination is the IP header's, which a guest that computes it would take."""
    return h.final == h.l3 + (16 if h.version == 4 else 24)


cdef inline bint exact(const headers_t *h, uint32_t length) noexcept nogil:
    """The packet has a length, and the frame has no padding: others may take the frame's length for the packet's."""
    return h.sized and h.end == length
