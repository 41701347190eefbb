# SPDX-License-Identifier: Apache-2.0
"""Extra infos: slots after a frame's first one that describe the frame further (netif.h), on both rings and at both
ends.

`frame_meta` is everything that describes a frame: the flags of its first slot, which the two rings number differently,
and the contents of its extra infos. Each field but the first four is valid only if `extras` has its type's bit.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from netback.dataplane.abi cimport (
    EXTRA_FLAG_MORE, EXTRA_TYPE_GSO, EXTRA_TYPE_HASH, EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, EXTRA_TYPE_XDP,
    EXTRA_TYPES_END, GSO_TYPE_NONE, GSO_TYPE_TCPV6, MAC_BYTES, extra_info,
)

cdef extern from *:
    int __builtin_popcount(unsigned int bits) nogil
    int __builtin_ctz(unsigned int bits) nogil

cdef enum:                      # result of reading extra infos
    EXTRAS_OKAY
    EXTRAS_TRUNCATED            # the last one announces another one, which is missing
    EXTRAS_UNKNOWN              # a type that the reader does not support
    EXTRAS_GSO                  # GSO of size 0 or of an unknown type

cdef enum:                      # types that a reader supports, one bit each; types that were not offered are ignored
    EXTRAS_KNOWN = 1 << EXTRA_TYPE_GSO | 1 << EXTRA_TYPE_MCAST_ADD | 1 << EXTRA_TYPE_MCAST_DEL | 1 << EXTRA_TYPE_HASH
    EXTRAS_RX = EXTRAS_KNOWN | 1 << EXTRA_TYPE_XDP
    EXTRAS_MULTICAST = 1 << EXTRA_TYPE_MCAST_ADD | 1 << EXTRA_TYPE_MCAST_DEL     # their request is no frame


cdef struct frame_meta:
    uint8_t csum_blank
    uint8_t data_validated
    uint8_t gso_type            # GSO_TYPE_NONE, or with the GSO bit in `extras`
    uint8_t extras              # 1 << EXTRA_TYPE_* of each extra info that was read, or that is to be written
    uint16_t gso_size
    uint16_t xdp_headroom
    uint8_t hash_type
    uint8_t hash_algorithm
    uint8_t hash_value[4]
    uint8_t mcast_add[MAC_BYTES]
    uint8_t mcast_del[MAC_BYTES]


cdef inline void clear_meta(frame_meta *meta) noexcept nogil:
    """A frame without flags or extra infos."""
    meta.csum_blank = meta.data_validated = meta.gso_type = meta.extras = 0
    meta.gso_size = 0


cdef inline void set_gso(frame_meta *meta, uint8_t gso_type, uint16_t gso_size) noexcept nogil:
    """GSO toward a receiver that completes the checksum of each segment: both checksum flags go with it, since Windows
    is slow with RX GSO that lacks one."""
    meta.csum_blank = meta.data_validated = 1
    meta.gso_type = gso_type
    meta.gso_size = gso_size
    meta.extras |= 1 << EXTRA_TYPE_GSO


cdef inline uint32_t extras_count(const frame_meta *meta) noexcept nogil:
    """The number of slots for its extra infos."""
    return __builtin_popcount(meta.extras) if meta.extras else 0    # a call on x86-64-v1, and most have none


cdef inline int read_extra(const extra_info *extra, uint32_t known, frame_meta *meta) noexcept nogil:
    """Read one extra info into *meta; the last one of a type counts."""
    if extra.type >= EXTRA_TYPES_END or not known >> extra.type & 1:
        return EXTRAS_UNKNOWN
    if extra.type == EXTRA_TYPE_GSO:
        if extra.u.gso.size == 0 or not GSO_TYPE_NONE < extra.u.gso.type <= GSO_TYPE_TCPV6:
            return EXTRAS_GSO
        meta.gso_size = extra.u.gso.size
        meta.gso_type = extra.u.gso.type
    elif extra.type == EXTRA_TYPE_MCAST_ADD:
        memcpy(meta.mcast_add, extra.u.mcast, MAC_BYTES)
    elif extra.type == EXTRA_TYPE_MCAST_DEL:
        memcpy(meta.mcast_del, extra.u.mcast, MAC_BYTES)
    elif extra.type == EXTRA_TYPE_HASH:
        meta.hash_type = extra.u.hash.type
        meta.hash_algorithm = extra.u.hash.algorithm
        memcpy(meta.hash_value, extra.u.hash.value, sizeof(meta.hash_value))
    else:
        meta.xdp_headroom = extra.u.xdp_headroom
    meta.extras |= 1 << extra.type
    return EXTRAS_OKAY


cdef inline int read_extras(const uint8_t *slots, uint32_t slot_size, uint32_t available, uint32_t known,
                            frame_meta *meta, uint32_t *count) noexcept nogil:
    """Read the extra infos after a first slot into *meta: `available` slots of `slot_size` bytes are at `slots`, all of
    them private copies (XSA-155). *count is how many were read."""
    cdef const extra_info *extra
    cdef int outcome
    count[0] = 0
    while True:
        if count[0] == available:
            return EXTRAS_TRUNCATED
        extra = <const extra_info *>(slots + count[0] * slot_size)
        count[0] += 1
        outcome = read_extra(extra, known, meta)
        if outcome != EXTRAS_OKAY or not extra.flags & EXTRA_FLAG_MORE:
            return outcome


cdef inline void copy_extras(frame_meta *to, const frame_meta *flow) noexcept nogil:
    """Give a segment what its frame has: headroom and hash."""
    to.extras |= flow.extras
    to.xdp_headroom = flow.xdp_headroom
    to.hash_type = flow.hash_type
    to.hash_algorithm = flow.hash_algorithm
    memcpy(to.hash_value, flow.hash_value, sizeof(flow.hash_value))


cdef inline bint same_hash(const frame_meta *one, const frame_meta *other) noexcept nogil:
    """Whether both have a hash, of the same type and value."""
    return (
        (one.extras & other.extras) >> EXTRA_TYPE_HASH & 1 and one.hash_type == other.hash_type
        and memcmp(one.hash_value, other.hash_value, sizeof(one.hash_value)) == 0
    )


cdef inline uint32_t write_extra(extra_info *extra, const frame_meta *meta, uint32_t left) noexcept nogil:
    """Write the first of the types in `left`, which begins as meta.extras; returns the types that are left."""
    cdef uint8_t kind = <uint8_t>__builtin_ctz(left)
    left &= left - 1
    memset(extra, 0, sizeof(extra_info))
    extra.type = kind
    extra.flags = EXTRA_FLAG_MORE if left else 0
    if kind == EXTRA_TYPE_GSO:
        extra.u.gso.size = meta.gso_size
        extra.u.gso.type = meta.gso_type
    elif kind == EXTRA_TYPE_MCAST_ADD:
        memcpy(extra.u.mcast, meta.mcast_add, MAC_BYTES)
    elif kind == EXTRA_TYPE_MCAST_DEL:
        memcpy(extra.u.mcast, meta.mcast_del, MAC_BYTES)
    elif kind == EXTRA_TYPE_HASH:
        extra.u.hash.type = meta.hash_type
        extra.u.hash.algorithm = meta.hash_algorithm
        memcpy(extra.u.hash.value, meta.hash_value, sizeof(meta.hash_value))
    else:
        extra.u.xdp_headroom = meta.xdp_headroom
    return left
