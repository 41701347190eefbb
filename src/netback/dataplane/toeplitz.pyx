# SPDX-License-Identifier: Apache-2.0
"""The tables of a Toeplitz key; toeplitz.pxd has the functions for a frame's path."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from netback.dataplane.abi cimport EXTRA_TYPE_HASH

KEY_BYTES = TOEPLITZ_KEY


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
        fill_table(&self.hash, key.ljust(TOEPLITZ_KEY, b"\0"))

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
