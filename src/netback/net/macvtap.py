# SPDX-License-Identifier: Apache-2.0
"""A macvtap: a further address of an existing link, whose frames netback reads as a tap's. Neither bridge nor script is
needed.

The driver (drivers/net/macvtap.c, drivers/net/tap.c in Linux) has most of a tap's ioctls, but a descriptor is opened on
a device node of the link, each open one queue, and belongs to it for ever. A removed link leaves descriptors that take
frames and lose them, and report nothing. So `check`, which rtnetlink calls, puts other files in their places: first
sockets that refuse every frame, later descriptors of the next link.
"""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from netback.abi import virtio_net
from netback.errors import ConfigError, GoneError, PeerError
from netback.net.link_names import pack_link_name
from netback.net.options import Options, choice
from netback.net.rtnetlink import (
    ARPHRD_ETHER,
    IFF_ALLMULTI,
    IFF_UP,
    PASSING,
    Link,
    add_altname,
    delete_link,
    get_link,
    make_macvtap,
    turn_on,
)
from netback.net.tap import (
    BUSY_WAITS,
    FORMAT,
    IFREQ_FLAGS,
    INT,
    MADE,
    Flag,
    TapNetwork,
    Tun,
    discard,
    find_made,
    joined_to,
)

MODES = {"bridge": 4, "vepa": 2, "private": 1, "passthru": 8}
"""linux/if_link.h: MACVLAN_MODE_*."""
OPTIONS: Options = {"mode": choice(*MODES)}
"""Options of its spec."""
SYSFS = "/sys/class/net"
DEVICES = "/dev"


def device_of(link: Link) -> tuple[str, int]:
    """The name and the number of a macvtap's device. PeerError: /sys does not show it."""
    at = Path(SYSFS, link.name)
    try:
        if int((at / "ifindex").read_text()) != link.index:
            raise FileNotFoundError
        (device,) = (at / "macvtap").iterdir()
        major, _, minor = (device / "dev").read_text().partition(":")
        return device.name, os.makedev(int(major), int(minor))
    except (OSError, ValueError) as error:
        hint = "mount the sysfs of this network namespace there, as `ip netns exec` does"
        raise PeerError(f"{SYSFS} does not show its device: {hint}") from error


@contextmanager
def node_of(name: str, number: int) -> Iterator[str]:
    """The path of a device's node: the one in /dev, or, where that is missing or another link's, one made for as long
    as this lasts. devtmpfs has one name for the links of the same index in all network namespaces.
    """
    usual = f"{DEVICES}/{name}"
    with suppress(FileNotFoundError):
        if os.stat(usual).st_rdev == number:  # noqa: PTH116 (st_rdev alone)
            yield usual
            return
    own = f"{DEVICES}/netback-{os.getpid()}-{name}"
    try:
        os.mknod(own, stat.S_IFCHR | 0o600, number)
    except OSError as error:
        reason = f"{usual} is missing or another link's, and a node cannot be made: {error.strerror}"
        raise PeerError(f"{reason}; mount devtmpfs at {DEVICES}, or grant CAP_MKNOD") from error
    try:
        yield own
    finally:
        Path(own).unlink()


def open_queue(link: Link, *, several: bool) -> int:
    """A descriptor of one more queue of a macvtap, in the format of taps. PeerError: it cannot be opened."""
    name, number = device_of(link)
    with node_of(name, number) as path:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise PeerError(f"cannot open {DEVICES}/{name}: {error.strerror}") from error
    flags = FORMAT | (Flag.MULTI_QUEUE if several else Flag(0))
    try:
        fcntl.ioctl(fd, Tun.SETIFF, pack_link_name(link.name) + IFREQ_FLAGS.pack(flags))
        fcntl.ioctl(fd, Tun.SETVNETHDRSZ, INT.pack(virtio_net.HEADER.size))
    except OSError as error:
        os.close(fd)
        raise PeerError(f"cannot set up {DEVICES}/{name}: {error.strerror}") from error
    return fd


def refusing() -> int:
    """A descriptor that takes no frame (ENOTCONN) and never has one: it stands for a queue whose link is gone."""
    return socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ).detach()


def replace(fd: int, new: int) -> None:
    """Put the file of `new`, which is closed, in the place of that of `fd`. A worker sees the one or the other."""
    os.dup2(new, fd, inheritable=False)
    os.close(new)


class MacvtapNetwork(TapNetwork):
    """A macvtap named `tap` on the link `lower`, made here, with the guest's `address`; or, where `lower` is a macvtap
    itself, that one.

    `held`, `several`: as for a tap. `mode`: as in ip-link(8); "bridge" by default. ConfigError: no macvtap can be made
    there. GoneError: there is no such link. PeerError: its device cannot be opened now.
    """

    KIND = "macvtap"
    _usual_vhost = "off"

    def __init__(
        self,
        lower: str,
        tap: str,
        held: Sequence[int] = (),
        *,
        several: bool = False,
        mode: str | None = None,
        address: str | None = None,
    ) -> None:
        self._lower = lower
        self._mode = MODES[mode or "bridge"]
        self._lock: socket.socket | None = None
        self._index = 0
        found = get_link(lower)
        self._exists = found is not None and found.kind == "macvtap"
        fitting = self._keep_fitting(held)
        if self._exists and mode is not None:
            raise ConfigError(f"{self._spec}: it exists and has its mode: leave out mode=")
        name = lower if self._exists else tap
        super().__init__(name, fitting, several=several, address=address or "")

    def _keep_fitting(self, held: Sequence[int]) -> tuple[int, ...]:
        """Those descriptors that belong to the link of this spec; others are closed, with what netback made."""
        fitting = []
        for fd in held:
            name = joined_to(fd)
            if name is not None and self._fits(get_link(name)):
                fitting.append(fd)
            else:
                discard(fd)
        return tuple(fitting)

    # ---- the link

    @property
    def _spec(self) -> str:
        return f"{self.KIND}:{self._lower}"

    def _fits(self, link: Link | None) -> bool:
        """Whether this is the macvtap of the spec."""
        if link is None or link.kind != "macvtap":
            return False
        lower = get_link(self._lower)
        return self._exists or (lower is not None and (link.lower, link.mode) == (lower.index, self._mode))

    def _found(self) -> Link | None:
        name = joined_to(self._fd)
        link = get_link(name) if name is not None else None
        return link if link is not None and link.index == self._index else None

    def _found_index(self) -> int | None:
        name = joined_to(self._fd)
        found = socket.if_nametoindex(name) if name is not None else None
        return found if found == self._index else None

    @property
    def up(self) -> bool:
        """A macvtap has the carrier of the link that it is on."""
        link = self._found()
        return link.flags & PASSING == PASSING if link else joined_to(self._fd) is not None

    @property
    def follows(self) -> frozenset[int | str]:
        return super().follows if joined_to(self._fd) is not None else super().follows | {self._lower}

    def _open(self) -> int:
        return refusing()

    def _take(self, waits: tuple[float, ...]) -> None:
        link = get_link(self._lower) if self._exists else self._find_or_make()
        if link is None or link.kind != "macvtap":
            raise ConfigError(f"{self._spec}: a link of that name exists and is not a macvtap")
        self._made = not self._exists
        self._hold(link, waits)
        replace(self._fd, self._open_queue(link))

    def _find_or_make(self) -> Link | None:
        lower = get_link(self._lower)
        if lower is None:
            raise GoneError(
                f"{self._spec}: no link of that name in this network namespace; the macvtap is made once it exists"
            )
        if lower.type != ARPHRD_ETHER:
            raise ConfigError(f"{self._spec}: not an Ethernet link")
        found, mark = find_made(self._link) or get_link(self._link), MADE.format(self._link)
        try:
            if found is not None and not self._fits(found):
                if mark not in found.altnames:
                    raise ConfigError(
                        f"{self._spec}: a link {self._link} exists and is not a macvtap on {self._lower}"
                    )
                delete_link(found.index)  # of an earlier spec
                found = None
            if found is None:
                make_macvtap(self._link, lower.index, self._mode, self._new_address)
                found = get_link(self._link)
            if (
                found is not None and mark not in found.altnames
            ):  # also one that a killed process did not mark
                add_altname(found.index, mark)
        except OSError as error:
            raise self._refusal(error) from error
        return found

    def _refusal(self, error: OSError) -> ConfigError | PeerError:
        """The error for what rtnetlink refused."""
        text = f"{self._spec}: cannot make a macvtap on it: {error.strerror}"
        if error.errno == errno.EPERM:
            return ConfigError(f"{text}: CAP_NET_ADMIN is needed")
        if error.errno == errno.EOPNOTSUPP:
            return PeerError(f"{text}: load the module macvtap")
        if error.errno in (errno.EBUSY, errno.EINVAL):
            return PeerError(f"{text}: is it a port of a bridge, or has it one with mode=passthru?")
        return PeerError(text)

    @property
    def _new_address(self) -> str | None:
        """The address of a macvtap that is made; None: the kernel's choice. With mode=passthru it is the lower link's
        own, and all frames pass.
        """
        return self._address if self._address and self._mode != MODES["passthru"] else None

    def _hold(self, link: Link, waits: tuple[float, ...]) -> None:
        """Keep other processes of netback, and other devices of this one, from this macvtap: the kernel would give each
        a share of the frames. The name of an abstract socket is free again when its process ends (unix(7)).
        """
        if self._lock is not None and self._index == link.index:
            return
        self._let_go()
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for wait in (*waits, None):
            try:
                lock.bind(f"\0netback-macvtap-{link.index}".encode())
                break
            except OSError as error:
                if wait is None:
                    lock.close()
                    raise PeerError(
                        f"{self._spec}: another device or process holds it (EBUSY); stop it or choose another link"
                    ) from error
                time.sleep(wait)
        self._lock, self._index = lock, link.index

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _open_queue(self, link: Link) -> int:
        try:
            return open_queue(link, several=self._several)
        except PeerError as error:
            raise PeerError(f"{self._spec}: {error}") from error

    def _join_queue(self, number: int) -> None:
        link = self._found()
        if link is None:
            raise PeerError(f"{self._spec}: the link is gone, or in another network namespace")
        replace(self._fds[number], self._open_queue(link))

    def _rejoin(self) -> None:
        for fd in self._fds:
            if joined_to(fd) is None:
                replace(fd, refusing())
        super()._rejoin()

    def _prepare(self) -> None:
        """Set the link up; it receives all multicast frames, since netback or the guest selects them."""
        name = joined_to(self._fd)
        link = get_link(name) if name is not None else None
        if link is None:
            raise PeerError(f"{self._spec}: the link is gone")
        self._hold(link, BUSY_WAITS)
        try:
            turn_on(link.index, IFF_UP | IFF_ALLMULTI)
        except OSError as error:
            raise ConfigError(f"{self._spec}: cannot set it up: {error.strerror}") from error

    # ---- settings and ends

    def carrier(self, on: bool) -> None:
        """Does nothing: the kernel sets it, as the lower link's is."""

    def set_address(self, address: str) -> None:
        """Set the address of a macvtap that netback made, unless mode=passthru gives it that of the lower link."""
        if self._mode != MODES["passthru"]:
            super().set_address(address)

    def _lost(self, rx: int, _tx: int) -> int:
        return rx

    def _unmake(self) -> None:
        link = self._found()
        with suppress(OSError):
            if link is not None:
                delete_link(link.index)

    def close(self) -> None:
        """Close the descriptors: the macvtap stays."""
        super().close()
        self._let_go()
