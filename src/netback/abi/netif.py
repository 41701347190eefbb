# SPDX-License-Identifier: Apache-2.0
"""io/netif.h: requests, responses, extra infos, flags and statuses. Sizes in bytes, little-endian.

TX is what the guest sends, RX what it receives. The first two flag bits have swapped meanings in the two.
"""

import enum
import struct

from netback.abi.ring import PAGE_SIZE, slots

TX_REQUEST = struct.Struct("<IHHHH")
"""gref, offset, flags, id, size. The first size of a chain is the frame's total, later ones are their own."""
TX_RESPONSE = struct.Struct("<Hh8x")
"""id, status, then zeros up to the slot's 12 bytes: the guest must not see stale bytes (XSA-216)."""
RX_REQUEST = struct.Struct("<HHI")
"""id, pad, gref."""
RX_RESPONSE = struct.Struct("<HHHh")
"""id, offset, flags, status: the bytes in this slot, or a negative Status."""
EXTRA_GSO = struct.Struct("<BBHBBH")
"""type, flags, size, gso type, pad, features."""

TX_SLOT = TX_REQUEST.size
RX_SLOT = RX_RESPONSE.size
TX_SLOTS = slots(TX_SLOT)
RX_SLOTS = slots(RX_SLOT)

MAX_TX_SIZE = 0xFFFF
ETH_HLEN = 14

MAX_DATA_SLOTS = 20
"""Maximum data slots of a frame that is served; netif.h asks for 18 (docs/decisions.md, Slots and chains)."""
MAX_XDP_HEADROOM = PAGE_SIZE - ETH_HLEN
"""Bytes: an Ethernet header must fit behind it into the page."""
FATAL_DATA_SLOTS = 22
"""A chain of this many data slots or more closes the vif (XSA-39); one of 21 is answered ERROR."""


class TxFlag(enum.IntFlag):
    """NETTXF_*."""

    CSUM_BLANK = 1
    DATA_VALIDATED = 2
    MORE_DATA = 4
    EXTRA_INFO = 8


class RxFlag(enum.IntFlag):
    """NETRXF_*."""

    DATA_VALIDATED = 1
    CSUM_BLANK = 2
    MORE_DATA = 4
    EXTRA_INFO = 8
    GSO_PREFIX = 16


class Status(enum.IntEnum):
    """NETIF_RSP_*."""

    NULL = 1
    OKAY = 0
    ERROR = -1
    DROPPED = -2


class ExtraType(enum.IntEnum):
    """XEN_NETIF_EXTRA_TYPE_*."""

    NONE = 0
    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4
    XDP = 5
    """Linux's netif.h has it; Xen's does not."""


EXTRA_FLAG_MORE = 1


class GsoType(enum.IntEnum):
    """XEN_NETIF_GSO_TYPE_*."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 2
