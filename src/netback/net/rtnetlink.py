# SPDX-License-Identifier: Apache-2.0
"""The few rtnetlink messages that a network needs: find a link, set its MTU, add and remove alternative names.

Written here because importing pyroute2 takes a quarter of a second, and a toolstack waits for the first tap. Each
request opens its own socket, in the network namespace of its thread (rtnetlink(7)).
"""

import enum
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from netback.net.base import Bridge
from netback.net.link_names import MAX_LINK_NAME, unpack_link_name


class Message(enum.IntEnum):
    """linux/netlink.h and linux/rtnetlink.h: types of messages."""

    ERROR = 2
    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
    SETLINK = 19
    NEWLINKPROP = 108
    DELLINKPROP = 109


class Attribute(enum.IntEnum):
    """linux/if_link.h: IFLA_*."""

    IFNAME = 3
    MTU = 4
    MASTER = 10
    LINKINFO = 18
    STATS64 = 23
    PROP_LIST = 52
    ALT_IFNAME = 53


INFO_KIND, INFO_DATA = 1, 2
"""linux/if_link.h: of IFLA_LINKINFO, IFLA_INFO_KIND and IFLA_INFO_DATA."""
TUN_NUM_QUEUES, TUN_NUM_DISABLED_QUEUES = 8, 9
"""linux/if_link.h: of a tap's IFLA_INFO_DATA, IFLA_TUN_NUM_QUEUES and IFLA_TUN_NUM_DISABLED_QUEUES."""
ARPHRD_ETHER = 1
"""linux/if_arp.h."""
REQUEST, ACK = 1, 4
NESTED = 1 << 15
"""NLA_F_NESTED."""
GROUP_LINK = 1
"""RTMGRP_LINK: the multicast group of changes to links."""

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
IFF_UP = 1
"""linux/if.h: the link is set up."""
IFF_LOWER_UP = 1 << 16
"""linux/if.h: the link has carrier."""
IFINFO = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, mask of changed flags."""
ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
INT = struct.Struct("=i")
MTU = struct.Struct("=I")
TX_DROPPED = struct.Struct("=56xQ")
"""struct rtnl_link_stats64 up to tx_dropped."""

RECEIVE = 1 << 16
"""Bytes: larger than any message about one link."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link as a message describes it."""

    index: int
    name: str
    type: int = 0
    """linux/if_arp.h: ARPHRD_*."""
    altnames: tuple[str, ...] = ()
    mtu: int = 0
    flags: int = 0
    """linux/if.h: IFF_*."""
    master: int = 0
    """The index of the link that this one is a port of, such as a bridge; 0: of none."""
    tap_queues: int = 0
    """Queues of a multi-queue tap that processes hold, attached or detached; 0 for other links."""
    tx_dropped: int = 0
    """Frames dropped because the link's queue was full, since it was made; 0 in messages without statistics."""

    @property
    def names(self) -> frozenset[str]:
        """Every name by which the kernel finds it."""
        return frozenset((self.name, *self.altnames))

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read the body of NEWLINK or DELLINK."""
        _, kind, index, flags, _ = IFINFO.unpack_from(body)
        found = dict(attributes(body[IFINFO.size :]))
        alternatives = attributes(found.get(Attribute.PROP_LIST, b""))
        return cls(
            index,
            unpack_link_name(found.get(Attribute.IFNAME, b"")),
            kind,
            tuple(
                unpack_link_name(value) for number, value in alternatives if number == Attribute.ALT_IFNAME
            ),
            MTU.unpack(found[Attribute.MTU])[0] if Attribute.MTU in found else 0,
            flags,
            MTU.unpack(found[Attribute.MASTER])[0] if Attribute.MASTER in found else 0,
            _tap_queues(found.get(Attribute.LINKINFO, b"")),
            TX_DROPPED.unpack_from(found[Attribute.STATS64])[0] if Attribute.STATS64 in found else 0,
        )


def _tap_queues(info: bytes) -> int:
    """The number in a link's IFLA_LINKINFO; another kind's data has other attributes."""
    kind = dict(attributes(info))
    if not kind.get(INFO_KIND, b"").startswith(b"tun\0"):
        return 0
    data = dict(attributes(kind.get(INFO_DATA, b"")))
    counts = (TUN_NUM_QUEUES, TUN_NUM_DISABLED_QUEUES)
    return sum(MTU.unpack(data[count])[0] for count in counts if count in data)


def attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr and its value, padded to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type, without its flags, and the value of each attribute."""
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & ~NESTED, data[ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each message of a datagram."""
    while len(data) >= HEADER.size:
        length, kind, _, _, _ = HEADER.unpack_from(data)
        if not HEADER.size <= length <= len(data):
            return
        yield kind, data[HEADER.size : length]
        data = data[length + -length % 4 :]


def request(kind: Message, flags: int, index: int, *parts: bytes, up: bool = False) -> bytes:
    """Send one request about the link `index` (0: the attributes name it) and return the answer's body. `up`: set it
    up. OSError: refused.
    """
    body = IFINFO.pack(0, 0, index, up * IFF_UP, up * IFF_UP) + b"".join(parts)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, 0, 0) + body)
        answer_kind, answer = next(messages(sock.recv(RECEIVE)))
    fault = -INT.unpack_from(answer)[0] if answer_kind == Message.ERROR else 0
    if fault:
        raise OSError(fault, os.strerror(fault))
    return answer


def get_link(name: str) -> Link | None:
    """The link with this name or alternative name, of up to 127 bytes; None if there is none.

    IFLA_IFNAME, if_nametoindex and every ioctl take 15 bytes, so only IFLA_ALT_IFNAME finds a longer name.
    """
    kind = Attribute.IFNAME if len(name) <= MAX_LINK_NAME else Attribute.ALT_IFNAME
    with suppress(OSError):  # ENODEV; EINVAL from a kernel before 5.5, which has no alternative names
        return Link.parse(request(Message.GETLINK, 0, 0, attribute(kind, os.fsencode(name) + b"\0")))
    return None


def get_bridge(link: Link | None) -> Bridge | None:
    """The bridge, or another link, that `link` is a port of; None if it is of none."""
    if link is None or not link.master:
        return None
    with suppress(OSError):
        found = Link.parse(request(Message.GETLINK, 0, link.master))
        return Bridge(found.index, found.name, found.mtu)
    return None


def set_mtu(index: int, mtu: int) -> None:
    """Set a link's MTU, in bytes. OSError: refused."""
    request(Message.SETLINK, ACK, index, attribute(Attribute.MTU, MTU.pack(mtu)))


def set_up(index: int) -> None:
    """Set a link up. OSError: refused."""
    request(Message.SETLINK, ACK, index, up=True)


def join_bridge(index: int, bridge: int) -> None:
    """Make a link a port of a bridge, and set it up. OSError: refused; EOPNOTSUPP or EINVAL from what is no bridge."""
    request(Message.SETLINK, ACK, index, attribute(Attribute.MASTER, INT.pack(bridge)), up=True)


def add_altname(index: int, name: str) -> None:
    """Give a link another name, of up to 127 bytes. OSError EEXIST: a link in this namespace has it."""
    _change_altname(Message.NEWLINKPROP, index, name)


def remove_altname(index: int, name: str) -> None:
    """Remove an alternative name. OSError: the link does not have it."""
    _change_altname(Message.DELLINKPROP, index, name)


def _change_altname(kind: Message, index: int, name: str) -> None:
    entry = attribute(Attribute.ALT_IFNAME, os.fsencode(name) + b"\0")
    request(kind, ACK, index, attribute(Attribute.PROP_LIST | NESTED, entry))
