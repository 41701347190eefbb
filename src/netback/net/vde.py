# SPDX-License-Identifier: Apache-2.0
"""A port of a VDE switch, as vde_switch has it: frames are datagrams between two UNIX sockets.

The client asks for a port by a stream socket, PATH/ctl, which stays open as long as the port is wanted. It sends struct
request_v3 (libvdeplug.c of vde-2: magic, version, kind and port, the address of its datagram socket, a description) and
gets the address of the port's own datagram socket, all in the byte order of the machine. libvdeplug is not needed.
"""

import os
import select
import socket
import struct
import time

from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.errors import PeerError, printable
from netback.net.buffers import BURSTS, drain, make_room
from netback.net.connected import CONNECT_SECONDS, ConnectedNetwork, await_event
from netback.net.endpoints import UnixPath, path_fault
from netback.net.options import Options, integer

MAGIC = 0xFEEDFACE
VERSION = 3
NEW_PORT = 0
"""The kind of a request for a port; the port's number is in the bits from PORT_SHIFT on, 0 for any."""
PORT_SHIFT = 8
REQUEST = struct.Struct("@III")
ADDRESS = struct.Struct("@H108s")
"""struct sockaddr_un."""
ANSWER_SECONDS = 2.0
SEND_ROOM = 512 * 1024
"""Bytes: some frames of 64 KiB."""

OPTIONS: Options = {"port": integer(1, 255)}
"""Options of its spec."""


def vde_fault(path: str) -> str | None:
    """Why a switch cannot have this directory; None if it can."""
    return path_fault(f"{path}/ctl")


def read_answer(connection: socket.socket, alarm: int) -> str:
    """The path of the port's socket. PeerError: the switch does not answer so."""
    data, until = b"", time.monotonic() + ANSWER_SECONDS
    while len(data) < ADDRESS.size:
        left = until - time.monotonic()
        if left <= 0 or not await_event(connection.fileno(), select.POLLIN, alarm, left):
            raise PeerError("it gives no port: is it a VDE switch, and has it one of this number?")
        more = connection.recv(ADDRESS.size - len(data))
        if not more:
            raise PeerError("it closed the connection and gave no port")
        data += more
    family, path = ADDRESS.unpack(data)
    text = os.fsdecode(path.partition(b"\0")[0])
    if family != socket.AF_UNIX or path_fault(text):
        raise PeerError("its answer is no address of a socket")
    return text


def disconnect(sock: socket.socket) -> None:
    """Let a datagram socket receive from others again (connect(2), AF_UNSPEC, which Python's `connect` cannot say)."""
    import ctypes

    ctypes.CDLL(None).connect(sock.fileno(), ADDRESS.pack(socket.AF_UNSPEC, b""), 2)


class VdeNetwork(ConnectedNetwork):
    """A port of the switch with the directory `path`; `port`: this one, by default any.

    A switch that ends is connected again. PeerError: there is none at present.
    """

    def __init__(self, path: str, *, port: int = 0) -> None:
        super().__init__(f"vde:{printable(path)}")
        self._port = port
        self._socket = self._undo.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        )
        make_room(self._socket, BURSTS, SEND_ROOM)
        # An abstract name, of which a killed process leaves nothing; the switch connects to all 108 bytes.
        self._own = b"\0netback-vde-" + os.urandom(8).hex().encode()
        self._socket.bind(self._own.ljust(108, b"\0"))
        self._peer = SocketPeer(self._socket.fileno(), owner=self._socket)
        self._start(UnixPath(f"{path}/ctl"), seconds=CONNECT_SECONDS + ANSWER_SECONDS + 1)

    # ---- the connection, in its own thread

    def _serve(self, connection: socket.socket) -> None:
        disconnect(self._socket)  # the next switch's port could not be joined to it
        request = REQUEST.pack(MAGIC, VERSION, NEW_PORT | self._port << PORT_SHIFT)
        connection.send(request + ADDRESS.pack(socket.AF_UNIX, self._own) + b"netback\0")
        try:
            self._socket.connect(read_answer(connection, self._alarm))
        except OSError as error:
            raise PeerError(f"cannot reach the port's socket: {error.strerror}") from error
        drain(self._socket)  # until now any process of this host could send
        with self._lock:
            self._joined()
        await_event(connection.fileno(), select.POLLRDHUP, self._alarm, None)
        raise PeerError("it closed the connection")

    def _leave(self) -> str | None:
        return None

    # ---- for control code

    @property
    def peers(self) -> tuple[Peer, ...]:
        return (self._peer,)

    def offloads(self, caps: int) -> None:
        """Does nothing: frames are plain both ways."""

    def drain(self) -> int:
        """Discard the frames that came before the guest connected."""
        return drain(self._socket)

    def drops(self) -> dict[str, int]:
        """No frame is lost here: the switch keeps, or loses, what does not fit."""
        return {}
