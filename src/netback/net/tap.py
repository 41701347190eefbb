# SPDX-License-Identifier: Apache-2.0
"""A tap: created, or adopted where it exists; it outlives us, so that a restart finds it where the bridge has it.

Knows /dev/net/tun and, for names and statistics, rtnetlink. One queue (no IFF_MULTI_QUEUE): the kernel then answers
EBUSY while another process holds the tap, where a second queue would silently take a share of the frames. The flag is
fixed when a tap is made; a tap that somebody made with it is adopted with it.
"""

import enum
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from netback.abi import virtio_net
from netback.dataplane.caps import EVERYTHING, Can
from netback.dataplane.peers.peer import Peer
from netback.errors import ConfigError, PeerError
from netback.net.buffers import DRAIN_MOST, HEAD
from netback.net.mtu import link_mtu

T = TypeVar("T")
Argument = TypeVar("Argument", int, bytes)

DEVICE = "/dev/net/tun"


class Tun(enum.IntEnum):
    """linux/if_tun.h: the ioctls."""

    SETIFF = 0x400454CA
    SETPERSIST = 0x400454CB
    SETOFFLOAD = 0x400454D0
    GETIFF = 0x800454D2
    SETVNETHDRSZ = 0x400454D8
    SETCARRIER = 0x400454E2


class Flag(enum.IntFlag):
    """linux/if_tun.h: IFF_*."""

    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    NO_PI = 0x1000
    VNET_HDR = 0x4000
    EXCL = 0x8000


class Link(enum.IntEnum):
    """linux/rtnetlink.h, linux/if_link.h and linux/netlink.h: what `mark` says."""

    NEWLINKPROP = 108
    PROP_LIST = 52 | 1 << 15
    """Nested."""
    ALT_IFNAME = 53
    REQUEST = 1
    ACK = 4


NETLINK = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
IFINFO = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, changed flags."""
ATTRIBUTE = struct.Struct("=HH")
ERROR = struct.Struct("=i")
"""The head of struct nlmsgerr: a negative errno, or 0."""

IFREQ = struct.Struct("16sH22x")
INT = struct.Struct("i")
FORMAT = Flag.TAP | Flag.NO_PI | Flag.VNET_HDR

OFFLOADS = ((Can.CSUM4 | Can.CSUM6, 0x01), (Can.TSO4, 0x02), (Can.TSO6, 0x04))
"""What each TUN_F_* needs of the receiver: any of these. One checksum flag covers IPv4 and IPv6, the native side
completes what this guest cannot take. Never TUN_F_TSO_ECN nor TUN_F_USO*: netif cannot say either (rules 5)."""

BUSY_WAITS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Seconds between tries while another process holds the tap: a killed predecessor lets go once the kernel buried it."""

MARK = "netback-{}"
"""The alternative name (up to 127 characters) of a tap that we made: it survives us and every rename."""


def ifreq(name: str, flags: int) -> bytes:
    """struct ifreq."""
    return IFREQ.pack(name.encode(), flags)


def rtnetlink(call: Callable[[Any], T]) -> T:
    """Make `call(ip)` with an rtnetlink socket.

    In a thread of its own, since pyroute2 runs an event loop to answer and the caller's loop runs already; in this
    thread's network namespace, which a new thread inherits. Imported here: that takes a quarter of a second, and what
    guests wait for does without.
    """
    from pyroute2 import IPRoute

    def run() -> T:
        with IPRoute() as ip:
            return call(ip)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def get_link(**which: str) -> Any | None:
    """The link of this `ifname` or `altname`."""
    from pyroute2.netlink.exceptions import NetlinkError

    with suppress(NetlinkError):
        return next(iter(rtnetlink(lambda ip: ip.link("get", **which))), None)
    return None


def find_marked(name: str) -> str | None:
    """The present name of the tap that netback once made as `name`.

    The kernel finds a link by its alternative names, too: so a restart needs no rtnetlink, whose import would be most
    of what a guest waits for.
    """
    try:
        return socket.if_indextoname(socket.if_nametoindex(MARK.format(name)))
    except OSError:
        return None


def attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr and its value, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def mark(name: str) -> None:
    """Say on the link itself that we made it.

    The one message is written here: the toolstack gives a backend ten seconds to make the first tap, and on a slow host
    the import of pyroute2 alone takes longer.
    """
    alias = attribute(Link.ALT_IFNAME, MARK.format(name).encode() + b"\0")
    body = IFINFO.pack(0, 0, socket.if_nametoindex(name), 0, 0) + attribute(Link.PROP_LIST, alias)
    head = NETLINK.pack(NETLINK.size + len(body), Link.NEWLINKPROP, Link.REQUEST | Link.ACK, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(head + body)
        fault = -ERROR.unpack_from(sock.recv(NETLINK.size + ERROR.size), NETLINK.size)[0]
    if fault:
        raise OSError(fault, f"cannot mark {name}: {os.strerror(fault)}")


def open_device(link: str) -> int:
    """A descriptor of the tap driver, joined to nothing yet."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(f"tap:{link}: there is no {DEVICE}: load the module tun, or use packet") from error
    except PermissionError as error:
        raise ConfigError(f"tap:{link}: no permission to open {DEVICE}: be root, or use packet") from error


def try_join(fd: int, link: str, flags: Flag) -> int:
    """Join the descriptor to a tap: 0, or the errno."""
    try:
        fcntl.ioctl(fd, Tun.SETIFF, ifreq(link, flags))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def create(fd: int, link: str) -> bool:
    """Make the tap: False where the name is taken."""
    fault = try_join(fd, link, FORMAT | Flag.EXCL)
    if fault == errno.EPERM:
        raise ConfigError(f"tap:{link}: no permission to make a tap: CAP_NET_ADMIN is needed")
    if fault not in (0, errno.EBUSY):
        raise ConfigError(f"tap:{link}: cannot make it: {os.strerror(fault)}")
    return fault == 0


def adopt(fd: int, link: str) -> None:
    """Join the tap that has this name, as its maker chose: with one queue or as one of many."""
    for wait in (*BUSY_WAITS, None):
        fault = try_join(fd, link, FORMAT)
        if fault == errno.EINVAL:
            fault = try_join(fd, link, FORMAT | Flag.MULTI_QUEUE)
        if fault != errno.EBUSY or wait is None:
            break
        time.sleep(wait)
    if fault == errno.EBUSY:
        raise PeerError(f"tap:{link}: another process holds it")
    if fault == errno.EPERM:
        raise ConfigError(f"tap:{link}: no permission to open this tap: be its owner, or have CAP_NET_ADMIN")
    if fault:
        raise ConfigError(f"tap:{link}: a link of that name exists and is not a tap ({os.strerror(fault)})")


def join(fd: int, link: str) -> bool:
    """Create or adopt: whether netback made this tap, now or in an earlier life."""
    if marked := find_marked(link):
        adopt(fd, marked)
        return True
    if create(fd, link):
        mark(link)
        return True
    adopt(fd, link)
    return False


def joined_to(fd: int) -> str | None:
    """The present name of the tap that a descriptor is joined to, if it still is."""
    try:
        name: bytes = IFREQ.unpack(fcntl.ioctl(fd, Tun.GETIFF, ifreq("", 0)))[0]
    except (OSError, ValueError):  # EBADFD: somebody removed the tap; ValueError: we have closed it
        return None
    return name.rstrip(b"\0").decode()


def is_joined(fd: int, link: str) -> bool:
    """Whether a descriptor is joined to this tap, or to the one that netback once made as `link`."""
    present = joined_to(fd)
    return present is not None and present in (link, find_marked(link))


def discard(fd: int) -> None:
    """Close the descriptor of a device that is gone; the tap goes with it, if netback made that."""
    present = joined_to(fd)
    link = present and get_link(ifname=present)
    names = link and link.get_attr("IFLA_PROP_LIST")
    if names and any(name.startswith(MARK.format("")) for name in names.get_attrs("IFLA_ALT_IFNAME")):
        with suppress(OSError):
            fcntl.ioctl(fd, Tun.SETPERSIST, 0)
    os.close(fd)


class TapNetwork:
    """A tap of the kernel. Whoever renames it or takes it down, its descriptor stays joined to it.

    `held` is the descriptor of an earlier process that somebody kept: if it is still this tap's, its carrier and the
    frames that wait in it are left as they are.
    """

    def __init__(self, link: str, held: int | None = None) -> None:
        if held is not None and not is_joined(held, link):
            discard(held)
            held = None
        self._link = link
        self._fd = open_device(link) if held is None else held
        try:
            self._made = join(self._fd, link) if held is None else find_marked(link) is not None
            self._tell(Tun.SETVNETHDRSZ, INT.pack(virtio_net.HEADER.size))
            if self._made:
                self._tell(Tun.SETPERSIST, 1)
            if held is None:
                self.offloads(0)
                self.carrier(False)
        except BaseException:
            self.close()
            raise
        self.peers = (Peer("tap", self._fd, vnet_hdr=True, caps=EVERYTHING, owner=self),)

    def _tell(self, request: Tun, argument: Argument) -> Argument:
        try:
            return fcntl.ioctl(self._fd, request, argument)
        except (
            OSError,
            ValueError,
        ) as error:  # EBADFD: somebody removed the tap; ValueError: we have closed it
            raise PeerError(f"tap:{self._link}: the tap is gone ({error})") from error

    @property
    def name(self) -> str:
        """The link's present name; the last one once it is gone or we have closed it."""
        self._link = joined_to(self._fd) or self._link
        return self._link

    @property
    def mtu(self) -> int | None:
        return link_mtu(self.name)

    def offloads(self, caps: int) -> None:
        """Have the kernel complete and cut what the guest cannot take; it offers no segmentation without checksums."""
        wanted = 0
        if caps & OFFLOADS[0][0]:
            wanted = sum(flag for needs, flag in OFFLOADS if caps & needs)
        self._tell(Tun.SETOFFLOAD, wanted)

    def carrier(self, on: bool) -> None:
        """As a cable: bridges and routes see whether a guest is connected. A tap that is gone shows nobody."""
        with suppress(PeerError):
            self._tell(Tun.SETCARRIER, INT.pack(on))

    def drain(self) -> int:
        """Throw away what waits in the tap's queue."""
        count = 0
        with suppress(OSError):
            while count < DRAIN_MOST:
                os.read(self._fd, HEAD)  # what is not read of a frame is thrown away
                count += 1
        return count

    def drops(self) -> dict[str, int]:
        """What found the tap's queue full, the guest being slow or absent: counted since the link was made."""
        link = get_link(ifname=self.name)
        return {"rx_overflow": int(link.get_attr("IFLA_STATS64")["tx_dropped"])} if link else {}

    def close(self) -> None:
        """Let go of the tap: it stays, without carrier."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Let go of the tap and, if netback made it, have it vanish."""
        with suppress(PeerError):
            if self._made:
                self._tell(Tun.SETPERSIST, 0)
        self.close()


def remove_made(link: str) -> None:
    """Have the tap vanish that netback made as `link` in an earlier life, if there is one."""
    if find_marked(link):
        TapNetwork(link).remove()
