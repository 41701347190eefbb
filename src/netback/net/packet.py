# SPDX-License-Identifier: Apache-2.0
"""An existing Ethernet link, by a packet socket: needs no /dev/net/tun, so it works in an unprivileged user namespace.

Knows AF_PACKET's options; that a VLAN tag comes aside and what GSO may arrive is the native side's business.
"""

import errno
import socket
import struct

from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.peer import Peer
from netback.errors import ConfigError
from netback.net.buffers import BURSTS, drain, make_room
from netback.net.mtu import link_mtu

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
ETH_P_ALL = 3
ARPHRD_ETHER = 1

OPTIONS = (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, PACKET_AUXDATA)
"""Not PACKET_QDISC_BYPASS: on a veth it gains 1 to 2 %, and the operator's shaping would not count."""
SEND_ROOM = 256 * 1024
"""Bytes: fewer frames than a link's queue holds by default (1000), so that a slow link makes the socket unwritable, the
end of which poll tells; a full queue would say ENOBUFS to a socket that stays writable."""
MEMBERSHIP = struct.Struct("@iHH8s")
"""struct packet_mreq."""
STATISTICS = struct.Struct("@II")
"""struct tpacket_stats: frames, drops; both since they were last read."""


def open_socket(link: str) -> socket.socket:
    """A packet socket that hears nothing: of protocol 0 until every option is set, or frames come in another format."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise ConfigError(
            f"packet:{link}: packet sockets need CAP_NET_RAW: be root, or in a user namespace"
        ) from error
    for option in OPTIONS:
        sock.setsockopt(SOL_PACKET, option, 1)
    make_room(sock, BURSTS, SEND_ROOM)
    return sock


def bind(sock: socket.socket, link: str) -> int:
    """Hear everything on the link: its index."""
    try:
        index = socket.if_nametoindex(link)
        sock.bind((link, ETH_P_ALL))
    except OSError as error:
        raise ConfigError(
            f"packet:{link}: there is no link of that name in this network namespace"
        ) from error
    if sock.getsockname()[3] != ARPHRD_ETHER:
        raise ConfigError(f"packet:{link}: not an Ethernet link")
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, MEMBERSHIP.pack(index, PACKET_MR_PROMISC, 0, b""))
    return index


class PacketNetwork:
    """Every frame on a link that somebody else made, keeps up and removes; followed by its index if it is renamed."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._lost = 0
        self._socket = open_socket(link)
        try:
            self._index = bind(self._socket, link)
        except ConfigError:
            self._socket.close()
            raise
        peer = Peer(
            "socket",
            self._socket.fileno(),
            vnet_hdr=True,
            auxdata=True,
            caps=EVERYTHING,
            owner=self._socket,
        )
        self.peers = (peer,)

    @property
    def name(self) -> str:
        """The link's present name; the last one once it is gone."""
        try:
            self._link = socket.if_indextoname(self._index)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        return self._link

    @property
    def mtu(self) -> int | None:
        return link_mtu(self.name)

    def offloads(self, caps: int) -> None:
        """AF_PACKET has no such setting: the data plane completes and cuts what the guest cannot take."""

    def carrier(self, on: bool) -> None:
        """The link is not ours."""

    def drain(self) -> int:
        """Throw away what waits in the socket."""
        return drain(self._socket)

    def drops(self) -> dict[str, int]:
        """What found the socket's buffer full; the kernel's count starts anew each time that it is read."""
        if self._socket.fileno() >= 0:
            self._lost += STATISTICS.unpack(
                self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size)
            )[1]
        return {"rx_overflow": self._lost}

    def close(self) -> None:
        """Stop hearing the link."""
        self._socket.close()

    def remove(self) -> None:
        """Close: the link is not ours."""
        self.close()
