# SPDX-License-Identifier: Apache-2.0
"""An existing Ethernet link by AF_XDP: an XDP program takes every frame that arrives, before the host's stack sees it.

As with `packet:`, the network is what is behind the link, and neither the host nor another vif on it; unlike there the
host hears nothing of the link any more. Frames are plain both ways: netback completes and segments what its guest
leaves to the network. Each RX queue of the link has a socket; the peers share them.

The program is attached by a link of bpf(2), and the rest are sockets, so that everything ends with this process,
however it ends. A link has one program, and so one vif.
"""

import errno
import socket
import time

from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.xdp import MOST_QUEUES, XdpPeer, XdpProgram, XdpSocket
from netback.errors import ConfigError, GoneError, PeerError
from netback.net.base import Bridge
from netback.net.buffers import MAX_DRAIN
from netback.net.link_names import link_name_fault, show_link_name
from netback.net.options import Options, choice
from netback.net.packet import MEMBERSHIP, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, SOL_PACKET
from netback.net.rtnetlink import ARPHRD_ETHER, PASSING, Link, get_bridge, get_link, get_link_at

MODES = ("driver", "skb")
OPTIONS: Options = {"mode": choice(*MODES)}
"""Options of its spec."""
NO_DRIVER = (errno.EOPNOTSUPP, errno.ERANGE, errno.EINVAL)
"""The driver has no XDP, or not with the link's present settings (veth: its MTU)."""
WAITS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Seconds between attempts for a queue whose last socket the kernel has not taken down yet, or a link whose program."""


class AfXdpNetwork:
    """Every frame that arrives on a link, which the host makes, manages and removes; the sockets follow it through
    renames.

    `mode`: "driver", or "skb", the kernel's generic way; by default the first that works. The kernel unbinds the
    sockets when the link is removed or leaves this network namespace; `check` makes others on the next link with the
    spec's name. ConfigError: the link cannot be used, or not by this process. GoneError: there is no such link.
    PeerError: another program has it.
    """

    def __init__(self, link: str, *, mode: str | None = None) -> None:
        if fault := link_name_fault(link):
            raise ConfigError(f"af_xdp: {fault}")
        self._link = self._name = link
        self._modes = MODES if mode is None else (mode,)
        self._lost_before = self._index = 0
        self._closed = False
        self._program: XdpProgram | None = None
        self._promiscuous: socket.socket | None = None
        self._path = ""
        self._queues = 0
        self._peers: list[XdpPeer] = []
        try:
            self._join(WAITS, 1)
        except BaseException:
            self.close()
            raise

    # ---- the link

    def _join(self, waits: tuple[float, ...], peers: int | None = None) -> None:
        """Attach the program to the link of the spec's name, and give each peer its sockets: each of so many new ones,
        at most one for each socket, or, with None, each of those that are served.
        """
        link = get_link(self._link)
        if link is None:
            raise GoneError(
                f"af_xdp:{self._link}: no link of that name in this network namespace; it is used once it exists"
            )
        if link.type != ARPHRD_ETHER:
            raise ConfigError(f"af_xdp:{self._link}: not an Ethernet link")
        self._leave()
        try:
            self._make_promiscuous(link)
            self._program, mode = self._attach(link, waits)
            sockets = self._open_sockets(self._program, waits)
        except OSError as error:
            self._leave()
            raise self._refusal(error) from error
        self._queues = len(sockets)
        if peers is not None:
            self._peers = [XdpPeer() for _ in range(min(peers, len(sockets)))]
        elif len(sockets) < len(self._peers):
            self._leave()
            raise ConfigError(
                f"af_xdp:{self._link}: it came back with {len(sockets)} RX queues, and its vif uses {len(self._peers)}"
            )
        self._path = f"XDP in {mode} mode, {'zero copy' if sockets[0].zero_copy else 'copies'}"
        for number, peer in enumerate(self._peers):
            peer.join(sockets[number :: len(self._peers)])
        self._index = link.index

    def _make_promiscuous(self, link: Link) -> None:
        """A packet socket without a protocol receives nothing; its membership ends with it."""
        self._promiscuous = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        member = MEMBERSHIP.pack(link.index, PACKET_MR_PROMISC, 0, b"")
        self._promiscuous.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)

    def _attach(self, link: Link, waits: tuple[float, ...]) -> tuple[XdpProgram, str]:
        """The program, and how it is attached."""
        for mode in self._modes:
            for wait in (*waits, None):
                try:
                    return XdpProgram(link.index, skb=mode == "skb"), mode
                except OSError as error:
                    if error.errno in NO_DRIVER and mode != self._modes[-1]:
                        break
                    if error.errno != errno.EBUSY or wait is None:
                        raise
                    time.sleep(wait)
        raise AssertionError("the last mode returns or raises")

    def _open_sockets(self, program: XdpProgram, waits: tuple[float, ...]) -> list[XdpSocket]:
        """A socket for each queue; the first number that is none (EINVAL) tells how many there are."""
        sockets: list[XdpSocket] = []
        while len(sockets) < MOST_QUEUES:
            for wait in (*waits, None):
                try:
                    sockets.append(XdpSocket(program, len(sockets)))
                    break
                except OSError as error:
                    if error.errno == errno.EINVAL and sockets:
                        return sockets
                    if error.errno != errno.EBUSY or wait is None:
                        raise
                    time.sleep(wait)
        return sockets

    def _refusal(self, error: OSError) -> ConfigError | PeerError:
        """The error for what the kernel refused."""
        text = f"af_xdp:{self._link}: {error.strerror}"
        if error.errno in (errno.EPERM, errno.EACCES):
            return ConfigError(f"{text}: CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF are needed: be root")
        if error.errno in (errno.EBUSY, errno.EEXIST):
            return PeerError(f"{text}: another XDP program or vif has it; detach that, or use packet")
        if error.errno == errno.ENOBUFS:
            return ConfigError(
                f"{text}: raise the limit of locked memory (RLIMIT_MEMLOCK), 6 MiB for a queue"
            )
        if error.errno in (errno.EAFNOSUPPORT, errno.ENOSYS):
            return ConfigError(f"{text}: the kernel has no AF_XDP; use packet")
        return PeerError(text)

    def _leave(self) -> None:
        """Detach from the link; frames go to the host again."""
        if self._program is not None:
            self._program.close()
        if self._promiscuous is not None:
            self._promiscuous.close()
        self._program = self._promiscuous = None

    def _found(self) -> Link | None:
        """The link of the sockets; None if it is gone or in another network namespace."""
        bound = not self._closed and self._peers[0].bound
        return get_link_at(self._index) if bound else None

    @property
    def name(self) -> str:
        """The link's current name; the last one once it is gone."""
        link = self._found()
        self._name = link.name if link else self._name
        return show_link_name(self._name)

    @property
    def path(self) -> str | None:
        return self._path

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
        return link is not None and link.flags & PASSING == PASSING

    @property
    def follows(self) -> frozenset[int | str]:
        return frozenset({self._index} if self._found() else {self._link})

    def check(self) -> bool:
        """Check that the sockets are bound; take a link that is back, by the same peers."""
        if self._closed or self._found() is not None:
            return False
        self._count_lost()
        self._join(())
        return True

    def set_queues(self, count: int) -> None:
        """Have a peer for each queue of the guest, but not more than the link has RX queues. The sockets are made again
        if that is another number: frames that wait in them are lost.
        """
        if self._found() is None or min(count, self._queues) == len(self._peers):
            return
        self._count_lost()
        for peer in self._peers:
            peer.leave()
        self._join(WAITS, count)

    def limit_mtu(self, limited: bool) -> None:
        """Does nothing: netback does not manage this link."""

    def set_address(self, address: str) -> None:
        """Does nothing: netback does not manage this link."""

    def set_mtu(self, mtu: int) -> None:
        """Does nothing: netback does not manage this link."""

    # ---- frames

    @property
    def peers(self) -> tuple[Peer, ...]:
        return tuple(self._peers)

    def offloads(self, caps: int) -> None:
        """Does nothing: frames are plain both ways."""

    def carrier(self, on: bool) -> None:
        """Does nothing: netback does not manage this link."""

    def drain(self) -> int:
        """Discard the frames that wait in the sockets."""
        count = 0
        for peer in self._peers:
            while count < MAX_DRAIN and (frames := peer.recv()):
                count += len(frames)
        return count

    def _count_lost(self) -> None:
        """Keep the counts of sockets that end now."""
        self._lost_before += sum(peer.lost for peer in self._peers)

    def drops(self) -> dict[str, int]:
        """Frames that found the rings full, or were longer than 3840 bytes."""
        return {"rx_overflow": self._lost_before + sum(peer.lost for peer in self._peers)}

    def queued(self) -> dict[str, int]:
        """The kernel does not tell."""
        return {}

    def close(self) -> None:
        """Stop receiving from the link: the host gets its frames again."""
        if not self._closed:
            self._count_lost()
        self._closed = True
        for peer in self._peers:
            peer.leave()
        self._leave()

    def remove(self) -> None:
        """Close; the link stays, since netback did not make it."""
        self.close()
