# SPDX-License-Identifier: Apache-2.0
"""Socket buffers for peers: sized for bursts of 64 KiB frames, and drained of stale frames."""

import socket

BURSTS = 8 << 20
"""Bytes for two bursts of 64 KiB frames, in the kernel's accounting, overhead included."""

MAX_DRAIN = 65536
"""Maximum frames that one drain discards: a network that never stops sending must not block a connect."""

HEAD = 16
"""Bytes read of each discarded frame: the minimum for a packet socket is the virtio_net_hdr."""

SIZES = ((socket.SO_RCVBUF, 33), (socket.SO_SNDBUF, 32))
"""asm-generic/socket.h: each option and its *FORCE, which passes net.core.[rw]mem_max but needs CAP_NET_ADMIN."""


def make_room(sock: socket.socket, receive: int, send: int) -> None:
    """Set a socket's buffer sizes in bytes, or the largest that this process may have."""
    for (plain, forced), wanted in zip(SIZES, (receive, send), strict=True):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, wanted)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, wanted)


def drain(sock: socket.socket) -> int:
    """Discard the messages queued in a socket, at most MAX_DRAIN; return their number."""
    count = 0
    for _ in range(MAX_DRAIN):
        try:
            if not sock.recv(HEAD, socket.MSG_DONTWAIT) and sock.type == socket.SOCK_SEQPACKET:  # its end
                break
            count += 1
        except BlockingIOError:
            break
        except OSError:  # ENETDOWN, EINVAL (GSO beyond virtio_net_hdr): each reported once
            continue
    return count
