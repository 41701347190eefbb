# SPDX-License-Identifier: Apache-2.0
"""The hash of a frame, and the tables of a key: see toeplitz.pxd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport (
    EXTRA_TYPE_HASH, HASH_ALGORITHM_TOEPLITZ, HASH_TYPE_IPV4, HASH_TYPE_IPV4_TCP, HASH_TYPE_IPV6, HASH_TYPE_IPV6_TCP,
)
from netback.dataplane.headers cimport (
    IPV6_HEAD, PROTO_TCP, TYPE_IPV4, TYPE_IPV6, get16, headers_t, parse_link, skip_extensions,
)

cdef enum:
    PORTS_BYTES = 4
    IPV4_ADDRESSES = 12         # position in the header, and bytes
    IPV4_INPUT = 8
    IPV6_ADDRESSES = 8
    IPV6_INPUT = 32
    IPV4_FRAGMENT = 0x3FFF      # more fragments, or not the first

KEY_BYTES = TOEPLITZ_KEY


# --- the hash of a frame

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


cdef void hash_frame(const toeplitz_t *hash, const uint8_t *frame, uint32_t have, frame_meta *meta) noexcept nogil:
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


# --- the tables of a key

cdef void fill_table(toeplitz_t *hash, const uint8_t *key) noexcept:
    """For each position and value, the XOR of the key's 32-bit windows that begin at the value's set bits."""
    cdef uint64_t window
    cdef uint32_t at, bit, value, part
    for at in range(<uint32_t>TOEPLITZ_INPUT):
        window = 0
        for bit in range(5):
            window = window << 8 | key[at + bit]
        for bit in range(8):
            part = <uint32_t>(window >> (8 - bit))
            for value in range(256):
                if value & (128 >> bit):
                    hash.table[at][value] ^= part


cdef class Toeplitz:
    """The hash of one key for the types of frames that `types` has a bit for (XEN_NETIF_CTRL_HASH_TYPE_*).

    Octets that the key lacks are zero (netif.h). ValueError: it has more than KEY_BYTES.
    """

    def __cinit__(self, bytes key, uint32_t types):
        if len(key) > TOEPLITZ_KEY:
            raise ValueError(f"a Toeplitz key has at most {TOEPLITZ_KEY} octets")
        memset(&self.hash, 0, sizeof(self.hash))
        self.hash.types = types
        memcpy(self.hash.key, <const char *>key, len(key))
        fill_table(&self.hash, self.hash.key)

    def of(self, bytes frame) -> tuple[int, int] | None:
        """(hash type, value) of a frame; None if it is of no selected type. For tests."""
        cdef frame_meta meta
        memset(&meta, 0, sizeof(meta))
        hash_frame(&self.hash, frame, <uint32_t>len(frame), &meta)
        if not meta.extras >> EXTRA_TYPE_HASH & 1:
            return None
        return meta.hash_type, int.from_bytes(bytes(meta.hash_value[:4]), "little")

    def cost(self, bytes frame, uint32_t times) -> int:
        """Hash a frame `times` times; returns the XOR of the values, so that nothing is optimised away. For the bench.
        """
        cdef frame_meta meta
        cdef const uint8_t *data = frame
        cdef uint32_t have = <uint32_t>len(frame)
        cdef uint32_t _i, total = 0
        memset(&meta, 0, sizeof(meta))
        with nogil:
            for _i in range(times):
                hash_frame(&self.hash, data, have, &meta)
                total ^= meta.hash_value[0]
        return total
