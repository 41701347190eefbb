# SPDX-License-Identifier: Apache-2.0
"""A number for a frame's flow: see flow.pxd.

A flow is what must not be reordered: the packets between two addresses, of one protocol, with the same ports if they
have any. All fragments between two addresses are one flow, since only the first one of a packet has the ports. A
frame that is not IP belongs to the flow of its two MAC addresses and its EtherType.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from netback.dataplane.headers cimport (
    ETH_HEAD, ETH_TYPE, IPV6_HEAD, PROTO_SCTP, PROTO_TCP, PROTO_UDP, TYPE_IPV4, TYPE_IPV6, get16, get32, headers_t,
    parse_link, skip_extensions,
)

cdef enum:
    PORTS_BYTES = 4
    IPV4_FRAGMENT = 0x3FFF      # more fragments, or not the first

cdef uint64_t FACTOR = 0x9E3779B97F4A7C15       # 2^64 divided by the golden ratio, odd


cdef inline uint64_t mix(uint64_t number, uint32_t word) noexcept nogil:
    number = (number ^ word) * FACTOR
    return number ^ number >> 32


cdef inline uint64_t mix_words(uint64_t number, const uint8_t *data, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        number = mix(number, get32(data + 4 * i))
    return number


cdef inline uint64_t mix_ports(uint64_t number, const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """The protocol, and the ports of one that begins with them."""
    number = mix(number, h.protocol)
    if (h.protocol == PROTO_TCP or h.protocol == PROTO_UDP or h.protocol == PROTO_SCTP) and have >= h.l4 + PORTS_BYTES:
        number = mix(number, get32(frame + h.l4))
    return number


cdef inline uint64_t ipv4(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    cdef uint64_t number = mix_words(0, ip + 12, 2)
    h.protocol = ip[9]
    h.l4 = h.l3 + 4 * (ip[0] & 15)
    if get16(ip + 6) & IPV4_FRAGMENT:
        return mix(number, h.protocol)
    return mix_ports(number, frame, have, h)


cdef inline uint64_t ipv6(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """Beyond extension headers that cannot be followed no ports are looked for."""
    cdef const uint8_t *ip = frame + h.l3
    cdef uint64_t number = mix_words(0, ip + 8, 8)
    h.protocol = ip[6]
    h.l4 = h.l3 + IPV6_HEAD
    if skip_extensions(frame, have, h):
        return number
    return mix_ports(number, frame, have, h)


cdef uint32_t flow_number(const uint8_t *frame, uint32_t have) noexcept nogil:
    """The number of a frame of which `have` bytes are at `frame`, the same in every process; 0 below 14 bytes."""
    cdef headers_t h
    cdef int kind = parse_link(frame, have, 0, &h)
    if kind == TYPE_IPV4 and have >= h.l3 + 20 and frame[h.l3] >> 4 == 4:
        return <uint32_t>ipv4(frame, have, &h)
    if kind == TYPE_IPV6 and have >= h.l3 + IPV6_HEAD and frame[h.l3] >> 4 == 6:
        return <uint32_t>ipv6(frame, have, &h)
    if have < ETH_HEAD:
        return 0
    return <uint32_t>mix(mix_words(0, frame, 3), get16(frame + ETH_TYPE))


def number_flow(bytes frame) -> int:
    """The number of a frame's flow, 32 bits. For tests."""
    return flow_number(frame, <uint32_t>len(frame))
