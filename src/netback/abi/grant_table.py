# SPDX-License-Identifier: Apache-2.0
"""grant_table.h: version 1 entries and the status codes of grant operations."""

import enum
import struct

ENTRY = struct.Struct("<HHI")
"""flags, domid, frame."""

RESERVED_ENTRIES = 8
"""The toolstack owns the first grefs (console, store); a guest uses the grefs from here on."""


class GrantFlag(enum.IntFlag):
    """GTF_*: the low two bits are the type."""

    PERMIT_ACCESS = 1
    READONLY = 4
    READING = 8
    WRITING = 16


TYPE_MASK = 3


class GrantStatus(enum.IntEnum):
    """GNTST_*."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13
