# SPDX-License-Identifier: Apache-2.0
"""The Toeplitz hash of a frame's flow (netif.h, Hash types and Hash algorithms).

The hash is linear: it is the XOR of one 32-bit value for each byte of the input, which depends on the byte's position
and value alone. A table for each position, made once per key, replaces netif.h's loop over bits.
"""
from libc.stdint cimport uint8_t, uint32_t

from netback.dataplane.abi cimport (
    EXTRA_TYPE_HASH, HASH_ALGORITHM_TOEPLITZ, HASH_TYPE_IPV4, HASH_TYPE_IPV4_TCP, HASH_TYPE_IPV6, HASH_TYPE_IPV6_TCP,
)
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.headers cimport (
    IPV6_HEAD, PROTO_TCP, TYPE_IPV4, TYPE_IPV6, get16, headers_t, parse_link, skip_extensions,
)

cdef enum:
    TOEPLITZ_INPUT = 36         # bytes: two IPv6 addresses and two ports
    TOEPLITZ_KEY = TOEPLITZ_INPUT + 4
    PORTS_BYTES = 4
    IPV4_ADDRESSES = 12         # position in the header, and bytes
    IPV4_INPUT = 8
    IPV6_ADDRESSES = 8
    IPV6_INPUT = 32
    IPV4_FRAGMENT = 0x3FFF      # more fragments, or not the first


cdef struct toeplitz_t:
    uint32_t types               # 1 << HASH_TYPE_* of each type that the guest selected
    uint32_t table[TOEPLITZ_INPUT][256]


cdef inline uint32_t toeplitz(const toeplitz_t *hash, const uint8_t *data, uint32_t at, uint32_t size) noexcept nogil:
    """The part of the hash that `size` bytes contribute, which begin at position `at` of the input."""
    cdef uint32_t value = 0
    cdef uint32_t i
    for i in range(size):
        value ^= hash.table[at + i][data[i]]
    return value


cdef inline uint32_t toeplitz_ipv6(const toeplitz_t *hash, const uint8_t *data) noexcept nogil:
    """The part of two IPv6 addresses, eight bytes at a time: compilers unroll a loop of eight."""
    return (toeplitz(hash, data, 0, 8) ^ toeplitz(hash, data + 8, 8, 8)
            ^ toeplitz(hash, data + 16, 16, 8) ^ toeplitz(hash, data + 24, 24, 8))


cdef inline void write_hash(frame_meta *meta, uint8_t kind, uint32_t value) noexcept nogil:
    """The least significant byte comes first (netif.h)."""
    meta.extras |= 1 << EXTRA_TYPE_HASH
    meta.hash_type = kind
    meta.hash_algorithm = HASH_ALGORITHM_TOEPLITZ
    meta.hash_value[0] = <uint8_t>value
    meta.hash_value[1] = <uint8_t>(value >> 8)
    meta.hash_value[2] = <uint8_t>(value >> 16)
    meta.hash_value[3] = <uint8_t>(value >> 24)


cdef inline void hash_ipv4(const toeplitz_t *hash, const uint8_t *frame, uint32_t have, headers_t *h,
                           frame_meta *meta) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    cdef uint32_t value
    if have < h.l3 + 20 or ip[0] >> 4 != 4:
        return
    h.l4 = h.l3 + 4 * (ip[0] & 15)
    value = toeplitz(hash, ip + IPV4_ADDRESSES, 0, IPV4_INPUT)
    if (hash.types >> HASH_TYPE_IPV4_TCP & 1 and ip[9] == PROTO_TCP and not get16(ip + 6) & IPV4_FRAGMENT
            and h.l4 >= h.l3 + 20 and have >= h.l4 + PORTS_BYTES):
        write_hash(meta, HASH_TYPE_IPV4_TCP, value ^ toeplitz(hash, frame + h.l4, IPV4_INPUT, PORTS_BYTES))
    elif hash.types >> HASH_TYPE_IPV4 & 1:
        write_hash(meta, HASH_TYPE_IPV4, value)


cdef inline void hash_ipv6(const toeplitz_t *hash, const uint8_t *frame, uint32_t have, headers_t *h,
                           frame_meta *meta) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    cdef uint32_t value
    if have < h.l3 + IPV6_HEAD or ip[0] >> 4 != 6:
        return
    h.l4 = h.l3 + IPV6_HEAD
    h.protocol = ip[6]
    value = toeplitz_ipv6(hash, ip + IPV6_ADDRESSES)
    if (hash.types >> HASH_TYPE_IPV6_TCP & 1
            and (h.protocol == PROTO_TCP or (skip_extensions(frame, have, h) == 0 and h.protocol == PROTO_TCP))
            and have >= h.l4 + PORTS_BYTES):
        write_hash(meta, HASH_TYPE_IPV6_TCP, value ^ toeplitz(hash, frame + h.l4, IPV6_INPUT, PORTS_BYTES))
    elif hash.types >> HASH_TYPE_IPV6 & 1:
        write_hash(meta, HASH_TYPE_IPV6, value)


cdef inline void hash_frame(const toeplitz_t *hash, const uint8_t *frame, uint32_t have,
                            frame_meta *meta) noexcept nogil:
    """Add the hash of a frame to its extra infos, if it is of a selected type: the maximal one, as netif.h asks.

    `have` bytes of the frame's beginning are at `frame`. Tags and IPv6 extension headers are skipped; a fragment has
    no ports.
    """
    cdef headers_t h
    cdef int kind = parse_link(frame, have, 0, &h)
    if kind == TYPE_IPV4:
        hash_ipv4(hash, frame, have, &h, meta)
    elif kind == TYPE_IPV6:
        hash_ipv6(hash, frame, have, &h, meta)


cdef class Toeplitz:
    cdef toeplitz_t hash
