# SPDX-License-Identifier: Apache-2.0
"""Another program by datagrams, each one frame: QEMU's `-netdev dgram`, gvproxy (`-listen-vfkit`). UNIX or UDP, or a
multicast group, which is a segment of any number of programs.

The frames are plain: netback completes and segments what its guest leaves to the network. Nothing is connected, so
either end may be absent, or come back, at any time: frames are then lost, as on a cable.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.errors import ConfigError, GoneError, PeerError, printable
from netback.net.base import Linkless
from netback.net.buffers import BURSTS, drain, make_room
from netback.net.endpoints import (
    Endpoint,
    HostPort,
    Inherited,
    UnixPath,
    inherit,
    read_endpoint,
    read_local,
    remove_stale,
    unlink,
)
from netback.net.options import Option, Options

SO_MEMINFO = 55
MEMORY = struct.Struct("@9I")
"""SO_MEMINFO's values (linux/sock_diag.h): SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF, ..., SK_MEMINFO_DROPS."""
SEND_ROOM = 512 * 1024
"""Bytes: some frames of 64 KiB."""
ADDRESS_FAMILY = struct.Struct("=H")
SO_ATTACH_FILTER = 26
FILTER = struct.Struct("HBBI")
"""struct sock_filter (linux/filter.h)."""
PROGRAM = struct.Struct("@HP")
"""struct sock_fprog."""
NETWORK_HEADER = 0xFFF00000
"""SKF_NET_OFF: the offset of the IP header."""
SOURCES = {socket.AF_INET: 12, socket.AF_INET6: 8 + 12}
"""Where the last 4 bytes of the source address are in the IP header."""

LOCAL = "a path that begins with /, or ADDRESS:PORT, or the ADDRESS of an interface"
OPTIONS: Options = {"local": Option(LOCAL, read_local)}
"""Options of its spec."""


def misfit(where: str, options: Mapping[str, Any]) -> str | None:
    """Why an endpoint and its options do not go together; None if they do."""
    endpoint, local = read_endpoint(where), options.get("local")
    if isinstance(endpoint, Inherited):
        return "a descriptor has its addresses: leave out local=" if local is not None else None
    if isinstance(endpoint, UnixPath):
        return None if isinstance(local, UnixPath) else "a UNIX socket needs one of its own: local=/PATH"
    if endpoint.is_multicast:
        if local is None or (isinstance(local, str) and endpoint.family == socket.AF_INET):
            return None
        return (
            "a group takes the IPv4 address of an interface, local=ADDRESS; for IPv6 write [GROUP%LINK]:PORT"
        )
    if not isinstance(local, HostPort) or local.family != endpoint.family:
        return "UDP needs an address of this host, of the same version: local=ADDRESS:PORT"
    return None


def own_frames_filter(sender: socket.socket) -> bytes:
    """A filter for a UDP socket (linux/filter.h), which passes all but what `sender` sent: a multicast group gives that
    to its own host, too.
    """
    host, port = sender.getsockname()[:2]
    source = ipaddress.ip_address(host.partition("%")[0]).packed[-4:]
    return b"".join(
        FILTER.pack(*line)
        for line in (
            (0x28, 0, 0, 0),  # load the UDP header's source port
            (0x15, 0, 3, port),  # if it is another one: pass
            (0x20, 0, 0, NETWORK_HEADER + SOURCES[sender.family]),
            (0x15, 0, 1, int.from_bytes(source, "big")),
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, 0xFFFFFFFF),  # pass
        )
    )


def attach_filter(sock: socket.socket, lines: bytes) -> None:
    """Attach a filter; the kernel copies it."""
    import ctypes

    buffer = ctypes.create_string_buffer(lines, len(lines))
    program = PROGRAM.pack(len(lines) // FILTER.size, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class DgramNetwork(Linkless):
    """Datagrams to and from an address (net/endpoints.py).

    `local`: where this end receives; the address of an interface for an IPv4 group. ConfigError: `where` and `local` do
    not go together. PeerError: this end's address cannot be had.
    """

    def __init__(self, where: str, *, local: UnixPath | HostPort | str | None = None) -> None:
        name = f"dgram:{printable(where)}"
        if fault := misfit(where, {"local": local}):
            raise ConfigError(f"{name}: {fault}")
        self._local = local
        self._begin(name, read_endpoint(where))

    def _begin(self, name: str, to: Endpoint) -> None:
        """Open the socket and make the peer; the last step of a subclass's constructor, too."""
        self.name, self._to = name, to
        self._lost = 0
        self._undo = ExitStack()
        try:
            self._socket = self._undo.enter_context(self._open())
            make_room(self._socket, BURSTS, SEND_ROOM)
            self._peer = self._make_peer()
        except (ConfigError, PeerError) as error:
            self.close()
            raise type(error)(f"{self.name}: {error}") from error
        except OSError as error:
            self.close()
            raise PeerError(f"{self.name}: {error.strerror}") from error

    def _open(self) -> socket.socket:
        """The socket that receives."""
        if isinstance(self._to, Inherited):
            found = inherit(self._to, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
            self._undo.enter_context(found)
            found.getpeername()
            return found
        sock = self._undo.enter_context(self._new(self._to))
        if isinstance(self._to, UnixPath):
            assert isinstance(self._local, UnixPath)
            remove_stale(self._local.path, socket.SOCK_DGRAM)
            sock.bind(self._local.path)
            self._undo.callback(unlink, self._local.path)
        elif self._to.is_multicast:
            self._join(sock, self._to)
        else:
            assert isinstance(self._local, HostPort)
            sock.bind(self._local.address)
            sock.connect(self._to.address)
        return sock

    def _new(self, endpoint: UnixPath | HostPort) -> socket.socket:
        return socket.socket(endpoint.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def _join(self, sock: socket.socket, group: HostPort) -> None:
        """Receive a group's datagrams, beside others on this host."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(group.address)
        member = socket.inet_pton(group.family, group.address[0])
        if group.family == socket.AF_INET6:
            member += struct.pack("@I", group.link)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        else:
            member += self._interface
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)

    @property
    def _interface(self) -> bytes:
        """The IPv4 address whose interface has the group; zeros: as the routes say."""
        return ipaddress.IPv4Address(self._local).packed if isinstance(self._local, str) else bytes(4)

    def _sender(self, group: HostPort) -> socket.socket:
        """The socket that sends to a group: by its port, what it sent is known when it comes back."""
        sender = self._undo.enter_context(self._new(group))
        if group.family == socket.AF_INET:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, self._interface)
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, group.link)
        sender.connect(group.address)
        make_room(sender, 0, SEND_ROOM)
        return sender

    def _make_peer(self) -> Peer:
        if isinstance(self._to, UnixPath):
            address = ADDRESS_FAMILY.pack(socket.AF_UNIX) + os.fsencode(self._to.path) + b"\0"
            return SocketPeer(self._socket.fileno(), owner=self._socket, address=address)
        if isinstance(self._to, HostPort) and self._to.is_multicast:
            sender = self._sender(self._to)
            attach_filter(self._socket, own_frames_filter(sender))
            return SocketPeer(self._socket.fileno(), owner=(self._socket, sender), send_fd=sender.fileno())
        return SocketPeer(self._socket.fileno(), owner=self._socket)

    # ---- for control code

    @property
    def peers(self) -> tuple[Peer, ...]:
        return (self._peer,)

    @property
    def _fault(self) -> str | None:
        """Why nobody receives what is sent, if this host knows."""
        if not isinstance(self._to, UnixPath):
            return "its other end is closed" if self._peer.closed else None
        try:
            with self._new(self._to) as probe:
                probe.connect(self._to.path)
        except OSError as error:
            return f"nobody receives there: {error.strerror}"
        return None

    @property
    def up(self) -> bool:
        """Whether somebody receives what is sent, as far as this host knows: for UDP, always."""
        return self._socket.fileno() >= 0 and self._fault is None

    def check(self) -> bool:
        """PeerError: nobody receives at the UNIX socket now. GoneError: a descriptor's other end is closed."""
        if self._socket.fileno() >= 0 and (fault := self._fault):
            raise (GoneError if isinstance(self._to, Inherited) else PeerError)(f"{self.name}: {fault}")
        return False

    def offloads(self, caps: int) -> None:
        """Does nothing: frames are plain both ways."""

    def drain(self) -> int:
        """Discard the frames that came before the guest connected."""
        return drain(self._socket)

    def drops(self) -> dict[str, int]:
        """Frames dropped because the socket's buffer was full."""
        if self._socket.fileno() >= 0:
            self._lost = self._memory()[-1]
        return {"rx_overflow": self._lost}

    def queued(self) -> dict[str, int]:
        """Memory of the frames in the socket's buffer, with their overhead, and its bound."""
        if self._socket.fileno() < 0:
            return {}
        used, bound, *_ = self._memory()
        return {"bytes": used, "bytes_max": bound}

    def _memory(self) -> tuple[int, ...]:
        return MEMORY.unpack(self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMORY.size))

    def close(self) -> None:
        """Close the sockets, and remove this end's path."""
        self._undo.close()

    def remove(self) -> None:
        """Nothing was made that outlives the sockets."""
        self.close()
