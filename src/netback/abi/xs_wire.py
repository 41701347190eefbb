# SPDX-License-Identifier: Apache-2.0
"""xen/io/xs_wire.h: message types, errors, limits and the header."""

from enum import IntEnum, StrEnum
from struct import Struct


class Op(IntEnum):
    """XS_*: the message types. 20 was RESTRICT and stays free."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Errno(StrEnum):
    """The names that an ERROR reply may contain, in the order of the header's table."""

    EINVAL = "EINVAL"
    EACCES = "EACCES"
    EEXIST = "EEXIST"
    EISDIR = "EISDIR"
    ENOENT = "ENOENT"
    ENOMEM = "ENOMEM"
    ENOSPC = "ENOSPC"
    EIO = "EIO"
    ENOTEMPTY = "ENOTEMPTY"
    ENOSYS = "ENOSYS"
    EROFS = "EROFS"
    EBUSY = "EBUSY"
    EAGAIN = "EAGAIN"
    EISCONN = "EISCONN"
    E2BIG = "E2BIG"
    EPERM = "EPERM"


HEADER = Struct("<IIII")
"""type, req_id, tx_id, len: host order, which is little-endian on x86-64 and arm64."""

PAYLOAD_MAX = 4096
"""Maximum bytes of a message's payload; more ends the connection."""
ABS_PATH_MAX = 3072
"""Maximum bytes of a path; more is EINVAL."""
REL_PATH_MAX = 2048
"""Maximum bytes of a path below a domain's home; more is EINVAL."""
