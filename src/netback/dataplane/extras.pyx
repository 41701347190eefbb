# SPDX-License-Identifier: Apache-2.0
"""The extra infos of netif.h for tests and tools; extras.pxd has the functions for a frame's path."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport (
    EXTRA_TYPE_GSO, EXTRA_TYPE_HASH, EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, EXTRA_TYPE_XDP,
    MAC_BYTES, extra_info,
)

OKAY = EXTRAS_OKAY
TRUNCATED = EXTRAS_TRUNCATED
UNKNOWN = EXTRAS_UNKNOWN
BAD_GSO = EXTRAS_GSO
KNOWN = EXTRAS_KNOWN


def read(bytes slots, uint32_t slot_size, uint32_t known=EXTRAS_KNOWN):
    """read_extras: (outcome, slots read, their contents: a value for each type's name)."""
    cdef frame_meta meta
    cdef uint32_t count = 0
    if not sizeof(extra_info) <= slot_size <= 12:
        raise ValueError("a slot of netif's rings has 12 or 8 bytes")
    memset(&meta, 0, sizeof(meta))
    outcome = read_extras(<const uint8_t *>slots, slot_size, len(slots) // slot_size, known, &meta, &count)
    found = {
        "gso": (meta.gso_size, meta.gso_type),
        "mcast_add": bytes(meta.mcast_add[:MAC_BYTES]),
        "mcast_del": bytes(meta.mcast_del[:MAC_BYTES]),
        "hash": (meta.hash_type, meta.hash_algorithm, bytes(meta.hash_value[:4])),
        "xdp": meta.xdp_headroom,
    }
    kinds = (EXTRA_TYPE_GSO, EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, EXTRA_TYPE_HASH, EXTRA_TYPE_XDP)
    return outcome, count, {
        name: value for kind, (name, value) in zip(kinds, found.items(), strict=True) if meta.extras >> kind & 1
    }


def write(*, gso=None, mcast_add=None, mcast_del=None, hash=None, xdp=None):
    """write_extra until nothing is left: the extra infos of 8 bytes each, in ascending order of their types."""
    cdef frame_meta meta
    cdef extra_info extra
    cdef uint32_t left
    memset(&meta, 0, sizeof(meta))
    if gso is not None:
        meta.gso_size, meta.gso_type = gso
        meta.extras |= 1 << EXTRA_TYPE_GSO
    if mcast_add is not None:
        memcpy(meta.mcast_add, <const uint8_t *>mcast_add, MAC_BYTES)
        meta.extras |= 1 << EXTRA_TYPE_MCAST_ADD
    if mcast_del is not None:
        memcpy(meta.mcast_del, <const uint8_t *>mcast_del, MAC_BYTES)
        meta.extras |= 1 << EXTRA_TYPE_MCAST_DEL
    if hash is not None:
        meta.hash_type, meta.hash_algorithm = hash[0], hash[1]
        memcpy(meta.hash_value, <const uint8_t *>hash[2], sizeof(meta.hash_value))
        meta.extras |= 1 << EXTRA_TYPE_HASH
    if xdp is not None:
        meta.xdp_headroom = xdp
        meta.extras |= 1 << EXTRA_TYPE_XDP
    written = []
    left = meta.extras
    while left:
        left = write_extra(&extra, &meta, left)
        written.append((<char *>&extra)[:sizeof(extra_info)])
    return written
