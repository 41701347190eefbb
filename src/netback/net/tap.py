# SPDX-License-Identifier: Apache-2.0
"""A tap: created, or adopted if it exists. It outlives netback, so a restart finds it attached to its bridge.

This module drives /dev/net/tun. A tap that netback creates for a vif of several queues has IFF_MULTI_QUEUE, and one
descriptor for each queue; the kernel spreads frames over them by flow, each flow to the queue that last sent it. The
flag is fixed when a tap is created: a tap that another program created is adopted as it is.

A tap has one holder. Without the flag the kernel returns EBUSY to a second one. With it the kernel would give a second
holder part of the frames, so netback joins only while the link has no other queues than its own, and under a lock, so
that of two processes at the same moment one stays outside.

netback records on the tap itself, as alternative names (ip-link(8)), what it must know after a kill: that netback
created the tap, and its MTU before netback lowered it. These names follow the tap through renames and network
namespaces and disappear with it; a file beside the journals would not.
"""

import enum
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from netback.abi import virtio_net
from netback.dataplane.caps import EVERYTHING, Can
from netback.dataplane.own_grants import OwnGrants
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.tap import TapPeer
from netback.dataplane.peers.vhost_tap import VHOST_NET, VhostTapPeer
from netback.errors import ConfigError, GoneError, PeerError
from netback.net.base import ETH_DATA_LEN, Bridge
from netback.net.buffers import HEAD, MAX_DRAIN
from netback.net.link_names import link_name_fault, pack_link_name, show_link_name, unpack_link_name
from netback.net.monitor import ANY_LINK
from netback.net.options import Option, Options, choice, integer, link_name
from netback.net.rtnetlink import (
    ARPHRD_ETHER,
    IFF_UP,
    Link,
    add_altname,
    delete_link,
    get_bridge,
    get_drops,
    get_link,
    join_bridge,
    remove_altname,
    set_mtu,
)

Argument = TypeVar("Argument", int, bytes)

DEVICE = "/dev/net/tun"
OWN_NAMESPACE = "/proc/thread-self/ns/net"


class Tun(enum.IntEnum):
    """linux/if_tun.h and linux/sockios.h: the ioctls of a tap's descriptor."""

    SETIFF = 0x400454CA
    SETPERSIST = 0x400454CB
    SETOFFLOAD = 0x400454D0
    GETIFF = 0x800454D2
    SETVNETHDRSZ = 0x400454D8
    SETQUEUE = 0x400454D9
    SETCARRIER = 0x400454E2
    GETDEVNETNS = 0x54E3
    SETADDRESS = 0x8924
    """SIOCSIFHWADDR."""


class Flag(enum.IntFlag):
    """linux/if_tun.h: IFF_*."""

    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    DETACH_QUEUE = 0x0400
    NO_PI = 0x1000
    VNET_HDR = 0x4000
    EXCL = 0x8000


IFREQ_FLAGS = struct.Struct("H22x")
"""The flags of a struct ifreq, after the name."""
IFREQ_NAME_FLAGS = struct.Struct("16sH22x")
IFREQ_ADDRESS = struct.Struct("H6s16x")
"""The address of a struct ifreq: struct sockaddr."""
IFREQ_SIZE = 40
INT = struct.Struct("i")
FORMAT = Flag.TAP | Flag.NO_PI | Flag.VNET_HDR

OFFLOADS = ((Can.CSUM4 | Can.CSUM6, 0x01), (Can.TSO4, 0x02), (Can.TSO6, 0x04))
"""The receiver must accept one of these for each TUN_F_* to be set. One checksum flag covers IPv4 and IPv6; the native
side completes what this guest cannot accept. TUN_F_TSO_ECN and TUN_F_USO* are never set: netif.h has no GSO type for
either."""

BUSY_WAITS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Seconds between attempts while another process holds the tap: a killed process closes its descriptor a little
later."""

ADDRESS = "fe:ff:ff:ff:ff:ff"
"""The address of a tap that netback creates, as Linux's backend gives it to its vifs: the highest address, so that a
bridge never takes it for its own. Guests and scripts expect it at the other end."""

MTU = integer(68, 65521)
"""Linux takes no other MTU for a tap (drivers/net/tun.c)."""
OPTIONS: Options = {
    "mtu": MTU,
    "vhost": choice("off", "auto", "on"),
    "bridge": Option("the name of a bridge", link_name),
}
"""Options of its spec."""

MADE = "netback-{}"
"""The alternative name that marks a tap that netback created under this name."""
KEPT_MTU = "netback.mtu."
"""The alternative name that marks a tap whose MTU netback lowered: the earlier MTU, a dot and the name follow."""


def open_device(link: str) -> int:
    """A descriptor of the tap driver that is not joined to a tap yet. PeerError: it cannot be opened now."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise PeerError(f"tap:{link}: there is no {DEVICE}: load the module tun, or use packet") from error
    except PermissionError as error:
        raise PeerError(f"tap:{link}: no permission to open {DEVICE}: be root, or use packet") from error


def find_made(link: str) -> Link | None:
    """The tap that netback created as `link`, whatever its current name is."""
    name = MADE.format(link)
    found = get_link(name)
    return found if found is not None and name in found.altnames else None


def try_join(fd: int, link: str, flags: Flag) -> int:
    """Join the descriptor to a tap; returns 0 or the errno."""
    try:
        fcntl.ioctl(fd, Tun.SETIFF, pack_link_name(link) + IFREQ_FLAGS.pack(flags))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def create(fd: int, link: str, *, several: bool) -> bool:
    """Create the tap, for `several` queues or for one, and mark it as netback's. False: the name is taken."""
    fault = try_join(fd, link, FORMAT | Flag.EXCL | (Flag.MULTI_QUEUE if several else Flag(0)))
    if fault == errno.EBUSY:
        return False
    if fault == errno.EPERM:
        raise ConfigError(f"tap:{link}: no permission to make a tap: CAP_NET_ADMIN is needed")
    if fault:
        raise ConfigError(f"tap:{link}: cannot make it ({os.strerror(fault)})")
    made = get_link(joined_to(fd) or link)
    if made is None:
        raise PeerError(f"tap:{link}: it was removed while netback made it")
    try:
        add_altname(made.index, MADE.format(link))
    except OSError as error:
        raise PeerError(f"tap:{link}: cannot mark it as made by netback: {error.strerror}") from error
    return True


def adopt(fd: int, link: str, waits: tuple[float, ...]) -> None:
    """Join the tap with this name in its creator's mode: with one queue, or as the first of many."""
    for wait in (*waits, None):
        fault = try_join(fd, link, FORMAT)
        if fault == errno.EINVAL:
            fault = try_join_queue(fd, link, 0)
        if fault != errno.EBUSY or wait is None:
            break
        time.sleep(wait)
    check_joined(fault, link)


@contextmanager
def joining(link: str) -> Iterator[bool]:
    """Keep other processes of netback from joining a queue of this tap meanwhile; False: one of them joins now.

    The name of an abstract socket belongs to the network namespace, as a link's does, and is free again when its
    process ends, however it ends (unix(7)). The lock has the link's name, since a tap that returns has another index.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            lock.bind(b"\0netback-tap-" + os.fsencode(link))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            yield False
        else:
            yield True


def try_join_queue(fd: int, link: str, held: int) -> int:
    """Join the descriptor to a multi-queue tap of which this process holds so many queues; returns 0 or the errno.

    EBUSY: another process holds a queue, or joins one now. A descriptor that has joined cannot leave but by its end, so
    the link's count is read before, and no other netback joins in between.
    """
    found = get_link(link)
    with joining(found.name if found else link) as alone:
        found = get_link(link)
        if not alone or (found is not None and found.tap_queues != held):
            return errno.EBUSY
        return try_join(fd, link, FORMAT | Flag.MULTI_QUEUE)


def check_joined(fault: int, link: str) -> None:
    """Raise the error for the errno of a join."""
    if fault == errno.EBUSY:
        raise PeerError(f"tap:{link}: another process holds it (EBUSY); stop it or choose another name")
    if fault == errno.EPERM:
        raise ConfigError(f"tap:{link}: no permission to open this tap: be its owner, or have CAP_NET_ADMIN")
    if fault:
        raise ConfigError(f"tap:{link}: a link of that name exists and is not a tap ({os.strerror(fault)})")


def has_queues(fd: int) -> bool:
    """Whether the descriptor's tap has IFF_MULTI_QUEUE."""
    try:
        _, flags = IFREQ_NAME_FLAGS.unpack(fcntl.ioctl(fd, Tun.GETIFF, bytes(IFREQ_SIZE)))
    except (OSError, ValueError):
        return False
    return bool(flags & Flag.MULTI_QUEUE)


def joined_to(fd: int) -> str | None:
    """The current name of the tap that a descriptor is joined to, in any namespace; None if it is gone."""
    try:
        return unpack_link_name(fcntl.ioctl(fd, Tun.GETIFF, bytes(IFREQ_SIZE)))
    except (OSError, ValueError):  # EBADFD: the tap was removed; ValueError: the descriptor is closed
        return None


def is_here(fd: int) -> bool:
    """Whether the tap is in this thread's network namespace; True if the kernel cannot tell."""
    try:
        namespace = fcntl.ioctl(fd, Tun.GETDEVNETNS)
    except (OSError, ValueError):  # EPERM: no CAP_NET_ADMIN there; EINVAL: Linux before 5.2
        return True
    try:
        return os.fstat(namespace).st_ino == os.stat(OWN_NAMESPACE).st_ino  # noqa: PTH116 (a magic link)
    except OSError:  # there is no /proc
        return True
    finally:
        os.close(namespace)


def find_joined(fd: int) -> Link | None:
    """The tap that a descriptor is joined to, if it lies in this network namespace."""
    name = joined_to(fd)
    return get_link(name) if name is not None and is_here(fd) else None


def is_joined(fd: int, link: str) -> bool:
    """Whether a descriptor is joined to this tap, or to the one that netback created as `link`."""
    found = find_joined(fd)
    return joined_to(fd) == link if found is None else bool(found.names & {link, MADE.format(link)})


def discard(fd: int) -> None:
    """Close the descriptor of a removed device; remove the tap if netback created it."""
    found = find_joined(fd)
    if found is not None and any(name.startswith(MADE.format("")) for name in found.altnames):
        with suppress(OSError):
            delete_link(found.index)
    os.close(fd)


def kept_mtu(link: Link) -> tuple[str, int] | None:
    """The alternative name that stores a tap's earlier MTU, and that MTU."""
    for name in link.altnames:
        number = name.removeprefix(KEPT_MTU).partition(".")[0]
        if name.startswith(KEPT_MTU) and number.isdecimal():
            return name, int(number)
    return None


def lower_mtu(link: Link, name: str) -> None:
    """Set 1500 if the MTU is larger. The larger one is recorded first, so that a kill in between loses nothing."""
    if link.mtu <= ETH_DATA_LEN:
        return
    if kept := kept_mtu(link):
        remove_altname(link.index, kept[0])
    add_altname(link.index, f"{KEPT_MTU}{link.mtu}.{name}")
    set_mtu(link.index, ETH_DATA_LEN)


def restore_mtu(link: Link) -> None:
    """Restore the MTU that `lower_mtu` recorded, unless it was changed since."""
    if kept := kept_mtu(link):
        if link.mtu == ETH_DATA_LEN:
            set_mtu(link.index, kept[1])
        remove_altname(link.index, kept[0])


def want_mtu(link: Link, mtu: int, name: str) -> None:
    """Set the MTU, now or, on a tap whose MTU netback lowered, as the one to restore."""
    if kept := kept_mtu(link):
        remove_altname(link.index, kept[0])
    if kept and link.mtu == ETH_DATA_LEN < mtu:
        add_altname(link.index, f"{KEPT_MTU}{mtu}.{name}")
    else:
        set_mtu(link.index, mtu)


def give_back(peer: Peer) -> None:
    """Have the kernel let go of the tap, which no worker serves now."""
    if isinstance(peer, VhostTapPeer):
        peer.settle(True)


class TapNetwork:
    """A tap; a macvtap is a subclass (net/macvtap.py). Its descriptor stays joined to it when it is renamed, set down
    or moved to another namespace.

    `held` are the descriptors that an earlier process put into a descriptor store: those that still belong to this tap
    are used, and the tap's carrier and queued frames stay unchanged. `several`: a tap that is made here may have
    several queues. `mtu`: set on the tap whenever it is joined. `vhost`: which frames vhost-net moves (vhost_tap.pyx):
    none (off), streams (auto) or all (on). `bridge`: the tap is set up as a port of this link, now and whenever it is a
    port of none. `address`: of a tap that is made here. `grants`: for vhost-net's buffers. ConfigError: a tap cannot be
    opened under this name. PeerError: another process holds it, or there is no such bridge.
    """

    KIND = "tap"
    _takes: int = EVERYTHING
    """The offloads that the network behind the tap takes."""
    _usual_vhost = "auto"
    """`vhost`, if it is not given."""

    def __init__(
        self,
        link: str,
        held: Sequence[int] = (),
        *,
        several: bool = False,
        mtu: int | None = None,
        vhost: str | None = None,
        bridge: str = "",
        address: str = ADDRESS,
        grants: OwnGrants | None = None,
    ) -> None:
        self._fds: list[int] = []
        self._peers: list[TapPeer | VhostTapPeer] = []
        for fd in held:
            if is_joined(fd, link):
                self._fds.append(fd)
            else:
                discard(fd)
        if fault := link_name_fault(link):
            raise ConfigError(f"{self.KIND}: {fault}; choose one that Linux takes, as in tap:web0")
        self._link = self._name = link
        self._caps = 0
        self._carrier = self._limited = False
        self._address = address
        self._mtu = mtu
        self._vhost, self._asked, self._grants = vhost or self._usual_vhost, vhost is not None, grants
        self._bridge_name = bridge
        self._dropped = self._dropped_before = 0
        self._here: int | None = None
        self._several = several
        try:
            if not self._fds:
                self._fds.append(self._open())
                self._join(BUSY_WAITS)
            else:
                self._made = find_made(link) is not None
                self._prepare()
                self._want_mtu()
                self._want_bridge()
        except BaseException:
            self.close()
            raise
        self._peers = [self._make_peer(fd) for fd in self._fds]

    # ---- queues

    @property
    def _fd(self) -> int:
        """The descriptor of queue 0; -1 once it is closed."""
        return self._fds[0] if self._fds else -1

    @property
    def peers(self) -> tuple[Peer, ...]:
        return tuple(self._peers)

    def _open(self) -> int:
        """A descriptor that `_take` or `_join_queue` joins."""
        return open_device(self._link)

    def _make_peer(self, fd: int) -> TapPeer | VhostTapPeer:
        plain = TapPeer(fd, vnet_hdr=True, caps=self._takes, owner=self)
        if self._vhost == "off":
            return plain
        return VhostTapPeer(plain, always=self._vhost == "on", grants=self._grants)

    def set_queues(self, count: int) -> None:
        """Join or leave queues of a multi-queue tap. A queue that stays attached gets its share of the frames, even if
        only a descriptor store holds it, so a queue is detached before it is closed.
        """
        if not self._fds or not has_queues(self._fd):
            return
        while len(self._fds) > count:
            fd = self._fds.pop()
            give_back(self._peers.pop())
            with suppress(OSError):  # the tap was removed
                fcntl.ioctl(fd, Tun.SETQUEUE, bytes(16) + IFREQ_FLAGS.pack(Flag.DETACH_QUEUE))
            os.close(fd)
        while len(self._fds) < count:
            self._fds.append(self._open())
            try:
                self._join_queue(len(self._fds) - 1)
            except BaseException:
                os.close(self._fds.pop())
                raise
            self._peers.append(self._make_peer(self._fds[-1]))

    def _join_queue(self, number: int) -> None:
        """Join the descriptor of a further queue to the tap of the first one."""
        name = joined_to(self._fd)
        if name is None:
            raise PeerError(f"{self._spec}: the link is gone")
        if not has_queues(self._fd):
            reason = f"it came back with one queue and its vif has {len(self._fds)}: make it with multi_queue"
            raise ConfigError(f"tap:{self._link}: {reason}")
        check_joined(try_join_queue(self._fds[number], name, number), self._link)
        self._tell(Tun.SETCARRIER, INT.pack(self._carrier))  # joining turns it on

    # ---- the link

    @property
    def _spec(self) -> str:
        """The network's name in errors, which stays the same when the link is renamed."""
        return f"{self.KIND}:{self._link}"

    def _found(self) -> Link | None:
        """The link that the descriptor is joined to; None if it is gone or in another network namespace."""
        return find_joined(self._fd)

    def _found_index(self) -> int | None:
        """The same link's index, without all else that is known of it. OSError: it went meanwhile."""
        name = joined_to(self._fd)
        index = socket.if_nametoindex(name) if name is not None else None
        if index != self._here and is_here(
            self._fd
        ):  # Linux gives no index twice, so one look at each is enough
            self._here = index
        return index if index == self._here else None

    @property
    def name(self) -> str:
        """The link's current name; the last one once it is gone or the descriptor is closed."""
        self._name = joined_to(self._fd) or self._name
        return show_link_name(self._name)

    @property
    def path(self) -> str | None:
        if self._vhost == "off":
            return None
        by_vhost = [peer for peer in self._peers if isinstance(peer, VhostTapPeer)]
        if used := sum(peer.attached for peer in by_vhost):
            return (
                "vhost-net"
                if used == 1 == len(by_vhost)
                else f"vhost-net for {used} of {len(by_vhost)} queues"
            )
        fault = next((peer.fault for peer in by_vhost if peer.fault), None)
        if not fault:
            return "system calls; vhost-net for streams"
        missing = fault.startswith(VHOST_NET) and not self._asked
        return f"system calls{';' if missing else ':'} {fault}"

    @property
    def mtu(self) -> int | None:
        link = self._found()
        return link.mtu if link else None

    @property
    def bridge(self) -> Bridge | None:
        return get_bridge(self._found())

    @property
    def up(self) -> bool:
        link = self._found()
        return bool(link.flags & IFF_UP) if link else joined_to(self._fd) is not None  # in another namespace

    @property
    def follows(self) -> frozenset[int | str]:
        if link := self._found():
            return frozenset({link.index})
        if joined_to(self._fd) is not None:  # in another namespace: it may come back under any name
            return frozenset({ANY_LINK})
        return frozenset({self._link, MADE.format(self._link)})

    def check(self) -> bool:
        """Check that the descriptor is joined; join the same descriptor again to a tap that was removed and is back.

        A tap that netback created is created again at once.
        """
        if self._fd < 0:
            return False
        if any(joined_to(fd) is None for fd in self._fds):
            self._rejoin()
            return True
        if self._found() is None:
            raise GoneError(f"{self._spec}: the link is in another network namespace; frames pass there")
        if self._limited:
            self.limit_mtu(True)
        self._want_bridge()
        return False

    def _rejoin(self) -> None:
        if joined_to(self._fd) is None:
            self._rejoin_first()
        for number, fd in enumerate(self._fds):
            if joined_to(fd) is None:
                self._join_queue(number)

    def _rejoin_first(self) -> None:
        if not self._made and get_link(self._link) is None:
            raise GoneError(f"{self._spec}: the link is gone; it is used again when it is back")
        self._dropped_before += self._dropped
        self._dropped = 0
        self._join(())
        if self._limited:
            self.limit_mtu(True)

    def _join(self, waits: tuple[float, ...]) -> None:
        """Create or adopt the tap, and apply the network's settings to it."""
        self._take(waits)
        self._prepare()
        self._want_mtu()
        self._want_bridge()
        self.offloads(self._caps)
        wanted = self._carrier
        self.carrier(False)  # a new tap has carrier; only a change is an event
        self.carrier(wanted)

    def _take(self, waits: tuple[float, ...]) -> None:
        """Join the first descriptor to a tap that is there, or that is made."""
        if found := find_made(self._link):
            adopt(self._fd, found.name, waits)
            self._made = True
        elif create(self._fd, self._link, several=self._several):
            self._made = True
            self._write_address()
        else:
            adopt(self._fd, self._link, waits)
            self._made = False

    def _prepare(self) -> None:
        """Set what every joined descriptor needs, new or held."""
        self._tell(Tun.SETVNETHDRSZ, INT.pack(virtio_net.HEADER.size))
        if self._made:
            self._tell(Tun.SETPERSIST, 1)

    def _want_mtu(self) -> None:
        """Set the MTU of the spec. ConfigError: this process may not."""
        link = self._found()
        if self._mtu is None or link is None:
            return
        try:
            want_mtu(link, self._mtu, self._link)
        except OSError as error:
            raise ConfigError(f"{self._spec}: cannot set its MTU to {self._mtu}: {error.strerror}") from error

    def _want_bridge(self) -> None:
        """Put the tap into the spec's bridge, unless it is a port of a link now: hotplug scripts and operators may move
        it. PeerError: there is no such bridge. ConfigError: the tap cannot be put into it.
        """
        link = self._found()
        if not self._bridge_name or link is None or link.master:
            return
        name, found = self._spec, get_link(self._bridge_name)
        if found is None:
            raise PeerError(
                f"{name}: there is no bridge {self._bridge_name}; the tap joins it once it exists"
            )
        try:
            join_bridge(link.index, found.index)
        except OSError as error:
            raise ConfigError(f"{name}: cannot put it into {self._bridge_name}: {error.strerror}") from error

    def _tell(self, request: Tun, argument: Argument) -> Argument:
        try:
            return fcntl.ioctl(self._fd, request, argument)
        except (
            OSError,
            ValueError,
        ) as error:  # EBADFD: the tap was removed; ValueError: the descriptor is closed
            raise PeerError(f"{self._spec}: the link is gone ({error})") from error

    # ---- settings; a tap that returns gets them again

    def offloads(self, caps: int) -> None:
        """Make the kernel complete and segment what the guest cannot accept; segmentation requires checksums."""
        self._caps = caps
        wanted = 0
        if caps & OFFLOADS[0][0]:
            wanted = sum(flag for needs, flag in OFFLOADS if caps & needs)
        with suppress(PeerError):
            self._tell(Tun.SETOFFLOAD, wanted)

    def carrier(self, on: bool) -> None:
        """Set the carrier: bridges and routes see whether a guest is connected."""
        self._carrier = on
        with suppress(PeerError):
            self._tell(Tun.SETCARRIER, INT.pack(on))

    def limit_mtu(self, limited: bool) -> None:
        """Lower the MTU to 1500, or restore the earlier one. A tap that this process may not change stays unchanged."""
        self._limited = limited
        link = self._found()
        with suppress(OSError):
            if link is not None and limited:
                lower_mtu(link, self._link)
            elif link is not None:
                restore_mtu(link)

    def set_address(self, address: str) -> None:
        """Set the address of a tap that netback created, as aa:bb:cc:dd:ee:ff."""
        self._address = address
        if self._made:
            with suppress(PeerError):
                self._write_address()

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of a tap that netback created, unless its spec gives one."""
        link = self._found() if self._made and self._mtu is None else None
        with suppress(OSError):
            if link is not None:
                set_mtu(link.index, mtu)

    def _write_address(self) -> None:
        octets = bytes.fromhex(self._address.replace(":", ""))
        self._tell(Tun.SETADDRESS, pack_link_name(self._link) + IFREQ_ADDRESS.pack(ARPHRD_ETHER, octets))

    # ---- queued and lost frames

    def drain(self) -> int:
        """Discard the frames queued in the tap."""
        count = 0
        for fd in self._fds:
            with suppress(OSError):
                while count < MAX_DRAIN:
                    os.read(fd, HEAD)  # the kernel discards the rest of the frame
                    count += 1
        return count

    def drops(self) -> dict[str, int]:
        """Frames dropped because the tap's queue was full, the guest being slow or absent; counted since the link was
        made.
        """
        with suppress(OSError):  # the link is gone
            if (index := self._found_index()) is not None:
                self._dropped = self._lost(*get_drops(index))
        return {"rx_overflow": self._dropped_before + self._dropped}

    def _lost(self, _rx: int, tx: int) -> int:
        """Which of the link's drops are frames for the guest for which its queue was full."""
        return tx

    def queued(self) -> dict[str, int]:
        """The kernel does not tell how many frames a tap holds."""
        return {}

    # ---- ends

    def close(self) -> None:
        """Close the descriptors: the tap stays, without carrier."""
        for peer in self._peers:
            give_back(peer)
        while self._fds:
            os.close(self._fds.pop())

    def remove(self) -> None:
        """Close the descriptor and remove the tap if netback created it; another tap gets its earlier MTU back."""
        if not self._made:
            self.limit_mtu(False)
        elif self._fds:
            self._unmake()
        self.close()

    def _unmake(self) -> None:
        """Have the tap that netback created go with its descriptors, wherever it is now."""
        with suppress(PeerError):
            self._tell(Tun.SETPERSIST, 0)


def remove_made(link: str) -> None:
    """Remove the tap that an earlier netback created as `link`, if it exists and no process holds it; a macvtap in any
    case. PeerError, ConfigError: it cannot be opened. OSError: it cannot be removed.
    """
    found = find_made(link)
    if found is not None and found.kind == "macvtap":
        delete_link(found.index)
    elif found is not None:
        TapNetwork(link).remove()
