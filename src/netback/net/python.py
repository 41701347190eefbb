# SPDX-License-Identifier: Apache-2.0
"""A network written in Python over a socketpair: the caller has one end, the vif the other; one message is one
frame.
"""

import asyncio
import socket
from contextlib import suppress

from netback.abi import virtio_net
from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.socket import SocketPeer
from netback.errors import GoneError
from netback.net.base import Linkless
from netback.net.buffers import BURSTS, drain, make_room

MAX_FRAME = 65536 + 512
"""Bytes: FRAME_BYTES of dataplane/peers/peer.pxd."""


class PythonNetwork(Linkless):
    """Joins Python code to a vif: `await recv()` returns the guest's frames, `await send(frame)` sends frames to the
    guest.

    Frames are plain, complete Ethernet frames. With `vnet_hdr` a virtio_net_hdr (10 bytes, abi.virtio_net.HEADER)
    precedes each of them; such a frame may have 64 KiB and request checksums and segmentation. `socket` is the caller's
    end, non-blocking, for code with its own event loop.
    """

    def __init__(self, name: str = "python", *, vnet_hdr: bool = False) -> None:
        self.name = name
        self.socket, self._near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.socket, self._near):
            end.setblocking(False)
            make_room(end, BURSTS, BURSTS)
        self._least = virtio_net.HEADER.size + 1 if vnet_hdr else 1
        caps = EVERYTHING if vnet_hdr else 0
        peer = SocketPeer(self._near.fileno(), vnet_hdr=vnet_hdr, caps=caps, owner=self._near)
        self.peers = (peer,)

    async def recv(self) -> bytes:
        """The next frame from the guest. EOFError: the vif's end is closed and every frame was read."""
        frame = await asyncio.get_running_loop().sock_recv(self.socket, MAX_FRAME + virtio_net.HEADER.size)
        if not frame:
            raise EOFError(f"{self.name}: the vif's end is closed")
        return frame

    async def send(self, frame: bytes) -> None:
        """Send the guest a frame; waits until there is room for it.

        BrokenPipeError: the vif's end is closed. ValueError: the frame is empty.
        """
        if len(frame) < self._least:
            raise ValueError(f"{self.name}: the frame is empty, which would end the connection")
        await asyncio.get_running_loop().sock_sendall(self.socket, frame)

    @property
    def up(self) -> bool:
        """Whether the caller's end is open."""
        with suppress(BlockingIOError):
            return self._near.fileno() >= 0 and bool(self._near.recv(1, socket.MSG_PEEK))
        return True

    def check(self) -> bool:
        """GoneError: the caller's end is closed. The pair cannot be joined again."""
        if self._near.fileno() >= 0 and not self.up:
            raise GoneError(f"{self.name}: its far end is closed")
        return False

    def offloads(self, caps: int) -> None:
        """Does nothing: no kernel is involved. The data plane completes and segments what the guest cannot accept."""

    def drain(self) -> int:
        """Discard the frames that were sent before the guest connected."""
        return drain(self._near)

    def drops(self) -> dict[str, int]:
        """No frame is lost here: `send` waits."""
        return {}

    def close(self) -> None:
        """Close the vif's end: `recv` then raises EOFError once everything is read."""
        self._near.close()

    def remove(self) -> None:
        """Close both ends. A task in `recv` would wait for ever, so call `close` first and let it read EOFError."""
        self.close()
        self.socket.close()
