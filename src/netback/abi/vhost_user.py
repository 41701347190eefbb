# SPDX-License-Identifier: Apache-2.0
"""The vhost-user protocol (QEMU, docs/interop/vhost-user.rst): what its front end says to set up virtqueues.

Each message is a header and a payload, in the machine's byte order.
"""

import enum
import struct

HEADER = struct.Struct("=III")
"""request, flags, bytes of payload."""
U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")
"""vhost_vring_state: virtqueue, number."""
ADDRESSES = struct.Struct("=IIQQQQ")
"""vhost_vring_addr: virtqueue, flags, descriptors, used, avail, log."""
MEMORY = struct.Struct("=IIQQQQ")
"""VhostUserMemory of one region: regions, padding; guest address, bytes, user address, offset in its file."""

VERSION = 1
VERSION_MASK = 3
REPLY = 4
NEED_REPLY = 8


class Request(enum.IntEnum):
    """VHOST_USER_*."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18


class Feature(enum.IntFlag):
    """VIRTIO_NET_F_*, VIRTIO_F_*, and VHOST_USER_F_PROTOCOL_FEATURES."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    MRG_RXBUF = 1 << 15
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class Protocol(enum.IntFlag):
    """VHOST_USER_PROTOCOL_F_*."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
