# SPDX-License-Identifier: Apache-2.0
"""The Toeplitz hash of a frame's flow (netif.h, Hash types and Hash algorithms).

The hash is linear: it is the XOR of one 32-bit value for each byte of the input, which depends on the byte's position
and value alone. A table for each position, made once per key, replaces netif.h's loop over bits.
"""
from libc.stdint cimport uint8_t, uint32_t

from netback.dataplane.extras cimport frame_meta

cdef enum:
    TOEPLITZ_INPUT = 36         # bytes: two IPv6 addresses and two ports
    TOEPLITZ_KEY = TOEPLITZ_INPUT + 4


cdef struct toeplitz_t:
    uint32_t types               # 1 << HASH_TYPE_* of each type that the guest selected
    uint8_t key[TOEPLITZ_KEY]    # with zeros for the octets that it lacks
    uint32_t table[TOEPLITZ_INPUT][256]


cdef void hash_frame(const toeplitz_t *hash, const uint8_t *frame, uint32_t have, frame_meta *meta) noexcept nogil


cdef class Toeplitz:
    cdef toeplitz_t hash
