# SPDX-License-Identifier: Apache-2.0
"""io/ring.h: the shared ring's header and the number of its slots. All offsets in bytes, little-endian.

TX is what the guest sends, RX what it receives, here and everywhere in netback.
"""

import struct

PAGE_SIZE = 4096
"""Xen's protocol page, on machines of any page size."""

REQ_PROD = 0
REQ_EVENT = 4
RSP_PROD = 8
RSP_EVENT = 12
HEADER_SIZE = 64

SRING = struct.Struct("<IIII")
"""req_prod, req_event, rsp_prod, rsp_event: free-running 32-bit indices; a new ring holds (0, 1, 0, 1)."""


def slots(slot_size: int) -> int:
    """Slots of a one-page ring: the largest power of two that fits after the header (__RING_SIZE)."""
    return 1 << (((PAGE_SIZE - HEADER_SIZE) // slot_size).bit_length() - 1)


def slot_offset(index: int, slot_size: int) -> int:
    """The offset of slot `index` (free-running) in its page."""
    return HEADER_SIZE + (index % slots(slot_size)) * slot_size
