# SPDX-License-Identifier: Apache-2.0
"""The few rtnetlink messages that a network needs: find, make and remove a link, change it and its names.

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
    NEWSTATS = 92
    GETSTATS = 94
    NEWLINKPROP = 108
    DELLINKPROP = 109


class Attribute(enum.IntEnum):
    """linux/if_link.h: IFLA_*."""

    ADDRESS = 1
    IFNAME = 3
    MTU = 4
    LINK = 5
    MASTER = 10
    LINKINFO = 18
    PROP_LIST = 52
    ALT_IFNAME = 53


INFO_KIND, INFO_DATA = 1, 2
"""linux/if_link.h: of IFLA_LINKINFO, IFLA_INFO_KIND and IFLA_INFO_DATA."""
MACVLAN_MODE = 1
"""linux/if_link.h: of a macvtap's IFLA_INFO_DATA, IFLA_MACVLAN_MODE."""
TUN_NUM_QUEUES, TUN_NUM_DISABLED_QUEUES = 8, 9
"""linux/if_link.h: of a tap's IFLA_INFO_DATA, IFLA_TUN_NUM_QUEUES and IFLA_TUN_NUM_DISABLED_QUEUES."""
ARPHRD_ETHER = 1
"""linux/if_arp.h."""
REQUEST, ACK = 1, 4
EXCLUSIVE, CREATE = 0x200, 0x400
"""linux/netlink.h: NLM_F_*."""
NESTED = 1 << 15
"""NLA_F_NESTED."""
GROUP_LINK = 1
"""RTMGRP_LINK: the multicast group of changes to links."""

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
IFF_UP = 1
"""linux/if.h: the link is set up."""
IFF_ALLMULTI = 1 << 9
"""linux/if.h: the link receives the frames of every multicast group."""
IFF_LOWER_UP = 1 << 16
"""linux/if.h: the link has carrier."""
PASSING = IFF_UP | IFF_LOWER_UP
"""The flags of a link that is set up and has carrier."""
IFINFO = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, mask of changed flags."""
ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
INT = struct.Struct("=i")
MTU = struct.Struct("=I")
STATS = struct.Struct("=4xII")
"""struct if_stats_msg: index, mask of the wanted attributes."""
STATS_LINK_64 = 1
"""linux/if_link.h: IFLA_STATS_LINK_64, a struct rtnl_link_stats64; as a mask, too (IFLA_STATS_FILTER_BIT)."""
DROPPED = struct.Struct("=48xQQ")
"""struct rtnl_link_stats64 up to rx_dropped and tx_dropped."""

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
    kind: str = ""
    """Its driver's name (IFLA_INFO_KIND), as in "tun", "bridge", "veth"; empty for a physical one."""
    lower: int = 0
    """The index of the link that this one is on, as a macvtap's; 0: on none."""
    mode: int = 0
    """A macvtap's IFLA_MACVLAN_MODE; 0 for other links."""

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
        info = dict(attributes(found.get(Attribute.LINKINFO, b"")))
        own = info.get(INFO_KIND, b"").partition(b"\0")[0].decode("ascii", "replace")
        data = dict(attributes(info.get(INFO_DATA, b"")))
        return cls(
            index,
            unpack_link_name(found.get(Attribute.IFNAME, b"")),
            kind,
            tuple(
                unpack_link_name(value) for number, value in alternatives if number == Attribute.ALT_IFNAME
            ),
            _sum(found, Attribute.MTU),
            flags,
            _sum(found, Attribute.MASTER),
            _sum(data, TUN_NUM_QUEUES, TUN_NUM_DISABLED_QUEUES) if own == "tun" else 0,
            own,
            _sum(found, Attribute.LINK),
            _sum(data, MACVLAN_MODE) if own == "macvtap" else 0,
        )


def _sum(found: dict[int, bytes], *numbers: int) -> int:
    """The sum of those of these u32 attributes that are there."""
    return sum(MTU.unpack(found[number])[0] for number in numbers if number in found)


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


def request(
    kind: Message, flags: int, index: int, *parts: bytes, turn_on: int = 0, turn_off: int = 0
) -> bytes:
    """Send one request about the link `index` (0: the attributes name it) and return the answer's body. `turn_on` and
    `turn_off`: set and clear these IFF_* flags of it. OSError: refused.
    """
    return ask(kind, flags, IFINFO.pack(0, 0, index, turn_on, turn_on | turn_off) + b"".join(parts))


def ask(kind: Message, flags: int, body: bytes) -> bytes:
    """Send one request and return the answer's body. OSError: refused."""
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


def get_link_at(index: int) -> Link | None:
    """The link with this index; None if there is none."""
    with suppress(OSError):
        return Link.parse(request(Message.GETLINK, 0, index))
    return None


def get_drops(index: int) -> tuple[int, int]:
    """How many frames the link with this index has dropped since it was made, such as those for which a tap's queue was
    full: of those that it received, and of those that it was to send. OSError: there is none.

    RTM_GETSTATS costs a quarter of a whole description of the link, and the drops of all vifs are asked for at once.
    """
    answer = ask(Message.GETSTATS, 0, STATS.pack(index, STATS_LINK_64))
    rx, tx = DROPPED.unpack_from(answer, STATS.size + ATTRIBUTE.size)
    return rx, tx


def get_master(link: Link | None) -> Link | None:
    """The bridge, or another link, that `link` is a port of; None if it is of none."""
    return None if link is None or not link.master else get_link_at(link.master)


def get_bridge(link: Link | None) -> Bridge | None:
    """The same as networks show it."""
    found = get_master(link)
    return None if found is None else Bridge(found.index, found.name, found.mtu)


def set_mtu(index: int, mtu: int) -> None:
    """Set a link's MTU, in bytes. OSError: refused."""
    request(Message.SETLINK, ACK, index, attribute(Attribute.MTU, MTU.pack(mtu)))


def rename(index: int, name: str) -> None:
    """Give a link another name, and set it down: before 6.2 Linux renames none that is up. OSError: refused."""
    request(Message.SETLINK, ACK, index, turn_off=IFF_UP)
    request(Message.SETLINK, ACK, index, attribute(Attribute.IFNAME, os.fsencode(name) + b"\0"))


def join_bridge(index: int, bridge: int) -> None:
    """Make a link a port of a bridge, and set it up. OSError: refused; EOPNOTSUPP or EINVAL from what is no bridge."""
    request(Message.SETLINK, ACK, index, attribute(Attribute.MASTER, INT.pack(bridge)), turn_on=IFF_UP)


def turn_on(index: int, flags: int) -> None:
    """Set IFF_* flags of a link. OSError: refused."""
    request(Message.SETLINK, ACK, index, turn_on=flags)


def make_macvtap(name: str, lower: int, mode: int, address: str | None) -> None:
    """Make a macvtap on the link with the index `lower`; `address`: as aa:bb:cc:dd:ee:ff, None for the kernel's choice.
    OSError: refused; EEXIST: a link has the name; EBUSY: `lower` takes no macvtap of this mode now.
    """
    data = attribute(MACVLAN_MODE, MTU.pack(mode))
    info = attribute(INFO_KIND, b"macvtap") + attribute(INFO_DATA | NESTED, data)
    parts = [
        attribute(Attribute.IFNAME, os.fsencode(name) + b"\0"),
        attribute(Attribute.LINK, MTU.pack(lower)),
        attribute(Attribute.LINKINFO | NESTED, info),
    ]
    if address is not None:
        parts.append(attribute(Attribute.ADDRESS, bytes.fromhex(address.replace(":", ""))))
    request(Message.NEWLINK, ACK | CREATE | EXCLUSIVE, 0, *parts)


def delete_link(index: int) -> None:
    """Remove a link. OSError: refused."""
    request(Message.DELLINK, ACK, index)


def add_altname(index: int, name: str) -> None:
    """Give a link another name, of up to 127 bytes. OSError EEXIST: a link in this namespace has it."""
    _change_altname(Message.NEWLINKPROP, index, name)


def remove_altname(index: int, name: str) -> None:
    """Remove an alternative name. OSError: the link does not have it."""
    _change_altname(Message.DELLINKPROP, index, name)


def _change_altname(kind: Message, index: int, name: str) -> None:
    entry = attribute(Attribute.ALT_IFNAME, os.fsencode(name) + b"\0")
    request(kind, ACK, index, attribute(Attribute.PROP_LIST | NESTED, entry))
