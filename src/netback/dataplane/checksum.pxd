# SPDX-License-Identifier: Apache-2.0
"""Internet checksums: sums in memory order, and completing the checksum that a virtio_net_hdr leaves to its
receiver.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from netback.dataplane.abi cimport virtio_net_hdr

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "sums are kept in the order of x86-64 and arm64"
    #endif
    typedef uint64_t __attribute__((aligned(1), may_alias)) word_t;   /* a load from any address */
    typedef uint16_t __attribute__((aligned(1), may_alias)) half_t;
    """
    ctypedef uint64_t word_t
    ctypedef uint16_t half_t


cdef inline uint32_t swap16(uint32_t value) noexcept nogil:
    """Convert a 16-bit number to the memory order of a sum."""
    return (value & 0xFF) << 8 | (value >> 8 & 0xFF)


cdef inline uint64_t sum_tail(const uint8_t *at, uint32_t length) noexcept nogil:
    """The last 0 to 7 bytes; an odd one is padded with zero."""
    cdef uint64_t total = 0
    if length & 4:
        total = (<const half_t *>at)[0] + <uint64_t>(<const half_t *>at)[1]
        at += 4
    if length & 2:
        total += (<const half_t *>at)[0]
        at += 2
    if length & 1:
        total += at[0]
    return total


cdef inline uint64_t sum_bytes(const uint8_t *at, uint32_t length) noexcept nogil:
    """Internet sum in memory order, unfolded. Halves of 64-bit words are added apart, so no carry is lost and the
    compiler may do several at a time."""
    cdef const word_t *words = <const word_t *>at
    cdef uint64_t low = 0
    cdef uint64_t high = 0
    cdef uint32_t i
    for i in range(length // 8):
        low += words[i] & 0xFFFFFFFFu
        high += words[i] >> 32
    return low + high + sum_tail(at + (length & ~7u), length & 7)


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total


cdef inline void put_sum(uint8_t *at, uint16_t value) noexcept nogil:
    (<half_t *>at)[0] = value


cdef inline uint16_t checksum(uint64_t total, bint udp) noexcept nogil:
    """UDP sends 0xFFFF for a sum of zero, since 0 means no checksum (RFC 768, RFC 8200 8.1)."""
    cdef uint16_t value = ~fold(total)
    return 0xFFFF if udp and value == 0 else value


# Completes the checksum that `hdr` requests, in place. If its field is outside the frame, the frame stays unchanged.
cdef void complete_checksum(uint8_t *frame, uint32_t length, const virtio_net_hdr *hdr) noexcept nogil
