# SPDX-License-Identifier: Apache-2.0
"""An existing Ethernet link through a packet socket: needs no /dev/net/tun, so it works in an unprivileged user
namespace.

The socket is promiscuous. It receives what arrives on the link, but neither what the host sends on it nor what another
vif on the same link sends (docs/networks.md). This module sets AF_PACKET's options (packet(7)); the native side
restores VLAN tags and handles every kind of GSO.

Small frames arrive in a ring of memory that the kernel shares with this process, unless it has none to give.
"""

import os
import socket
import struct

from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.packet import SLOT_BYTES, PacketPeer
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.errors import ConfigError, GoneError, PeerError
from netback.net.base import Bridge
from netback.net.buffers import BURSTS, MAX_DRAIN, drain, make_room
from netback.net.link_names import link_name_fault, show_link_name
from netback.net.options import Options, integer
from netback.net.rtnetlink import ARPHRD_ETHER, PASSING, get_bridge, get_link

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_COPY_THRESH = 7
PACKET_AUXDATA = 8
PACKET_VERSION = 10
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
TPACKET_V2 = 1
ETH_P_ALL = 3

SOCKET_OPTIONS = (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, PACKET_AUXDATA)
"""Why not PACKET_QDISC_BYPASS: on a veth it gains 1 to 2 %, and the operator's traffic shaping would be bypassed."""
SEND_ROOM = 256 * 1024
"""Bytes: fewer frames than a link's queue holds by default (1000). A slow link then makes the socket unwritable, and
poll reports when that ends. A full queue would return ENOBUFS while the socket stays writable."""
MEMBERSHIP = struct.Struct("@iHH8s")
"""struct packet_mreq."""
SO_MEMINFO = 55
MEMORY = struct.Struct("@II")
"""SK_MEMINFO_RMEM_ALLOC and SK_MEMINFO_RCVBUF (linux/sock_diag.h), the first of SO_MEMINFO's values."""
STATISTICS = struct.Struct("@II")
"""struct tpacket_stats: frames, drops; both since they were last read."""
RING = struct.Struct("@IIII")
"""struct tpacket_req: bytes of a block, blocks, bytes of a slot, slots."""
PAGE = 4096
SLOTS = 256
"""Of a ring, if its spec does not say: half a tap's queue, and 512 KiB, which are there while nothing comes as well."""
OPTIONS: Options = {"ring": integer(0, 16384)}
"""Options of its spec. `ring`: about so many small frames find room in mapped memory; 0: each read is a call."""


def open_socket(link: str) -> socket.socket:
    """A packet socket that receives nothing: its protocol is 0 until every option is set, so every frame has its
    header.
    """
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise ConfigError(
            f"packet:{link}: packet sockets need CAP_NET_RAW: be root, or in a user namespace"
        ) from error
    for option in SOCKET_OPTIONS:
        sock.setsockopt(SOL_PACKET, option, 1)
    make_room(sock, BURSTS, SEND_ROOM)
    return sock


def make_ring(sock: socket.socket, slots: int) -> str:
    """Give a packet socket a ring; returns why it cannot have one, else "". Frames that a slot does not hold go to the
    socket's queue.
    """
    request = RING.pack(PAGE, slots * SLOT_BYTES // PAGE, SLOT_BYTES, slots)
    try:
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, 1)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def bind(sock: socket.socket, name: str) -> int:
    """Bind the socket to all frames of the link and return its index. A socket whose link was removed may be bound
    again.
    """
    link = get_link(name)
    if link is None:
        raise GoneError(
            f"packet:{name}: no link of that name in this network namespace; it is used once it exists"
        )
    if link.type != ARPHRD_ETHER:
        raise ConfigError(f"packet:{name}: not an Ethernet link")
    try:
        sock.bind((link.name, ETH_P_ALL))
        member = MEMBERSHIP.pack(link.index, PACKET_MR_PROMISC, 0, b"")
        sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        )  # ENETDOWN from a link that is not up yet, or from the previous link
    except OSError as error:
        raise PeerError(f"packet:{name}: cannot receive from the link ({error.strerror})") from error
    return link.index


class PacketNetwork:
    """Every frame of a link that the host creates, manages and removes; the socket follows it through renames.

    The kernel unbinds the socket when the link is removed or leaves this network namespace; `check` binds it to the
    next link with the spec's name. `ring`: slots of its ring, rounded up to whole pages; 0: none. ConfigError: the link
    cannot be opened. GoneError: there is no such link.
    """

    def __init__(self, link: str, ring: int = SLOTS) -> None:
        if fault := link_name_fault(link):
            raise ConfigError(f"packet: {fault}")
        self._link = self._name = link
        self._lost = 0
        self._socket = open_socket(link)
        self._ring: PacketPeer | None = None
        try:
            self._no_ring, peer = self._make_peer(ring)
            self._index = bind(self._socket, link)
        except (ConfigError, PeerError):
            self.close()
            raise
        self.peers = (peer,)

    def _make_peer(self, slots: int) -> tuple[str, Peer]:
        """Why the socket has no ring, "" if it has one, and its peer. The ring comes before the first frame."""
        peer = SocketPeer(
            self._socket.fileno(), vnet_hdr=True, auxdata=True, caps=EVERYTHING, owner=self._socket
        )
        if not slots:
            return "ring=0", peer
        slots += slots % 2
        if fault := make_ring(self._socket, slots):
            return f"no ring: {fault}", peer
        try:
            self._ring = PacketPeer(peer, slots)
        except OSError as error:
            raise PeerError(f"packet:{self._link}: its ring cannot be mapped ({error.strerror})") from error
        return "", self._ring

    # ---- the link

    @property
    def _bound(self) -> str:
        """The current name of the link that the socket is bound to; empty if it is unbound or closed."""
        if self._socket.fileno() < 0:
            return ""
        try:
            return str(self._socket.getsockname()[0])
        except UnicodeDecodeError:  # Python raises it for a name that is not UTF-8
            return socket.if_indextoname(self._index)

    @property
    def name(self) -> str:
        """The link's current name; the last one once it is gone."""
        self._name = self._bound or self._name
        return show_link_name(self._name)

    @property
    def path(self) -> str | None:
        return f"system calls; {self._no_ring}" if self._ring is None else "a mapped ring for small frames"

    @property
    def mtu(self) -> int | None:
        link = get_link(self._bound) if self._bound else None
        return link.mtu if link else None

    @property
    def bridge(self) -> Bridge | None:
        return get_bridge(get_link(self._bound) if self._bound else None)

    @property
    def up(self) -> bool:
        link = get_link(self._bound) if self._bound else None
        return link is not None and link.flags & PASSING == PASSING

    @property
    def follows(self) -> frozenset[int | str]:
        return frozenset({self._index} if self._bound else {self._link})

    def check(self) -> bool:
        """Check that the socket is bound; bind the same socket again to a link that is back."""
        if self._bound or self._socket.fileno() < 0:
            return False
        self._index = bind(self._socket, self._link)
        return True

    def set_queues(self, count: int) -> None:
        """Does nothing: a socket in a fanout group can no longer be bound to a link that returns (packet(7))."""

    def limit_mtu(self, limited: bool) -> None:
        """Does nothing: netback does not manage this link."""

    def set_address(self, address: str) -> None:
        """Does nothing: netback does not manage this link."""

    def set_mtu(self, mtu: int) -> None:
        """Does nothing: netback does not manage this link."""

    # ---- frames

    def offloads(self, caps: int) -> None:
        """Does nothing: AF_PACKET has no such setting. The data plane completes and segments what the guest cannot
        accept.
        """

    def carrier(self, on: bool) -> None:
        """Does nothing: netback does not manage this link."""

    def drain(self) -> int:
        """Discard the frames queued in the ring and the socket."""
        return drain(self._socket) if self._ring is None else self._ring.drain(MAX_DRAIN)

    def drops(self) -> dict[str, int]:
        """Frames dropped because the ring or the socket's buffer was full, or, with a ring, because of a GSO type that
        virtio_net_hdr cannot express. Reading the kernel's count resets it.
        """
        if self._socket.fileno() >= 0:
            self._lost += STATISTICS.unpack(
                self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size)
            )[1]
        return {"rx_overflow": self._lost + (self._ring.lost if self._ring else 0)}

    def queued(self) -> dict[str, int]:
        """Memory of the frames in the ring and in the socket's buffer, with their overhead, and its bound."""
        if self._socket.fileno() < 0:
            return {}
        used, bound = MEMORY.unpack(self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMORY.size))
        if self._ring is not None:
            used += self._ring.waiting * SLOT_BYTES
            bound += self._ring.slots * SLOT_BYTES
        return {"bytes": used, "bytes_max": bound}

    def close(self) -> None:
        """Stop receiving from the link."""
        if self._ring is not None:
            self._ring.close()
        self._socket.close()

    def remove(self) -> None:
        """Close; the link stays, since netback did not make it."""
        self.close()
