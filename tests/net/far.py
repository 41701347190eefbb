# SPDX-License-Identifier: Apache-2.0
"""The far side of a network in tests: whole frames each way, each preceded by its virtio_net_hdr.

Imports only constants from netback, so that it is an independent witness.
"""

import select
import socket
import struct

from netback.abi.virtio_net import HEADER

SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 8, 15, 23
VLAN_VALID = 0x10
PLAIN = bytes(HEADER.size)
PATIENCE = 10_000
"""Milliseconds after which a missing frame is a failure."""


def await_readable(fd: int, event: int = select.POLLIN) -> None:
    """Wait until data can be read, or for another event of poll(2)."""
    poll = select.poll()
    poll.register(fd, event)
    assert poll.poll(PATIENCE), "no frame came"


class FarLink:
    """The other end of a cable, or the kernel's side of a tap: a packet socket there."""

    def __init__(self, link: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for option in (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, PACKET_AUXDATA):
            self.socket.setsockopt(SOL_PACKET, option, 1)
        self.socket.bind((link, 3))

    def send(self, message: bytes) -> None:
        self.socket.send(message)

    def recv(self) -> bytes:
        await_readable(self.socket.fileno())
        message, asides, _, _ = self.socket.recvmsg(70000, 256)
        status, _, _, _, _, tci, tpid = struct.unpack("@IIIHHHH", asides[0][2])
        if status & VLAN_VALID:
            message = message[:22] + struct.pack(">HH", tpid, tci) + message[22:]
        return message

    def close(self) -> None:
        self.socket.close()


class FarSocket:
    """The Python end of a PythonNetwork."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def send(self, message: bytes) -> None:
        self.socket.send(message)

    def recv(self) -> bytes:
        await_readable(self.socket.fileno())
        return self.socket.recv(70000)

    def close(self) -> None:
        self.socket.close()
