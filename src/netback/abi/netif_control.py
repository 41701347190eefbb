# SPDX-License-Identifier: Apache-2.0
"""io/netif.h: the control ring, its messages and statuses. Sizes in bytes, little-endian."""

import enum
import struct

from netback.abi.ring import PAGE_SIZE, slots

CTRL_REQUEST = struct.Struct("<HHIII")
"""id, type, data[3]."""
CTRL_RESPONSE = struct.Struct("<HHII4x")
"""id, type, status, data, then zeros up to the slot's 16 bytes: the guest must not see stale bytes (XSA-216)."""
CTRL_SLOT = CTRL_REQUEST.size
CTRL_SLOTS = slots(CTRL_SLOT)

MAPPING_ENTRY = struct.Struct("<I")
"""A queue's number in a page of SET_HASH_MAPPING."""
GREF_ENTRY = struct.Struct("<IHH")
"""gref, flags, status: an entry in a page of ADD_GREF_MAPPING and DEL_GREF_MAPPING."""
GREF_READONLY = 1
"""XEN_NETIF_CTRLF_GREF_readonly."""
MAX_GREFS = PAGE_SIZE // GREF_ENTRY.size
"""Entries of a list."""


class CtrlType(enum.IntEnum):
    """XEN_NETIF_CTRL_TYPE_*."""

    INVALID = 0
    GET_HASH_FLAGS = 1
    SET_HASH_FLAGS = 2
    SET_HASH_KEY = 3
    GET_HASH_MAPPING_SIZE = 4
    SET_HASH_MAPPING_SIZE = 5
    SET_HASH_MAPPING = 6
    SET_HASH_ALGORITHM = 7
    GET_GREF_MAPPING_SIZE = 8
    ADD_GREF_MAPPING = 9
    DEL_GREF_MAPPING = 10


class CtrlStatus(enum.IntEnum):
    """XEN_NETIF_CTRL_STATUS_*."""

    SUCCESS = 0
    NOT_SUPPORTED = 1
    INVALID_PARAMETER = 2
    BUFFER_OVERFLOW = 3


class HashAlgorithm(enum.IntEnum):
    """XEN_NETIF_CTRL_HASH_ALGORITHM_*."""

    NONE = 0
    TOEPLITZ = 1


class HashType(enum.IntFlag):
    """XEN_NETIF_CTRL_HASH_TYPE_*; a hash extra has the number of the bit."""

    IPV4 = 1
    IPV4_TCP = 2
    IPV6 = 4
    IPV6_TCP = 8
